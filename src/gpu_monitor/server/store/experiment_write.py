"""Adds what uploads say to their experiments: points in bulk, figures of each metric, and everything beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, text

from gpu_monitor.server.store.experiment_rows import ExperimentRow, SeriesRow, load_series, save
from gpu_monitor.server.store.rows import rows_of
from gpu_monitor.server.store.schema_experiments import (
    captures,
    media,
    models,
    notes,
    params,
    points,
    run_alerts,
    series,
    tags,
    texts,
)
from gpu_monitor.server.store.segment_draft import Draft, MediaRow, ParamRow
from gpu_monitor.wire.training import SERIES

MODELS_LOCK = 0x6770756D6D6F
"""The advisory lock under which versions of models are counted on PostgreSQL: the letters gpummo."""
MOST: dict[str, tuple[Table, int]] = {
    "metrics": (series, SERIES),
    "parameters": (params, 10_000),
    "tags": (tags, 1_000),
    "notes": (notes, 10_000),
    "alerts": (run_alerts, 10_000),
    "topics of facts": (captures, 200),
    "pictures, files and models": (media, 200_000),
}
"""Of one experiment: what is beyond it is held with its segment, and not shown. Points and lines of output have no
limit but the disk."""
_MEDIA = ("time", "step", "kind", "name", "sha256", "size", "type", "file", "data", "more")
_POINTS = ("series", "step", "ordinal", "time", "value", "special")


class NoRoom(Exception):
    """An experiment would have more segments than one may have."""


@dataclass(slots=True)
class Additions:
    """What a group adds, until `flush` writes it."""

    connection: Connection
    series: dict[int, dict[str, SeriesRow]] = field(default_factory=dict)
    changed: dict[int, SeriesRow] = field(default_factory=dict)
    counts: dict[tuple[int, str], int] = field(default_factory=dict)
    points: list[tuple[Any, ...]] = field(default_factory=list)
    params: dict[tuple[int, str], ParamRow] = field(default_factory=dict)
    tags: dict[tuple[int, str], tuple[str | None, float]] = field(default_factory=dict)
    captures: dict[tuple[int, str], tuple[str, float]] = field(default_factory=dict)
    notes: list[tuple[Any, ...]] = field(default_factory=list)
    texts: list[tuple[Any, ...]] = field(default_factory=list)
    alerts: list[tuple[Any, ...]] = field(default_factory=list)
    media: list[tuple[Any, ...]] = field(default_factory=list)
    models: list[tuple[int, int, MediaRow]] = field(default_factory=list)

    def fit(self, row: ExperimentRow | None, draft: Draft) -> None:
        """Take out of a draft what its experiment (None: a new one) has no room for, and count it in `unknown`.

        A training that notes something at each step must not have the rest of its log refused for that.
        """
        named: tuple[tuple[str, tuple[dict[str, Any], ...]], ...] = (
            ("metrics", (draft.series, draft.points)),
            ("parameters", (draft.params,)),
            ("tags", (draft.tags,)),
            ("topics of facts", (draft.captures,)),
        )
        for what, held in named:
            if any(held):
                surplus = self._surplus(row, what, list(dict.fromkeys(name for one in held for name in one)))
                draft.unknown += len(surplus)
                for one in held:
                    for name in surplus & one.keys():
                        del one[name]
        listed: tuple[tuple[str, list[Any]], ...] = (
            ("notes", draft.notes),
            ("alerts", draft.alerts),
            ("pictures, files and models", draft.media),
        )
        for what, rows in listed:
            if rows:
                room = max(0, MOST[what][1] - (0 if row is None else self._count(row, what)))
                draft.unknown += len(rows[room:])
                del rows[room:]

    def _surplus(self, row: ExperimentRow | None, what: str, wanted: list[str]) -> set[str]:
        """Names that there is no room for, of those that are wanted; a known one needs none."""
        most = MOST[what][1]
        if row is None:
            return set(wanted[most:])
        if self._count(row, what) + len(wanted) <= most:
            return set()
        # Names that wait may be held, too, and are counted twice in `counts`: now it matters.
        waiting = {name for of, name in self._waiting(what) if of == row.id}
        known = self._known(row, what, [*wanted, *waiting])
        held = self._stored(row, what) + len(waiting - known)
        fresh = [name for name in wanted if name not in known and name not in waiting]
        return set(fresh[max(0, most - held) :])

    def _waiting(self, what: str) -> Iterable[tuple[int, str]]:
        """Names of a kind that are not in the database yet, with their experiments."""
        pending: dict[str, Iterable[tuple[int, str]]] = {
            "parameters": self.params, "tags": self.tags, "topics of facts": self.captures,
        }  # fmt: skip
        return pending.get(what, ())

    def _known(self, row: ExperimentRow, what: str, names: Sequence[str]) -> set[str]:
        """Those of the names that the database has."""
        table = MOST[what][0]
        column = table.c.key if table is tags else table.c.topic if table is captures else table.c.name
        found: set[str] = set()
        for start in range(0, len(names), 500):
            asked = select(column).where(table.c.experiment == row.id, column.in_(names[start : start + 500]))
            found.update(self.connection.execute(asked).scalars())
        return found

    def _count(self, row: ExperimentRow, what: str) -> int:
        """How many there are, with those that wait; names that wait and are held count twice, so it is at least that."""
        key = (row.id, what)
        if key not in self.counts:
            self.counts[key] = self._stored(row, what)
        return self.counts[key]

    def _stored(self, row: ExperimentRow, what: str) -> int:
        table = MOST[what][0]
        asked = select(func.count()).select_from(table).where(table.c.experiment == row.id)
        return int(self.connection.execute(asked).scalar_one())

    def add(self, row: ExperimentRow, draft: Draft) -> None:
        """Take a draft that fits; the experiment's own figures are brought up to date."""
        if draft.series or draft.points:
            self._add_points(row, draft)
        of = row.id
        for name, param in draft.params.items():
            _newer(self.params, (of, name), param, param.time, lambda held: held.time)
        for key, tag in draft.tags.items():
            _newer(self.tags, (of, key), tag, tag[1], lambda held: held[1])
        for topic, fact in draft.captures.items():
            _newer(self.captures, (of, topic), fact, fact[1], lambda held: held[1])
        self.notes += [(of, *note) for note in draft.notes]
        self.alerts += [(of, *alert) for alert in draft.alerts]
        self.texts += [(of, number, *line) for number, line in enumerate(draft.texts, row.texts)]
        row.texts += len(draft.texts)
        for one in draft.media:
            if one.kind == "model":
                self.models.append((row.contract, of, one))
            else:
                self.media.append((of, *(getattr(one, name) for name in _MEDIA)))
        for what, rows in (
            ("notes", draft.notes),
            ("alerts", draft.alerts),
            ("pictures, files and models", draft.media),
            ("parameters", draft.params),
            ("tags", draft.tags),
            ("topics of facts", draft.captures),
        ):
            if (of, what) in self.counts:
                self.counts[of, what] += len(rows)

    def _add_points(self, row: ExperimentRow, draft: Draft) -> None:
        known = self._series_of(row, draft)
        for name, pieces in draft.points.items():
            one = known[name]
            self.changed[one.id] = one
            for piece in pieces:
                count, start = len(piece.steps), one.points
                ordinals = range(start, start + count)
                column = piece.column
                specials = repeat(None, count) if column.specials is None else column.specials
                self.points += zip(
                    repeat(one.id, count), piece.steps, ordinals, piece.times, column.values, specials,
                    strict=True,
                )  # fmt: skip
                row.specials += one.add(piece)
                row.points += count

    def _series_of(self, row: ExperimentRow, draft: Draft) -> dict[str, SeriesRow]:
        """The series that a draft names, each with a row."""
        known = self.series.setdefault(row.id, {})
        missing = [name for name in draft.series.keys() | draft.points.keys() if name not in known]
        if missing:
            known.update(load_series(self.connection, row.id, missing))
            fresh = [name for name in missing if name not in known]
            if fresh:
                values = [
                    (row.id, name, *draft.series.get(name, (None, None)), 0, 0) for name in sorted(fresh)
                ]
                columns = ("experiment", "name", "unit", "source", "points", "specials")
                rows_of(self.connection).insert(series, columns, values)
                known.update(load_series(self.connection, row.id, fresh))
                if (row.id, "metrics") in self.counts:
                    self.counts[row.id, "metrics"] += len(fresh)
        return known

    def flush(self) -> None:
        """Write everything."""
        rows = rows_of(self.connection)
        if self.points:
            self.points.sort()  # as the tree has them: by series, step and ordinal
            rows.insert(points, _POINTS, self.points)
        save(rows, SeriesRow, self.changed.values())
        of = "experiment"
        columns: tuple[str, ...] = (of, "name", "value", "number", "text", "time")
        values: list[tuple[Any, ...]] = [
            (*key, one.value, one.number, one.text, one.time) for key, one in self.params.items()
        ]
        rows.upsert(params, columns, (of, "name"), _later(params, columns[2:]), values)
        columns = (of, "key", "value", "time")
        values = [(*key, *one) for key, one in self.tags.items()]
        rows.upsert(tags, columns, (of, "key"), _later(tags, columns[2:]), values)
        columns = (of, "topic", "body", "time")
        values = [(*key, *one) for key, one in self.captures.items()]
        rows.upsert(captures, columns, (of, "topic"), _later(captures, columns[2:]), values)
        rows.insert(notes, (of, "time", "text"), self.notes)
        rows.insert(run_alerts, (of, "time", "level", "title", "text"), self.alerts)
        rows.insert(texts, (of, "ordinal", "time", "stream", "text"), self.texts)
        rows.insert(media, (of, *_MEDIA), self.media)
        self._register()

    def _register(self) -> None:
        """Give models their versions, in the order in which they came."""
        if self.models and self.connection.dialect.name == "postgresql":
            self.connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MODELS_LOCK})
        for contract, experiment, one in self.models:
            values = {name: getattr(one, name) for name in _MEDIA}
            made = self.connection.execute(
                insert(media).values(experiment=experiment, **values).returning(media.c.id)
            ).scalar_one()
            asked = select(func.max(models.c.version)).where(
                models.c.contract == contract, models.c.name == one.name
            )
            newest = self.connection.execute(asked).scalar() or 0
            self.connection.execute(
                insert(models).values(
                    contract=contract, name=one.name, version=newest + 1, experiment=experiment, media=made,
                    time=one.time,
                )
            )  # fmt: skip


def _newer(held: dict[Any, Any], key: Any, value: Any, time: float, time_of: Any) -> None:
    if key not in held or time >= time_of(held[key]):
        held[key] = value


def _later(table: Table, columns: Sequence[str]) -> str:
    """Replace unless what is held is of a later moment: segments come in any order."""
    then = ", ".join(f'"{name}" = excluded."{name}"' for name in columns)
    return f"SET {then} WHERE excluded.time >= {table.name}.time"
