"""Logging: console and rotating file, each line with time, level and component; repeats are counted."""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import sys
from pathlib import Path
from typing import TextIO

from gpu_monitor.config.load import environment
from gpu_monitor.config.model import Logging
from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import ConfigError
from gpu_monitor.core.times import format_time

_REPEAT_SECONDS = 3600.0
ONCE = {"is_held_back": True}
"""`extra` of a message below WARNING that is to be held back like one, because somebody can ask for it in a loop."""
_SECRET = re.compile(
    r"(?i)(bearer\s+|token[=:]\s*)[^\s,;\"']+|(://[^/\s:@]+:)[^/\s@]+(?=@)|(\bgpm_)[A-Za-z0-9_-]{43}|([?&]code=)[^\s&]+"
)


def hide_secrets(text: str) -> str:
    """`text` with anything that looks like a token or a password replaced by ***."""
    return _SECRET.sub(lambda found: "".join(part for part in found.groups() if part) + "***", text)


class Repeats(logging.Filter):
    """Lets a message through once an hour; the next one that passes tells how often it was held back."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written."""
        if record.levelno < logging.WARNING and not getattr(record, "is_held_back", False):
            return True
        key = (record.name, record.levelno, record.getMessage())
        now = self._clock.monotonic()
        first, count = self._seen.get(key, (now, -1))
        if count >= 0 and now - first < _REPEAT_SECONDS:
            self._seen[key] = (first, count + 1)
            return False
        if count > 0:
            record.msg = f"{record.getMessage()} (and {count} times before)"
            record.args = ()
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[key] = (now, 0)
        return True


class Lines(logging.Formatter):
    """`2024-03-20T14:30:00+00:00 WARNING collect: message`, coloured on a terminal."""

    def __init__(self, colours: dict[int, str] | None = None, reset: str = "") -> None:
        super().__init__()
        self._colours = colours or {}
        self._reset = reset

    def format(self, record: logging.LogRecord) -> str:
        """One line (more with a traceback)."""
        text = hide_secrets(record.getMessage())
        if record.exc_info:
            text += "\n" + hide_secrets(self.formatException(record.exc_info))
        colour = self._colours.get(record.levelno, "")
        level = f"{colour}{record.levelname}{self._reset if colour else ''}"
        return f"{format_time(int(record.created), False)} {level} {record.name}: {text}"


class JsonLines(logging.Formatter):
    """One JSON object a line: timestamp, level, component, experiment_id, message."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        text = hide_secrets(record.getMessage())
        if record.exc_info:
            text += "\n" + hide_secrets(self.formatException(record.exc_info))
        return json.dumps(
            {
                "timestamp": format_time(round(record.created, 3)),
                "level": record.levelname,
                "component": record.name,
                "experiment_id": getattr(record, "experiment_id", None),
                "message": text,
            },
            ensure_ascii=False,
        )


def wants_colour(stream: TextIO) -> bool:
    """A terminal, and nobody said NO_COLOR."""
    return stream.isatty() and environment("NO_COLOR") is None


def _console(settings: Logging, stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    if settings.format == "json":
        handler.setFormatter(JsonLines())
    elif wants_colour(stream):
        import colorama  # only where there is a terminal to colour

        colorama.just_fix_windows_console()
        fore = colorama.Fore
        colours = {
            10: fore.CYAN,
            20: fore.GREEN,
            30: fore.YELLOW,
            40: fore.RED,
            50: fore.RED + colorama.Style.BRIGHT,
        }
        handler.setFormatter(Lines(colours, colorama.Style.RESET_ALL))
    else:
        handler.setFormatter(Lines())
    return handler


def be_quiet() -> None:
    """Log nowhere: for commands that print one result and say themselves what they miss."""
    logging.getLogger().addHandler(logging.NullHandler())


def set_up(settings: Logging, file: Path | None, level: str | None, verbose: bool) -> None:
    """Log to stderr and, where one is set, to a rotating file; ConfigError where that cannot be opened.

    `level` beats the setting; `verbose` makes the console DEBUG. Called again, what has been said stays said.
    """
    chosen = level or settings.level
    logging.raiseExceptions = False  # a full disk under the log file must not flood the console
    root = logging.getLogger()
    known, before = _repeats(root), root.handlers[:]
    root.handlers.clear()
    root.setLevel(logging.DEBUG if verbose else chosen)
    console = _console(settings, sys.stderr)
    console.setLevel(logging.DEBUG if verbose else chosen)
    console.addFilter(known.get(False) or Repeats(SystemClock()))
    root.addHandler(console)
    for noisy in ("apscheduler", "urllib3", "requests", "asyncio", "tzlocal"):
        logging.getLogger(noisy).setLevel(logging.ERROR if noisy == "apscheduler" else logging.WARNING)
    if file is not None:
        rotating = _rotating(settings, file, chosen)
        rotating.addFilter(known.get(True) or Repeats(SystemClock()))
        root.addHandler(rotating)
    for handler in before:
        if isinstance(handler, logging.FileHandler):
            handler.close()  # one line may be lost that was being written when the signal came


def _repeats(root: logging.Logger) -> dict[bool, Repeats]:
    """What the handlers so far have said: of the file (True) and of the console (False)."""
    return {
        isinstance(handler, logging.FileHandler): one
        for handler in root.handlers
        for one in handler.filters
        if isinstance(one, Repeats)
    }


def _rotating(settings: Logging, file: Path, level: str) -> logging.Handler:
    try:
        handler = logging.handlers.RotatingFileHandler(
            file,
            maxBytes=settings.max_mb * 1_000_000,
            backupCount=settings.backups,
            encoding="utf-8",
            delay=False,
        )
    except OSError as error:
        raise ConfigError(
            f"cannot write the log file {file}: {error.strerror}", "Set logging.file, or null for none."
        ) from error
    handler.setFormatter(JsonLines() if settings.format == "json" else Lines())
    handler.setLevel(level)
    return handler
