"""Whether the server can do its work now: database, disk, writer, clock, each looked at and not supposed."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, select, text
from sqlalchemy.exc import SQLAlchemyError

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageError
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import changes

_LOG = logging.getLogger("server")
LEAST_FREE = 64 << 20
"""Bytes free on the disk of a SQLite database; below it a busy hour of a fleet may fill it."""
NEARLY_FULL = 1 << 30
"""Bytes free below which the log warns: weeks of a large fleet's hours, or minutes of a careless copy."""
_WATCH_SECONDS = 60.0
_PATIENCE_SECONDS = 3.0
"""Load balancers give up after about five."""
_FRESH_SECONDS = 2.0
"""Anybody may ask; the database is asked once in so long."""
_BEHIND_SECONDS = 120.0
_APART_SECONDS = 60.0
Look = Callable[[], str | None]
"""Tells what is wrong, in words that may be shown to anybody; None where nothing is."""


@dataclass(frozen=True)
class Report:
    """What is wrong with each thing that was looked at; None where nothing is."""

    found: dict[str, str | None]

    @property
    def is_ready(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.found.values())


class Readiness:
    """Looks when asked, in a thread of its own, one look at a time."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._looks: dict[str, Look] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._running: asyncio.Future[Report] | None = None
        self._last: tuple[float, Report] | None = None
        self._watching: asyncio.Task[None] | None = None

    def add(self, name: str, look: Look) -> None:
        """Look at this, too; it must answer at once."""
        self._looks[name] = look

    async def report(self) -> Report:
        """What is wrong now (at most two seconds ago); says so where the database does not answer in time."""
        moment = self._clock.monotonic()
        if self._last is not None and moment - self._last[0] < _FRESH_SECONDS:
            return self._last[1]
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().run_in_executor(self._threads, self._look)
        done, _ = await asyncio.wait((self._running,), timeout=_PATIENCE_SECONDS)
        if not done:
            return Report({"database": f"no answer for {_PATIENCE_SECONDS:g} s"})
        self._last = (self._clock.monotonic(), self._running.result())
        return self._last[1]

    def start(self) -> None:
        """Also look once a minute, and say in the log what has changed."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """Look at nothing any more."""
        if self._watching is not None:
            self._watching.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _watch(self) -> None:
        said: dict[str, str | None] = {}
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            found = (await self.report()).found
            for name in [name for name, trouble in found.items() if trouble and not said.get(name)]:
                _LOG.critical("the server cannot do its work: %s: %s", name, found[name])
            for name in [name for name in said if said[name] and not found.get(name, said[name])]:
                _LOG.info("%s is well again", name)
            if not found.get("disk") and self._is_nearly_full():
                _LOG.warning("the disk of %s has less than %d MiB left", self._store, NEARLY_FULL >> 20)
            said = {**said, **found}

    def _look(self) -> Report:
        found: dict[str, str | None] = {}
        try:
            with self._store.read() as connection:
                found["clock"] = self._clock_trouble(connection)
            self._write()
            found["database"] = None
        except (StorageError, SQLAlchemyError) as error:
            found["database"] = f"{type(error).__name__}: see the log of the server"
        found["disk"] = self._disk_trouble()
        for name, look in self._looks.items():
            found[name] = look()
        return Report(found)

    def _write(self) -> None:
        """A real write of one small row: a disk that is full or read-only refuses it."""
        with self._store.write() as connection:
            connection.execute(
                text(
                    "INSERT INTO versions (name, number) VALUES ('probe', 1)"
                    " ON CONFLICT (name) DO UPDATE SET number = (versions.number + 1) % 1000000"
                )
            )

    def _clock_trouble(self, connection: Connection) -> str | None:
        newest = connection.execute(select(changes.c.time).order_by(changes.c.seq.desc()).limit(1)).scalar()
        now = self._clock.now()
        if newest is not None and newest - now > _BEHIND_SECONDS:
            return f"{newest - now:.0f} s behind the newest commit"
        if connection.dialect.name == "postgresql":
            theirs = float(
                connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
            )
            if abs(theirs - now) > _APART_SECONDS:
                return f"{abs(theirs - now):.0f} s apart from the database's"
        return None

    def _disk_trouble(self) -> str | None:
        """What is wrong with the disk of a SQLite file; that of PostgreSQL is not ours to see."""
        try:
            free = self._free()
        except OSError as error:
            return f"cannot be looked at: {error.strerror}"
        if free is None or free >= LEAST_FREE:
            return None
        return f"{free >> 20} MiB free, fewer than {LEAST_FREE >> 20}"

    def _is_nearly_full(self) -> bool:
        try:
            free = self._free()
        except OSError:
            return False
        return free is not None and free < NEARLY_FULL

    def _free(self) -> int | None:
        """Bytes free for a SQLite file; None for PostgreSQL."""
        if self._store.dialect != "sqlite":
            return None
        return shutil.disk_usage(Path(str(self._store.url.database)).parent).free
