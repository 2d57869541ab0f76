"""How answers leave: JSON by msgspec (NaN and infinities become null), CSV for spreadsheets, opaque cursors."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gpu_monitor.core.spreadsheet import cell
from gpu_monitor.server.problems import Problem

T = TypeVar("T")
JSON, CSV = "application/json", "text/csv; charset=utf-8"
_encode = msgspec.json.Encoder().encode


def answer(
    request: Request,
    whole: msgspec.Struct,
    items: Sequence[msgspec.Struct],
    kind: type[msgspec.Struct],
    format: str | None,
    next: str | None = None,
) -> Response:
    """`whole` as JSON, or its `items` (all of `kind`, which names the columns) as CSV where that was asked for.

    Of a list that goes on, the CSV's header Link names the next page.
    """
    if wants_csv(request, format):
        return csv_answer(request, msgspec.structs.fields(kind), items, next)
    return Response(_encode(whole), media_type=JSON, headers={"Vary": "Accept"})


def json_answer(whole: msgspec.Struct) -> Response:
    """`whole` as JSON."""
    return Response(_encode(whole), media_type=JSON)


def wants_csv(request: Request, format: str | None) -> bool:
    """Whether CSV was asked for: by `format`, else where Accept prefers it."""
    if format is not None:
        return format == "csv"
    accepted = request.headers.get("accept", "").lower()
    named = [part.split(";")[0].strip() for part in accepted.split(",")]
    return "text/csv" in named and JSON not in named[: named.index("text/csv")]


def csv_answer(
    request: Request, fields: Sequence[Any], items: Iterable[msgspec.Struct], next: str | None
) -> Response:
    """A table with one row an item; null is an empty cell, lists are joined with `;`."""
    names = [field.name for field in fields]
    rows = ([getattr(item, name) for name in names] for item in items)
    return table_answer(request, [field.encode_name for field in fields], rows, next)


def table_answer(
    request: Request, header: Sequence[str], rows: Iterable[Iterable[Any]], next: str | None = None
) -> Response:
    """The same of rows whose columns are named by `header`: where what is asked decides which there are."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(value) for value in row] for row in rows)
    headers = {"Vary": "Accept"}
    if next is not None:
        where = request.url.include_query_params(cursor=next)
        headers["Link"] = f'<{where.path}?{where.query}>; rel="next"'
    return Response(stream.getvalue(), media_type=CSV, headers=headers)


def _cell(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return ""  # NaN and infinities are unknown here too
    if isinstance(value, msgspec.Raw):
        value = json.loads(bytes(value))  # whole numbers of any length
    if isinstance(value, bool):
        return "true" if value else "false"
    if value == "-Infinity":
        return value  # a reading that was one, which a spreadsheet runs without harm
    if isinstance(value, msgspec.Struct):
        return cell(msgspec.to_builtins(value))
    return cell(value)


def write_cursor(*place: int | float | str) -> str:
    """The place after which the next page begins, as clients carry it."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def read_cursor(text: str | None, kind: type[T]) -> T | None:
    """The place in a cursor (a tuple type such as `tuple[float, int]`); Problem 422 where it is none of ours."""
    if text is None:
        return None
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(raw, type=kind)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise _no_cursor() from error
    if any(isinstance(part, int) and abs(part) >= 2**31 for part in place):  # type: ignore[attr-defined]
        raise _no_cursor()
    return place


def _no_cursor() -> Problem:
    reason = "not a cursor of this list; take it unchanged from `next`"
    return invalid("cursor", reason)


def invalid(parameter: str, reason: str) -> Problem:
    """The refusal of a query parameter, in the words that the framework's own refusals have."""
    errors = [{"field": f"query.{parameter}", "reason": reason}]
    return Problem(422, "The request is not valid", f"query.{parameter}: {reason}", errors=errors)


def missing(what: str, name: str) -> Problem:
    """The answer where there is no such thing, or none that the asker may see."""
    return Problem(404, "Not found", f"There is no {what} {name!r} here, or it is not yours to see.")
