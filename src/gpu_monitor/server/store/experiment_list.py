"""Experiments, one by one and in lists: picked by what they are, sorted by any of it, page by page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Select,
    Text,
    and_,
    case,
    cast,
    func,
    literal,
    null,
    or_,
    select,
)

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import project_filter
from gpu_monitor.server.store.experiment_terms import DURATION, Terms, is_stalled
from gpu_monitor.server.store.room import fitting
from gpu_monitor.server.store.schema import contracts
from gpu_monitor.server.store.schema_experiments import (
    INFINITY,
    MINUS_INFINITY,
    NAN,
    experiments,
    notes,
    params,
    projects,
    series,
    tags,
)
from gpu_monitor.server.store.values import raw_json, stamp
from gpu_monitor.wire.expressions import Expression, Operand

Status = Literal["running", "completed", "failed", "stopped", "crashed"]
Flag = Literal["running", "completed", "failed", "stopped", "crashed", "stalled", "archived"]
Archived = Literal["false", "true", "all"]
Number = float | int | Literal["NaN", "Infinity", "-Infinity"]
"""A value of a metric: those that JSON has no number for are these texts."""
Mark = tuple[int, float | None, str | None, int]
"""The place of an experiment in a list: 0 number, 1 text, 2 neither; which; its row."""

_SORTED_LETTERS = 100
"""Texts are sorted by their beginnings: a cursor must hold one."""
_NOT_FINITE: dict[int, Number] = {NAN: "NaN", INFINITY: "Infinity", MINUS_INFINITY: "-Infinity"}


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """One training session. Times are ISO 8601; `duration_seconds` of one that runs is up to its newest record.

    `stalled`: it runs, and was not heard from in time. `values`: what was asked for as `columns`, by these words.
    """

    id: str
    name: str
    project: str
    contract_number: str
    status: Status
    stalled: bool
    archived: bool
    simulated: bool
    started: str
    ended: str | None
    duration_seconds: float | None
    last_heard: str
    last_step: int | None
    exit_code: int | None
    signal: str | None
    reason: str | None
    host: str | None
    user: str | None
    points: int
    tags: dict[str, str]
    values: dict[str, Any] = {}


@dataclass(frozen=True)
class ExperimentFilter:
    """Which experiments: None and empty do not restrict. `tags`: (key, value), a value of None any."""

    project: str | None = None
    contract: str | None = None
    tags: tuple[tuple[str, str | None], ...] = ()
    status: tuple[Flag, ...] = ()
    text: str | None = None
    where: Expression | None = None
    archived: Archived = "false"


@dataclass(frozen=True)
class Order:
    """What a list is sorted by; what does not have it comes last in either direction."""

    by: Operand
    is_descending: bool = True


def experiment_rows(who: Principal) -> Select[Any]:
    """Rows of every experiment that `who` may see, with its project and contract."""
    return (
        select(
            experiments,
            projects.c.name.label("project_name"),
            contracts.c.number,
            DURATION.label("duration_seconds"),
        )
        .join(projects, projects.c.id == experiments.c.project)
        .join(contracts, contracts.c.id == experiments.c.contract)
        .where(
            experiments.c.removed.is_(None),
            project_filter(who, experiments.c.contract, projects.c.name),
        )
    )


def list_experiments(
    connection: Connection,
    who: Principal,
    wanted: ExperimentFilter,
    terms: Terms,
    order: Order,
    columns: Sequence[tuple[str, Operand]],
    after: Mark | None,
    limit: int,
) -> tuple[list[Experiment], Mark | None]:
    """Up to `limit` experiments and the mark to go on after. ExpressionError where `wanted` cannot be compared."""
    key = _Key(terms, order)
    query = experiment_rows(who).where(*_conditions(wanted, terms))
    if after is not None:
        query = query.where(key.after(after))
    query = query.add_columns(*key.columns).order_by(*key.order)
    rows = connection.execute(query.limit(limit + 1)).all()
    named = _named(columns, "param")
    weights = _weights(connection, [row.id for row in rows], named)
    shown = fitting((row, weights.get(row.id)) for row in rows[:limit])
    held = _Held(connection, [row.id for row in shown], columns)
    found = [show_experiment(row, held.tags.get(row.id, {}), terms, held.values(row)) for row in shown]
    return found, key.mark(shown[-1]) if len(rows) > len(shown) else None


def show_experiment(
    row: Any, tags_of_it: dict[str, str], terms: Terms, values: dict[str, Any] | None = None
) -> Experiment:
    """A row of `experiment_rows` as it is answered."""
    return Experiment(**experiment_fields(row, tags_of_it, terms.now), values=values or {})


def experiment_fields(row: Any, tags_of_it: dict[str, str], now: float) -> dict[str, Any]:
    """The fields that every answer about an experiment has."""
    return {
        "id": row.uid, "name": row.name, "project": row.project_name, "contract_number": row.number,
        "status": row.status, "stalled": row.status == "running" and row.lease < now,
        "archived": row.archived is not None, "simulated": row.simulated, "started": stamp(row.started) or "",
        "ended": stamp(row.ended), "duration_seconds": _rounded(row.duration_seconds),
        "last_heard": stamp(round(row.last_heard, 3)) or "", "last_step": row.last_step, "exit_code": row.exit_code,
        "signal": row.signal, "reason": row.reason, "host": row.host, "user": row.user, "points": row.points,
        "tags": tags_of_it,
    }  # fmt: skip


def shown_value(value: float | None, special: int | None) -> Number | None:
    """A stored value as it is answered: a number, or the text of one that JSON cannot hold."""
    return value if special is None else _NOT_FINITE[special]


def tags_of(connection: Connection, rows: Iterable[int]) -> dict[int, dict[str, str]]:
    """The tags of experiments, by their row."""
    query = select(tags).where(tags.c.experiment.in_(list(rows)), tags.c.value.is_not(None))
    found: dict[int, dict[str, str]] = {}
    for row in connection.execute(query.order_by(tags.c.experiment, tags.c.key)):
        found.setdefault(row.experiment, {})[row.key] = row.value
    return found


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _conditions(wanted: ExperimentFilter, terms: Terms) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.project is not None:
        found.append(projects.c.name == wanted.project)
    if wanted.contract is not None:
        found.append(contracts.c.number == wanted.contract)
    found += [_has_tag(key, value) for key, value in wanted.tags]
    if wanted.status:
        found.append(or_(*(_is(flag, terms.now) for flag in wanted.status)))
    if wanted.archived != "all" and "archived" not in wanted.status:
        found.append(
            _is("archived", terms.now) if wanted.archived == "true" else experiments.c.archived.is_(None)
        )
    if wanted.text is not None:
        found.append(_says(wanted.text))
    if wanted.where is not None:
        found.append(terms.condition(wanted.where))
    return found


def _is(flag: Flag, now: float) -> ColumnElement[bool]:
    if flag == "stalled":
        return is_stalled(now)
    return experiments.c.archived.is_not(None) if flag == "archived" else experiments.c.status == flag


def _has_tag(key: str, value: str | None) -> ColumnElement[bool]:
    query = select(literal(1)).where(tags.c.experiment == experiments.c.id, tags.c.key == key)
    query = query.where(tags.c.value.is_not(None) if value is None else tags.c.value == value)
    return query.correlate(experiments).exists()


def _says(text: str) -> ColumnElement[bool]:
    """Whether a name, an id or a note holds the text, in capitals or not."""
    noted = select(literal(1)).where(
        notes.c.experiment == experiments.c.id, notes.c.text.icontains(text, autoescape=True)
    )
    return or_(
        experiments.c.name.icontains(text, autoescape=True),
        experiments.c.uid.icontains(text, autoescape=True),
        noted.correlate(experiments).exists(),
    )


class _Key:
    """What a list is sorted by, as columns: first numbers, then texts, then what has neither; then the row."""

    def __init__(self, terms: Terms, order: Order) -> None:
        number, text = terms.number(order.by), terms.text(order.by)
        self._number: ColumnElement[Any] = cast(null(), Double) if number is None else number
        self._text: ColumnElement[Any] = cast(null(), Text)
        if text is not None:
            self._text = case((self._number.is_(None), func.substr(text, 1, _SORTED_LETTERS)))
        self._group: ColumnElement[Any] = case(
            (self._number.is_not(None), 0), (self._text.is_not(None), 1), else_=2
        )
        self._is_descending = order.is_descending

    @property
    def columns(self) -> list[ColumnElement[Any]]:
        named = (("key_group", self._group), ("key_number", self._number), ("key_text", self._text))
        return [column.label(name) for name, column in named]

    @property
    def order(self) -> list[ColumnElement[Any]]:
        inner = (self._number, self._text, experiments.c.id)
        return [self._group, *(one.desc() if self._is_descending else one.asc() for one in inner)]

    def mark(self, row: Any) -> Mark:
        """The place of a row; a cursor holds no infinity, so that its text stands for it."""
        if row.key_number is not None and math.isinf(row.key_number):
            return 0, None, str(row.key_number), row.id
        return row.key_group, row.key_number, row.key_text, row.id

    def after(self, mark: Mark) -> ColumnElement[bool]:
        group, number, text, row = mark
        if group == 0 and number is None and text in ("inf", "-inf"):
            number = float(text)
        inside = self._beyond(experiments.c.id, row)
        if group == 0:
            value = literal(number, Double)
            inside = or_(self._beyond(self._number, value), and_(self._number == value, inside))
        elif group == 1:
            inside = or_(self._beyond(self._text, text), and_(self._text == text, inside))
        return or_(self._group > group, and_(self._group == group, inside))

    def _beyond(self, column: ColumnElement[Any], value: Any) -> ColumnElement[bool]:
        found: ColumnElement[bool] = column < value if self._is_descending else column > value
        return found


class _Held:
    """What the experiments of a page have beside their rows: tags, and the values of columns."""

    def __init__(
        self, connection: Connection, rows: list[int], columns: Sequence[tuple[str, Operand]]
    ) -> None:
        self.tags = tags_of(connection, rows)
        self._columns = columns
        self._params = _params_of(connection, rows, _named(columns, "param"))
        self._metrics = _metrics_of(connection, rows, _named(columns, "metric"))

    def values(self, row: Any) -> dict[str, Any]:
        return {words: self._value(row, operand) for words, operand in self._columns}

    def _value(self, row: Any, operand: Operand) -> Any:
        place = (row.id, operand.name)
        if operand.kind in ("param", "any") and place in self._params:
            return self._params[place]
        if operand.kind in ("metric", "any") and place in self._metrics:
            held = self._metrics[place]
            if operand.stat == "last":
                return shown_value(held.last_value, held.last_special)
            return held.min_value if operand.stat == "min" else held.max_value
        if operand.kind in ("tag", "any"):
            return self.tags.get(row.id, {}).get(operand.name)
        return None


def _weights(connection: Connection, rows: list[int], named: list[str]) -> dict[int, int]:
    """How long the tags and the named parameters of experiments are, by their rows."""
    length = func.coalesce(func.length(tags.c.value), 0) + func.length(tags.c.key)
    of_tags = select(tags.c.experiment, func.sum(length)).where(tags.c.experiment.in_(rows))
    of_params = select(params.c.experiment, func.sum(func.length(params.c.value)))
    of_params = of_params.where(params.c.experiment.in_(rows), params.c.name.in_(named))
    found: dict[int, int] = {}
    queries = [of_tags.group_by(tags.c.experiment)]
    if named:
        queries.append(of_params.group_by(params.c.experiment))
    for query in queries:
        for row, characters in connection.execute(query):
            found[row] = found.get(row, 0) + int(characters)
    return found


def _named(columns: Sequence[tuple[str, Operand]], kind: str) -> list[str]:
    return [operand.name for _, operand in columns if operand.kind in (kind, "any")]


def _params_of(connection: Connection, rows: list[int], names: list[str]) -> dict[tuple[int, str], Any]:
    if not names:
        return {}
    query = select(params).where(params.c.experiment.in_(rows), params.c.name.in_(names))
    return {(row.experiment, row.name): raw_json(row.value) for row in connection.execute(query)}


def _metrics_of(connection: Connection, rows: list[int], names: list[str]) -> dict[tuple[int, str], Any]:
    if not names:
        return {}
    query = select(series).where(series.c.experiment.in_(rows), series.c.name.in_(names))
    return {(row.experiment, row.name): row for row in connection.execute(query)}
