"""Channels, and the log of what was delivered through them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from gpu_monitor.server.store.alerts import Waiting
from gpu_monitor.server.store.schema import channels, deliveries, outbox


@dataclass(frozen=True)
class ChannelRow:
    """A channel as it is stored; `settings` hold its secrets."""

    name: str
    kind: str
    settings: str
    enabled: bool
    changed: float

    def __repr__(self) -> str:
        return f"ChannelRow({self.name!r}, {self.kind!r}, settings=***, enabled={self.enabled})"


@dataclass(frozen=True)
class Delivery:
    """One try to deliver. `alert` and `moment` None: a test."""

    id: int
    time: float
    channel: str
    ok: bool
    status: str
    alert: str | None
    moment: str | None


def list_channels(connection: Connection) -> list[ChannelRow]:
    """Every stored channel by name."""
    return [
        ChannelRow(**row) for row in connection.execute(select(channels).order_by(channels.c.name)).mappings()
    ]


def put_channel(connection: Connection, row: ChannelRow) -> None:
    """Write a channel in place of the one of its name, or as a new one."""
    values = {"kind": row.kind, "settings": row.settings, "enabled": row.enabled, "changed": row.changed}
    if connection.execute(update(channels).where(channels.c.name == row.name).values(values)).rowcount == 0:
        connection.execute(insert(channels).values(name=row.name, **values))


def delete_channel(connection: Connection, name: str) -> bool:
    """Remove a channel and what still waits for it; whether there was one."""
    connection.execute(
        update(outbox)
        .where(outbox.c.channel == name, outbox.c.next_try.is_not(None))
        .values(next_try=None, error="the channel was removed")
    )
    return connection.execute(delete(channels).where(channels.c.name == name)).rowcount > 0


def begin_try(connection: Connection, batch: list[Waiting], next_try: float) -> None:
    """Note that a try begins: if it is never heard of again, the next one is at `next_try`."""
    ids = [one.id for one in batch]
    connection.execute(
        update(outbox).where(outbox.c.id.in_(ids)).values(attempts=outbox.c.attempts + 1, next_try=next_try)
    )


def end_try(
    connection: Connection, batch: list[Waiting], now: float, ok: bool, status: str, next_try: float | None
) -> None:
    """Log how a try ended; `next_try` None: there is no other one."""
    if not batch:
        return
    values = {"next_try": next_try, "delivered": now if ok else None, "error": None if ok else status}
    connection.execute(update(outbox).where(outbox.c.id.in_([one.id for one in batch])).values(values))
    for one in batch:
        log_delivery(connection, one.id, one.channel, now, ok, status)


def log_delivery(
    connection: Connection, outbox_id: int, channel: str, now: float, ok: bool, status: str
) -> None:
    """Append to the log; `outbox_id` 0 is a test."""
    connection.execute(
        insert(deliveries).values(outbox=outbox_id, time=now, channel=channel, ok=ok, status=status)
    )


def give_up(connection: Connection, channel: str, why: str) -> None:
    """Stop trying to deliver what waits for a channel that is no longer there."""
    waiting = update(outbox).where(outbox.c.channel == channel, outbox.c.next_try.is_not(None))
    connection.execute(waiting.values(next_try=None, error=why))


def list_deliveries(
    connection: Connection, channel: str | None, alert: str | None, before: int | None, limit: int
) -> list[Delivery]:
    """Tries, newest first, from the one before id `before`."""
    query = (
        select(
            deliveries.c.id, deliveries.c.time, deliveries.c.channel, deliveries.c.ok, deliveries.c.status,
            outbox.c.alert, outbox.c.moment,
        )
        .outerjoin(outbox, outbox.c.id == deliveries.c.outbox)
        .order_by(deliveries.c.id.desc())
        .limit(limit)
    )  # fmt: skip
    if channel is not None:
        query = query.where(deliveries.c.channel == channel)
    if alert is not None:
        query = query.where(outbox.c.alert == alert)
    if before is not None:
        query = query.where(deliveries.c.id < before)
    return [Delivery(**row) for row in connection.execute(query).mappings()]
