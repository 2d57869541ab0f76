"""Reports from the future: kept whole until their period is over, then taken up as if they came then."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from gpu_monitor.server.store.judge import Conclusion, Refusal, conflict
from gpu_monitor.server.store.schema import quarantine
from gpu_monitor.wire.intake import Intake

AHEAD_SECONDS = 600
"""How far ahead of the server's clock a period may end."""
_HELD = 2000
"""Early reports of one node: twelve weeks of hours. A clock that is further off must be put right first."""


def is_early(intake: Intake, now: float) -> bool:
    """Whether the report's period ends too far ahead of `now`."""
    return intake.end > now + AHEAD_SECONDS


def hold(
    connection: Connection, agent: int, intake: Intake, body: bytes, received: float
) -> Conclusion | Refusal:
    """Put a report aside until it is due; NEW or REPEATED, or why not."""
    mine = (quarantine.c.kind == "early") & (quarantine.c.agent == agent)
    held = connection.execute(
        select(quarantine.c.raw).where(
            mine, quarantine.c.hour == intake.hour, quarantine.c.revision == intake.revision
        )
    ).first()
    if held is not None:
        is_same = hashlib.sha256(held.raw).digest() == intake.body_digest
        return Conclusion.REPEATED if is_same else conflict(intake, intake.revision)
    count = connection.execute(select(func.count()).select_from(quarantine).where(mine)).scalar_one()
    if count >= _HELD:
        reason = (
            f"the period ends in the future, and {count} such reports are held: put the node's clock right"
        )
        return Refusal(422, "The report is not valid", "aggregation_time", reason)
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


EARLY_REASON = (
    "the period ends more than 10 minutes ahead of the server's clock; it is taken up when it is over"
)


def due(connection: Connection, now: float, limit: int) -> list[Any]:
    """(id, raw, received) of early reports whose time has come, oldest first."""
    found = connection.execute(
        select(quarantine.c.id, quarantine.c.raw, quarantine.c.received)
        .where(quarantine.c.kind == "early", quarantine.c.due <= now)
        .order_by(quarantine.c.due, quarantine.c.revision, quarantine.c.id)
        .limit(limit)
    )
    return list(found)


def release(connection: Connection, number: int) -> None:
    """It is in the tables now."""
    connection.execute(delete(quarantine).where(quarantine.c.id == number))


def keep_for_good(connection: Connection, number: int, reason: str) -> None:
    """It cannot be taken up after all: it stays, and says why."""
    connection.execute(update(quarantine).where(quarantine.c.id == number).values(due=None, reason=reason))
