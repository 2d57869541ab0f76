"""How far back live minutes and hours of a target reach, and whether minutes alone would hide what hours hold."""

from __future__ import annotations

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from gpu_monitor.server.store.schema import aggregates, gpus, samples
from gpu_monitor.server.store.span import HOUR, Span
from gpu_monitor.server.store.targets import Target
from gpu_monitor.server.store.values import hour_stamp, stamp


class Available(msgspec.Struct, frozen=True, kw_only=True):
    """Since when there is something of the target, whatever was asked: its first live minute, its first period."""

    minutes_from: str | None
    hours_from: str | None


def available(connection: Connection, target: Target) -> Available:
    """Both beginnings; null where there is nothing."""
    first = func.min(samples.c.time)
    each = select(first).where(samples.c.agent == gpus.c.agent, samples.c.gpu == gpus.c.ordinal)
    minutes = select(func.min(each.correlate(gpus).scalar_subquery())).where(*_of(target))
    if target.agents is None and target.model is None:
        minutes = select(first)  # the fleet's: one look at the start of the index, not one for each GPU
    hours = select(func.min(gpus.c.first_hour)).where(*_of(target))
    return Available(
        minutes_from=stamp(connection.execute(minutes).scalar()),
        hours_from=hour_stamp(connection.execute(hours).scalar()),
    )


def minutes_suffice(connection: Connection, target: Target, span: Span, *, is_small: bool) -> bool:
    """Whether there are minutes of every hour of the span of which there is a report, and some minutes at all.

    Of a large target each hour is looked at for one row of anybody's.
    """
    if not is_small:
        return _anybodys(connection, target, span)
    in_minutes = select((samples.c.time // HOUR).distinct()).join(
        gpus, and_(gpus.c.agent == samples.c.agent, gpus.c.ordinal == samples.c.gpu)
    )
    in_hours = select(aggregates.c.hour.distinct()).join(
        gpus, and_(gpus.c.agent == aggregates.c.agent, gpus.c.ordinal == aggregates.c.gpu)
    )
    live = in_minutes.where(*_of(target), samples.c.time >= span.since, samples.c.time < span.until)
    told = in_hours.where(
        *_of(target), aggregates.c.hour >= span.first_hour, aggregates.c.hour < span.end_hour
    )
    with_minutes = {int(hour) for hour in connection.execute(live).scalars()}
    return bool(with_minutes) and with_minutes.issuperset(connection.execute(told).scalars())


def _anybodys(connection: Connection, target: Target, span: Span) -> bool:
    agents, found = target.agents, False
    for hour in range(int(span.since // HOUR), span.end_hour):
        minute = select(samples.c.time).where(
            samples.c.time >= max(span.since, hour * HOUR),
            samples.c.time < min(span.until, (hour + 1) * HOUR),
        )
        period = select(aggregates.c.hour).where(aggregates.c.hour == hour)
        if agents is not None:
            minute, period = (
                minute.where(samples.c.agent.in_(agents)),
                period.where(aggregates.c.agent.in_(agents)),
            )
        if connection.execute(minute.limit(1)).first() is not None:
            found = True
        elif hour >= span.first_hour and connection.execute(period.limit(1)).first() is not None:
            return False
    return found


def _of(target: Target) -> list[ColumnElement[bool]]:
    """Which rows of `gpus` are the target's."""
    conditions: list[ColumnElement[bool]] = []
    if target.places is not None:
        each = (and_(gpus.c.agent == agent, gpus.c.ordinal == gpu) for agent, gpu in target.places)
        conditions.append(or_(*each))
    if target.agents is not None:
        conditions.append(gpus.c.agent.in_(target.agents))
    if target.model is not None:
        conditions.append(gpus.c.name == target.model)
    return conditions
