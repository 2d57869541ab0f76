"""The thread that keeps what is held in memory about rights true, and writes down what tokens were used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageError
from gpu_monitor.server.auth.sessions import SessionBook
from gpu_monitor.server.auth.tokens import TokenBook
from gpu_monitor.server.auth.versions import read_version
from gpu_monitor.server.store.engine import Store

_LOG = logging.getLogger("auth")
_LOOK_SECONDS = 0.5
"""So a token that was revoked on the command line or in another process is refused within a second."""
_WRITE_SECONDS = 60.0


class AuthUpkeep:
    """Looks twice a second whether a right was taken away, by whomever, and then drops what is held."""

    def __init__(self, store: Store, clock: Clock, tokens: TokenBook, sessions: SessionBook) -> None:
        self._store, self._clock = store, clock
        self._tokens, self._sessions = tokens, sessions
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="auth-upkeep", daemon=True)
        self._version: int | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after writing down what was used."""
        self._stop.set()
        self._thread.join(timeout=3.0)

    def look(self) -> None:
        """Drop what is held if a right was taken away since the last look."""
        with self._store.read() as connection:
            version = read_version(connection)
        if version != self._version:
            self._tokens.forget()
            self._sessions.forget()
            self._version = version

    def _run(self) -> None:
        due = self._clock.monotonic() + _WRITE_SECONDS
        while not self._clock.wait(self._stop, self._clock.monotonic() + _LOOK_SECONDS):
            self._guarded(self.look)
            if self._clock.monotonic() >= due:
                due = self._clock.monotonic() + _WRITE_SECONDS
                self._guarded(self._tokens.write_uses)
                self._guarded(self._sessions.purge)
        self._guarded(self._tokens.write_uses)

    def _guarded(self, work: Callable[[], None]) -> None:
        """While the database is away nothing can be written anyhow; it is tried again at the next turn."""
        try:
            work()
        except (StorageError, SQLAlchemyError) as error:
            _LOG.warning("the access tables cannot be read or written now: %s", error)
