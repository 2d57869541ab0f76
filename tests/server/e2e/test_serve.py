"""`gpu_monitor serve` as a program: starts with nothing configured, is ready, refuses, stops."""

from __future__ import annotations

from pathlib import Path

from tests.server.rig import serving


def test_it_starts_answers_and_stops_when_told(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        answer = server.ask("GET", "/healthz")
        assert (answer.status, answer.json) == (200, {"status": "ok"})
        assert server.stop() == 0
        assert server.ended.wait(10)
        assert "Traceback" not in server.said


def test_an_unknown_path_is_a_problem(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        answer = server.ask("GET", "/nothing/here")
        assert answer.status == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json == {"type": "about:blank", "title": "Not Found", "status": 404}


def test_another_name_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.ask("GET", "/healthz", headers={"Host": "gpus.evil.example"}).status == 421
        assert server.ask("GET", "/healthz", headers={"Host": "localhost:1"}).status == 200
