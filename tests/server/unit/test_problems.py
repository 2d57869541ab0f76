"""What a client is told when something is wrong: one shape, no secrets, the right status."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from gpu_monitor.config.server import ServerSettings
from gpu_monitor.core.errors import StorageBusy, StorageCorrupt, StorageFull, StorageUnreachable
from gpu_monitor.server.app import Outermost
from gpu_monitor.server.handlers import add_handlers
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.problems import Problem


def ask(error: Exception, settings: ServerSettings) -> tuple[int, dict[str, str], dict[str, Any], OwnMetrics]:
    """The answer of a route that raises `error`, through the outermost handler."""
    app = FastAPI()
    add_handlers(app)

    @app.get("/")
    async def route() -> None:
        raise error

    state = SimpleNamespace(settings=settings, metrics=OwnMetrics())
    app.state.server = state
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    scope = {
        "type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": [],
        "scheme": "http", "http_version": "1.1", "root_path": "", "client": ("127.0.0.1", 1), "server": ("x", 1),
    }  # fmt: skip
    asyncio.run(Outermost(app, state)(scope, receive, send))  # type: ignore[arg-type]
    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], headers, json.loads(messages[1]["body"]), state.metrics


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(directory=tmp_path)


@pytest.mark.parametrize(
    ("error", "status", "title", "retry"),
    [
        (Problem(409, "Conflict", "Held already.", held="x"), 409, "Conflict", None),
        (HTTPException(405), 405, "Method Not Allowed", None),
        (StorageFull("no room on /secret/disk"), 507, "No room", None),
        (StorageBusy("/secret/disk is locked"), 503, "Not now", "5"),
        (StorageUnreachable("cannot reach db at 10.0.0.5"), 503, "Not now", "5"),
        (StorageCorrupt("/secret/disk is damaged"), 500, "Internal error", None),
        (RuntimeError("password=hunter2"), 500, "Internal error", None),
    ],
)
def test_each_error_has_its_answer(
    error: Exception, status: int, title: str, retry: str | None, settings: ServerSettings
) -> None:
    answered, headers, body, _ = ask(error, settings)
    assert (answered, body["status"], body["title"]) == (status, status, title)
    assert headers["content-type"] == "application/problem+json"
    assert headers.get("retry-after") == retry
    for hidden in ("/secret/disk", "10.0.0.5", "hunter2", "Traceback"):
        assert hidden not in json.dumps(body)


def test_members_of_a_problem_are_in_the_answer(settings: ServerSettings) -> None:
    _, _, body, _ = ask(Problem(409, "Conflict", "Held already.", held="x"), settings)
    assert body == {
        "type": "about:blank", "title": "Conflict", "status": 409, "detail": "Held already.", "held": "x",
    }  # fmt: skip


def test_what_nobody_foresaw_is_logged_and_counted(
    settings: ServerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        _, _, _, metrics = ask(RuntimeError("a mistake of ours"), settings)
    assert metrics.snapshot().counters == {("errors_total", ()): 1}
    assert "GET / failed" in caplog.text
    assert "a mistake of ours" in caplog.text


def test_tracebacks_are_shown_with_debug_on_loopback_only(tmp_path: Path) -> None:
    for host, is_shown in (("localhost", True), ("0.0.0.0", False)):
        settings = ServerSettings(debug=True, host=host, directory=tmp_path)
        _, _, body, _ = ask(RuntimeError("a mistake of ours"), settings)
        assert ("traceback" in body) is is_shown
        assert ("a mistake of ours" in json.dumps(body)) is is_shown


def test_commands_beside_the_server_load_no_framework() -> None:
    """It takes half of their time."""
    code = (
        "import sys; import gpu_monitor.cli.token, gpu_monitor.cli.user, gpu_monitor.cli.server;"
        " print({'fastapi', 'pydantic', 'uvicorn'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout == "set()\n"
