"""Experiments that come over HTTP, are changed by people, and are deleted: what is asked says so, and who may is kept."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from gpu_monitor.wire.training import Media
from tests.server.rig import Answer, Server, serving
from tests.server.runs import Segment

BEGIN = 1_710_000_000.0
PASSWORD = "correct horse battery"
FILE = b"step,loss\n0,1.5\n"


@pytest.fixture
def server(tmp_path: Path, database: str) -> Iterator[Server]:
    """A server on each of the databases."""
    with serving(tmp_path, database=database) as running:
        yield running


def send(server: Server, token: str, segment: Segment) -> Answer:
    """A whole segment in one upload."""
    digest = base64.b64encode(hashlib.sha256(segment.data).digest()).decode()
    path = f"/api/experiments/{segment.experiment}/segments/{segment.segment}?offset=0"
    return server.ask("PUT", path, segment.data, token, {"Content-Digest": f"sha-256=:{digest}:"})


def run(experiment: str, name: str = "net", project: str = "vision", more: float = 0.0) -> Segment:
    """A run with one metric and one tag."""
    found = Segment(experiment, name, project, BEGIN + more).params(lr=0.1).tags(stage="dev")
    return found.log(1, 0, loss=1.5).log(2, 1, loss=0.5).end(3, "completed")


def login(server: Server, name: str, *grants: tuple[str, str, str]) -> dict[str, str]:
    """A user with these roles, and the headers of a session of theirs."""
    server.user(name, PASSWORD, *grants)
    answer = server.ask("POST", "/api/session", {"name": name, "password": PASSWORD})
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0], "X-CSRF-Token": answer.json["csrf"]}


def test_what_was_uploaded_is_answered_at_once(server: Server) -> None:
    token = server.token("--scope", "experiment:write", "--contract", "12345")
    sha256 = hashlib.sha256(FILE).hexdigest()
    brought = server.ask("PUT", f"/api/blobs/{sha256}?offset=0&size={len(FILE)}", FILE, token)
    assert (brought.status, brought.json["complete"]) == (200, True)
    segment = run("run-1")
    named = {"sha256": sha256, "size": len(FILE), "type": "text/csv", "file": "artifacts/x"}
    segment.add(Media(2500, 1, "artifact", "data/größe 1.csv", named))
    assert send(server, token, segment).status == 200
    assert [one["id"] for one in server.ask("GET", "/api/experiments?where=loss%3D0.5").json["items"]] == [
        "run-1"
    ]
    assert server.ask("GET", "/api/metrics/net").json["series"][0]["value"] == [1.5, 0.5]
    (told,) = server.ask("GET", "/api/experiments/net/artifacts").json["items"]
    assert (told["name"], told["url"]) == ("data/größe 1.csv", f"/api/blobs/{sha256}")
    got = server.ask("GET", f"/api/experiments/net/artifacts/{quote(told['name'])}")
    assert (got.status, got.body) == (200, FILE)
    assert got.headers["content-disposition"] == "attachment; filename*=utf-8''gr%C3%B6%C3%9Fe%201.csv"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-type"] == "application/octet-stream"
    assert server.ask("GET", told["url"]).body == FILE
    # A later segment goes on where the first one ended: a name means the newest run of it.
    assert send(server, token, run("run-2", more=60)).status == 200
    assert server.ask("GET", "/api/experiments/net").json["id"] == "run-2"
    assert server.ask("GET", "/api/experiments/net~2").json["id"] == "run-1"


def test_members_change_what_is_theirs(server: Server) -> None:
    writer = server.token("--scope", "experiment:write", "--contract", "12345")
    other = server.token("--scope", "experiment:write", "--scope", "read", "--contract", "99999")
    assert send(server, writer, run("run-1")).status == 200
    assert send(server, other, run("run-9")).status == 200
    where = "/api/experiments/run-1"
    member = login(server, "mia", ("12345", "member", ""))
    viewer = login(server, "vic", ("12345", "viewer", ""))
    inside = login(server, "pia", ("12345", "member", "vision"))
    beside = login(server, "sam", ("12345", "member", "speech"))
    tagged = server.ask(
        "PATCH", where, {"tags": {"stage": None, "best": "yes"}, "notes": ["good"]}, headers=member
    )
    assert (tagged.status, tagged.json["tags"]) == (200, {"best": "yes"})
    named = server.ask("PATCH", where, {"name": "net/α"}, headers=inside)
    assert (named.status, named.json["name"], named.json["tags"]) == (200, "net/α", {"best": "yes"})
    assert server.ask("PATCH", where, {"name": "no"}, headers=viewer).status == 403
    for nobody in (beside, {"Authorization": f"Bearer {other}"}):
        assert server.ask("PATCH", where, {"name": "no"}, headers=nobody).status == 404
    assert server.ask("PATCH", where, {"name": "no"}).status == 401
    assert server.ask("PATCH", where, {"name": "no"}, headers={"Cookie": member["Cookie"]}).status == 403, (
        "no CSRF"
    )
    assert server.ask("PATCH", where, {"archived": True}, token=writer).json["archived"] is True
    # Who is in a project sees that one alone.
    assert [
        one["id"] for one in server.ask("GET", "/api/experiments?archived=all", headers=inside).json["items"]
    ] == ["run-1"]
    assert server.ask("GET", "/api/experiments?archived=all", headers=beside).json["items"] == []
    # A name may hold a slash, and what somebody noted says who they are.
    found = server.ask("GET", f"/api/experiments/{quote('net/α')}", headers=viewer).json
    assert [(one["text"], one["author"]) for one in found["notes"]] == [("good", "mia")]
    admin = server.token("--scope", "admin")
    deeds = [
        one
        for one in server.ask("GET", "/api/audit", token=admin).json["items"]
        if one["action"] == "experiment.change"
    ]
    assert [(one["actor"], one["subject"]) for one in deeds][1:] == [("pia", "run-1"), ("mia", "run-1")]
    assert deeds[2]["detail"] == {"tags": {"stage": None, "best": "yes"}, "notes": 1}


BAD_CHANGES: list[object] = [
    {"status": "completed"},
    {"name": ""},
    {"name": "x" * 501},
    {"name": "a\x00b"},
    {"tags": {"": "x"}},
    {"tags": {"a\x00": "x"}},
    {"tags": {"a": "\x00"}},
    {"tags": {"a": 1}},
    {"tags": {str(number): "x" for number in range(101)}},
    {"notes": [""]},
    {"notes": "text"},
    {"archived": "maybe"},
    [],
    rb'{"name": "\ud800"}',
]


def test_a_change_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        token = server.token("--scope", "experiment:write", "--contract", "12345")
        assert send(server, token, run("run-1")).status == 200
        found = [server.ask("PATCH", "/api/experiments/run-1", body, token).status for body in BAD_CHANGES]
        assert found == [422] * len(BAD_CHANGES)
        held = server.ask("GET", "/api/experiments/run-1").json
        assert (held["name"], held["tags"], held["notes"]) == ("net", {"stage": "dev"}, [])


def test_only_what_is_archived_is_deleted_and_then_it_is_gone(server: Server) -> None:
    token = server.token("--scope", "experiment:write", "--contract", "12345")
    segment = run("run-1")
    assert send(server, token, segment).status == 200
    where = "/api/experiments/run-1"
    early = server.ask("DELETE", where, token=token)
    assert (early.status, early.json["title"]) == (409, "Not archived")
    assert server.ask("PATCH", where, {"archived": True}, token).status == 200
    assert server.ask("DELETE", where).status == 401
    assert server.ask("DELETE", where, token=token).status == 204
    for path in (where, "/api/metrics/run-1", "/api/logs/run-1", f"{where}/media", "/api/compare?ids=run-1"):
        assert server.ask("GET", path).status == 404
    assert server.ask("GET", "/api/experiments?archived=all").json["items"] == []
    assert server.ask("DELETE", where, token=token).status == 404
    assert send(server, token, segment).status == 410
    (project,) = server.ask("GET", "/api/projects").json["items"]
    assert project["experiments"] == 0
    admin = server.token("--scope", "admin")
    deed = server.ask("GET", "/api/audit", token=admin).json["items"]
    found = next(one for one in deed if one["action"] == "experiment.delete")
    assert (found["subject"], json.dumps(found["detail"], sort_keys=True)) == (
        "run-1", '{"name": "net", "points": 2, "project": "vision"}',
    )  # fmt: skip
