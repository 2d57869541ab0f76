"""What questions have in common: times, spans, limits, filters; and nothing that a route does not know."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import Depends, Query
from fastapi.dependencies.models import Dependant
from starlette.requests import Request

from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.times import format_time, parse_moment
from gpu_monitor.server.answers import invalid
from gpu_monitor.server.auth.principal import Principal, require
from gpu_monitor.server.state import ServerState, state_of
from gpu_monitor.server.store.span import DAY, Span

_LAST = 7_258_118_400
"""2200-01-01: later times are refused, so that hours and seconds stay in the columns' range."""
_NO_NUL = r"^[^\x00]+$"
"""PostgreSQL's text cannot hold U+0000."""
_LOST_PLUS = re.compile(r"(T[\d:.]+) (\d{2}:?\d{2})$")
"""A `+` that was not percent-encoded arrives as a space: `2024-03-20T14:00:00 00:00`."""

State = Annotated[ServerState, Depends(state_of)]
Reader = Annotated[Principal, Depends(require("read"))]
Text = Annotated[str | None, Query(min_length=1, max_length=200, pattern=_NO_NUL)]
Node = Annotated[
    str | None,
    Query(min_length=1, max_length=200, pattern=_NO_NUL, description="a node's id, or its host name"),
]
From = Annotated[
    str | None,
    Query(
        alias="from",
        min_length=1,
        max_length=40,
        description="start: ISO 8601 (UTC where it has no offset), epoch seconds, or relative as -7d",
    ),
]
To = Annotated[
    str | None, Query(min_length=1, max_length=40, description="end (not included), written as `from`")
]
Limit = Annotated[int, Query(ge=1, le=1000, description="most items in one answer")]
Cursor = Annotated[
    str | None, Query(min_length=1, max_length=200, description="`next` of the page before, unchanged")
]
Format = Annotated[
    Literal["json", "csv"] | None, Query(description="instead of the Accept header; CSV holds the items")
]
Include = Annotated[
    Literal["simulated"] | None,
    Query(description="simulated and replayed GPUs are left out of sums unless this says so"),
]


def moment(text: str, parameter: str, now: float) -> float:
    """UTC epoch seconds of a time as typed into a URL; Problem 422 where it is none."""
    try:
        return read_moment(text, now)
    except UsageError as error:
        raise invalid(parameter, error.message) from error


def read_moment(text: str, now: float) -> float:
    """UTC epoch seconds of a time in any of the forms that are taken; UsageError where it is none."""
    given = _LOST_PLUS.sub(r"\1+\2", text.strip())
    try:
        if re.fullmatch(r"\d{9,10}(\.\d{1,6})?", given):
            found = float(given)
        else:
            found = parse_moment(_with_offset(given), now).epoch
    except (UsageError, OverflowError, ValueError) as error:
        reason = f"not a time: {text!r}; write 2024-03-20T14:00:00Z, 2024-03-20, 1710943200 or -2h"
        raise UsageError(reason) from error
    if not 0 <= found <= _LAST:
        raise UsageError("a time before 1970 or after 2200")
    return found


def _with_offset(text: str) -> str:
    """A date or time without an offset, in UTC: where the server stands does not matter to who asks it."""
    if not re.match(r"^\d{4}-?\d{2}-?\d{2}", text) or re.search(r"([zZ]|[+-]\d{2}:?\d{2})$", text[10:]):
        return text
    return f"{text}T00:00:00Z" if len(text) <= 10 else f"{text}Z"


def span(start: str | None, end: str | None, now: float, usual: float, most: float) -> Span:
    """The asked span: `usual` seconds up to now where nothing is said; Problem 422 over `most` seconds."""
    until = now if end is None else moment(end, "to", now)
    since = max(0.0, until - usual) if start is None else moment(start, "from", now)
    if since >= until:
        raise invalid("from", f"{format_time(since)} is not before the end, {format_time(until)}")
    if until - since > most:
        raise invalid("from", f"the span is over {most / DAY:g} days; ask for less at a time")
    return Span(since, until)


def refuse_unknown(request: Request) -> None:
    """Problem 422 for a parameter that the route does not have: a typing error must not widen an answer."""
    known = _names(request)
    for name in request.query_params:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise invalid(name[:40], f"no parameter of this question; {hint}")


def _names(request: Request) -> list[str]:
    return list(_told(request.scope["route"].dependant))


def _told(dependant: Dependant) -> Iterator[str]:
    """The names of the query parameters of a route and of what it depends on."""
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _told(inner)
