"""The real agent beside the real server: seen within seconds, at a faster pace while somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection

from tests.e2e.program import configure, query, running
from tests.e2e.waiting import until
from tests.server.e2e.test_live_sockets import ask, following, live
from tests.server.postgres import Cluster
from tests.server.rig import Server, serving


def agent_of(server: Server, folder: Path, **collection: Any) -> None:
    """An agent's folder, configured to tell this server."""
    folder.mkdir()
    (folder / "token").write_text(server.token("--contract", "12345", "--enrol"))
    (folder / "token").chmod(0o600)
    url = f"{server.url}/api/metrics"
    configure(
        folder, server={"url": url, "contract_number": "12345", "token_file": "token"}, collection=collection
    )


def gpus_of(server: Server) -> list[Any]:
    return list(server.ask("GET", "/api/fleet").json["items"])


@pytest.mark.slow
def test_a_new_node_shows_before_its_first_report_and_stores_its_minutes(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        agent_of(server, tmp_path / "agent", interval_seconds=2, reading_seconds=1)
        with running(tmp_path / "agent", "--simulate", "3"):
            until(
                lambda: len(gpus_of(server)) == 3 and all(gpu["live"] for gpu in gpus_of(server)),
                "three GPUs",
            )
            (node,) = server.ask("GET", "/api/nodes").json["items"]
            assert node["last_report"] is None
            assert node["simulated"] is True
            held = until_samples(server, 6)
        # What the server keeps is what the agent stored, to the decimals of the catalogue.
        stored = query(
            tmp_path / "agent/gpu_metrics.db",
            "SELECT g.uid, s.start, s.power_usage FROM samples s JOIN gpus g ON g.id = s.gpu",
        )
        mine = {(uid, int(start)): power for uid, start, power in stored}
        for uid, time, power in held:
            # Both round a mean to hundredths of a watt, one of them twice.
            assert abs(mine[uid, time] - power) < 0.011, (uid, time)


def test_a_node_goes_on_showing_that_it_is_there_without_a_gpu(tmp_path: Path) -> None:
    """Else it would be called silent, which alerts."""
    seen: list[str] = []

    def came_again(server: Server) -> bool:
        for node in server.ask("GET", "/api/nodes").json["items"]:
            if node["last_live"] is not None and node["last_live"] not in seen:
                seen.append(node["last_live"])
        return len(seen) >= 2  # the first is of the start

    with serving(tmp_path) as server:
        agent_of(server, tmp_path / "agent", interval_seconds=1, reading_seconds=1)
        with running(tmp_path / "agent"):  # on a machine that has GPUs there is nothing to see here
            until(lambda: came_again(server), "a second message")
            (node,) = server.ask("GET", "/api/nodes").json["items"]
            assert node["silent"] is False


def until_samples(server: Server, least: int) -> list[Any]:
    """Live minutes in the server's database, once there are enough: (uid, start, W)."""
    path = Path(server.database.removeprefix("sqlite:///"))
    asked = (
        "SELECT g.uid, s.time, s.power_usage / 100.0 FROM samples s"
        " JOIN gpus g ON g.agent = s.agent AND g.ordinal = s.gpu ORDER BY s.time"
    )
    until(lambda: len(query(path, asked)) >= least, f"{least} live minutes")
    return query(path, asked)


@pytest.mark.slow
def test_while_somebody_looks_readings_come_every_two_seconds_and_rows_as_ever(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        agent_of(server, tmp_path / "agent", interval_seconds=6, reading_seconds=3)
        with running(tmp_path / "agent", "--simulate", "2"), live(server) as overview:
            ask(overview, gpus="all")
            until(lambda: len(gpus_of(server)) == 2, "two GPUs")
            node = gpus_of(server)[0]["node"]
            with live(server) as page:
                ask(page, gpus=[node])
                until_paced(page, 3, lambda step: step <= 3.5)
            until_paced(overview, 1, lambda step: step >= 5)
        rows = query(
            tmp_path / "agent/gpu_metrics.db",
            "SELECT count(*), count(DISTINCT start), max(seconds) FROM samples GROUP BY gpu",
        )
    assert len(rows) == 2
    for stored, intervals, longest in rows:
        assert stored == intervals
        assert longest <= 6


def until_paced(page: ClientConnection, count: int, is_paced: Callable[[float], bool]) -> None:
    """Read until the last `count` steps between the times of a GPU's values, in seconds, are as wanted."""
    times: list[datetime] = []
    for _ in range(60):
        for gpu in following(page).get("gpus", []):
            time = datetime.fromisoformat(gpu["time"])
            if gpu["index"] == 0 and time not in times:
                times.append(time)
        steps = [(after - before).total_seconds() for before, after in pairwise(times[-count - 1 :])]
        if len(steps) == count and all(map(is_paced, steps)):
            return
    raise AssertionError(f"never at that pace: {times}")


def rows_of(folder: Path) -> int:
    return int(query(folder / "gpu_metrics.db", "SELECT count(DISTINCT start) FROM samples")[0][0])


@pytest.mark.slow
def test_a_server_that_was_killed_is_told_again_and_the_agent_never_misses_a_minute(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        agent_of(server, tmp_path / "agent", interval_seconds=1, reading_seconds=1)
        with running(tmp_path / "agent", "--simulate", "1"):
            until_samples(server, 2)
            server.kill()
            before = rows_of(tmp_path / "agent")
            until(lambda: rows_of(tmp_path / "agent") >= before + 3, "it goes on recording")
            with serving(tmp_path, "--port", str(server.port)) as again:
                newest = before_kill = max(time for _, time, _ in until_samples(server, 1))
                until(
                    lambda: max(t for _, t, _ in until_samples(again, 1)) > before_kill + 3,
                    "it is told again",
                )
                assert newest == before_kill
        gaps = query(tmp_path / "agent/gpu_metrics.db", "SELECT cause FROM gaps WHERE cause <> 'agent down'")
        assert gaps == []


@pytest.mark.slow
def test_a_page_of_one_process_has_an_agent_watched_that_tells_another(
    cluster: Cluster, postgresql_template: str, tmp_path: Path
) -> None:
    database = cluster.create(postgresql_template)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        serving(tmp_path / "one", database=database) as told,
        serving(tmp_path / "two", database=database) as shown,
    ):
        agent_of(told, tmp_path / "agent", interval_seconds=6, reading_seconds=3)
        with running(tmp_path / "agent", "--simulate", "1"):
            until(lambda: len(gpus_of(shown)) == 1, "the other process shows it")
            uid = gpus_of(shown)[0]["uid"]
            with live(shown) as page:
                ask(page, gpus=[uid])
                until_paced(page, 3, lambda step: step <= 3.5)
                assert gpus_of(told)[0]["uid"] == uid
            with live(shown) as overview:
                ask(overview, gpus="all")
                until_paced(overview, 1, lambda step: step >= 5)
    cluster.drop(database)
