"""`--list-sends` and `--search-send`: prints how delivery stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TextIO

from gpu_monitor.agent.sends import SendRow
from gpu_monitor.cli.output import json_text
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.core.times import format_time

_HEADER = "Aggregation Time | Attempts | First Attempt | Last Attempt | Last Error | UID | Sent"

_STANDINGS = {
    "sent": "delivered",
    "pending": "waiting",
    "rejected": "rejected (resend --rejected)",
    "parked": "parked",
}
"""What a report's state means to people; parked ones are tried again by themselves."""


def print_list(
    rows: Sequence[SendRow], stream: TextIO, *, naive: bool = False, as_json: bool = False
) -> None:
    """One line per period, newest first; title and header stand also where there is none."""
    if as_json:
        lines = ",\n".join(json_text(_record(row, naive)) for row in rows)
        stream.write(f"[\n{lines}\n]\n" if rows else "[]\n")
        return
    stream.write(f"Send Attempts:\n{_HEADER}\n")
    stream.writelines(" | ".join(_cells(row, naive)) + "\n" for row in rows)


def summary(rows: Sequence[SendRow], has_server: bool) -> str:
    """How all periods stand, in a line: `21 delivered, 2 waiting, 1 rejected (resend --rejected), 1 parked`."""
    counts = Counter(row.state for row in rows)
    parts = [f"{counts[state]} {words}" for state, words in _STANDINGS.items() if counts[state]]
    if has_server:
        return ", ".join(parts) or "no period is closed yet: nothing is owed"
    return ", ".join(parts) + ("; " if parts else "") + "no server is configured: nothing is sent"


def print_detail(row: SendRow, stream: TextIO, *, naive: bool = False, as_json: bool = False) -> None:
    """The delivery of one period, a line per column."""
    if as_json:
        stream.write(json_text(_record(row, naive)) + "\n")
        return
    names = _HEADER.split(" | ")
    lines = (f"{name}: {cell}\n" for name, cell in zip(names, _cells(row, naive), strict=True))
    stream.write("Send Attempt Details:\n" + "".join(lines))


def _cells(row: SendRow, naive: bool) -> list[str]:
    return [
        _time(row.period, naive) or "",
        str(row.attempts),
        _time(row.first_attempt, naive) or "None",
        _time(row.last_attempt, naive) or "None",
        _cell(row.last_error),
        _cell(row.uid),
        "1" if row.sent else "0",
    ]


@lru_cache(maxsize=256)
def _cell(text: str | None) -> str:
    """One line a period: what a server wrote into its answer must not look like a row or a column."""
    return "None" if text is None else " ".join(clean(text).replace("|", "/").split())


def _time(epoch: float | None, naive: bool) -> str | None:
    """Whole seconds, as they can be typed back."""
    if epoch is None:
        return None
    if naive:
        return format_time(int(epoch), naive)
    # The same text as format_time's, in a tenth of the time: a year's list holds 26,000 of them.
    day, second = divmod(int(epoch), 86400)
    return _date(day) + _clock(second)


@lru_cache(maxsize=1024)
def _date(day: int) -> str:
    return format_time(day * 86400)[:-14]


@lru_cache(maxsize=4096)
def _clock(second: int) -> str:
    """A node sends at its own second of each hour, so few of these are needed."""
    return format_time(second)[-14:]


def _record(row: SendRow, naive: bool) -> dict[str, Any]:
    return {
        "aggregation_time": format_time(row.period, naive),
        "period_seconds": row.period_seconds,
        "attempts": row.attempts,
        "first_attempt": _time(row.first_attempt, naive),
        "last_attempt": _time(row.last_attempt, naive),
        "last_error": row.last_error,
        "uid": row.uid,
        "sent": int(row.sent),
        "state": row.state,
        "revision": row.revision,
        "proof": row.proof,
    }
