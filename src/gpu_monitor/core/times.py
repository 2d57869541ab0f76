# SPDX-License-Identifier: MIT
"""Times as people type and read them, to UTC epoch seconds and back. Pure: `now` is an argument."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from gpu_monitor.core.errors import UsageError

_RELATIVE = re.compile(r"^(?:-\s*(?P<a>.+)|(?P<b>.+?)\s+ago|\+\s*(?P<c>.+))$", re.IGNORECASE)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_UNITS = {
    "s": 1, "sec": 1, "secs": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "mins": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
    "w": 604800, "week": 604800, "weeks": 604800,
}  # fmt: skip
_EXAMPLES = "2024-03-20T14:30:00+00:00, '2024-03-20 14:30', 2024-03-20, -2h, '2h ago', yesterday"


@dataclass(frozen=True)
class Moment:
    """A typed time. `candidates` has two entries where the clock was put back (both hours are meant).

    `full_hour`: minutes and seconds are zero as typed, so the aggregates of that period are asked for.
    """

    candidates: tuple[float, ...]
    full_hour: bool

    @property
    def epoch(self) -> float:
        """The first candidate, UTC epoch seconds."""
        return self.candidates[0]


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `5m`, `2h30m`, `7 days`; UsageError otherwise."""
    stripped = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", stripped):
        return float(stripped)
    total, end = 0.0, 0
    for match in _PART.finditer(stripped):
        unit = _UNITS.get(match[2].lower())
        if unit is None or stripped[end : match.start()].strip(" ,"):
            break
        total, end = total + float(match[1]) * unit, match.end()
    if end == 0 or stripped[end:].strip():
        raise UsageError(f"cannot read the duration {text!r}", "Try 30s, 5m, 2h, 7d or 2h30m.")
    return total


def _relative(text: str, now: float) -> float | None:
    lowered = text.lower()
    if lowered == "now":
        return now
    match = _RELATIVE.match(text)
    if match is None:
        return None
    amount = match["a"] or match["b"] or match["c"]
    try:
        seconds = parse_duration(amount)
    except UsageError:
        return None
    return now + seconds if match["c"] else now - seconds


def _day(text: str, now: float) -> datetime | None:
    days = {"today": 0, "yesterday": 1, "tomorrow": -1}.get(text.lower())
    if days is None:
        return None
    local = datetime.fromtimestamp(now)  # noqa: DTZ006 - people mean their own day
    return local.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days)


def _iso(text: str) -> datetime | None:
    cleaned = re.sub(r"[zZ]$", "+00:00", text.strip().replace("/", "-"))
    cleaned = re.sub(r"([+-]\d{2})(\d{2})$", r"\1:\2", cleaned) if ":" in cleaned else cleaned
    cleaned = re.sub(r"\s+([+-]\d{2}:\d{2})$", r"\1", cleaned)
    # Python 3.10 takes exactly 3 or 6 decimals.
    cleaned = re.sub(r"\.(\d{1,9})", lambda m: "." + (m[1] + "000000")[:6], cleaned)
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}[T ]\d{2}", cleaned):
        cleaned += ":00"
    try:
        return datetime.fromisoformat(cleaned)
    except ValueError:
        return None


def local_candidates(naive: datetime) -> tuple[float, ...]:
    """The epochs a naive local time can mean: one, or two in the hour that a put-back clock repeats."""
    first = naive.replace(fold=0).timestamp()
    second = naive.replace(fold=1).timestamp()
    if second > first and datetime.fromtimestamp(second) == naive.replace(fold=0):  # noqa: DTZ006
        return (first, second)
    return (first,)


def parse_moment(text: str, now: float) -> Moment:
    """What `text` means at `now`: ISO (naive is local), date only, relative; UsageError otherwise."""
    stripped = text.strip()
    relative = _relative(stripped, now)
    if relative is not None:
        return Moment((relative,), full_hour=False)
    stamp = _day(stripped, now) or _iso(stripped)
    if stamp is None:
        raise UsageError(f"cannot read the time {text!r}", f"Examples: {_EXAMPLES}.")
    full = stamp.minute == 0 and stamp.second == 0 and stamp.microsecond == 0
    try:
        if stamp.tzinfo is not None:
            return Moment((stamp.timestamp(),), full)
        return Moment(local_candidates(stamp), full)
    except (OverflowError, ValueError, OSError) as error:
        raise UsageError(f"the time {text!r} is outside what this system can count", str(error)) from error


def parse_range(text: str, now: float) -> tuple[float, float] | None:
    """`A..B` as (start, end) epochs, either side may be empty; None where `text` is no range."""
    if ".." not in text:
        return None
    left, right = text.split("..", 1)
    start = parse_moment(left, now).candidates[0] if left.strip() else 0.0
    end = parse_moment(right, now).candidates[-1] if right.strip() else now
    if end < start:
        raise UsageError(f"the range {text!r} ends before it begins", "Write START..END.")
    return start, end


def format_time(epoch: float, naive: bool = False) -> str:
    """ISO 8601 in UTC with offset, or local without one; whole seconds where it is whole."""
    if naive:
        stamp = datetime.fromtimestamp(epoch)  # noqa: DTZ006 - --naive asks for local time
    else:
        stamp = datetime.fromtimestamp(epoch, timezone.utc)
    return stamp.isoformat(timespec="seconds" if epoch == int(epoch) else "milliseconds")


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `5 d 2 h`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 172800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
