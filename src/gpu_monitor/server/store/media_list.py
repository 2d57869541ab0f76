"""What an experiment made beside numbers: pictures, histograms, tables, files; told, not their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, func, literal, select

from gpu_monitor.server.store.room import fitting
from gpu_monitor.server.store.schema_experiments import blob_holders, blobs, experiments, media
from gpu_monitor.server.store.values import raw_json, stamp


class MediaItem(msgspec.Struct, frozen=True, kw_only=True):
    """One record. `data`: the content, where it is no file; else `sha256`, `size` (bytes) and `type` of the file.

    `url` is where the file can be had; null where there is none, or where its bytes have not come yet.
    """

    time: str
    step: int | None
    kind: str
    name: str
    type: str | None
    size: int | None
    sha256: str | None
    file: str | None
    url: str | None
    data: Any
    more: Any


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an experiment, as it was logged last under its name. `url`: null until its bytes are here."""

    name: str
    size: int | None
    sha256: str | None
    type: str | None
    time: str
    step: int | None
    url: str | None


@dataclass(frozen=True)
class MediaFilter:
    """Which records: None and empty do not restrict."""

    kinds: tuple[str, ...] = ()
    name: str | None = None
    step: int | None = None


def blob_url(sha256: bytes | None, is_held: bool) -> str | None:
    """Where a file can be had; None where its bytes are not here."""
    return f"/api/blobs/{sha256.hex()}" if sha256 is not None and is_held else None


def is_held() -> ColumnElement[bool]:
    """Whether the bytes of a row of `media` are here, brought by the contract of its experiment."""
    query = (
        select(literal(1))
        .select_from(blobs)
        .join(blob_holders, blob_holders.c.blob == blobs.c.id)
        .where(blobs.c.sha256 == media.c.sha256, blob_holders.c.contract == experiments.c.contract)
    )
    return query.correlate(media, experiments).exists()


def media_rows() -> Select[Any]:
    """Rows of `media` with their experiments, `is_held` beside them."""
    return select(media, is_held().label("is_held")).join(experiments, experiments.c.id == media.c.experiment)


def list_media(
    connection: Connection, experiment: int, wanted: MediaFilter, after: int, limit: int
) -> tuple[list[MediaItem], int | None]:
    """Up to `limit` records after a number, as they came, and the number to go on after."""
    conditions = [media.c.experiment == experiment, media.c.id > after]
    if wanted.kinds:
        conditions.append(media.c.kind.in_(wanted.kinds))
    if wanted.name is not None:
        conditions.append(media.c.name == wanted.name)
    if wanted.step is not None:
        conditions.append(media.c.step == wanted.step)
    length = func.length(media.c.more) + func.coalesce(func.length(media.c.data), 0)
    sized = select(media.c.id, length).where(*conditions).order_by(media.c.id).limit(limit + 1)
    places = [(row[0], row[1]) for row in connection.execute(sized)]
    kept = fitting(places[:limit])
    rows = connection.execute(media_rows().where(media.c.id.in_(kept)).order_by(media.c.id))
    return [_item(row) for row in rows], kept[-1] if len(kept) < len(places) else None


def list_artifacts(
    connection: Connection, experiment: int, after: str, limit: int
) -> tuple[list[Artifact], str | None]:
    """Up to `limit` artifacts whose names come after one, by name, and the name to go on after."""
    newest = (
        select(func.max(media.c.id))
        .where(media.c.experiment == experiment, media.c.kind == "artifact", media.c.name > after)
        .group_by(media.c.name)
        .order_by(media.c.name)
        .limit(limit + 1)
    )
    ids = list(connection.execute(newest).scalars())
    query = media_rows().where(media.c.id.in_(ids[:limit])).order_by(media.c.name)
    found = [_artifact(row) for row in connection.execute(query)]
    return found, found[-1].name if len(ids) > limit else None


def find_artifact(connection: Connection, experiment: int, name: str) -> Any | None:
    """The row of `media_rows` of what was logged last under a name; None where nothing was."""
    query = media_rows().where(
        media.c.experiment == experiment, media.c.kind == "artifact", media.c.name == name
    )
    return connection.execute(query.order_by(media.c.id.desc()).limit(1)).first()


def _item(row: Any) -> MediaItem:
    return MediaItem(
        time=stamp(row.time) or "", step=row.step, kind=row.kind, name=row.name, type=row.type, size=row.size,
        sha256=None if row.sha256 is None else row.sha256.hex(), file=row.file, url=blob_url(row.sha256, row.is_held),
        data=raw_json(row.data), more=raw_json(row.more),
    )  # fmt: skip


def _artifact(row: Any) -> Artifact:
    return Artifact(
        name=row.name, size=row.size, sha256=None if row.sha256 is None else row.sha256.hex(), type=row.type,
        time=stamp(row.time) or "", step=row.step, url=blob_url(row.sha256, row.is_held),
    )  # fmt: skip
