"""Checkpoints and models: those of one experiment, and the registry of models with their versions."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Select, and_, func, or_, select

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import project_filter
from gpu_monitor.server.store.media_list import blob_url, is_held, media_rows
from gpu_monitor.server.store.schema import contracts
from gpu_monitor.server.store.schema_experiments import experiments, media, models, projects
from gpu_monitor.server.store.values import stamp
from gpu_monitor.wire.training import NOT_FINITE

Mark = tuple[str, int]
"""The place of a model in the list: its name and the number of its contract."""
VersionMark = tuple[int, int]
"""The place of a version: the number of its contract, and the version."""
_MOST = 20_000
"""Records of checkpoints and models that are looked at of one experiment."""


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
    query = (
        media_rows()
        .add_columns(models.c.version)
        .outerjoin(models, models.c.media == media.c.id)
        .where(media.c.experiment == experiment, media.c.kind.in_(("checkpoint", "model")))
        .order_by(media.c.id)
    )
    held: dict[tuple[str, str | int], Any] = {}
    gone: set[tuple[str, str | int]] = set()
    for row in connection.execute(query.limit(_MOST)):
        key = (row.kind, row.name if row.kind == "checkpoint" else row.id)
        if row.sha256 is None and _said(row.more).get("removed") is True:
            gone.add(key)
        else:
            held[key] = row
            gone.discard(key)
    found = sorted(
        ((row.id, key, row) for key, row in held.items() if row.id > number), key=lambda one: one[0]
    )
    shown = [_saved(row, key in gone) for _, key, row in found[:limit]]
    return shown, found[limit - 1][0] if len(found) > limit else None


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
    columns = (
        media,
        models.c.version,
        models.c.contract.label("of_contract"),
        is_held().label("is_held"),
        experiments.c.uid,
        experiments.c.name.label("experiment_name"),
        projects.c.name.label("project_name"),
        contracts.c.number,
    )
    query = _visible(select(*columns), who).join(media, media.c.id == models.c.media)
    query = query.where(models.c.name == name)
    if contract is not None:
        query = query.where(contracts.c.number == contract)
    if before is not None:
        of, version = before
        earlier = and_(models.c.contract == of, models.c.version < version)
        query = query.where(or_(models.c.contract > of, earlier))
    order = (models.c.contract, models.c.version.desc())
    rows = connection.execute(query.order_by(*order).limit(limit + 1)).all()
    found = [
        ModelVersion(
            **_fields(row, False), contract_number=row.number, experiment_id=row.uid,
            experiment_name=row.experiment_name, project=row.project_name,
        )
        for row in rows[:limit]
    ]  # fmt: skip
    return found, (rows[limit - 1].of_contract, rows[limit - 1].version) if len(rows) > limit else None


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


def _saved(row: Any, removed: bool) -> SavedModel:
    return SavedModel(**_fields(row, removed))


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
