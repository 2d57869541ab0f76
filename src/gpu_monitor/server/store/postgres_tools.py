"""pg_dump, pg_restore and psql, where they are found: PostgreSQL's own tools for copies."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.engine import URL

from gpu_monitor.core.errors import StorageCorrupt, StorageError, StorageForeign
from gpu_monitor.server.store.migrate import VERSIONS
from gpu_monitor.server.store.schema_experiments import metadata

_MAGIC = b"PGDMP"


def is_dump(head: bytes) -> bool:
    """Whether a file that begins so is a dump in pg_dump's custom format."""
    return head.startswith(_MAGIC)


@contextlib.contextmanager
def dump(url: URL, target: Path, snapshot: str) -> Iterator[None]:
    """Let pg_dump write the database as `snapshot` shows it into `target`, while the body runs; whole at its end."""
    words = [_tool("pg_dump"), "--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}"]
    process = subprocess.Popen(
        [*words, f"--file={target}", f"--dbname={_bare(url)}"], env=_environment(url), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield
        said = process.communicate()[1]
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise StorageError(
            f"pg_dump failed: {_last(said)}", "See that it is of the server's version or newer."
        )


def read_through(source: Path) -> None:
    """Read every byte of a dump as restoring it would; StorageCorrupt where it is damaged."""
    words = [_tool("pg_restore"), "--file=-", str(source)]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StorageCorrupt(f"{source} is damaged: {_last(done.stderr)}", "Take another copy.")


def dumped_version(source: Path) -> str:
    """The version of the tables in a dump; StorageForeign where it is of another program."""
    words = [_tool("pg_restore"), "--file=-", "--data-only", f"--table={VERSIONS}", str(source)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StorageCorrupt(f"{source} is damaged: {_last(done.stderr)}", "Take another copy.")
    found = re.search(rf"^COPY \S*{VERSIONS} .*\n(\S+)\n", done.stdout, re.MULTILINE)
    if found is None:
        raise StorageForeign(f"{source} holds no server's database", "Name another file.")
    return found[1]


def restore_dump(url: URL, source: Path) -> None:
    """Replace the server's tables by those of the dump, in one transaction: all of it, or nothing.

    pg_restore makes the statements and psql runs them; pg_restore by itself cannot take away partitions.
    """
    script = subprocess.Popen(
        [_tool("pg_restore"), "--file=-", "--no-owner", "--no-privileges", str(source)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    words = [_tool("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=" + os.devnull]
    runner = subprocess.Popen(
        [*words, f"--dbname={_bare(url)}"], env=_environment(url), stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert script.stdout is not None
    assert runner.stdin is not None
    tables = ", ".join(f'"{name}"' for name in (*metadata.tables, VERSIONS))
    try:
        runner.stdin.write(f"BEGIN; DROP TABLE IF EXISTS {tables} CASCADE;\n".encode())
        shutil.copyfileobj(script.stdout, runner.stdin, 1 << 16)
        if script.wait() == 0:
            runner.stdin.write(b"\nCOMMIT;\n")  # without it the end of the statements undoes them
    except BrokenPipeError:
        script.kill()
    said = runner.communicate()[1] + script.communicate()[1]
    if script.returncode or runner.returncode:
        raise StorageError(
            f"the dump could not be restored, nothing was changed: {_last(said.decode(errors='replace'))}",
            "Mend that, then try again.",
        )


def _tool(name: str) -> str:
    """Where a tool is: on the path, or the newest where Debian keeps them."""
    found = shutil.which(name)
    if found is not None:
        return found
    kept = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    newest = max(kept, key=lambda path: int(path.parent.parent.name), default=None)
    if newest is None:
        raise StorageError(
            f"{name} is not on this machine, and copies of PostgreSQL are made with it",
            "Install PostgreSQL's client tools (postgresql-client), or copy the database with its own backups.",
        )
    return str(newest)


def _bare(url: URL) -> str:
    """The address without its password, which others may read in the list of processes."""
    secret = {"sslpassword"} & set(url.query)
    bare = url.set(drivername="postgresql", password=None).difference_update_query(secret)
    return bare.render_as_string(hide_password=False)


def _environment(url: URL) -> dict[str, str]:
    secret = {} if url.password is None else {"PGPASSWORD": str(url.password)}
    return {**os.environ, **secret}


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason"
