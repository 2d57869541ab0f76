"""Experiments that somebody watches: how they stand, and the points that came since, each turn's kept for a while.

`Reader` asks the database, in the thread of the live pages; `Runs` is what the event loop sends from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from gpu_monitor.server.live.messages import Subscription
from gpu_monitor.server.store.schema_experiments import INFINITY, NAN, experiments, points, series
from gpu_monitor.server.store.values import stamp

_SERIES_POINTS, _TURN_POINTS = 2_000, 20_000
"""New points of one metric, and of one experiment, in one turn; where there are more, clients ask for the history."""
_KEPT_POINTS = 50_000
"""Of one experiment, for viewers that are slow."""
_NEAR = 1_000
"""Steps around the last one known in which new points are looked for: ranks log side by side, none far ahead."""
_TEXTS = {NAN: "NaN", INFINITY: "Infinity"}
_FIELDS = (
    "id",
    "uid",
    "contract",
    "name",
    "status",
    "lease",
    "ended",
    "last_step",
    "last_time",
    "points",
    "revision",
)
_ASKED = select(*(experiments.c[name] for name in _FIELDS)).where(experiments.c.removed.is_(None))
_SERIES = select(
    series.c.id, series.c.name, series.c.points, series.c.last_step, series.c.last_time, series.c.last_value,
    series.c.last_special,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Points:
    """New points of a metric, in the order in which they came; `first` counts all of the metric's from 0."""

    first: int
    step: list[int]
    time: list[float]
    value: list[float | str | None]


@dataclass(frozen=True, slots=True)
class RunNews:
    """How an experiment stands now, and what is new. `is_whole`: the last point of each metric, and nothing between."""

    uid: str
    number: int
    contract: int
    head: bytes
    points: dict[str, Points]
    is_whole: bool


@dataclass(slots=True)
class _Known:
    revision: int
    head: bytes
    counts: dict[int, int] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)


class Reader:
    """What was read of each watched experiment. One thread at a time."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def read(self, connection: Connection, wanted: frozenset[str], now: float) -> list[RunNews]:
        """The experiments among `wanted` that changed since the last time, or that were not wanted then."""
        self._known = {uid: known for uid, known in self._known.items() if uid in wanted}
        if not wanted:
            return []
        found = []
        for row in connection.execute(_ASKED.where(experiments.c.uid.in_(sorted(wanted)))).fetchall():
            head, known = _head(row, now), self._known.get(row.uid)
            if known is not None and known.revision == row.revision:
                if known.head != head:
                    found.append(RunNews(row.uid, row.id, row.contract, head, {}, is_whole=False))
                    known.head = head
                continue
            new = self._new(connection, row.id, known)
            if new is None:
                known = None
            if known is None:
                known = self._known[row.uid] = _Known(row.revision, head)
            rows = connection.execute(_SERIES.where(series.c.experiment == row.id)).fetchall()
            is_whole = new is None
            found.append(
                RunNews(row.uid, row.id, row.contract, head, _last(rows) if new is None else new, is_whole)
            )
            known.revision, known.head = row.revision, head
            known.counts = {one.id: one.points for one in rows}
            known.steps = {one.id: one.last_step for one in rows if one.last_step is not None}
        return found

    def _new(self, connection: Connection, experiment: int, known: _Known | None) -> dict[str, Points] | None:
        """The points that came since; None where they are too many, or not where new ones are looked for."""
        if known is None:
            return None
        found: dict[str, Points] = {}
        total = 0
        for one in connection.execute(_SERIES.where(series.c.experiment == experiment)).fetchall():
            before = known.counts.get(one.id, 0)
            count = one.points - before
            if count <= 0:
                continue
            total += count
            if count > _SERIES_POINTS or total > _TURN_POINTS:
                return None
            low = min(known.steps.get(one.id, one.last_step), one.last_step) - _NEAR
            held = points.c
            asked = select(held.ordinal, held.step, held.time, held.value, held.special).where(
                held.series == one.id, held.ordinal >= before
            )
            if before:
                high = max(known.steps.get(one.id, one.last_step), one.last_step) + _NEAR
                asked = asked.where(held.step.between(max(low, -(2**63)), min(high, 2**63 - 1)))
            rows = sorted(connection.execute(asked).fetchall())
            if len(rows) != count:
                return None
            found[one.name] = Points(
                before,
                [row.step for row in rows],
                [row.time for row in rows],
                [_value(row.value, row.special) for row in rows],
            )
        return found


def _last(rows: Iterable[Any]) -> dict[str, Points]:
    """The last point of each metric."""
    return {
        one.name: Points(
            one.points - 1, [one.last_step], [one.last_time], [_value(one.last_value, one.last_special)]
        )
        for one in rows
        if one.points and one.last_step is not None
    }


def _value(value: float | None, special: int | None) -> float | str | None:
    return value if special is None else _TEXTS.get(special, "-Infinity")


def _head(row: Any, now: float) -> bytes:
    """The JSON members that say how an experiment stands, without the braces."""
    whole = {
        "id": row.uid,
        "name": row.name,
        "status": row.status,
        "stalled": row.status == "running" and row.lease < now,
        "ended": stamp(row.ended),
        "last_step": row.last_step,
        "last_time": stamp(row.last_time),
        "points": row.points,
    }
    return msgspec.json.encode(whole)[1:-1]


@dataclass(slots=True)
class _Run:
    """One experiment as viewers see it. `since`: the turn up to which nothing of its points is kept."""

    contract: int
    head: bytes
    since: int
    turn: int
    last: dict[str, Points] = field(default_factory=dict)
    recent: deque[tuple[int, dict[str, Points]]] = field(default_factory=deque)
    kept: int = 0


class Runs:
    """The watched experiments. Only the thread of the event loop touches it."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self.numbers: frozenset[int] = frozenset()

    def take(self, news: Sequence[RunNews], wanted: frozenset[str], turn: int) -> None:
        """Take what is new in this turn; let go of what nobody watches."""
        for uid in self._runs.keys() - wanted:
            del self._runs[uid]
        for one in news:
            if one.uid not in wanted:
                continue
            run = self._runs.get(one.uid)
            if run is None or one.is_whole:
                run = self._runs[one.uid] = _Run(one.contract, one.head, turn, turn)
            run.head, run.turn = one.head, turn
            run.last.update((name, _tail(new)) for name, new in one.points.items())
            if not one.is_whole and one.points:
                run.recent.append((turn, one.points))
                run.kept += sum(len(new.step) for new in one.points.values())
            while run.kept > _KEPT_POINTS:
                run.since, gone = run.recent.popleft()
                run.kept -= sum(len(new.step) for new in gone.values())
        if news:
            held = {one.number for one in news if one.uid in self._runs}
            self.numbers = self.numbers | held if self._runs else frozenset()

    def bodies(self, wanted: Subscription, since: int) -> list[bytes]:
        """The experiments asked for that changed after turn `since`, each with its points since then."""
        found = []
        for uid in sorted(wanted.experiments & self._runs.keys()):
            run = self._runs[uid]
            if wanted.contracts is not None and run.contract not in wanted.contracts:
                continue
            if since < run.since:
                found.append(_body(run.head, True, run.last))
            elif run.turn > since:
                found.append(_body(run.head, False, _joined(run.recent, since)))
        return found


def _tail(new: Points) -> Points:
    return Points(new.first + len(new.step) - 1, new.step[-1:], new.time[-1:], new.value[-1:])


def _joined(recent: Iterable[tuple[int, dict[str, Points]]], since: int) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for turn, some in recent:
        if turn <= since:
            continue
        for name, new in some.items():
            old = found.get(name)
            found[name] = (
                new
                if old is None
                else Points(old.first, old.step + new.step, old.time + new.time, old.value + new.value)
            )
    return found


def _body(head: bytes, is_reset: bool, some: dict[str, Points]) -> bytes:
    listed = [
        {"name": name, "from": new.first, "step": new.step, "time": new.time, "value": new.value}
        for name, new in some.items()
    ]
    word = b"true" if is_reset else b"false"
    return b'{%b,"reset":%b,"series":%b}' % (head, word, msgspec.json.encode(listed))
