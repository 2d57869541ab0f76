"""The number each GPU identity has in the store."""

from __future__ import annotations

import sqlite3

from gpu_monitor.core.errors import StorageError
from gpu_monitor.core.model import Identity
from gpu_monitor.storage.database import insert_sql
from gpu_monitor.storage.tables import GPU_FIELDS, MAX_GPUS

_GPUS = insert_sql("gpus", ["id", "node", *GPU_FIELDS, "first_seen"])


def identity_values(identity: Identity) -> tuple[object, ...]:
    """The columns GPU_FIELDS of an identity, in order."""
    return (
        identity.uid, identity.source, identity.name, identity.pci_bus_id, identity.memory_total, identity.index,
        identity.serial, identity.minor_number, identity.parent_uid, identity.mig_instance, identity.memory_kind,
    )  # fmt: skip


class GpuNumbers:
    """The number of each identity in the store; a changed identity (moved, renumbered) gets a new one."""

    def __init__(self, node: int) -> None:
        self._node = node
        self._numbers: dict[Identity, int] = {}
        self._next: int | None = None

    def load(self, connection: sqlite3.Connection) -> None:
        """Read what the store knows; of identities that came back the newest number counts."""
        names = ", ".join(GPU_FIELDS)
        for number, *fields in connection.execute(
            f"SELECT id, {names} FROM gpus WHERE node = ? ORDER BY id", (self._node,)
        ):
            uid, source, name, pci, total, index, serial, minor, parent, mig, kind = fields
            identity = Identity(uid, source, name, pci, total, index, serial, minor, parent, mig, kind)
            self._numbers[identity] = number

    def number(self, connection: sqlite3.Connection, identity: Identity, at: float) -> int:
        """The number of `identity`, made if need be; StorageError past 65,535 of them."""
        known = self._numbers.get(identity)
        if known is not None:
            return known
        number = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM gpus").fetchone()[0]
        if number >= MAX_GPUS:
            raise StorageError(
                f"the store knows {number - 1} GPU identities, its limit", "Begin a new database.file."
            )
        connection.execute(_GPUS, (number, self._node, *identity_values(identity), at))
        self._numbers[identity] = int(number)
        return int(number)

    def forget(self) -> None:
        """Drop what a rolled back transaction may have added."""
        self._numbers.clear()
