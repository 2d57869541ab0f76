"""Which of several server processes does what must be done once: the one that holds an advisory lock.

On SQLite there is one process. On PostgreSQL the lock belongs to a connection and is free the moment its
process is gone. A process that was cut off and believes it still leads is found out at its next write: each
one is fenced by the name of the newest leader in the database.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from gpu_monitor.server.store.alerts import read_state, write_state
from gpu_monitor.server.store.engine import Store

if TYPE_CHECKING:
    import psycopg

_LOG = logging.getLogger("alerts")
LEADER_LOCK = 0x6770756D6C64
"""The advisory lock of the leader: the letters gpumld."""
_KEY = "leader"


class LeadLost(Exception):
    """Another process leads now: nothing was written."""


class Leadership:
    """This process's claim. One thread takes and gives it up; `write` is for any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connection: psycopg.Connection[Any] | None = None
        self._name = ""

    @property
    def is_held(self) -> bool:
        """Whether this process leads, as far as it knows."""
        return bool(self._name)

    def take(self) -> bool:
        """Try to become the leader; whether this process is it now. StorageError while the database is away."""
        if self._name:
            return True
        if self._store.dialect == "postgresql" and not self._lock():
            return False
        name = str(uuid.uuid4())
        with self._store.write() as connection:
            write_state(connection, _KEY, name)
        self._name = name
        return True

    def confirm(self) -> bool:
        """Ask the connection that holds the lock whether it lives; the lead is given up where it does not."""
        if not self._name or self._connection is None:
            return bool(self._name)
        import psycopg

        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error as error:
            _LOG.warning("watching goes to another process: %s", str(error).strip().partition("\n")[0])
            self.give_up()
            return False
        return True

    def give_up(self) -> None:
        """Let another process lead."""
        self._name = ""
        if self._connection is not None:
            import psycopg

            # At once: where the connection only closes, the database lets go of the lock a moment later.
            with contextlib.suppress(psycopg.Error):  # one that is broken holds no lock
                self._connection.execute("SELECT pg_advisory_unlock(%s)", (LEADER_LOCK,))
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction that is committed only if this process still leads; LeadLost where it does not."""
        with self._store.write() as connection:
            if not self._name or read_state(connection, _KEY, hold=True) != self._name:
                raise LeadLost
            yield connection

    def _lock(self) -> bool:
        import psycopg  # only where the database is PostgreSQL

        try:
            if self._connection is None:
                self._connection = self._connect()
            row = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (LEADER_LOCK,)).fetchone()
        except psycopg.Error:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            return False
        return bool(row and row[0])

    def _connect(self) -> psycopg.Connection[Any]:
        import psycopg

        url = self._store.url
        positional, named = url.get_dialect()().create_connect_args(url)
        defaults = {
            "connect_timeout": 5,
            "application_name": "gpu_monitor watching",
            "keepalives_idle": 20,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }
        return psycopg.connect(*positional, **{**defaults, **named}, autocommit=True)
