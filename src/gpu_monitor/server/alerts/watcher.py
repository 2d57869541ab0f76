"""The thread that leads, where this process is the one to lead, and wakes the engine."""

from __future__ import annotations

import logging
import threading

from sqlalchemy.exc import SQLAlchemyError

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageError
from gpu_monitor.server.alerts.engine import Engine
from gpu_monitor.server.live.newest import Newest
from gpu_monitor.server.store.leader import Leadership, LeadLost

_LOG = logging.getLogger("alerts")
_TURN_SECONDS = 1.0
"""At least so long between two turns: what comes meanwhile is judged together."""
_LOOK_SECONDS = 1.5
"""A process that does not lead tries so often; one that leads looks at rules and changes of other processes."""
_RETRY_SECONDS = 2.0
_STOP_SECONDS = 3.0
# What a mistake of ours may raise; the thread lives on and says so.
_UNFORESEEN = (
    SQLAlchemyError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
)


class Watcher:
    """Runs the engine for as long as this process leads."""

    def __init__(self, engine: Engine, lead: Leadership, clock: Clock, newest: Newest) -> None:
        self._engine, self._lead, self._clock = engine, lead, clock
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        self._is_complained = False
        newest.listen(lambda _: self._wake.set())

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; another process may lead at once."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if not self._lead.take():
                    self._clock.wait(self._stop, self._clock.monotonic() + _LOOK_SECONDS)
                    continue
                self._engine.lead()
                self._follow()
            except LeadLost:
                _LOG.warning("another server process watches now")
            except StorageError as error:
                if not self._is_complained:
                    _LOG.error("alerts are not watched now: %s; it is tried again", error.message)
                self._is_complained = True
                self._clock.wait(self._stop, self._clock.monotonic() + _RETRY_SECONDS)
            except _UNFORESEEN:
                _LOG.exception("watching failed; it is tried again")
                self._is_complained = True
                self._clock.wait(self._stop, self._clock.monotonic() + _RETRY_SECONDS)
            self._lead.give_up()

    def trouble(self) -> str | None:
        """What keeps alerts from being watched; None where nothing does, or another process watches."""
        return "not watched now: see the log of the server" if self._is_complained else None

    def _follow(self) -> None:
        while not self._stop.is_set() and self._lead.confirm():
            self._wake.clear()
            until = self._engine.turn()
            if self._is_complained:
                self._is_complained = False
                _LOG.info("alerts are watched again")
            begun = self._clock.monotonic()
            rest = min(_LOOK_SECONDS, max(0.0, until - self._clock.now()))
            self._clock.wait(self._stop, begun + min(rest, _TURN_SECONDS))
            self._clock.wait(self._wake, begun + rest)
