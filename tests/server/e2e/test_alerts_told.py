"""Alerts of the real server, told to a real webhook: fired once, resolved once, whoever is killed in between."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.listeners import Listener, listening
from tests.server.postgres import Cluster
from tests.server.posts import CONTRACT, iso
from tests.server.rig import Answer, Server, serving

SECRET = "not to be guessed by anybody"
NODES = [f"00000000-0000-4000-8000-0000000001{number:02d}" for number in range(20)]
ON = {"ENABLE_NOTIFICATIONS": "true", "NOTIFY_ALLOW": "127.0.0.1"}


def live(node: str, status: str, *, simulated: bool = False) -> dict[str, Any]:
    """A live message of the minute that ended now: one GPU and how it is."""
    now = time.time()
    source = "simulated" if simulated else "nvml"
    uid = f"{'SIM' if simulated else 'GPU'}-{node[-2:]}"
    sample = {"uid": uid, "source": source, "time": iso(int(now) - 60), "seconds": 60.0, "temperature": 50.0}
    return {
        "schema": 1,
        "contract_number": CONTRACT,
        "node": {"id": node, "hostname": f"host-{node[-2:]}", "simulated": simulated},
        "sent": iso(now),
        "collection_interval_seconds": 60,
        "gpus": [{"uid": uid, "source": source, "status": status, "name": "NVIDIA H100"}],
        "samples": [sample],
        "readings": [],
    }


def send(server: Server, node: str, status: str, token: str, **more: bool) -> Answer:
    answer = server.ask("POST", "/api/samples", live(node, status, **more), token)
    assert answer.status == 200, answer.body
    return answer


def prepare(server: Server, listener: Listener) -> str:
    """A channel to the listener; the token of an agent."""
    admin = server.token("--scope", "admin")
    settings = {"url": f"http://127.0.0.1:{listener.port}/hook", "secret": SECRET}
    made = server.ask("PUT", "/api/channels/hook", {"kind": "webhook", "settings": settings}, admin)
    assert made.status == 204, made.body
    return server.token("--contract", CONTRACT)


def alerts(server: Server, rule: str = "gpu-lost") -> list[dict[str, Any]]:
    answer = server.ask("GET", f"/api/alerts?rule={rule}")
    assert answer.status == 200, answer.body
    items: list[dict[str, Any]] = answer.json["items"]
    return items


@contextlib.contextmanager
def process(folder: Path, database: str, *words: str) -> Iterator[Server]:
    folder.mkdir(exist_ok=True)
    with serving(folder, *words, database=database, **ON) as server:
        yield server


def test_an_alert_fires_into_a_webhook_survives_a_kill_and_resolves(tmp_path: Path, database: str) -> None:
    with listening() as listener:
        with process(tmp_path, database) as server:
            token = prepare(server, listener)
            send(server, NODES[0], "ok", token)
            send(server, NODES[0], "GPU lost", token)
            name = listener.wait_for_notice("gpu-lost", "fired")
            server.kill()
        with process(tmp_path, database) as server:
            assert [(one["id"], one["state"]) for one in alerts(server)] == [(name, "firing")]
            send(server, NODES[0], "GPU lost", token)
            send(server, NODES[0], "ok", token)
            assert listener.wait_for_notice("gpu-lost", "resolved") == name
            (alert,) = alerts(server)
            assert (alert["state"], alert["ending"], alert["hostname"]) == (
                "resolved",
                "recovered",
                "host-00",
            )
        # At least once: a kill between the delivery and its record repeats a notice under the same id.
        assert set(listener.notices()) == {(name, "gpu-lost", "fired"), (name, "gpu-lost", "resolved")}
        first = listener.got[0]
        stamp = first.headers["x-gpu-monitor-timestamp"]
        expected = hmac.new(SECRET.encode(), f"{stamp}.".encode() + first.body, hashlib.sha256).hexdigest()
        assert first.headers["x-gpu-monitor-signature"] == f"v1={expected}"
        assert abs(int(stamp) - time.time()) < 300


def test_killed_at_any_instant_nothing_is_lost_and_nothing_is_another_alert(
    tmp_path: Path, database: str
) -> None:
    """The server dies at growing times after each message, in the middle of judging, writing or delivering."""
    nodes = NODES[:6]
    with listening() as listener:
        token = ""
        for number, node in enumerate(nodes):
            with process(tmp_path, database) as server:
                token = token or prepare(server, listener)
                send(server, node, "GPU lost", token)
                server.ended.wait(0.15 * number)  # how far it gets is what differs
                server.kill()
        with process(tmp_path, database) as server:
            with listener.changed:
                assert listener.changed.wait_for(
                    lambda: len({name for name, _, moment in listener.notices() if moment == "fired"}) == 6,
                    60,
                ), listener.notices()
            assert Counter(one["node"] for one in alerts(server)) == Counter(nodes)
            assert {one["id"] for one in alerts(server)} == {name for name, _, _ in listener.notices()}


def test_when_the_leader_dies_another_process_watches(
    tmp_path: Path, cluster: Cluster, postgresql_template: str
) -> None:
    database = cluster.create(postgresql_template)
    try:
        with listening() as listener, process(tmp_path / "a", database) as first:
            token = prepare(first, listener)
            send(first, NODES[0], "GPU lost", token)
            name = listener.wait_for_notice("gpu-lost", "fired")
            with process(tmp_path / "b", database) as second:
                # The first one leads: it was alone. What the second takes in, it judges.
                send(second, NODES[1], "GPU lost", token)
                with listener.changed:
                    assert listener.changed.wait_for(lambda: len(set(listener.notices())) == 2, 60)
                first.kill()
                send(second, NODES[0], "ok", token)
                assert listener.wait_for_notice("gpu-lost", "resolved") == name
                found = alerts(second)
                assert Counter(one["state"] for one in found) == {"firing": 1, "resolved": 1}
                assert len(set(listener.notices())) == 3
    finally:
        cluster.drop(database)


def test_simulated_gpus_are_labelled_and_nothing_goes_out_where_notifications_are_off(tmp_path: Path) -> None:
    with listening() as listener, serving(tmp_path, NOTIFY_ALLOW="127.0.0.1") as server:
        token = prepare(server, listener)
        send(server, NODES[3], "GPU lost", token, simulated=True)
        deadline = time.monotonic() + 30
        while not (found := alerts(server)) and time.monotonic() < deadline:
            server.ended.wait(0.1)
        assert [(one["state"], one["simulated"]) for one in found] == [("firing", True)]
        admin = server.token("--scope", "admin")
        assert server.ask("POST", "/api/channels/hook/test", None, admin).status == 409
        assert server.ask("GET", "/api/channels", None, admin).json["notifications"] is False
        assert listener.got == []


@pytest.mark.parametrize("status", [500, 302])
def test_what_is_not_taken_is_tried_again_and_the_log_of_deliveries_says_so(
    tmp_path: Path, status: int
) -> None:
    with listening(status=status) as listener, process(tmp_path, f"sqlite:///{tmp_path / 's.db'}") as server:
        token = prepare(server, listener)
        send(server, NODES[0], "GPU lost", token)
        listener.wait_for(1)
        listener.status = 200
        listener.wait_for(2)  # ten seconds later
        first, second = (request.json["alerts"][0]["id"] for request in listener.got)
        assert first == second
        admin = server.token("--scope", "admin")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            tries = server.ask("GET", f"/api/deliveries?alert={first}", None, admin).json["items"]
            if len(tries) == 2:
                break
            server.ended.wait(0.1)
        assert [one["ok"] for one in tries] == [True, False]
        assert str(status) in tries[1]["status"]
        assert SECRET not in server.said
        assert "/hook" not in server.said
