"""Reports over real HTTP to the real program: what is answered, and what is held afterwards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.server.posts import NODE, OTHER, encode, headers_of, join, make_entry, make_report, packed
from tests.server.rig import Server, serving


@pytest.fixture
def server(tmp_path: Path, database: str):  # type: ignore[no-untyped-def]
    """A server on either database."""
    with serving(tmp_path, database=database) as server:
        yield server


@pytest.fixture
def token(server: Server) -> str:
    """One that may write every node of the contract."""
    return server.token("--contract", "12345")


def post(server: Server, report: dict[str, Any], token: str, **headers: str) -> Any:
    body = encode(report)
    return server.ask(
        "POST", "/api/metrics", body, token, {**headers_of(body, report_id=report["report_id"]), **headers}
    )


def test_a_report_is_stored_once_and_acknowledged_every_time(server: Server, token: str) -> None:
    report = make_report()
    first = post(server, report, token)
    assert first.status == 200, first.body
    assert first.json["sha256"] == hashlib.sha256(encode(report)).hexdigest()
    assert (first.json["outcome"], first.json["revision"]) == ("stored", 1)
    again = post(server, report, token)
    assert again.json == {**first.json, "outcome": "repeated"}
