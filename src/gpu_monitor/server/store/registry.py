"""Checkpoints and models: those of one experiment, and the registry of models with their versions."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Select, and_, case, func, or_, select

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import project_filter
from gpu_monitor.server.store.media_list import blob_url, media_rows
from gpu_monitor.server.store.room import fitting
from gpu_monitor.server.store.schema import contracts
from gpu_monitor.server.store.schema_experiments import experiments, media, models, projects
from gpu_monitor.server.store.values import stamp
from gpu_monitor.wire.training import NOT_FINITE

Mark = tuple[str, int]
"""The place of a model in the list: its name and the number of its contract."""
VersionMark = tuple[int, int]
"""The place of a version: the number of its contract, and the version."""
_MOST = 200_000
"""Records of checkpoints and models that are looked at of one experiment: more it cannot have."""
_REMOVAL_LETTERS = 2000
"""The record that a checkpoint was removed is no longer."""


class SavedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint, or a version of a model, that an experiment saved. `version`: the registry's, of a model.

    `metrics` and what else is null: the script did not say. `removed`: the script deleted the checkpoint since.
    `url`: where its bytes can be had; null where they have not come (checkpoints stay where they were saved).
    """

    kind: Literal["checkpoint", "model"]
    name: str
    version: int | None
    time: str
    step: int | None
    epoch: int | None
    format: str | None
    stage: str | None
    checkpoint: str | None
    metrics: dict[str, Any]
    size: int | None
    sha256: str | None
    type: str | None
    removed: bool
    url: str | None


class RegisteredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A name in the registry of a contract, with its newest version."""

    name: str
    contract_number: str
    versions: int
    version: int
    time: str
    experiment_id: str
    experiment_name: str


class ModelVersion(SavedModel, frozen=True, kw_only=True):
    """A version of a model, and the experiment that it came from."""

    contract_number: str
    experiment_id: str
    experiment_name: str
    project: str


def saved_models(
    connection: Connection, experiment: int, number: int, limit: int
) -> tuple[list[SavedModel], int | None]:
    """Up to `limit` checkpoints and models after a number, as they came, and the number to go on after.

    A checkpoint that was removed is told once, as such.
    """
    length = func.length(media.c.more)
    short = case((and_(media.c.sha256.is_(None), length <= _REMOVAL_LETTERS), media.c.more), else_="{}")
    of_it = and_(media.c.experiment == experiment, media.c.kind.in_(("checkpoint", "model")))
    told = select(media.c.id, media.c.kind, media.c.name, length.label("length"), short.label("short"))
    held: dict[tuple[str, str | int], tuple[int, int]] = {}
    gone: set[int] = set()
    for row in connection.execute(told.where(of_it).order_by(media.c.id).limit(_MOST)):
        key = (row.kind, row.name if row.kind == "checkpoint" else row.id)
        if _said(row.short).get("removed") is not True:
            held[key] = (row.id, row.length)
        elif key in held:
            gone.add(held[key][0])
    places = sorted(place for place in held.values() if place[0] > number)
    kept = fitting(places[:limit])
    query = media_rows().add_columns(models.c.version).outerjoin(models, models.c.media == media.c.id)
    rows = connection.execute(query.where(media.c.id.in_(kept)).order_by(media.c.id))
    found = [SavedModel(**_fields(row, row.id in gone)) for row in rows]
    return found, kept[-1] if len(kept) < len(places) else None


def list_models(
    connection: Connection, who: Principal, contract: str | None, after: Mark | None, limit: int
) -> tuple[list[RegisteredModel], Mark | None]:
    """Up to `limit` names of the registry, and the mark to go on after."""
    named = _visible(
        select(
            models.c.name,
            models.c.contract,
            func.max(models.c.version).label("version"),
            func.count().label("held"),
        ),
        who,
    )
    if contract is not None:
        named = named.where(contracts.c.number == contract)
    if after is not None:
        name, of = after
        named = named.where(or_(models.c.name > name, and_(models.c.name == name, models.c.contract > of)))
    named = named.group_by(models.c.name, models.c.contract)
    newest = named.order_by(models.c.name, models.c.contract).limit(limit + 1).subquery()
    query = (
        select(newest, models.c.time, experiments.c.uid, experiments.c.name.label("of"), contracts.c.number)
        .join(
            models,
            and_(
                models.c.name == newest.c.name,
                models.c.contract == newest.c.contract,
                models.c.version == newest.c.version,
            ),
        )
        .join(experiments, experiments.c.id == models.c.experiment)
        .join(contracts, contracts.c.id == models.c.contract)
        .order_by(newest.c.name, newest.c.contract)
    )
    rows = connection.execute(query).all()
    found = [
        RegisteredModel(
            name=row.name, contract_number=row.number, versions=row.held, version=row.version,
            time=stamp(row.time) or "", experiment_id=row.uid, experiment_name=row.of,
        )
        for row in rows[:limit]
    ]  # fmt: skip
    return found, (rows[limit - 1].name, rows[limit - 1].contract) if len(rows) > limit else None


def model_versions(
    connection: Connection,
    who: Principal,
    name: str,
    contract: str | None,
    before: VersionMark | None,
    limit: int,
) -> tuple[list[ModelVersion], VersionMark | None]:
    """Up to `limit` versions of a name, the newest first, and the mark to go on after."""
    named = _visible(
        select(
            models.c.id, models.c.contract, models.c.version, func.length(media.c.more), contracts.c.number,
            experiments.c.uid, experiments.c.name, projects.c.name,
        ),
        who,
    ).join(media, media.c.id == models.c.media).where(models.c.name == name)  # fmt: skip
    if contract is not None:
        named = named.where(contracts.c.number == contract)
    if before is not None:
        of, version = before
        earlier = and_(models.c.contract == of, models.c.version < version)
        named = named.where(or_(models.c.contract > of, earlier))
    rows = connection.execute(
        named.order_by(models.c.contract, models.c.version.desc()).limit(limit + 1)
    ).all()
    kept = fitting((row, row[3]) for row in rows[:limit])
    query = media_rows().add_columns(models.c.version, models.c.id.label("model"))
    query = query.join(models, models.c.media == media.c.id).where(models.c.id.in_([row[0] for row in kept]))
    held = {row.model: row for row in connection.execute(query)}
    found = [
        ModelVersion(
            **_fields(held[row[0]], False), contract_number=row[4], experiment_id=row[5], experiment_name=row[6],
            project=row[7],
        )
        for row in kept
    ]  # fmt: skip
    return found, (kept[-1][1], kept[-1][2]) if len(kept) < len(rows) else None


def _visible(query: Select[Any], who: Principal) -> Select[Any]:
    """Versions of models whose experiments `who` may see."""
    return (
        query.select_from(models)
        .join(experiments, experiments.c.id == models.c.experiment)
        .join(projects, projects.c.id == experiments.c.project)
        .join(contracts, contracts.c.id == models.c.contract)
        .where(
            experiments.c.removed.is_(None),
            project_filter(who, models.c.contract, projects.c.name),
        )
    )


def _fields(row: Any, removed: bool) -> dict[str, Any]:
    said = _said(row.more)
    metrics = said.get("metrics")
    return {
        "kind": row.kind, "name": row.name, "version": row.version, "time": stamp(row.time) or "", "step": row.step,
        "epoch": _integer(said.get("epoch")), "format": _word(said.get("format")), "stage": _word(said.get("stage")),
        "checkpoint": _word(said.get("checkpoint")), "metrics": _numbers(metrics), "size": row.size,
        "sha256": None if row.sha256 is None else row.sha256.hex(), "type": row.type, "removed": removed,
        "url": None if removed else blob_url(row.sha256, row.is_held),
    }  # fmt: skip


def _said(more: str) -> dict[str, Any]:
    """What a record says besides; its JSON may hold whole numbers of any length."""
    found: dict[str, Any] = json.loads(more)
    return found


def _integer(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _numbers(metrics: Any) -> dict[str, Any]:
    """The metrics that a record came with: numbers, and the texts of those that JSON has none for."""
    if not isinstance(metrics, dict):
        return {}
    return {name: value for name, value in metrics.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in NOT_FINITE
    if type(value) is int:
        return abs(value) < 2**63
    return type(value) is float and math.isfinite(value)
