"""What gaps, events and processes have in common: the same question, and a page of the same form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from fastapi import Depends, Request
from sqlalchemy import Connection
from starlette.responses import Response

from gpu_monitor.server.answers import answer, read_cursor, write_cursor
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.parameters import Cursor, Format, From, Limit, Node, Reader, State, Text, To, span
from gpu_monitor.server.state import ServerState
from gpu_monitor.server.store.history import Mark, Wanted
from gpu_monitor.server.store.span import Span

T = TypeVar("T", bound=msgspec.Struct)
Find = Callable[[Connection, Principal, Wanted, Span, Mark | None, int], tuple[list[T], Mark | None]]


@dataclass(frozen=True, slots=True)
class Question:
    """Rows of which nodes and GPUs, of what span, how many, from where on, in which form."""

    request: Request
    state: ServerState
    who: Principal
    node: str | None
    contract: str | None
    gpu: str | None
    start: str | None
    to: str | None
    limit: int
    cursor: str | None
    format: str | None

    def page(
        self,
        find: Find[T],
        whole: Callable[[list[T], str | None], msgspec.Struct],
        kind: type[T],
        spans: tuple[float, float],
        /,
        **equal: str | None,
    ) -> Response:
        """The page that `find` gives of the rows whose columns are `equal` (None does not restrict).

        `spans`: the seconds up to now that are meant where none are said, and the most that may be asked for.
        Problem 422 where span or cursor is none.
        """
        asked = span(self.start, self.to, self.state.clock.now(), *spans)
        mark = read_cursor(self.cursor, tuple[float, int])
        told = tuple((name, value) for name, value in equal.items() if value is not None)
        wanted = Wanted(self.node, self.gpu, self.contract, told)
        with self.state.store.read() as connection:
            found, last = find(connection, self.who, wanted, asked, mark, self.limit)
        next = None if last is None else write_cursor(*last)
        return answer(self.request, whole(found, next), found, kind, self.format, next)


async def question(
    request: Request,
    state: State,
    who: Reader,
    node: Node = None,
    contract: Text = None,
    gpu: Text = None,
    start: From = None,
    to: To = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Question:
    """The question in a request's parameters."""
    return Question(request, state, who, node, contract, gpu, start, to, limit, cursor, format)


Asked = Annotated[Question, Depends(question)]
