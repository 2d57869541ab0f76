"""What the description of the API says of the agents' requests, which are answered before the framework is asked."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from gpu_monitor.server.problems import MEDIA_TYPE
from gpu_monitor.server.routes.ingest import Accepts, Taken
from gpu_monitor.server.store.write import SetAside
from gpu_monitor.wire.entry import LenientEntry, LenientHostEntry
from gpu_monitor.wire.intake import PERIODS
from gpu_monitor.wire.live_intake import LiveIn
from gpu_monitor.wire.telemetry import BATCH_REPORTS, EventPart, GapPart, NodePart, ProcessPart

_ANSWER = dict[str, Any]


def _shown(kind: Any, name: str, text: str) -> Any:
    """`kind` as a sender writes it: `reasons` as an object, everything that may be absent null."""
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        if field.name == "reasons":
            fields.append((field.name, dict[str, str], msgspec.field(default_factory=dict)))
        elif field.required:
            fields.append((field.name, field.type))
        else:
            fields.append((field.name, field.type, field.default))
    return msgspec.defstruct(name, fields, namespace={"__doc__": text}, frozen=True, kw_only=True)


ReportedGpu = _shown(
    LenientEntry, "ReportedGpu", "One GPU over the period: names and units of the catalogue."
)
ReportedHost = _shown(LenientHostEntry, "ReportedHost", "The machine over the period.")


class ReportBody(msgspec.Struct, frozen=True, kw_only=True):
    """One node, one period (docs/report.md). Fields that are not known are ignored and kept."""

    schema: Literal[1]
    report_id: str
    revision: Annotated[int, msgspec.Meta(ge=1)]
    contract_number: Annotated[str, msgspec.Meta(min_length=1)]
    node: NodePart
    aggregation_time: datetime
    period_seconds: Annotated[int, msgspec.Meta(description=f"one of {sorted(PERIODS)}")]
    collection_interval_seconds: Annotated[int, msgspec.Meta(ge=1)]
    gpus: list[ReportedGpu]  # type: ignore[valid-type]
    host: ReportedHost | None = None  # type: ignore[valid-type]
    gaps: list[GapPart] = []
    events: list[EventPart] = []
    processes: list[ProcessPart] = []


class BatchBody(msgspec.Struct, frozen=True):
    """Many reports, each taken or refused for itself."""

    reports: Annotated[list[ReportBody], msgspec.Meta(max_length=BATCH_REPORTS)]


class ReportAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one report of a batch: with 200 what the answer to a single one says, else why it was refused."""

    report_id: str | None
    status: int
    uid: str | msgspec.UnsetType = msgspec.UNSET
    sha256: str | msgspec.UnsetType = msgspec.UNSET
    outcome: str | msgspec.UnsetType = msgspec.UNSET
    revision: int | msgspec.UnsetType = msgspec.UNSET
    quarantined: list[SetAside] | msgspec.UnsetType = msgspec.UNSET
    node_token: str | msgspec.UnsetType = msgspec.UNSET
    title: str | msgspec.UnsetType = msgspec.UNSET
    detail: str | msgspec.UnsetType = msgspec.UNSET
    field: str | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET


class BatchAnswer(msgspec.Struct, frozen=True):
    """The answers, in the order of the reports."""

    answers: list[ReportAnswer]
    accepts: Accepts


class Greeting(msgspec.Struct, frozen=True):
    """What this server takes."""

    accepts: Accepts


SHAPES: tuple[Any, ...] = (ReportBody, BatchBody, LiveIn, Taken, BatchAnswer, Greeting)


def _ref(kind: Any) -> _ANSWER:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _header(name: str, text: str) -> _ANSWER:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": text,
    }


_HEADERS = (
    _header("X-Contract-Number", "Where it is given it must be the contract_number in the body."),
    _header("Content-Digest", "`sha-256=:…:` of the body as it is sent; held against it where it is given."),
    _header("Content-Encoding", "gzip or zstd; at most 2 MiB encoded, 8 MiB and 250 times as much decoded."),
    _header("Date", "What the node's clock shows: held against the server's it gives the node's skew."),
)
_KEY = _header("Idempotency-Key", "Where it is given it must be the report_id in the body.")
_REFUSALS = {
    400: "The connection ended before the body did.",
    401: "No token that is known, in force and not expired.",
    403: "The token may not: its scope, its contract, its node, or a node that has a token of its own (`field`).",
    405: "Only POST and OPTIONS.",
    408: "The body did not arrive in time.",
    413: "Too large, encoded or decoded.",
    415: "An encoding that is not taken.",
    422: "What is wrong, with `field` and `reason`; a report older than what is kept, too.",
    503: "More comes than can be written now, or the database cannot be used: again after Retry-After.",
    507: "The disk of the database is full; nothing was stored.",
}
_CONFLICT = "This report_id is held with another body; `revision` is the highest held."


def _refusals(more: dict[int, str]) -> _ANSWER:
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    found: _ANSWER = {
        str(status): {"description": text, "content": problem}
        for status, text in sorted({**_REFUSALS, **more}.items())
    }
    found["503"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return {**found, "default": {"description": "A problem (RFC 9457)", "content": problem}}


def _answer(kind: Any, text: str) -> _ANSWER:
    return {"200": {"description": text, "content": {"application/json": {"schema": _ref(kind)}}}}


def _post(
    name: str, summary: str, text: str, body: Any, answer: _ANSWER, *, key: bool, more: dict[int, str]
) -> _ANSWER:
    return {
        "operationId": name,
        "summary": summary,
        "description": text,
        "security": [{"token": []}],
        "parameters": [*_HEADERS, *([_KEY] if key else [])],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": {**answer, **_refusals(more)},
    }


def _options(name: str) -> _ANSWER:
    return {
        "operationId": f"{name}_options",
        "summary": "What this server takes",
        "description": "Encodings, and where batches and live samples go. No token is needed.",
        "security": [{}],
        "responses": {
            **_answer(Greeting, "What is taken."),
            "default": {
                "description": "A problem (RFC 9457)",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
            },
        },
    }


PATHS: dict[str, _ANSWER] = {
    "/api/metrics": {
        "post": _post(
            "take_report",
            "Deliver a report",
            "Answered once the report is safe. A repeat gets the same answer, a higher revision replaces, a lower one is"
            " superseded. GPU entries that are wrong are set aside (`quarantined`), as is a report whose period ends more"
            " than 10 minutes ahead. The answer to an enrolling token carries `node_token`.",
            ReportBody,
            _answer(Taken, "The report is safe."),
            key=True,
            more={409: _CONFLICT},
        ),
        "options": _options("report"),
    },
    "/api/metrics/batch": {
        "post": _post(
            "take_batch",
            "Deliver many reports",
            f"At most {BATCH_REPORTS}. Each is answered for itself, in order, with the status it would have got alone.",
            BatchBody,
            _answer(BatchAnswer, "What became of each."),
            key=False,
            more={},
        ),
        "options": _options("batch"),
    },
    "/api/samples": {
        "post": _post(
            "take_samples",
            "Tell what happens now",
            "Live minutes of one node, best effort: `samples` are kept a week, idempotent by GPU and time; `readings` are"
            " shown until something newer comes. What is older than a week or ahead of time is left out.",
            LiveIn,
            _answer(Greeting, "Taken; `accepts.watch_seconds` is the pace that somebody who looks asks for."),
            key=False,
            more={},
        ),
        "options": _options("samples"),
    },
}
"""As they stand in /openapi.json."""
