"""The audit log: who changed what, when, from where. Never a secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, select

from gpu_monitor.server.store.schema import audit


@dataclass(frozen=True)
class Deed:
    """One entry. `actor` is a user, a token's public id or `cli:` and a user of the machine."""

    id: int
    time: float
    actor: str
    action: str
    subject: str | None
    address: str | None
    detail: dict[str, object] | None


def record(
    connection: Connection,
    now: float,
    actor: str,
    action: str,
    subject: str | None = None,
    address: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Append an entry in the transaction of the change itself, so that neither is there without the other."""
    text = None if detail is None else msgspec.json.encode(dict(detail)).decode()
    connection.execute(
        audit.insert().values(
            time=now, actor=actor, action=action, subject=subject, address=address, detail=text
        )
    )


def list_deeds(connection: Connection, before: int | None, limit: int) -> list[Deed]:
    """Entries, newest first, from the one before id `before`."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.c.id < before)
    return [
        Deed(
            row.id,
            row.time,
            row.actor,
            row.action,
            row.subject,
            row.address,
            None if row.detail is None else msgspec.json.decode(row.detail),
        )
        for row in connection.execute(query)
    ]
