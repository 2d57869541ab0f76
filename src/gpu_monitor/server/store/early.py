"""Reports from the future: kept whole until their period is over, then taken up as if they came then."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from gpu_monitor.server.store.judge import HOUR, Conclusion, Refusal, conflict, overlaps
from gpu_monitor.server.store.schema import quarantine
from gpu_monitor.wire.intake import Intake

AHEAD_SECONDS = 600
"""How far ahead of the server's clock a period may end."""
_HELD = 2000
"""Early reports of one node: twelve weeks of hours. A clock that is further off must be put right first."""
_HELD_BYTES = 64 << 20
"""Of one node's early reports: 2,000 of 32 KiB, which is 12 GPUs with their processes."""


def is_early(intake: Intake, now: float) -> bool:
    """Whether the report's period ends too far ahead of `now`."""
    return intake.end > now + AHEAD_SECONDS


def hold(
    connection: Connection, agent: int, intake: Intake, body: bytes, received: float
) -> Conclusion | Refusal:
    """Put a report aside until it is due; NEW or REPEATED, or why not."""
    refused = _overlapping(connection, agent, intake)
    if refused is not None:
        return refused
    mine = (quarantine.c.kind == "early") & (quarantine.c.agent == agent)
    held = connection.execute(
        select(quarantine.c.raw).where(
            mine, quarantine.c.hour == intake.hour, quarantine.c.revision == intake.revision
        )
    ).first()
    if held is not None:
        is_same = hashlib.sha256(held.raw).digest() == intake.body_digest
        return Conclusion.REPEATED if is_same else conflict(intake, intake.revision)
    refused = _too_much(connection, agent, len(body))
    if refused is not None:
        return refused
    connection.execute(
        quarantine.insert().values(
            kind="early",
            agent=agent,
            hour=intake.hour,
            revision=intake.revision,
            field="aggregation_time",
            reason=EARLY_REASON,
            raw=body,
            received=received,
            due=float(intake.end - AHEAD_SECONDS),
        )
    )
    return Conclusion.NEW


def _overlapping(connection: Connection, agent: int, intake: Intake) -> Refusal | None:
    """Another period is held that lies over this one: it could never be taken up beside it."""
    due = float(intake.end - AHEAD_SECONDS)
    other = connection.execute(
        select(quarantine.c.hour, quarantine.c.due)
        .where(
            quarantine.c.kind == "early",
            quarantine.c.agent == agent,
            quarantine.c.hour < intake.end // HOUR,
            quarantine.c.due > float(intake.start - AHEAD_SECONDS),
            (quarantine.c.hour != intake.hour) | (quarantine.c.due != due),
        )
        .limit(1)
    ).first()
    if other is None:
        return None
    return overlaps(other.hour, round(other.due) + AHEAD_SECONDS - other.hour * HOUR)


def _too_much(connection: Connection, agent: int, size: int) -> Refusal | None:
    count, held = connection.execute(
        select(func.count(), func.coalesce(func.sum(func.length(quarantine.c.raw)), 0)).where(
            quarantine.c.kind == "early", quarantine.c.agent == agent
        )
    ).one()
    if count < _HELD and held + size <= _HELD_BYTES:
        return None
    reason = (
        f"the period ends in the future, and {count} such reports of {held} bytes are held:"
        " put the node's clock right"
    )
    return Refusal(422, "The report is not valid", "aggregation_time", reason)


EARLY_REASON = (
    "the period ends more than 10 minutes ahead of the server's clock; it is taken up when it is over"
)


_ORDER = (quarantine.c.due, quarantine.c.revision, quarantine.c.id)


def due(connection: Connection, now: float, limit: int, most_bytes: int) -> list[Any]:
    """(id, raw, received) of early reports whose time has come, oldest first; one at least, however large."""
    waiting = connection.execute(
        select(quarantine.c.id, func.length(quarantine.c.raw))
        .where(quarantine.c.kind == "early", quarantine.c.due <= now)
        .order_by(*_ORDER)
        .limit(limit)
    )
    chosen: list[int] = []
    size = 0
    for number, length in waiting:
        size += length
        if chosen and size > most_bytes:
            break
        chosen.append(number)
    if not chosen:
        return []
    found = connection.execute(
        select(quarantine.c.id, quarantine.c.raw, quarantine.c.received)
        .where(quarantine.c.id.in_(chosen))
        .order_by(*_ORDER)
    )
    return list(found)


def release(connection: Connection, number: int) -> None:
    """It is in the tables now."""
    connection.execute(delete(quarantine).where(quarantine.c.id == number))


def keep_for_good(connection: Connection, number: int, reason: str) -> None:
    """It cannot be taken up after all: it stays, and says why."""
    connection.execute(update(quarantine).where(quarantine.c.id == number).values(due=None, reason=reason))
