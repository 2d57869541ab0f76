"""What the person who starts the server on loopback gets without asking: a token in a file, a link to the pages."""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import socket
from pathlib import Path

from sqlalchemy import Connection, delete

from gpu_monitor.config.local import read_lines
from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import ConfigError, StorageError
from gpu_monitor.server.auth.tokens import Grant, create_token
from gpu_monitor.server.auth.versions import raise_version
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import tokens
from gpu_monitor.storage.locks import FileLock

_LOG = logging.getLogger("auth")
_SCOPES = frozenset(("report:write", "experiment:write", "read"))
"""Not admin: whoever listens on the port after the server died would be shown this token by the user's agent.
Each start takes the place of the one before."""
_LOCK_SECONDS = 5.0
_LINK_SECONDS = 3600.0


class LocalToken:
    """Keeps this server's line in `local.token` for as long as the server runs."""

    def __init__(self, store: Store, clock: Clock, address: str, path: Path) -> None:
        self._store, self._clock, self._address, self._path = store, clock, address, path
        self._name = f"local {socket.gethostname()} {address}"

    def start(self) -> None:
        """Make the token, in place of the one of an earlier run, and write it down."""
        now = self._clock.now()
        with self._store.write() as connection:
            self._delete(connection)
            made = create_token(connection, Grant(_SCOPES, name=self._name), now)
        try:
            self._write(made.secret)
        except (OSError, ConfigError, StorageError) as error:
            _LOG.warning("%s cannot be written, so agents of this user need a token: %s", self._path, error)

    def stop(self) -> None:
        """Take the line out of the file; the token goes, too."""
        with contextlib.suppress(OSError, ConfigError, StorageError):
            self._write(None)
        with contextlib.suppress(StorageError), self._store.write() as connection:
            self._delete(connection)

    def _delete(self, connection: Connection) -> None:
        if connection.execute(delete(tokens).where(tokens.c.name == self._name)).rowcount:
            raise_version(connection)

    def _write(self, token: str | None) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(self._path.with_name(self._path.name + ".lock"), self._clock)
        try:
            lock.acquire(_LOCK_SECONDS)
            try:
                lines = read_lines(self._path)
            except ConfigError:
                lines = {}  # others may have read it: its tokens are of no use to us either
            lines.pop(self._address, None)
            if token is not None:
                lines[self._address] = token
            fresh = self._path.with_name(self._path.name + ".new")
            fresh.unlink(missing_ok=True)
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(f"{address} {word}\n" for address, word in lines.items())
            fresh.replace(self._path)
        finally:
            lock.close()


class OneTimeLink:
    """A code that opens the pages once, as the person who started the server."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._code: str | None = None
        self._until = 0.0

    def make(self) -> str:
        """A new code, in place of one that was not used; it counts for an hour."""
        self._code, self._until = secrets.token_urlsafe(32), self._clock.monotonic() + _LINK_SECONDS
        return self._code

    def take(self, code: str) -> bool:
        """Whether this is the code; it is used up then."""
        held = self._code
        if held is None or self._clock.monotonic() > self._until:
            return False
        if not hmac.compare_digest(held.encode(), code.encode("utf-8", "replace")):
            return False
        self._code = None
        return True
