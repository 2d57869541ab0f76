"""Makes SQLite databases in a folder, and dies by SIGKILL at each statement of that in turn.

Run as a program of its own (`migrating.py FOLDER [VERSION]`), for a test's process has threads and must not fork.
With a version each begins with the tables of that version and a row in them; else with nothing.
Prints one JSON line for each statement: how the child ended, how many tables the file had then, and how many
after it was opened again; the last line is of one file for all the kills together.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

# Loaded here once, not by each child.
import alembic.operations
import alembic.script  # noqa: F401
from sqlalchemy import Engine, event

from gpu_monitor.server.store import migrate
from gpu_monitor.server.store.engine import open_store


def open_until(path: Path, last: int) -> int:
    """Open the database; die before statement or commit number `last` (0: never). How many there were."""
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made == last:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)
    open_store(f"sqlite:///{path}").close()
    return made


def in_child(path: Path, last: int) -> str:
    """The same in a child: `killed`, or how many statements there were."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(open_until(path, last)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else said


def tables(path: Path) -> int:
    """How many tables a SQLite file has; 0 where there is no file."""
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(
            connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
        )


def make_older(folder: Path, version: str) -> Path:
    """A file with the tables of `version`, as the program of then made it, and a row."""
    older = folder / "older"
    (older / "versions").mkdir(parents=True)
    for name in migrate.REVISIONS[: migrate.REVISIONS.index(version) + 1]:
        (script,) = (migrate.SCRIPTS / "versions").glob(f"r{name}_*.py")
        shutil.copy(script, older / "versions")
    path, newest = folder / "older.db", (migrate.SCRIPTS, migrate.REVISIONS)
    migrate.SCRIPTS, migrate.REVISIONS = older, (version,)
    with contextlib.closing(open_store(f"sqlite:///{path}")) as store, store.write() as connection:
        connection.exec_driver_sql("INSERT INTO contracts (number) VALUES ('12345')")
    migrate.SCRIPTS, migrate.REVISIONS = newest
    return path


def main() -> None:
    """Fork, let die, look, open again."""
    folder = Path(sys.argv[1])
    older = make_older(folder, sys.argv[2]) if len(sys.argv) > 2 else None

    def begin(name: str) -> Path:
        path = folder / name
        if older is not None:
            shutil.copy(older, path)
        return path

    made = int(in_child(begin("count.db"), 0))
    one = begin("one.db")
    for last in range(1, made + 1):
        path = begin(f"{last}.db")
        how, left = in_child(path, last), tables(path)
        again = in_child(path, 0)
        print(json.dumps([last, how, left, again.isdigit(), tables(path)]))
        in_child(one, last)
    print(json.dumps([0, in_child(one, 0), 0, True, tables(one)]))


if __name__ == "__main__":
    main()
