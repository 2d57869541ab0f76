"""The server killed under load, its database stopped: what was answered is there, twice is once."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.server.postgres import WHY_NOT, Cluster, running_cluster
from tests.server.posts import HOUR, encode, headers_of, make_report
from tests.server.rig import Answer, Server, serving
from tests.server.rows import held_receipts

KILLS = 20
_SENDERS = 4


def node_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


@dataclass
class Load:
    """Senders that post each report until it is acknowledged, as agents do, over any number of servers."""

    token: str
    port: int = 0
    acknowledged: dict[tuple[str, int], str] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    up: threading.Event = field(default_factory=threading.Event)
    news: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    strange: list[str] = field(default_factory=list)

    def run(self, sender: int) -> None:
        """Send hour after hour of one node."""
        node = node_of(sender)
        for hour in itertools.count(HOUR):
            report = make_report(node, hour)
            body = encode(report)
            while (node, hour) not in self.acknowledged:
                self.up.wait()
                if self.stop.is_set():
                    return
                self._try(node, hour, body)
            self.news.release()

    def _try(self, node: str, hour: int, body: bytes) -> None:
        headers = {"Authorization": f"Bearer {self.token}", **headers_of(body)}
        try:
            with contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            ) as connection:
                while (node, hour) not in self.acknowledged and not self.stop.is_set():
                    connection.request("POST", "/api/metrics", body, headers)
                    answer = connection.getresponse()
                    said = answer.read()
                    if answer.status == 200:
                        self.acknowledged[node, hour] = said.decode()
                    elif answer.status != 503:
                        self.strange.append(f"{answer.status} {said!r}")
                        return
        except (OSError, http.client.HTTPException):
            return  # killed: the same again once it is back


@contextlib.contextmanager
def sending(token: str) -> Iterator[Load]:
    """Senders, which wait until there is a server."""
    load = Load(token)
    threads = [threading.Thread(target=load.run, args=(number,)) for number in range(_SENDERS)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        load.up.set()
        for thread in threads:
            thread.join(60)


def assert_held_once(server: Server, load: Load) -> None:
    """Every acknowledged report is held, none twice, none torn; the fleet's hours say the same."""
    assert load.strange == [], server.said
    held = held_receipts(server.database)
    assert len(held) == len(set(held))
    assert set(load.acknowledged) <= set(held)
    # A sender has at most one report on its way.
    assert len(held) - len(load.acknowledged) <= _SENDERS
    checked = server.command("server", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_under_load(tmp_path: Path, database: str) -> None:
    with serving(tmp_path, database=database) as server:
        token = server.token("--contract", "12345")
    with sending(token) as load:
        for number in range(KILLS):
            with serving(tmp_path, database=database) as server:
                load.port = server.port
                load.up.set()
                # Killed after some acknowledgements, each time at another one.
                for _ in range(3 + number):
                    assert load.news.acquire(timeout=60), server.said
                load.up.clear()
                server.kill()
        load.stop.set()
    assert len(load.acknowledged) >= KILLS * 3
    with serving(tmp_path, database=database) as server:
        assert_held_once(server, load)


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "there is PostgreSQL")
def test_postgresql_stopped_and_started(tmp_path: Path) -> None:
    """503 while it is away, and on as before without a restart of ours."""
    with running_cluster() as cluster, serving(tmp_path, database=cluster.create()) as server:
        token = server.token("--contract", "12345")
        assert post(server, token, HOUR).status == 200
        for signal in ("INT", "QUIT"):
            cluster.stop(signal)
            away = post(server, token, HOUR + 1)
            assert (away.status, "retry-after" in away.headers) == (503, True), away.body
            cluster.start()
            # The first one may meet a connection that is dead and not known to be.
            assert 200 in [post(server, token, HOUR + 1).status for _ in range(3)]
        assert {hour for _, hour in held_receipts(server.database)} == {HOUR, HOUR + 1}


def post(server: Server, token: str, hour: int) -> Answer:
    body = encode(make_report(hour=hour))
    return server.ask("POST", "/api/metrics", body, token, headers_of(body))


def test_two_processes_on_one_postgresql_with_one_killed(tmp_path: Path, cluster: Cluster) -> None:
    database = cluster.create()
    with serving(tmp_path, database=database) as first:
        token = first.token("--contract", "12345")
        with sending(token) as load:
            (tmp_path / "second").mkdir()
            with serving(tmp_path / "second", database=database) as second:
                load.port = second.port
                load.up.set()
                reports = [make_report(node_of(50 + number), HOUR) for number in range(30)]
                for number, report in enumerate(reports):
                    body = encode(report)
                    assert first.ask("POST", "/api/metrics", body, token, headers_of(body)).status == 200
                    if number == 15:
                        second.kill()
                        load.port = first.port
                for _ in range(8):
                    assert load.news.acquire(timeout=60)
        for report in reports:
            load.acknowledged[report["node"]["id"], HOUR] = ""
        assert_held_once(first, load)
