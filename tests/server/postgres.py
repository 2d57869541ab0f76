"""A private PostgreSQL cluster for tests: made from the system's own binaries, gone when the tests end."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.leftovers import MARK

_UNPRIVILEGED = "postgres"
"""PostgreSQL refuses to run as root; Debian's package makes this user."""
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "autovacuum_naptime": "5min",
    "log_min_messages": "warning",
    "lc_messages": "C",
}
_UNSYNCED = {"fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0"}
"""Where no power cut is tested: the system keeps what a killed server wrote."""
_MEMORY = Path("/dev/shm")
_ROOM = 4 << 30
"""Bytes that must be free there: some clusters run at a time, and each takes a few hundred MB at most."""
# Ends the server as its standard input says; where that ends without a word the tests were killed: all is removed.
# Nobody else may end it, or its folder would stay: it goes without the mark of the tests.
_WATCHED = """
folder=$1; shift
"$@" </dev/null & server=$!
read line || killed=yes
kill -"${line:-INT}" $server 2>/dev/null
wait $server
if [ -n "${killed:-}" ]; then rm -rf "$folder"; fi
"""


def binaries() -> Path | None:
    """The folder of the newest PostgreSQL (15 or newer) on this machine; None where there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    named = shutil.which("postgres")
    if not found and named is not None:
        return Path(named).resolve().parent
    newest = max(found, key=lambda path: int(path.parent.name), default=None)
    return newest if newest is not None and int(newest.parent.name) >= 15 else None


WHY_NOT = "" if binaries() else "there is no PostgreSQL 15 or newer here: install the package postgresql"
"""The reason to skip tests that need PostgreSQL; empty where it is installed."""


class Cluster:
    """One running cluster, reached through a socket in its folder."""

    def __init__(self, folder: Path, bin_folder: Path, *, fsync: bool = False) -> None:
        self.folder, self._bin, self._fsync = folder, bin_folder, fsync
        self._process: subprocess.Popen[bytes] | None = None
        self._number = itertools.count(1)
        self.log: list[str] = []

    def url(self, database: str = "postgres") -> str:
        """The DATABASE_URL of one of its databases."""
        return f"postgresql://gpu_monitor@/{database}?host={self.folder}"

    def initialise(self) -> None:
        """Make the cluster's files."""
        self._run(
            "initdb",
            "-D",
            self._data,
            "-U",
            "gpu_monitor",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "-N",
        )

    def start(self) -> None:
        """Start it and return when it takes connections."""
        settings = {
            **_SETTINGS,
            "unix_socket_directories": str(self.folder),
            **({} if self._fsync else _UNSYNCED),
        }
        words = [f"-c{name}={value}" for name, value in settings.items()]
        self._process = subprocess.Popen(
            ["sh", "-c", _WATCHED, "sh", self.folder, self._bin / "postgres", "-D", self._data, *words],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=self.folder,
            env={name: value for name, value in os.environ.items() if name != MARK}, **_identity(),
        )  # fmt: skip
        ready = threading.Event()
        threading.Thread(target=self._listen, args=(self._process, ready), daemon=True).start()
        assert ready.wait(60), "\n".join(self.log)
        assert self._process.poll() is None, "\n".join(self.log)

    def _listen(self, process: subprocess.Popen[bytes], ready: threading.Event) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line.decode(errors="replace").rstrip())
            if b"ready to accept connections" in line:
                ready.set()
        process.stderr.close()
        ready.set()

    def stop(self, signal: str = "INT") -> None:
        """End it: INT in order, breaking connections off; QUIT as a crash would; returns when it is gone."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(f"{signal}\n".encode())
                self._process.stdin.flush()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait(60)
            self._process = None

    def create(self, template: str = "template0") -> str:
        """Make a database and return its DATABASE_URL."""
        name = f"test_{next(self._number)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database that `create` made, whoever is still connected to it."""
        name = url.partition("?")[0].rpartition("/")[2]
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Run one statement as the cluster's owner."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *words: str | Path) -> None:
        made = subprocess.run(
            [self._bin / program, *words], cwd=self.folder, capture_output=True, text=True, check=False, **_identity()
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr


def _identity() -> dict[str, str | list[str]]:
    """Who runs it, as Popen takes it: ourselves, or the unprivileged user where we are root."""
    if os.geteuid() != 0:
        return {}
    return {"user": _UNPRIVILEGED, "group": _UNPRIVILEGED, "extra_groups": []}


@contextlib.contextmanager
def running_cluster(*, fsync: bool = False) -> Iterator[Cluster]:
    """A running cluster in a folder of its own, which the unprivileged user can reach; removed at the end."""
    bin_folder = binaries()
    assert bin_folder is not None, WHY_NOT
    # A database is some hundred files, and hundreds of tests make one: in memory that costs no disk its time.
    has_room = _MEMORY.is_dir() and not fsync and shutil.disk_usage(_MEMORY).free >= _ROOM
    folder = Path(tempfile.mkdtemp(prefix="gpumon-pg-", dir=_MEMORY if has_room else None))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _UNPRIVILEGED, _UNPRIVILEGED)
        cluster = Cluster(folder, bin_folder, fsync=fsync)
        cluster.initialise()
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
