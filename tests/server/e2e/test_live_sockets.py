"""The live socket of the real server, with a real client: who gets in, what comes, what a kill leaves."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.schema import latest
from tests.server.fleet import add_contract, add_node, record_change, set_latest
from tests.server.rig import PATIENCE, Server, pss_kib, serving


@contextmanager
def data(server: Server) -> Iterator[Store]:
    """The server's database, to be written as its writer would."""
    with closing(open_store(server.database)) as store:
        yield store


def live(server: Server, path: str = "/ws/live", token: str | None = None, **named: Any) -> ClientConnection:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = server.url.replace("http", "ws", 1) + path
    return connect(url, additional_headers=headers, open_timeout=PATIENCE, max_size=None, **named)


def ask(client: ClientConnection, cursor: str | None = None, **wanted: Any) -> Any:
    client.send(json.dumps({"subscribe": wanted, "cursor": cursor}))
    return following(client)


def following(client: ClientConnection) -> Any:
    return json.loads(client.recv(timeout=PATIENCE))


@pytest.mark.parametrize("path", ["/ws/live", "/ws/monitoring"])
def test_who_asks_for_nothing_sees_the_fleet(tmp_path: Path, path: str) -> None:
    with serving(tmp_path) as server, data(server) as store:
        add_node(store, add_contract(store, "1"), "node-a", 2)
        with live(server, path) as client:
            message = following(client)
            assert message["reset"] is True
            assert (message["fleet"]["nodes"], message["fleet"]["gpus"]) == (1, 2)
            assert message["gpus"] == []


def test_changes_come_as_they_are_committed(tmp_path: Path) -> None:
    with serving(tmp_path) as server, data(server) as store:
        agent = add_node(store, add_contract(store, "1"), "node-a", 2)
        with live(server) as client:
            assert len(ask(client, gpus=["node-a"])["gpus"]) == 2
            for temperature in (400, 450, 500):
                set_latest(store, agent, 1, {"temperature": temperature})
                message = following(client)
                assert message["reset"] is False
                assert [(gpu["uid"], gpu["temperature"]) for gpu in message["gpus"]] == [
                    ("node-a-gpu1", temperature / 10)
                ]


def test_pages_from_elsewhere_and_other_names_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for named in ({"origin": "https://evil.example"}, {"origin": "null"}):
            with pytest.raises(InvalidStatus) as refused:
                live(server, **named)
            assert refused.value.response.status_code == 403
        with (
            pytest.raises(InvalidStatus) as refused,
            socket.create_connection(("127.0.0.1", server.port)) as raw,
        ):
            connect("ws://evil.example/ws/live", sock=raw, open_timeout=PATIENCE)
        assert refused.value.response.status_code == 403
        with live(server, origin=server.url) as client:  # type: ignore[arg-type]
            assert following(client)["reset"] is True


def test_a_token_shows_its_contract_only_and_a_wrong_one_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as server, data(server) as store:
        mine = server.token("--contract", "1", "--scope", "read")
        writes = server.token("--contract", "1", "--scope", "report:write")
        with store.read() as connection:
            contract = connection.exec_driver_sql("SELECT id FROM contracts WHERE number = '1'").scalar()
        add_node(store, int(contract or 0), "node-a", 1)
        add_node(store, add_contract(store, "2"), "node-b", 1)
        with live(server, token=mine) as client:
            message = ask(client, fleet=True, nodes="all", gpus="all")
            assert [node["id"] for node in message["nodes"]] == ["node-a"]
            assert [gpu["uid"] for gpu in message["gpus"]] == ["node-a-gpu0"]
            assert message["fleet"]["nodes"] == 1
        for token, status in ((writes, 403), ("x" * 43, 401)):
            with pytest.raises(InvalidStatus) as refused:
                live(server, token=token)
            assert refused.value.response.status_code == status
            assert json.loads(refused.value.response.body)["status"] == status


def test_bad_messages_are_answered_and_too_large_or_binary_ones_end_it(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        with live(server) as client:
            client.send("nonsense")
            assert "not understood" in following(client)["error"]
            assert ask(client, fleet=True)["reset"] is True
        for content, code in (
            (json.dumps({"x": "y" * 40_000}), 1009),
            ("z" * 100_000, 1009),
            (b"\0\1", 1003),
        ):
            with live(server) as client:
                client.send(content)
                with pytest.raises(ConnectionClosed) as ended:
                    following(client)
                assert ended.value.rcvd is not None
                assert ended.value.rcvd.code == code
        assert "Traceback" not in server.said


def test_a_client_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    wanted = {"nodes": "all", "gpus": "all"}
    with serving(tmp_path) as server, data(server) as store:
        contract = add_contract(store, "1")
        agent = add_node(store, contract, "node-a", 1)
        add_node(store, contract, "node-b", 1)
        with live(server) as client:
            cursor = ask(client, **wanted)["cursor"]
            server.kill()
            with pytest.raises(ConnectionClosed):
                while True:
                    following(client)
        set_latest(store, agent, 0, {"temperature": 777})
        with serving(tmp_path, "--port", str(server.port)) as again, live(again) as client:
            message = ask(client, cursor, **wanted)
            assert message["reset"] is False
            # node-b may be among them too: that it is silent is an alert by now, which is a change.
            assert ("node-a-gpu0", 77.7) in [(gpu["uid"], gpu["temperature"]) for gpu in message["gpus"]]
            assert ask(client, "of another database", **wanted)["reset"] is True


def test_a_stop_tells_its_viewers(tmp_path: Path) -> None:
    with serving(tmp_path) as server, live(server) as client:
        following(client)
        assert server.stop() == 0
        with pytest.raises(ConnectionClosed) as ended:
            while True:
                following(client)
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == 1012
        assert "Traceback" not in server.said


@pytest.mark.slow
def test_a_client_that_does_not_read_costs_one_message_and_then_gets_the_newest(tmp_path: Path) -> None:
    count, turns = 4000, 9
    with serving(tmp_path) as server, data(server) as store:
        agent = add_node(store, add_contract(store, "1"), "node-a", count)
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", server.port))
        url = f"ws://127.0.0.1:{server.port}/ws/live"
        with (
            connect(url, sock=raw, max_size=None, open_timeout=PATIENCE, max_queue=1) as slow,
            live(server) as quick,
        ):
            slow.send(json.dumps({"subscribe": {"gpus": "all"}}))
            assert len(ask(quick, gpus="all")["gpus"]) == count
            sizes = []
            for turn in range(1, turns + 1):
                with store.write() as connection:
                    connection.execute(
                        update(latest).where(latest.c.agent == agent).values(temperature=turn * 10)
                    )
                record_change(store, agent)
                assert {gpu["temperature"] for gpu in following(quick)["gpus"]} == {turn}
                sizes.append(pss_kib(server.process.pid))
            # A message is 2 MB: had they waited for the slow one, there would be 18 MB more in the end.
            assert max(sizes[3:]) - sizes[2] < 12_000
            seen = [following(slow)["gpus"][0]["temperature"]]
            while seen[-1] != turns:
                seen.append(following(slow)["gpus"][0]["temperature"])
            # What was in the sockets' buffers came, then the newest; those between were never made.
            assert len(seen) < turns
            assert seen[0] == 61.5
            assert seen[1:] == sorted(seen[1:])


def test_two_processes_on_one_database_show_the_same(database: str, dialect: str, tmp_path: Path) -> None:
    if dialect == "sqlite":
        pytest.skip("one process at a time has a SQLite file: test_serve sees to that")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with (
        serving(folders[0], database=database) as one,
        serving(folders[1], database=database) as two,
        closing(open_store(database)) as store,
    ):
        agent = add_node(store, add_contract(store, "1"), "node-a", 1)
        with live(one) as first, live(two) as second:
            cursor = ask(first, gpus="all")["cursor"]
            ask(second, gpus="all")
            set_latest(store, agent, 0, {"temperature": 321})
            assert following(first)["gpus"] == following(second)["gpus"]
            one.kill()
            # The other process goes on where the killed one was.
            with live(two) as moved:
                message = ask(moved, cursor, gpus="all")
                assert (message["reset"], message["gpus"][0]["temperature"]) == (False, 32.1)


def test_the_totals_are_those_that_the_api_gives(tmp_path: Path) -> None:
    with serving(tmp_path) as server, data(server) as store:
        contract = add_contract(store, "1")
        for name, is_made_up in (("node-a", False), ("node-b", False), ("node-s", True)):
            agent = add_node(store, contract, name, 3, simulated=is_made_up)
            # Their minutes are of 2024: as of now.
            for gpu in range(3):
                set_latest(store, agent, gpu, {"time": SystemClock().now(), "gpu_utilization": 10 * gpu})
        for words, wanted in (("", {}), ("?include=simulated", {"include": "simulated"})):
            totals = server.ask("GET", f"/api/fleet{words}").json["totals"]
            with live(server) as client:
                fleet = ask(client, fleet=True, **wanted)["fleet"]
            assert {name: fleet[name] for name in totals} == totals
            assert fleet["gpus_now"] == (9 if wanted else 6)
            assert fleet["gpus_idle"] == fleet["gpus_now"]
            assert fleet["silent_nodes"] == fleet["nodes"]
