"""`gpu_monitor serve` as a program: starts with nothing configured, is ready, refuses, stops."""

from __future__ import annotations

import contextlib
import json
import platform
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.waiting import until
from tests.server.postgres import Cluster
from tests.server.rig import Server, serving


@pytest.fixture(scope="module")
def resting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for those who only ask."""
    with serving(tmp_path_factory.mktemp("resting")) as server:
        yield server


def test_it_starts_answers_and_stops_when_told(tmp_path: Path) -> None:
    path = tmp_path / "first.db"
    with serving(tmp_path, database=f"sqlite:///{path}") as server:
        answer = server.ask("GET", "/healthz")
        assert (answer.status, answer.json) == (200, {"status": "ok"})
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, "it holds password hashes"
        assert server.stop() == 0
        assert server.ended.wait(10)
        assert "Traceback" not in server.said


def test_an_unknown_path_is_a_problem(resting: Server) -> None:
    answer = resting.ask("GET", "/nothing/here")
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json == {"type": "about:blank", "title": "Not Found", "status": 404}


def test_another_name_is_refused(resting: Server) -> None:
    assert resting.ask("GET", "/healthz", headers={"Host": "gpus.evil.example"}).status == 421
    assert resting.ask("GET", "/healthz", headers={"Host": "localhost:1"}).status == 200


def test_answers_bind_the_browser(resting: Server) -> None:
    for path in ("/", "/docs", "/healthz", "/nothing/here"):
        headers = resting.ask("GET", path).headers
        policy = dict(part.split(None, 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
        assert "strict-transport-security" not in headers, "in clear it means nothing"


def test_settings_come_from_the_file_in_the_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/.env").write_text("DATABASE_URL=sqlite:///fleet.db\nLOG_FORMAT=json\n")
    with serving(tmp_path, "--directory", str(tmp_path / "data"), DATABASE_URL="") as server:
        assert str(tmp_path / "data/fleet.db") in server.said
        assert server.stop() == 0
        assert server.ended.wait(10)
        lines = [json.loads(line) for line in server.lines if line.startswith("{")]
        assert [line["message"] for line in lines if line["component"] == "server"] == ["stopping (SIGTERM)"]
    assert (tmp_path / "data/fleet.db").exists()


def test_ready_tells_what_it_looked_at(resting: Server) -> None:
    answer = resting.ask("GET", "/readyz")
    assert answer.status == 200
    assert answer.json["ready"] is True
    assert {"clock", "database", "disk", "writer"} <= set(answer.json["checks"])
    assert set(answer.json["checks"].values()) == {"ok"}


def test_it_is_not_ready_while_its_database_is_away(tmp_path: Path, cluster: Cluster) -> None:
    url = cluster.create()
    with serving(tmp_path, database=url) as server:
        assert server.ask("GET", "/readyz").status == 200
        token = server.token("--scope", "read", "--name", "mine")
        assert server.ask("GET", "/api/session", token=token).status == 200
        cluster.stop()
        try:
            until(lambda: server.ask("GET", "/readyz").status == 503, "it is not ready")
            answer = server.ask("GET", "/readyz").json
            assert answer["ready"] is False
            assert answer["checks"]["database"] != "ok"
            assert server.ask("GET", "/healthz").status == 200
        finally:
            cluster.start()
        until(lambda: server.ask("GET", "/readyz").status == 200, "it is ready again")
        assert server.ask("GET", "/api/session", token=token).status == 200
        mine = json.loads(server.command("token", "list", "--json").stdout)
        name = next(one["id"] for one in mine if one["name"] == "mine")
        assert server.command("token", "revoke", name).returncode == 0
        until(
            lambda: server.ask("GET", "/api/session", token=token).status == 401, "the token is refused", 20
        )
    cluster.drop(url)


def test_a_service_manager_is_told(tmp_path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        with serving(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as server:
            assert manager.recv(100) == b"READY=1"
            assert server.ask("GET", "/healthz").status == 200
            assert server.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="its allocator alone gives threads heaps of their own"
)
def test_its_threads_share_one_heap(resting: Server) -> None:
    with ThreadPoolExecutor(8) as several:
        asked = [several.submit(resting.ask, "GET", "/api/fleet") for _ in range(40)]
        assert {one.result().status for one in asked} == {200}
    assert len(list(Path(f"/proc/{resting.process.pid}/task").iterdir())) > 2
    assert heaps_of_threads(resting.process.pid) == []


def heaps_of_threads(pid: int) -> list[str]:
    """Mappings of 64 MiB at a multiple of 64 MiB, mostly not yet accessible: what glibc reserves for a thread's heap."""
    whole = 64 << 20
    spans = [line.split(None, 2)[:2] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    bounds = [(*(int(edge, 16) for edge in span.split("-")), rights) for span, rights in spans]
    return [
        hex(start)
        for (start, end, rights), (after, last, following) in pairwise(bounds)
        if start % whole == 0
        and end == after
        and last - start == whole
        and (rights, following) == ("rw-p", "---p")
    ]
