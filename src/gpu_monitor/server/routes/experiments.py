"""Experiments: the list, and one of them, to be read, changed and deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from gpu_monitor.server.answers import answer, invalid, json_answer, table_answer, wants_csv, write_cursor
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.gate import client_address
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Format, Limit, Reader, State, Text, moment, refuse_unknown
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.experiment_parts import (
    LongCursor,
    MeantId,
    Writer,
    read_text_cursor,
    refused,
    the_experiment,
)
from gpu_monitor.server.state import ServerState
from gpu_monitor.server.store.experiment_detail import ExperimentDetail, experiment_detail
from gpu_monitor.server.store.experiment_edit import Edit, edit_experiment
from gpu_monitor.server.store.experiment_list import (
    Archived,
    Experiment,
    ExperimentFilter,
    Flag,
    Mark,
    Order,
    experiment_fields,
    list_experiments,
    tags_of,
)
from gpu_monitor.server.store.experiment_removal import mark_removed
from gpu_monitor.server.store.experiment_terms import Terms
from gpu_monitor.server.store.experiment_unknown import unknown_name
from gpu_monitor.wire.expressions import (
    FIELDS,
    LONGEST,
    Expression,
    ExpressionError,
    Operand,
    parse_expression,
    parse_operand,
)

ProjectName = Annotated[str | None, Query(min_length=1, max_length=250, pattern=r"^[^\x00]+$")]
router = APIRouter(prefix="/api/experiments", tags=["experiments"], dependencies=[Depends(refuse_unknown)])
_COLUMNS = 50
_FIXED = [name for name in Experiment.__struct_fields__ if name != "values"]


class ExperimentPage(msgspec.Struct, frozen=True):
    """Experiments in the order that was asked for. `hint`: why there is none, where `where` has a name that none has."""

    items: list[Experiment]
    next: str | None
    hint: str | None = None


@router.get("", summary="Every experiment", **answers(ExperimentPage, "A page of experiments", csv=True))
def experiments(
    request: Request,
    state: State,
    who: Reader,
    project: ProjectName = None,
    contract: Text = None,
    tag: Annotated[
        list[str] | None,
        Query(max_length=20, description="a tag's key, or key=value; several must all be there"),
    ] = None,
    status: Annotated[
        list[Flag] | None,
        Query(max_length=7, description="a status, or the flag stalled or archived; several: any of them"),
    ] = None,
    text: Annotated[
        str | None,
        Query(
            min_length=1, max_length=200, pattern=r"^[^\x00]+$", description="in the name, the id or a note"
        ),
    ] = None,
    where: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=LONGEST,
            description="an expression: val_loss < 0.3 and (lr = 0.001 or tags.model = resnet)",
        ),
    ] = None,
    sort: Annotated[
        str,
        Query(
            min_length=1,
            max_length=1100,
            description="a field, params.x, metrics.x, min(x), max(x) or tags.x",
        ),
    ] = "started",
    order: Annotated[
        Literal["asc", "desc"], Query(description="what does not have it comes last in either")
    ] = "desc",
    columns: Annotated[
        list[str] | None,
        Query(max_length=_COLUMNS, description="what else to answer in `values`, written as for sort"),
    ] = None,
    archived: Annotated[
        Archived, Query(description="false: those that are not archived, true: only those, all: both")
    ] = "false",
    limit: Limit = 100,
    cursor: LongCursor = None,
    format: Format = None,
) -> Response:
    """The experiments that the asker may see, the newest first where nothing else is said."""
    terms = terms_of(state)
    wanted = ExperimentFilter(
        project, contract, tuple(map(_tag, tag or ())), tuple(status or ()), text, _where(where), archived
    )
    by = Order(operand_of(sort, "sort"), order == "desc")
    shown = [(words, _column(words)) for words in columns or ()]
    after = read_text_cursor(cursor, Mark)
    try:
        with state.store.read() as connection:
            found, last = list_experiments(connection, who, wanted, terms, by, shown, after, limit)
            hint = None
            if not found and wanted.where is not None:
                hint = unknown_name(connection, who, wanted.where, terms)
    except ExpressionError as error:
        raise refused("where", error) from None
    next = None if last is None else write_cursor(*last)  # type: ignore[arg-type]
    if wants_csv(request, format):
        words = [name for name, _ in shown]
        return table_answer(request, [*_FIXED, *words], _cells(found, words), next)
    return answer(request, ExperimentPage(found, next, hint), found, Experiment, "json", next)


@router.get("/{id:path}", summary="One experiment", **answers(ExperimentDetail, "The experiment"))
def one(state: State, who: Reader, id: MeantId) -> Response:
    """An experiment with its parameters, tags, notes, alerts, facts, and what each metric came to."""
    with state.store.read() as connection:
        row = the_experiment(connection, who, id)
        return json_answer(experiment_detail(connection, row, state.clock.now()))


Letters = r"^[^\x00]*$"
Key = Annotated[str, Field(min_length=1, max_length=250, pattern=r"^[^\x00]+$")]
TagText = Annotated[str, Field(max_length=5000, pattern=Letters)]
NoteText = Annotated[str, Field(min_length=1, max_length=20_000, pattern=Letters)]


class ChangedExperiment(BaseModel, extra="forbid"):
    """What is to change of an experiment; what is left out stays. A tag of null is taken away; notes are added."""

    name: Annotated[str | None, Field(min_length=1, max_length=500, pattern=r"^[^\x00]+$")] = None
    tags: Annotated[dict[Key, TagText | None], Field(max_length=100)] = {}
    notes: Annotated[list[NoteText], Field(max_length=20)] = []
    archived: bool | None = None


@router.patch(
    "/{id:path}", summary="Change an experiment", **answers(Experiment, "The experiment as it is now")
)
def change(request: Request, state: State, who: Writer, id: MeantId, wanted: ChangedExperiment) -> Response:
    """Name, tag, annotate, archive or take back an experiment. For members of its contract or project."""
    now = state.clock.now()
    edit = Edit(wanted.name, wanted.tags, wanted.notes, wanted.archived)
    with state.store.write() as connection:
        row = the_experiment(connection, who, id)
        _refuse_other(who, row)
        too_much = edit_experiment(connection, row.id, edit, who.name, now)
        if too_much is not None:
            raise Problem(409, "Too much", f"An experiment has at most {too_much}.")
        detail = wanted.model_dump(exclude_unset=True) | (
            {"notes": len(wanted.notes)} if wanted.notes else {}
        )
        record(connection, now, who.name, "experiment.change", row.uid, client_address(request), detail)
        again = the_experiment(connection, who, row.uid)
        fields = experiment_fields(again, tags_of(connection, [row.id]).get(row.id, {}), now)
    return json_answer(Experiment(**fields))


@router.delete("/{id:path}", summary="Delete an experiment", status_code=204)
def delete(request: Request, state: State, who: Writer, id: MeantId) -> Response:
    """Delete an archived experiment for good, with its files. Its id stays as taken. For those who may change it."""
    now = state.clock.now()
    with state.store.write() as connection:
        row = the_experiment(connection, who, id)
        _refuse_other(who, row)
        if row.archived is None:
            raise Problem(409, "Not archived", 'Archive it first: PATCH {"archived": true}.')
        mark_removed(connection, row.id, now)
        detail = {"name": row.name, "project": row.project_name, "points": row.points}
        record(connection, now, who.name, "experiment.delete", row.uid, client_address(request), detail)
    state.removals.kick()
    return Response(status_code=204)


def _refuse_other(who: Principal, row: Any) -> None:
    """Problem 403 for who is no member of the experiment's contract or project, and writes none there."""
    writes = "experiment:write" in who.scopes and who.covers(row.contract)
    if not writes and not who.has_role("member", row.contract, row.project_name):
        raise Problem(403, "Not allowed", "This is for members of the experiment's contract or project.")


def terms_of(state: ServerState) -> Terms:
    """What makes conditions of expressions, now."""
    now = state.clock.now()
    return Terms(now, lambda text: moment(text, "where", now))


def operand_of(words: str, parameter: str) -> Operand:
    """What a parameter names to sort by or to show; Problem 422 where it is nothing."""
    try:
        return parse_operand(words, FIELDS)
    except ExpressionError as error:
        raise refused(parameter, error) from None


def _column(words: str) -> Operand:
    operand = operand_of(words, "columns")
    if operand.kind == "field":
        raise invalid(
            "columns",
            f"{operand.name} stands in every answer already; write params.{operand.name} or the like",
        )
    return operand


def _where(text: str | None) -> Expression | None:
    if text is None:
        return None
    try:
        return parse_expression(text, FIELDS)
    except ExpressionError as error:
        raise refused("where", error) from None


def _tag(text: str) -> tuple[str, str | None]:
    if "\x00" in text or not 1 <= len(text) <= 1000:
        raise invalid("tag", "a key, or key=value, of at most 1000 characters and without U+0000")
    key, has_value, value = text.partition("=")
    return key, value if has_value else None


def _cells(found: Sequence[Experiment], words: Sequence[str]) -> Iterator[list[Any]]:
    for one in found:
        yield [getattr(one, name) for name in _FIXED] + [one.values[name] for name in words]
