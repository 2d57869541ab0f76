"""The description of the API: what the routes say of themselves, and the shapes of answers that msgspec writes."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.responses import Response

from gpu_monitor.server.problems import MEDIA_TYPE

_REF = "#/components/schemas/{name}"
_ACCESS = {
    "token": {"type": "http", "scheme": "bearer", "description": "A token: gpu_monitor token create."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "gpu_monitor",
        "description": "A session: POST /api/session. Under TLS the cookie is __Host-gpu_monitor. A change must"
        " carry the session's `csrf` as X-CSRF-Token, too.",
    },
}
"""How one says who asks; on loopback reading needs neither."""


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What was wrong (RFC 9457). `errors` names the parameters, each with a reason."""

    type: str
    title: str
    status: int
    detail: str | None = None
    errors: list[dict[str, str]] | None = None


def answers(kind: type[msgspec.Struct], text: str, csv: bool = False) -> dict[str, Any]:
    """What a GET route says of its answers: JSON of `kind`, CSV where it can, problems otherwise."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}
    if csv:
        content["text/csv"] = {"schema": {"type": "string"}}
    refusals = {401: "Not authorised", 403: "Not allowed", 404: "Not found", 422: "The request is not valid"}
    return {
        "response_class": Response,
        "responses": {200: {"description": text, "content": content}}
        | {status: {"description": words, "content": _problem()} for status, words in refusals.items()},
    }


def _problem() -> dict[str, Any]:
    return {MEDIA_TYPE: {"schema": {"$ref": _REF.format(name=ProblemDetails.__name__)}}}


def describe(app: FastAPI, kinds: tuple[type[msgspec.Struct], ...], paths: dict[str, Any]) -> None:
    """Let /openapi.json hold the shapes of `kinds`, and `paths`, beside those that the framework knows."""
    plain = app.openapi

    def whole() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = plain()
            _, shapes = msgspec.json.schema_components((*kinds, ProblemDetails), ref_template=_REF)
            schemas = made.setdefault("components", {}).setdefault("schemas", {})
            schemas.update({name: shape for name, shape in shapes.items() if name not in schemas})
            made["paths"].update(paths)
            _settle_texts(made)
            made["components"]["securitySchemes"] = _ACCESS
            made["security"] = [{"token": []}, {"session": []}, {}]
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = whole  # type: ignore[method-assign]


def _settle_texts(part: Any) -> None:
    """Take the indentation out of descriptions: msgspec does so from 0.23 on, and the answer is one whatever its version."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if key == "description" and isinstance(value, str):
            part[key] = inspect.cleandoc(value)
        elif isinstance(value, dict | list):
            _settle_texts(value)
