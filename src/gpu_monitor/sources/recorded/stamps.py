"""Times as logs write them, to UTC epoch seconds."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone, tzinfo

_STAMP = re.compile(
    r"(?P<minute>(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})[T ]+(\d{1,2}):(\d{2}))"
    r"(?::(?P<second>\d{2})(?:[.,](?P<part>\d{1,9}))?)?\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?$",
    re.IGNORECASE | re.ASCII,
)
_C_DATE = re.compile(
    r"[A-Z][a-z]{2} (?P<month>[A-Z][a-z]{2}) +(?P<day>\d{1,2}) (?P<time>\d{2}:\d{2}:\d{2})"
    r"(?: (?P<zone>UTC|GMT))? (?P<year>\d{4})$",
    re.ASCII,
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NUMBER = re.compile(r"\d{1,19}(?:\.\d+)?$", re.ASCII)
_EARLIEST, _LATEST = 631_152_000.0, 4_102_444_800.0  # 1990 and 2100: outside it is no time of a GPU log
_CACHED_MINUTES = 4096
_OWN_LENGTH = len("2026/04/25 16:06:06.780")
_SCALES = ((1e11, 1.0), (1e14, 1e-3), (1e17, 1e-6), (float("inf"), 1e-9))
"""Epoch numbers below the bound are in this part of a second: s, ms, us, ns."""
_RELATIVE_BELOW = 1e8  # three years: a number below is seconds since the log began

_DISORDER_SECONDS = 60.0
"""Rows of several GPUs may stand a little out of order; more is the clock that was put back."""


class StampReader:
    """Reads the times of one log.

    `zone` is of times written without one, None for this machine's; an offset or `Z` in the log wins.
    `start` is the epoch that numbers below three years count from; None refuses them.
    `imaginary` counts times that no clock of the zone showed (put forward over them).
    """

    def __init__(self, zone: tzinfo | None = None, start: float | None = None) -> None:
        self._zone = zone
        self._start = start
        self._minutes: dict[tuple[str, str | None], tuple[float, ...]] = {}
        self.imaginary = 0

    def candidates(self, text: str) -> tuple[float, ...]:
        """The epochs `text` can mean: none where it is no time, two in the hour a put-back clock repeats."""
        # nvidia-smi's own form, in a minute that was met before, is read without the pattern.
        if len(text) == _OWN_LENGTH and text[16] == ":" and text[19] == ".":
            known = self._minutes.get((text[:16], None))
            is_plain = text[17] < "6" and text[17:19].isdigit() and text[20:].isdigit()
            if is_plain and known is not None and len(known) == 1:
                return (known[0] + int(text[17:19]) + int(text[20:]) / 1000,)
        match = _STAMP.match(text)
        if match is None:
            return self._other(text)
        bases = self._base(match["minute"], match["zone"])
        second, part = match["second"], match["part"]
        if second is None:
            return bases
        offset = int(second) + (int(part) / 10 ** len(part) if part else 0.0)
        return tuple(base + offset for base in bases) if offset < 61 else ()

    def _base(self, minute: str, zone: str | None) -> tuple[float, ...]:
        key = (minute, zone)
        found = self._minutes.get(key)
        if found is None:
            if len(self._minutes) >= _CACHED_MINUTES:
                self._minutes.clear()
            found = self._minutes[key] = self._minute(minute, zone)
        return found

    def _minute(self, minute: str, zone: str | None) -> tuple[float, ...]:
        numbers = [int(n) for n in re.findall(r"\d+", minute)]
        try:
            naive = datetime(*numbers)  # type: ignore[arg-type]  # noqa: DTZ001 - its zone comes next
            epochs = (
                self._local(naive) if zone is None else (naive.replace(tzinfo=_offset(zone)).timestamp(),)
            )
        except (ValueError, OverflowError, OSError):
            return ()
        return epochs if all(_EARLIEST <= epoch <= _LATEST for epoch in epochs) else ()

    def _local(self, naive: datetime) -> tuple[float, ...]:
        first = naive.replace(tzinfo=self._zone, fold=0).timestamp()
        second = naive.replace(tzinfo=self._zone, fold=1).timestamp()
        if second > first:
            return (first, second)
        if second < first:
            self.imaginary += 1
        return (first,)

    def _other(self, text: str) -> tuple[float, ...]:
        if _NUMBER.match(text):
            return self._numeric(float(text))
        match = _C_DATE.match(text)
        if match is None or match["month"] not in _MONTHS:
            return ()
        month = _MONTHS.index(match["month"]) + 1
        written = f"{match['year']}/{month:02}/{int(match['day']):02} {match['time']}{match['zone'] or ''}"
        return self.candidates(written)

    def _numeric(self, number: float) -> tuple[float, ...]:
        if number < _RELATIVE_BELOW:
            return () if self._start is None else (self._start + number,)
        scale = next(scale for bound, scale in _SCALES if number < bound)
        epoch = number * scale
        return (epoch,) if _EARLIEST <= epoch <= _LATEST else ()


def _offset(zone: str) -> tzinfo:
    if zone.upper() in ("Z", "UTC", "GMT"):
        return timezone.utc
    digits = zone[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if zone[0] == "-" else offset)


def pick(candidates: tuple[float, ...], last_of_gpu: float | None, last_of_log: float | None) -> float:
    """Which of `candidates` a row means whose log goes forward in time.

    In the hour that a put-back clock repeats it is the first one until the log would go back; a log
    that begins, or has a hole, inside that hour is taken as its first pass.
    """
    if len(candidates) == 1:
        return candidates[0]
    if last_of_gpu is not None:
        return next((epoch for epoch in candidates if epoch > last_of_gpu), candidates[-1])
    if last_of_log is not None:
        floor = last_of_log - _DISORDER_SECONDS
        return next((epoch for epoch in candidates if epoch >= floor), candidates[-1])
    return candidates[0]
