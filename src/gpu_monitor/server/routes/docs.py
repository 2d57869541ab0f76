"""The page that shows and tries the API, from files of this program: no other machine is asked for anything."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

_FOLDER = files("gpu_monitor.server").joinpath("dashboard")
_TYPES = {"css": "text/css", "js": "text/javascript", "html": "text/html", "svg": "image/svg+xml"}
_FRESH = {"Cache-Control": "no-cache"}


@router.get("/docs")
def docs() -> Response:
    """The page."""
    return _file("docs.html")


@router.get("/assets/{name}")
def asset(name: Literal["page.css", "docs.js", "icon.svg"]) -> Response:
    """A file that the pages use."""
    return _file(name)


def _file(name: str) -> Response:
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(_FOLDER.joinpath(name).read_bytes(), media_type=f"{kind}; charset=utf-8", headers=_FRESH)
