"""Lets the database find the few GPUs and machines that a rule may have to do with; their rows are read later.

The statements are built once for a set of rules. What is asked is a little wider than the rules: values are
compared as the whole numbers they are kept as, with one to spare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, floor, isfinite
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Double,
    Select,
    Table,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    true,
)

from gpu_monitor.core.catalogue import BY_NAME, HOST_METRICS
from gpu_monitor.core.xid import EVENT_KIND
from gpu_monitor.server.alerts.screen import Bits, Screen, Share, Term, Terms
from gpu_monitor.server.store.schema import (
    COVER,
    IDLE,
    aggregates,
    events,
    gaps,
    gpus,
    has_extremes,
    host_hours,
    latest,
    live_events,
    samples,
    scale_of,
)

_HOST = {metric.name: metric for metric in HOST_METRICS}
_BASIS = {name: 10**decimals for name, decimals in (*COVER, *IDLE)}
_AT_ONCE = 50
"""Conditions in one question: SQLite takes expressions up to 1,000 deep, and 2,000 columns."""
_HOURS_AT_ONCE = 200
_MOST = 2**62
_SPARE = 0.999
"""Shares are compared as floats: so much less is asked for."""
Hit = tuple[int, int, list[str]]
"""An agent, a GPU's ordinal (0 for a machine), and the rules that may have to do with it."""
_Asked = tuple[tuple[str, ...], Select[Any]]


class Screens:
    """The prepared questions for these rules: id and screen of each."""

    def __init__(self, screens: Mapping[str, Screen]) -> None:
        self._live = _questions(_from_live, _terms(samples, screens, "live"))
        self._hours = _questions(_from_hours, _terms(aggregates, screens, "hours"))
        self._hosts = _questions(_from_hosts, _terms(host_hours, screens, "hosts"))

    def live(self, connection: Connection, agents: Sequence[int], since: float) -> Iterator[Hit]:
        """GPUs with a live minute that begins at `since` or later and meets a screen."""
        for rules, query in self._live:
            yield from _hits(connection, rules, query, {"agents": agents, "since": int(since)})

    def hours(self, connection: Connection, agents: Sequence[int], first: int, last: int) -> Iterator[Hit]:
        """GPUs with a period that begins in these hours and meets a screen."""
        yield from _by_hours(connection, self._hours, agents, first, last)

    def hosts(self, connection: Connection, agents: Sequence[int], first: int, last: int) -> Iterator[Hit]:
        """Machines, likewise."""
        yield from _by_hours(connection, self._hosts, agents, first, last)


_AGENTS: BindParameter[Any] = bindparam("agents", expanding=True)
_HOURS: BindParameter[Any] = bindparam("hours", expanding=True)
_STATES = select(latest.c.agent, latest.c.gpu, latest.c.status).where(
    latest.c.agent.in_(_AGENTS), latest.c.status != "ok"
)
_HOLES = (
    select(gaps.c.agent, gaps.c.uid, gaps.c.cause)
    .where(gaps.c.agent.in_(_AGENTS), gaps.c.hour.between(bindparam("first"), bindparam("last")))
    .distinct()
)
_XIDS = (
    select(events.c.agent, events.c.uid)
    .where(
        events.c.agent.in_(_AGENTS),
        events.c.hour.between(bindparam("first"), bindparam("last")),
        events.c.kind == EVENT_KIND,
        events.c.uid.is_not(None),
    )
    .distinct()
)


_LIVE_XIDS = (
    select(live_events.c.agent, live_events.c.uid)
    .where(
        live_events.c.agent.in_(_AGENTS),
        live_events.c.time >= bindparam("since"),
        live_events.c.kind == EVENT_KIND,
        live_events.c.uid != "",
    )
    .distinct()
)


def unwell(connection: Connection, agents: Sequence[int]) -> list[tuple[int, int, str]]:
    """Agent, ordinal and status of these nodes' GPUs whose newest status is not ok."""
    return [(row[0], row[1], row[2]) for row in connection.execute(_STATES, {"agents": agents})]


def holes_of(
    connection: Connection, agents: Sequence[int], first: int, last: int
) -> list[tuple[int, str | None, str]]:
    """Agent, uid (None: the whole node) and cause of the gaps in reports of these hours."""
    told = {"agents": agents, "first": first, "last": last}
    return [(row[0], row[1], row[2]) for row in connection.execute(_HOLES, told)]


def xids_of(connection: Connection, agents: Sequence[int], first: int, last: int) -> list[tuple[int, str]]:
    """Agent and uid of the GPUs with Xids in reports of these hours."""
    told = {"agents": agents, "first": first, "last": last}
    return [(row[0], row[1]) for row in connection.execute(_XIDS, told)]


def live_xids_of(connection: Connection, agents: Sequence[int], since: float) -> list[tuple[int, str]]:
    """Agent and uid of the GPUs of whose Xids since then live messages told."""
    told = {"agents": agents, "since": since}
    return [(row[0], row[1]) for row in connection.execute(_LIVE_XIDS, told)]


def _hits(
    connection: Connection, rules: tuple[str, ...], query: Select[Any], told: Mapping[str, Any]
) -> Iterator[Hit]:
    for agent, gpu, *flags in connection.execute(query, told).all():
        yield agent, gpu, [rule for rule, flag in zip(rules, flags, strict=True) if flag]


def _by_hours(
    connection: Connection, asked: Sequence[_Asked], agents: Sequence[int], first: int, last: int
) -> Iterator[Hit]:
    for rules, query in asked:
        for start in range(first, last + 1, _HOURS_AT_ONCE):
            hours = range(start, min(last + 1, start + _HOURS_AT_ONCE))
            yield from _hits(connection, rules, query, {"agents": agents, "hours": list(hours)})


def _terms(table: Table, screens: Mapping[str, Screen], name: str) -> list[tuple[str, ColumnElement[bool]]]:
    found: list[tuple[str, ColumnElement[bool]]] = []
    for rule, screen in screens.items():
        terms: Terms | None = getattr(screen, name)
        if terms is not None and all(_is_there(table, term) for term in terms):
            found.append((rule, and_(true(), *(_condition(table, term) for term in terms))))
    return found


def _questions(
    base: Callable[[Sequence[ColumnElement[Any]], ColumnElement[bool]], Select[Any]],
    terms: Sequence[tuple[str, ColumnElement[bool]]],
) -> list[_Asked]:
    found = []
    for start in range(0, len(terms), _AT_ONCE):
        part = terms[start : start + _AT_ONCE]
        flags = [
            func.max(case((condition, 1), else_=0)).label(f"c{place}")
            for place, (_, condition) in enumerate(part)
        ]
        found.append(
            (tuple(rule for rule, _ in part), base(flags, or_(*(condition for _, condition in part))))
        )
    return found


def _from_live(flags: Sequence[ColumnElement[Any]], where: ColumnElement[bool]) -> Select[Any]:
    # From the GPUs, so that each one's newest minutes are looked up, whatever the others have.
    return (
        select(gpus.c.agent, gpus.c.ordinal, *flags)
        .join_from(gpus, samples, (samples.c.agent == gpus.c.agent) & (samples.c.gpu == gpus.c.ordinal))
        .where(gpus.c.agent.in_(_AGENTS), samples.c.time >= bindparam("since"), where)
        .group_by(gpus.c.agent, gpus.c.ordinal)
    )


def _from_hours(flags: Sequence[ColumnElement[Any]], where: ColumnElement[bool]) -> Select[Any]:
    return (
        select(aggregates.c.agent, aggregates.c.gpu, *flags)
        .where(aggregates.c.hour.in_(_HOURS), aggregates.c.agent.in_(_AGENTS), where)
        .group_by(aggregates.c.agent, aggregates.c.gpu)
    )


def _from_hosts(flags: Sequence[ColumnElement[Any]], where: ColumnElement[bool]) -> Select[Any]:
    return (
        select(host_hours.c.agent, literal_column("0"), *flags)
        .where(host_hours.c.hour.in_(_HOURS), host_hours.c.agent.in_(_AGENTS), where)
        .group_by(host_hours.c.agent)
    )


def _is_there(table: Table, term: Term) -> bool:
    names = (term.part, term.whole) if isinstance(term, Share) else (term.name,)
    return all(name in table.c for name in names)


def _condition(table: Table, term: Term) -> ColumnElement[bool]:
    """The term over the table's whole numbers; with NULL it is not met."""
    if isinstance(term, Bits):
        return table.c[term.name].bitwise_and(literal_column(str(term.mask))) != literal_column("0")
    if isinstance(term, Share):
        least = literal_column(repr(float(term.least * _SPARE)), Double)
        return cast(table.c[term.part], Double) >= least * cast(table.c[term.whole], Double)
    column: ColumnElement[Any] = cast(table.c[term.name], BigInteger)
    scale: float
    if term.name in _BASIS:
        scale = _BASIS[term.name]
    else:
        metric = _HOST[term.name] if table is host_hours else BY_NAME[term.name]
        scale = scale_of(metric)
        if term.stat != "mean" and has_extremes(metric) and table is not samples:
            apart = func.coalesce(
                table.c[f"{term.name}_lo" if term.stat == "min" else f"{term.name}_hi"], literal_column("0")
            )
            column = (
                column - cast(apart, BigInteger) if term.stat == "min" else column + cast(apart, BigInteger)
            )
    limit = term.limit * scale if isfinite(term.limit * scale) else _MOST * (1 if term.limit > 0 else -1)
    if term.is_above:
        return column >= literal_column(str(max(-_MOST, min(_MOST, floor(limit) - 1))))
    return column <= literal_column(str(max(-_MOST, min(_MOST, ceil(limit) + 1))))
