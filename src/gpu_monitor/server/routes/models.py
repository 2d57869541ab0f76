"""Checkpoints and models of an experiment, and the registry of models."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from gpu_monitor.server.answers import answer, missing, read_cursor, write_cursor
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Cursor, Format, Limit, Reader, State, Text, refuse_unknown
from gpu_monitor.server.routes.experiment_parts import LongCursor, MeantId, read_text_cursor, the_experiment
from gpu_monitor.server.store.registry import (
    Mark,
    ModelVersion,
    RegisteredModel,
    SavedModel,
    list_models,
    model_versions,
    saved_models,
)

router = APIRouter(tags=["experiments"], dependencies=[Depends(refuse_unknown)])


class SavedPage(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment saved, as it came."""

    experiment_id: str
    items: list[SavedModel]
    next: str | None


class RegistryPage(msgspec.Struct, frozen=True):
    """Models by name."""

    items: list[RegisteredModel]
    next: str | None


class VersionPage(msgspec.Struct, frozen=True):
    """Versions of a model, the newest first; where several contracts have one of this name, contract by contract."""

    items: list[ModelVersion]
    next: str | None


@router.get(
    "/api/models/{experiment_id}",
    summary="An experiment's checkpoints and models",
    **answers(SavedPage, "A page of them", csv=True),
)
def saved(
    request: Request,
    state: State,
    who: Reader,
    experiment_id: MeantId,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """The checkpoints and model versions that an experiment saved; nothing of them is ever loaded here."""
    after = read_cursor(cursor, tuple[int]) or (-1,)
    with state.store.read() as connection:
        row = the_experiment(connection, who, experiment_id)
        found, last = saved_models(connection, row.id, after[0], limit)
    next = None if last is None else write_cursor(last)
    page = SavedPage(experiment_id=row.uid, items=found, next=next)
    return answer(request, page, found, SavedModel, format, next)


@router.get(
    "/api/registry/models", summary="Every model", **answers(RegistryPage, "A page of models", csv=True)
)
def registry(
    request: Request,
    state: State,
    who: Reader,
    contract: Text = None,
    limit: Limit = 100,
    cursor: LongCursor = None,
    format: Format = None,
) -> Response:
    """The names in the registry, each with its newest version."""
    after = read_text_cursor(cursor, Mark)
    with state.store.read() as connection:
        found, last = list_models(connection, who, contract, after, limit)
    next = None if last is None else write_cursor(*last)
    return answer(request, RegistryPage(found, next), found, RegisteredModel, format, next)


@router.get(
    "/api/registry/models/{name:path}",
    summary="A model's versions",
    **answers(VersionPage, "A page of versions", csv=True),
)
def versions(
    request: Request,
    state: State,
    who: Reader,
    name: Annotated[
        str, Path(min_length=1, max_length=500, pattern=r"^[^\x00]+$", description="the model's name")
    ],
    contract: Text = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """The versions of a model, each with the experiment and the metrics that it came from."""
    before = read_cursor(cursor, tuple[int, int])
    with state.store.read() as connection:
        found, last = model_versions(connection, who, name, contract, before, limit)
    if not found and before is None:
        raise missing("model", name)
    next = None if last is None else write_cursor(*last)
    return answer(request, VersionPage(found, next), found, ModelVersion, format, next)
