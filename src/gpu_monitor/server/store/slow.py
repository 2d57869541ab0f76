"""Says in the log which statements took long: their text, never a value."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Engine, event

from gpu_monitor.core.clock import process_seconds

SLOW_SECONDS = 1.0
_LOG = logging.getLogger("database")
_SHOWN = 300


def note_statement(statement: str, seconds: float) -> None:
    """Warn of a statement that took longer than a second."""
    if seconds > SLOW_SECONDS:
        _LOG.warning("a statement took %.1f s: %s", seconds, " ".join(statement.split())[:_SHOWN])


def watch_slow(target: Engine | type[Engine] = Engine) -> None:
    """Warn from now on of every statement that takes longer than a second: of one engine, or of all there are."""

    def before(
        connection: Any, _cursor: Any, _statement: str, _values: Any, _context: Any, _many: bool
    ) -> None:
        connection.info["began"] = process_seconds()

    def after(
        connection: Any, _cursor: Any, statement: str, _values: Any, _context: Any, _many: bool
    ) -> None:
        note_statement(statement, process_seconds() - connection.info["began"])

    event.listen(target, "before_cursor_execute", before)
    event.listen(target, "after_cursor_execute", after)
