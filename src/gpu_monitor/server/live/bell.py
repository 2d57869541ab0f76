"""Tells server processes on one PostgreSQL of each other's commits and viewers, on a connection of its own.

Nothing depends on a notification to arrive: each process also asks once a second.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gpu_monitor.core.clock import Clock
from gpu_monitor.server.live.newest import Newest
from gpu_monitor.server.live.watch import WatchList
from gpu_monitor.server.store.engine import Store

if TYPE_CHECKING:
    import psycopg

_LOG = logging.getLogger("live")
CHANNEL = "gpu_monitor_changes"
_NOTIFY_SECONDS = 0.2
"""At most five notifications a second, whatever is committed: each carries only the newest number."""
_POLL_SECONDS = 1.0
_REFRESH_SECONDS = 5.0
_LASTING_SECONDS = 15
"""A process that died watches for so long: three times the refresh."""
_RETRY_SECONDS = 2.0
_STOP_SECONDS = 1.0

_NEWEST = "SELECT coalesce(max(seq), 0) FROM changes"
_NOTIFY = "SELECT pg_notify(%s, %s)"
_NOW = "extract(epoch FROM clock_timestamp())"
_FORGET = f"DELETE FROM watches WHERE until < {_NOW} OR (process = %s AND NOT node = ANY(%s))"
_LOOK = (
    f"INSERT INTO watches (process, node, until) SELECT %s, node, {_NOW} + %s FROM unnest(%s::text[]) AS node"
    " ON CONFLICT (process, node) DO UPDATE SET until = excluded.until"
)
_ELSEWHERE = f"SELECT DISTINCT node FROM watches WHERE process <> %s AND until >= {_NOW}"


class Bell:
    """A thread and a connection per process. What breaks is mended; meanwhile the processes only poll."""

    def __init__(self, store: Store, newest: Newest, watch: WatchList, clock: Clock) -> None:
        self._store, self._newest, self._watch, self._clock = store, newest, watch, clock
        self._name = str(uuid.uuid4())
        self._stop = threading.Event()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="bell", daemon=True)
        self._committed = 0
        self._rung = 0
        self._is_broken = False
        watch.on_change(self._wake)

    def ring(self, seq: int) -> None:
        """Have the other processes told that this one committed changes up to `seq`. Any thread, at once."""
        if seq > self._committed:
            self._committed = seq
            self._wake()

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Let go of the connection; what this process watched ends with it."""
        self._stop.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._waker.close()
            self._woken.close()

    def _wake(self) -> None:
        # Full: it is about to wake anyhow. Closed: it has ended.
        with suppress(OSError):
            self._waker.send(b"\0")

    def _run(self) -> None:
        import psycopg  # only where the database is PostgreSQL

        while not self._stop.is_set():
            try:
                with self._connect() as connection:
                    self._is_broken = False
                    self._serve(connection)
            except psycopg.Error as error:
                if not self._is_broken:
                    line = str(error).strip().partition("\n")[0]
                    _LOG.warning("news of other server processes come late, by polling: %s", line)
                self._is_broken = True
                self._clock.wait(self._stop, self._clock.monotonic() + _RETRY_SECONDS)

    def _connect(self) -> psycopg.Connection[Any]:
        import psycopg

        url = self._store.url
        positional, named = url.get_dialect()().create_connect_args(url)
        defaults = {
            "connect_timeout": 5,
            "application_name": "gpu_monitor live",
            "keepalives_idle": 20,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }
        connection: psycopg.Connection[Any] = psycopg.connect(
            *positional, **{**defaults, **named}, autocommit=True
        )
        # Who watches may be forgotten in a crash: it is said again within seconds.
        connection.execute("SET synchronous_commit = off")
        connection.execute(f"LISTEN {CHANNEL}")
        return connection

    def _serve(self, connection: psycopg.Connection[Any]) -> None:
        # Not select(): beside a thousand sockets of clients, ours may have a number it cannot take.
        with selectors.DefaultSelector() as awaited:
            awaited.register(connection.fileno(), selectors.EVENT_READ)
            awaited.register(self._woken, selectors.EVENT_READ)
            self._exchange(connection, awaited)

    def _exchange(self, connection: psycopg.Connection[Any], awaited: selectors.BaseSelector) -> None:
        poll_at = notify_at = refresh_at = self._clock.monotonic()
        looked: frozenset[str] = frozenset()
        while not self._stop.is_set():
            now = self._clock.monotonic()
            if self._committed > self._rung and now >= notify_at:
                self._rung, notify_at = self._committed, now + _NOTIFY_SECONDS
                connection.execute(_NOTIFY, (CHANNEL, str(self._rung)))
            if now >= poll_at:
                poll_at = now + _POLL_SECONDS
                self._poll(connection)
            here = self._watch.here
            if here != looked or (here and now >= refresh_at):
                looked, refresh_at = here, now + _REFRESH_SECONDS
                self._look(connection, here)
            due = min(poll_at, notify_at) if self._committed > self._rung else poll_at
            awaited.select(max(0.0, due - self._clock.monotonic()))
            self._take_up(connection)
        self._look(connection, frozenset())

    def _poll(self, connection: psycopg.Connection[Any]) -> None:
        row = connection.execute(_NEWEST).fetchone()
        assert row is not None  # an aggregate always gives one
        self._newest.tell(row[0])
        self._watch.hear(row[0] for row in connection.execute(_ELSEWHERE, (self._name,)))

    def _look(self, connection: psycopg.Connection[Any], here: frozenset[str]) -> None:
        names = sorted(here)
        connection.execute(_FORGET, (self._name, names))
        if names:
            connection.execute(_LOOK, (self._name, _LASTING_SECONDS, names))

    def _take_up(self, connection: psycopg.Connection[Any]) -> None:
        """Take what has arrived: calls of this process, notifications of others."""
        with suppress(BlockingIOError):
            self._woken.recv(4096)
        # Also takes up those that came along with the answers to our own queries.
        for note in connection.notifies(timeout=0):
            if note.payload.isdecimal():
                self._newest.tell(int(note.payload))
