"""What a database holds, asked by a connection of our own."""

from __future__ import annotations

import contextlib

from sqlalchemy import select

from gpu_monitor.server.store.engine import open_store
from gpu_monitor.server.store.schema import nodes, receipts


def held_receipts(database: str) -> list[tuple[str, int]]:
    """(node's UUID, hour) of every receipt."""
    with contextlib.closing(open_store(database)) as store, store.read() as connection:
        query = select(nodes.c.uuid, receipts.c.hour).join(nodes, nodes.c.id == receipts.c.agent)
        return [(str(uuid), int(hour)) for uuid, hour in connection.execute(query)]
