"""Which files are held, by whom they were brought, who may see them, and which of them nobody names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, select, text, update

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import project_filter
from gpu_monitor.server.store.schema_experiments import blob_holders, blobs, experiments, media, projects

_WANTED_SECONDS = 3600.0
"""Whoever asked whether a file is here, and was told so, names it within this time."""
_UNNAMED_SECONDS = 7 * 86400.0
"""A file that was brought and never named is kept so long: its record may be on its way."""


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A file that is whole. `sha256`: hexadecimal; `size` in bytes."""

    id: int
    sha256: str
    size: int


def held_by(connection: Connection, contract: int, sha256: str) -> BlobRow | None:
    """The file, where this contract brought it."""
    asked = (
        select(blobs.c.id, blobs.c.size)
        .join(blob_holders, blob_holders.c.blob == blobs.c.id)
        .where(blobs.c.sha256 == bytes.fromhex(sha256), blob_holders.c.contract == contract)
    )
    row = connection.execute(asked).first()
    return None if row is None else BlobRow(row.id, sha256, row.size)


def want(connection: Connection, contract: int, blob: int, now: float) -> None:
    """Note that the contract is about to name a file that it holds."""
    held = blob_holders.c
    connection.execute(
        update(blob_holders).where(held.contract == contract, held.blob == blob).values(wanted=now)
    )


def hold(connection: Connection, contract: int, sha256: str, size: int, now: float) -> None:
    """Note that a file is whole, and that this contract brought it."""
    digest = bytes.fromhex(sha256)
    connection.execute(
        text(
            "INSERT INTO blobs (sha256, size, received) VALUES (:sha256, :size, :now)"
            " ON CONFLICT (sha256) DO NOTHING"
        ),
        {"sha256": digest, "size": size, "now": now},
    )
    number = connection.execute(select(blobs.c.id).where(blobs.c.sha256 == digest)).scalar_one()
    connection.execute(
        text(
            "INSERT INTO blob_holders (blob, contract, wanted) VALUES (:blob, :contract, :now)"
            " ON CONFLICT (contract, blob) DO NOTHING"
        ),
        {"blob": number, "contract": contract, "now": now},
    )


def bytes_of(connection: Connection, contract: int) -> int:
    """How much a contract's files come to."""
    asked = select(func.coalesce(func.sum(blobs.c.size), 0)).join(
        blob_holders, blob_holders.c.blob == blobs.c.id
    )
    return int(connection.execute(asked.where(blob_holders.c.contract == contract)).scalar_one())


def visible_blob(connection: Connection, who: Principal, sha256: str) -> BlobRow | None:
    """The file, where an experiment that they may see names it, and its contract brought it."""
    digest = bytes.fromhex(sha256)
    asked = (
        select(blobs.c.id, blobs.c.size)
        .join(media, media.c.sha256 == blobs.c.sha256)
        .join(experiments, experiments.c.id == media.c.experiment)
        .join(projects, projects.c.id == experiments.c.project)
        .join(
            blob_holders,
            and_(blob_holders.c.blob == blobs.c.id, blob_holders.c.contract == experiments.c.contract),
        )
        .where(
            blobs.c.sha256 == digest,
            experiments.c.removed.is_(None),
            project_filter(who, experiments.c.contract, projects.c.name),
        )
        .limit(1)
    )
    row = connection.execute(asked).first()
    return None if row is None else BlobRow(row.id, sha256, row.size)


def is_held(connection: Connection, sha256: str) -> bool:
    """Whether anybody holds the file."""
    return (
        connection.execute(select(blobs.c.id).where(blobs.c.sha256 == bytes.fromhex(sha256))).first()
        is not None
    )


def take_unnamed(
    connection: Connection, now: float, among: Collection[str] | None = None, limit: int = 500
) -> list[str]:
    """Let go of files that no experiment names; their digests.

    `among`: only of these, whose experiment was deleted just now; else those that have been unnamed for a week.
    """
    old = now - (_UNNAMED_SECONDS if among is None else _WANTED_SECONDS)
    fresh: ColumnElement[bool] = blob_holders.c.wanted > old
    if among is not None:
        fresh = and_(fresh, blob_holders.c.wanted > blobs.c.received)
    asked = select(blobs.c.id, blobs.c.sha256).where(
        ~exists().where(media.c.sha256 == blobs.c.sha256),
        ~exists().where(blob_holders.c.blob == blobs.c.id, fresh),
    )
    if among is not None:
        asked = asked.where(blobs.c.sha256.in_([bytes.fromhex(one) for one in among]))
    found = connection.execute(asked.limit(limit)).fetchall()
    if found:
        numbers = [row.id for row in found]
        connection.execute(delete(blob_holders).where(blob_holders.c.blob.in_(numbers)))
        connection.execute(delete(blobs).where(blobs.c.id.in_(numbers)))
    return [bytes(row.sha256).hex() for row in found]
