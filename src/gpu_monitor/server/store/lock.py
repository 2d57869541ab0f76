"""One server per SQLite file: a lock that its holder keeps for as long as it runs."""

from __future__ import annotations

import os
from pathlib import Path

from gpu_monitor.core.errors import StorageBusy
from gpu_monitor.storage.locks import FileLock, holder


def server_path(database: Path) -> Path:
    """The file that the one server of `database` keeps locked (the same through a link)."""
    real = database.resolve()
    return real.with_name(real.name + ".server")


class ServerLock:
    """Held from `acquire` to `close`; the system lets go of it when its holder dies."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._lock = FileLock(server_path(database))

    def acquire(self, timeout: float = 0.0) -> None:
        """Become the one server of the file; StorageBusy, naming who is, after `timeout` seconds."""
        try:
            self._lock.acquire(timeout)
        except StorageBusy:
            self._lock.close()
            raise StorageBusy(
                f"{self._database} is in use by process {holder(self._lock.path) or 'unknown'}",
                "One server at a time: stop that one, or name another file in DATABASE_URL.",
            ) from None
        self._lock.write_text(f"{os.getpid()}\n")

    def close(self) -> None:
        """Let go; harmless when not held."""
        self._lock.close()
