"""What the GPUs of a node were used for over a span: the maths of `gpu_monitor report`.

Whole periods that are rolled up are taken from their aggregates (also of a year ago); rows are taken
for the pieces at the span's ends and for what is not rolled up yet. No moment is counted twice. By
user, rows are taken wherever they are still there, because only they know the minutes of an hour.
A row counts where its interval starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import ceil
from typing import Protocol

from gpu_monitor.agent.ask import Asked
from gpu_monitor.agent.tally import HOUR_SUMS, ROW_SUMS
from gpu_monitor.core.shares import Presence, Sighting, Users
from gpu_monitor.core.tally import Tally
from gpu_monitor.core.times import format_time
from gpu_monitor.storage.database import Row
from gpu_monitor.storage.tables import MAX_GPUS, key_floor, key_gpu, key_start

DAY = 86400
PLAYED = ("simulated", "replay")
"""Sources that are no GPUs of this world; never summed with the others."""
NOBODY_NAME, UNKNOWN_USER, NOT_RECORDED = "(nobody)", "(unknown user)", "(not recorded)"


class By(Enum):
    """What a line of a report is about."""

    GPU = "gpu"
    NODE = "node"
    USER = "user"
    DAY = "day"


class Store(Asked, Protocol):
    """What this module needs of a store."""

    def stream(self, sql: str, start: int, end: int, batch: int = 8192) -> Iterator[list[Row]]:
        """Batches of rows whose first column is an ascending key within [start, end)."""
        ...


@dataclass(frozen=True)
class Question:
    """One node over [since, until) (UTC epoch). `has_processes`: whether its process lists were recorded."""

    node: int
    since: float
    until: float
    by: By
    has_processes: bool = True


@dataclass(frozen=True)
class Gpu:
    """A GPU as the report names it."""

    uid: str
    origin: str
    """`real`, `simulated` or `replay`."""
    source: str
    name: str | None
    index: int | None
    parent_uid: str | None


@dataclass(frozen=True)
class Line:
    """One line: what it is about, what was recorded of it, and of how many possible GPU-seconds.

    `gpu` is set by GPU; `day` is the UTC midnight it starts at. `known` is what coverage is counted of.
    """

    key: str
    origin: str
    tally: Tally
    known: Tally
    possible: float
    gpu: Gpu | None = None
    day: int | None = None


@dataclass
class Usage:
    """The lines, one total per origin, and what a reader must know about them."""

    lines: list[Line] = field(default_factory=list)
    totals: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Span = tuple[int, int]


@dataclass
class _Cut:
    """Which parts of the span come from aggregates, which from rows; pieces that only an hour tells of."""

    hours: list[Span] = field(default_factory=list)
    rows: list[Span] = field(default_factory=list)
    lost: list[Span] = field(default_factory=list)


def usage(store: Store, question: Question) -> Usage:
    """The answer to a question; no lines where nothing is known of the span."""
    gpus = _gpus(store, question.node)
    start, end = ceil(question.since), ceil(question.until)
    by_user = question.by is By.USER
    cut = _cut(store, question.node, start, end, prefers_rows=by_user)
    presence = _presence(store, question, gpus) if by_user else None
    sums = _Sums(gpus, question, presence)
    for begin, finish in cut.hours:
        sums.add_hours(store, begin, finish)
    for begin, finish in cut.rows:
        if presence is not None:
            sums.add_single_rows(store, begin, finish, presence)
        else:
            sums.add_rows(store, begin, finish)
    result = Usage(notes=[_lost_note(piece) for piece in cut.lost])
    known = {gpus[number].uid: gpus[number] for number in sorted(gpus)}
    _fill(result, sums, question, known, _absent(store, question, known))
    return result


def _gpus(store: Asked, node: int) -> dict[int, Gpu]:
    rows = store.rows(
        'SELECT id, uid, source, name, "index", parent_uid FROM gpus WHERE node = ? ORDER BY id', (node,)
    )
    return {
        number: Gpu(uid, source if source in PLAYED else "real", source, name, index, parent)
        for number, uid, source, name, index, parent in rows
    }


def _cut(store: Asked, node: int, start: int, end: int, prefers_rows: bool) -> _Cut:
    """Cut [start, end) along the node's periods, so that each moment is taken once."""
    own = "gpu IN (SELECT id FROM gpus WHERE node = ?)"
    periods = store.rows(
        f"SELECT period, max(period_seconds), sum(samples) FROM aggregates WHERE {own} AND period < ?"
        " AND period > ? GROUP BY period HAVING period + max(period_seconds) > ? ORDER BY period",
        (node, end, start - DAY, start),
    )
    waiting = {
        row[0] for row in store.rows("SELECT start FROM periods WHERE node = ? AND dirty = 1", (node,))
    }
    cut, moment = _Cut(), start
    for period, seconds, samples in periods:
        finish = period + seconds
        is_whole = start <= period and finish <= end
        is_plain = is_whole and period not in waiting and not prefers_rows
        has_rows = not is_plain and _count_rows(store, node, period, finish) >= samples
        if is_whole and not has_rows:
            _append(cut.rows, moment, period)
            _append(cut.hours, period, finish)
            moment = finish
        elif not has_rows:
            cut.lost.append((max(start, period), min(end, finish)))
    _append(cut.rows, moment, end)
    return cut


def _append(spans: list[Span], start: int, end: int) -> None:
    """Add [start, end), joined with the last span where they touch."""
    if start >= end:
        return
    if spans and spans[-1][1] == start:
        spans[-1] = (spans[-1][0], end)
    else:
        spans.append((start, end))


def _count_rows(store: Asked, node: int, start: int, end: int) -> int:
    return int(
        store.value(
            f"SELECT count(*) FROM samples_raw WHERE id >= ? AND id < ? AND {_OF_NODE}",
            (key_floor(start), key_floor(end), node),
        )
    )


_OF_NODE = f"id & {MAX_GPUS - 1} IN (SELECT id FROM gpus WHERE node = ?)"


class _Sums:
    """Tallies by uid, origin and what the lines are about (a day, a set of users, or nothing)."""

    def __init__(self, gpus: Mapping[int, Gpu], question: Question, presence: Presence | None) -> None:
        self.tallies: dict[tuple[str, str, int | Users | None], Tally] = {}
        self._gpus = gpus
        self._question = question
        self._presence = presence

    def _tally(self, number: int, part: int | Users | None) -> Tally:
        gpu = self._gpus[number]
        return self.tallies.setdefault((gpu.uid, gpu.origin, part), Tally())

    def add_hours(self, store: Asked, start: int, end: int) -> None:
        """Take the aggregates of the periods in [start, end)."""
        by_day = self._question.by is By.DAY
        rows = store.rows(
            f"SELECT a.period, a.gpu, a.period_seconds, {', '.join(HOUR_SUMS)} FROM aggregates a"
            " WHERE a.period >= ? AND a.period < ? AND a.gpu IN (SELECT id FROM gpus WHERE node = ?)",
            (start, end, self._question.node),
        )
        for period, number, seconds, *sums in rows:
            if self._presence is not None:
                self._share(self._presence, number, (period, period + seconds), sums)
            else:
                self._tally(number, period // DAY * DAY if by_day else None).add(sums)

    def add_rows(self, store: Asked, start: int, end: int) -> None:
        """Take the rows of [start, end), day by day where the lines are days."""
        by_day = self._question.by is By.DAY
        sums = ", ".join(f"sum({column})" for column in ROW_SUMS)
        while start < end:
            finish = min(end, (start // DAY + 1) * DAY) if by_day else end
            rows = store.rows(
                f"SELECT r.id & {MAX_GPUS - 1}, {sums} FROM samples_raw r"
                f" WHERE r.id >= ? AND r.id < ? AND r.{_OF_NODE} GROUP BY 1",
                (key_floor(start), key_floor(finish), self._question.node),
            )
            for number, *found in rows:
                self._tally(number, start // DAY * DAY if by_day else None).add(found)
            start = finish

    def add_single_rows(self, store: Store, start: int, end: int, presence: Presence) -> None:
        """Take the rows of [start, end) one by one, each shared among the users who were there."""
        intervals = _intervals(store, self._question.node)
        sql = (
            f"SELECT r.id, {', '.join(ROW_SUMS)} FROM samples_raw r WHERE r.id >= ? AND r.id < ?"
            f" AND r.id & {MAX_GPUS - 1} IN (SELECT id FROM gpus WHERE node = {self._question.node})"
            " ORDER BY r.id LIMIT ?"
        )
        place = 0
        for batch in store.stream(sql, key_floor(start), key_floor(end)):
            for key, *sums in batch:
                begin = key_start(key)
                while place + 1 < len(intervals) and intervals[place + 1][0] <= begin:
                    place += 1
                self._share(presence, key_gpu(key), (begin, begin + intervals[place][1]), sums)

    def _share(self, presence: Presence, number: int, span: Span, sums: list[float]) -> None:
        for users, part in presence.parts(self._gpus[number].uid, *span):
            self._tally(number, users).add(sums, part)


def _intervals(store: Asked, node: int) -> list[tuple[float, int]]:
    """(since, interval seconds), ascending; of imported nodes one that holds for ever."""
    if node != 1:
        return [(0.0, 60)]
    found = store.rows("SELECT started, interval_seconds FROM runs ORDER BY started")
    return [(float(started), int(interval)) for started, interval in found] or [(0.0, 60)]


def _presence(store: Asked, question: Question, gpus: Mapping[int, Gpu]) -> Presence:
    intervals = _intervals(store, question.node)
    longest = max(interval for _, interval in intervals)
    rows = store.rows(
        "SELECT uid, coalesce(user, ?), first_seen, last_seen FROM processes"
        " WHERE node = ? AND last_seen >= ? AND first_seen < ?",
        (UNKNOWN_USER, question.node, question.since, question.until + max(longest, DAY)),
    )
    parents = {gpu.uid: gpu.parent_uid for gpu in gpus.values() if gpu.parent_uid is not None}
    return Presence(
        (Sighting(uid, user, first, last, _every(intervals, first)) for uid, user, first, last in rows),
        parents,
    )


def _every(intervals: list[tuple[float, int]], moment: float) -> float:
    found = intervals[0][1]
    for since, interval in intervals:
        if since <= moment:
            found = interval
    return float(found)


def _absent(store: Asked, question: Question, known: Mapping[str, Gpu]) -> set[str]:
    """GPUs that a gap of their own in the span names: they belong in the report though nothing was recorded."""
    rows = store.rows(
        'SELECT DISTINCT uid FROM gaps WHERE node = ? AND uid IS NOT NULL AND start < ? AND coalesce("end", ?) > ?',
        (question.node, question.until, question.until, question.since),
    )
    return {uid for (uid,) in rows if uid in known}


def _fill(result: Usage, sums: _Sums, question: Question, known: Mapping[str, Gpu], absent: set[str]) -> None:
    """Make lines of the tallies. MIG instances have lines of their own by GPU, and are no GPUs beside it."""
    length = max(0.0, question.until - question.since)
    found = {(uid, origin) for uid, origin, _ in sums.tallies}
    found |= {(uid, known[uid].origin) for uid in absent}
    uids = {uid for uid, _ in found}
    counted = {(uid, origin) for uid, origin in found if known[uid].parent_uid not in uids}
    for origin in sorted({origin for _, origin in found}, key=("real", *PLAYED).index):
        mine = sorted(uid for uid, own in counted if own == origin)
        total = Tally()
        for (uid, own, _), tally in sums.tallies.items():
            if own == origin and uid in mine:
                total.add(tally.values())
        whole = Line("total", origin, total, total, length * len(mine))
        result.totals.append(whole)
        if question.by is By.GPU:
            result.lines += _gpu_lines(
                sums, known, [u for u, own in sorted(found) if own == origin], whole, length
            )
        elif question.by is By.NODE:
            result.lines.append(Line("", origin, total, total, whole.possible))
        elif question.by is By.DAY:
            result.lines += _day_lines(sums, mine, whole, question)
        else:
            result.lines += _user_lines(sums, mine, whole, question.has_processes)


def _gpu_lines(
    sums: _Sums, known: Mapping[str, Gpu], uids: list[str], whole: Line, length: float
) -> list[Line]:
    lines = []
    for uid in sorted(uids, key=lambda one: (known[one].index is None, known[one].index or 0, one)):
        tally = sums.tallies.get((uid, whole.origin, None)) or Tally()
        lines.append(Line(uid, whole.origin, tally, tally, length, known[uid]))
    return lines


def _day_lines(sums: _Sums, uids: list[str], whole: Line, question: Question) -> list[Line]:
    """One line per UTC day, from the first with anything recorded to the end of the span."""
    days = [day for uid, own, day in sums.tallies if own == whole.origin and isinstance(day, int)]
    lines = []
    for day in range(min(days), ceil(question.until), DAY) if days else ():
        tally = Tally()
        for uid in uids:
            part = sums.tallies.get((uid, whole.origin, day))
            if part is not None:
                tally.add(part.values())
        seconds = min(question.until, day + DAY) - max(question.since, day)
        lines.append(Line("", whole.origin, tally, tally, seconds * len(uids), day=day))
    return lines


def _user_lines(sums: _Sums, uids: list[str], whole: Line, has_processes: bool) -> list[Line]:
    """One line per user, most GPU-hours first; the time nobody was there comes last."""
    tallies: dict[str, Tally] = {}
    rest = NOBODY_NAME if has_processes else NOT_RECORDED
    for (uid, own, users), tally in sums.tallies.items():
        if own != whole.origin or uid not in uids or not isinstance(users, frozenset):
            continue
        for name in users or (rest,):
            tallies.setdefault(name, Tally()).add(tally.values(), 1 / max(1, len(users)))
    names = sorted(tallies, key=lambda name: (name == rest, -tallies[name].recorded, name))
    return [Line(name, whole.origin, tallies[name], whole.tally, whole.possible) for name in names]


def _lost_note(piece: Span) -> str:
    from_to = f"{format_time(piece[0])} to {format_time(piece[1])}"
    return f"{from_to} is part of a period of which only the whole is kept; it is left out"
