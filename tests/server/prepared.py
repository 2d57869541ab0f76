"""The SQLite database of a server that was started before: made once by this process, then only copied."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from pathlib import Path

from gpu_monitor.server.store.engine import open_store


@functools.cache
def empty_database() -> bytes:
    """A SQLite file with every table and no row."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "server.db"
        open_store(f"sqlite:///{path}").close()
        return path.read_bytes()


def prepare(path: Path) -> None:
    """Put such a file at `path` unless something is there."""
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(empty_database())
