"""What every question about one experiment has in common: how it is named, and how expressions are refused."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Query
from sqlalchemy import Connection
from starlette.requests import HTTPConnection

from gpu_monitor.server.answers import read_cursor
from gpu_monitor.server.auth.principal import Gate, Principal, unauthorised
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.store.experiment_names import find_experiment, nearest_name
from gpu_monitor.wire.expressions import ExpressionError

MeantId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=520,
        pattern=r"^[^\x00]+$",
        description="an experiment's id; or its name, which means the newest of that name; or name~2, the one before",
    ),
]
LongCursor = Annotated[
    str | None, Query(min_length=1, max_length=2000, description="`next` of the page before, unchanged")
]


async def _writer(connection: HTTPConnection) -> Principal:
    """Who would change an experiment; Problem 401 where that is not known. Which one they may, the route decides."""
    gate: Gate = connection.app.state.server.gate
    who = await gate.identify(connection)
    if who.kind == "anonymous":
        raise unauthorised("This needs a token or a login.")
    if not who.is_admin and not who.scopes & {"read", "experiment:write"}:
        raise Problem(
            403, "Not allowed", f"This needs the scope read or experiment:write; {who.name} has neither."
        )
    return who


Writer = Annotated[Principal, Depends(_writer)]
"""Somebody known by name, who may read experiments or write them."""


def the_experiment(connection: Connection, who: Principal, meant: str) -> Any:
    """The row of the experiment that is meant; Problem 404, with the nearest name, where there is none to see."""
    row = find_experiment(connection, who, meant)
    if row is None:
        near = nearest_name(connection, who, meant)
        hint = f" Did you mean {near!r}?" if near else ""
        raise Problem(
            404, "Not found", f"There is no experiment {meant!r} here, or it is not yours to see.{hint}"
        )
    return row


def refused(parameter: str, error: ExpressionError) -> Problem:
    """The refusal of an expression; `column` counts its characters from 1."""
    errors = [{"field": f"query.{parameter}", "reason": str(error), "column": str(error.column)}]
    return Problem(422, "The request is not valid", f"query.{parameter}: {error}", errors=errors)


def read_text_cursor(text: str | None, kind: Any) -> Any:
    """As `read_cursor`, of lists whose places hold texts: U+0000 is refused, which PostgreSQL's cannot hold."""
    place = read_cursor(text, kind)
    if place is not None and any(isinstance(part, str) and "\x00" in part for part in place):
        return read_cursor("!", kind)
    return place
