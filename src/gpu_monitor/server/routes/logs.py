"""What an experiment wrote to its output and its log."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from gpu_monitor.server.answers import invalid, json_answer, read_cursor, write_cursor
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Cursor, Reader, State, Text, refuse_unknown
from gpu_monitor.server.routes.experiment_parts import MeantId, the_experiment
from gpu_monitor.server.store.output import LogLine, OutputFilter, read_output

router = APIRouter(prefix="/api/logs", tags=["experiments"], dependencies=[Depends(refuse_unknown)])


class LogAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Lines in the order in which they came. `next`: `after` this comes what is new, now or later.

    `previous`: `before` this there is more; null: these are the first ones.
    """

    experiment_id: str
    lines: list[LogLine]
    next: str
    previous: str | None


@router.get("/{experiment_id}", summary="An experiment's output", **answers(LogAnswer, "The lines"))
def logs(
    state: State,
    who: Reader,
    experiment_id: MeantId,
    tail: Annotated[
        int | None,
        Query(ge=1, le=10_000, description="so many of the last lines; 1000 where nothing is said"),
    ] = None,
    after: Annotated[
        Cursor, Query(description="`next` of an answer: lines from there on, oldest first")
    ] = None,
    before: Annotated[
        Cursor, Query(description="`previous` of an answer: the last lines before there")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="most lines in one answer")] = 1000,
    stream: Annotated[Text, Query(description="stdout, stderr or log; several streams come together")] = None,
    search: Annotated[Text, Query(description="only lines that hold this, in capitals or not")] = None,
) -> Response:
    """The last lines; with `after` what came since, so that asking again and again follows the output."""
    if sum(one is not None for one in (tail, after, before)) > 1:
        raise invalid("tail", "one of tail, after and before")
    wanted = OutputFilter(stream, search, _place(after), _place(before))
    with state.store.read() as connection:
        row = the_experiment(connection, who, experiment_id)
        lines, previous, next = read_output(connection, row.id, wanted, tail or limit)
    return json_answer(
        LogAnswer(
            experiment_id=row.uid,
            lines=lines,
            next=write_cursor(next),
            previous=None if previous is None else write_cursor(previous),
        )
    )


def _place(cursor: str | None) -> int | None:
    place = read_cursor(cursor, tuple[int])
    return None if place is None else place[0]
