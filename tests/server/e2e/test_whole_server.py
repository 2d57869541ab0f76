"""As a new user would: the real server, real agents under different contracts, tokens from the command line."""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gpu_monitor.server.store import schema
from gpu_monitor.server.store.engine import open_store
from tests.e2e.program import ask, configure, running
from tests.e2e.waiting import until
from tests.measure.bed import query
from tests.server.postgres import Cluster
from tests.server.relay import relaying
from tests.server.rig import Server, launch, serving

HOURS = 8
WORDS = ("--simulate", "2:h100", "--speed", "7200", "--start", f"-{HOURS}h")
PATIENCE = 150.0


@dataclass
class Node:
    """An agent of the acceptance: its folder, contract, and the words of `token create` for it."""

    folder: Path
    contract: str

    @property
    def store(self) -> Path:
        return self.folder / "gpu_metrics.db"

    @property
    def id(self) -> str:
        return str(json.loads((self.folder / "gpu_metrics.db.node.json").read_text())["id"])

    def acknowledged(self) -> dict[int, str]:
        """Hour and digest of what the agent knows to be at the server, in the newest revision."""
        rows = query(
            self.store, "SELECT period, sha256 FROM reports WHERE state = 'sent' ORDER BY period, revision"
        )
        return {int(str(period)) // 3600: str(sha256) for period, sha256 in rows}

    def is_done(self) -> bool:
        """Whether every closed hour of it was acknowledged in its newest revision, and nothing else is owed."""
        if len(self.acknowledged()) < HOURS:
            return False
        owed = "SELECT (SELECT count(*) FROM reports WHERE state NOT IN ('sent', 'replaced')) + (SELECT count(*) FROM periods"
        return not query(
            self.store, f"{owed} WHERE dirty = 1 AND start + 3600 < (SELECT max(id) >> 20 FROM samples_raw))"
        )[0][0]


def set_up(node: Node, url: str, token: str | None) -> None:
    if token is not None:
        (node.folder / "token").write_text(token)
        (node.folder / "token").chmod(0o600)
    server = {"url": url, "contract_number": node.contract, "token_file": "token", "spread_seconds": 5}
    configure(node.folder, server=server, collection={"reading_seconds": 30})


def make_nodes(tmp_path: Path, url: str, server: Server) -> list[Node]:
    """Three agents under different contracts, with the three kinds of token."""
    nodes = [Node(tmp_path / f"agent-{contract}", contract) for contract in ("111", "222", "333")]
    for node in nodes:
        node.folder.mkdir()
    set_up(nodes[0], url, server.token("--contract", "111"))
    set_up(nodes[1], url, server.token("--contract", "222", "--enrol"))
    # A token for one node needs its id, which it has from its first start.
    assert ask(nodes[2].folder, *WORDS[:4], "--until", "+1m", "--offline").returncode == 0
    for path in nodes[2].folder.glob("gpu_metrics.db*"):
        if not path.name.endswith(".node.json"):
            path.unlink()
    set_up(nodes[2], url, server.token("--contract", "333", "--node", nodes[2].id))
    return nodes


def deliver(nodes: list[Node], during: Any = None) -> None:
    """Run all agents until all of them have delivered everything."""
    with contextlib.ExitStack() as agents:
        for node in nodes:
            agents.enter_context(running(node.folder, *WORDS))
        if during is not None:
            during()
        for node in nodes:
            until(node.is_done, f"contract {node.contract} has delivered its hours", PATIENCE)


def assert_all_there(server: Server, nodes: list[Node]) -> None:
    """Every hour of every agent is at the server with the digest that the agent kept; the check is clean."""
    with contextlib.closing(open_store(server.database)) as store, store.read() as connection:
        columns = (schema.nodes.c.uuid, schema.receipts.c.hour, schema.receipts.c.body_digest)
        joined = schema.receipts.join(schema.nodes, schema.nodes.c.id == schema.receipts.c.agent)
        held = connection.execute(select(*columns).select_from(joined)).all()
    for node in nodes:
        there = [(hour, bytes(digest).hex()) for uuid, hour, digest in held if uuid == node.id]
        assert sorted(there) == sorted(node.acknowledged().items()), node.contract
    checked = server.command("server", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_agents_of_three_contracts_deliver_all_their_hours(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        nodes = make_nodes(tmp_path, f"{server.url}/api/metrics", server)
        deliver(nodes)
        assert_all_there(server, nodes)
        assert server.ask("GET", "/docs").status == 200
        paths = server.ask("GET", "/openapi.json").json["paths"]
        assert {"/api/fleet", "/api/nodes", "/api/series", "/api/usage"} <= set(paths)
        one = server.token("--scope", "read", "--contract", "111")
        assert [node["id"] for node in server.ask("GET", "/api/nodes", token=one).json["items"]] == [
            nodes[0].id
        ]
        everyone = server.ask("GET", "/api/nodes").json["items"]
        assert sorted(node["contract_number"] for node in everyone) == ["111", "222", "333"]
        assert all(node["simulated"] for node in everyone)
        # Simulated hours are in no sum unasked, and labelled where they are asked for.
        assert server.ask("GET", "/api/usage?from=-1d").json["items"] == []
        usage = server.ask("GET", "/api/usage?from=-1d&include=simulated").json
        hours = sum(line["gpu_hours"] for line in usage["items"])
        least = 3 * 2 * HOURS - 3 * 2  # three agents of two GPUs, which began within their first hour
        assert least <= hours <= 3 * 2 * (HOURS + 1)
        assert usage["includes_simulated"] is True
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_same_on_postgresql_with_two_processes_of_which_one_is_killed(
    tmp_path: Path, cluster: Cluster
) -> None:
    database = cluster.create()
    with contextlib.ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            servers.append(launch(tmp_path / name, database=database))
            stack.callback(bury, servers[-1])
        for server in servers:
            assert server.ready.wait(PATIENCE)
            assert server.url, server.said
        relay = stack.enter_context(relaying([server.port for server in servers]))
        nodes = make_nodes(tmp_path, f"http://127.0.0.1:{relay.port}/api/metrics", servers[1])

        def kill_one() -> None:
            until(lambda: all(node.acknowledged() for node in nodes), "every agent delivers", PATIENCE)
            assert not any(node.is_done() for node in nodes)
            servers[0].kill()

        deliver(nodes, kill_one)
        assert set(relay.given) == {server.port for server in servers}, "both were used"
        assert_all_there(servers[1], nodes)
        assert servers[1].stop() == 0
    cluster.drop(database)


def bury(server: Server) -> None:
    if server.process.poll() is None:
        server.kill()
    server.ended.wait(PATIENCE)
    if server.output is not None:
        server.output.close()


@contextlib.contextmanager
def webhook() -> Iterator[tuple[str, queue.SimpleQueue[dict[str, Any]]]]:
    """A place alerts are posted to: its URL, and each notice as it comes."""
    notices: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for notice in json.loads(body)["alerts"]:
                notices.put(notice)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{receiver.server_port}/alerts", notices
        finally:
            receiver.shutdown()
            thread.join(30)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lost_gpu_is_told_to_a_webhook_and_so_is_its_return(tmp_path: Path) -> None:
    settings = {"ENABLE_NOTIFICATIONS": "true", "NOTIFY_ALLOW": "127.0.0.1"}
    with webhook() as (url, notices), serving(tmp_path, **settings) as server:
        admin = server.token("--scope", "admin")
        channel = {"kind": "webhook", "settings": {"url": url, "secret": "a-secret-of-sixteen-and-more"}}
        made = server.ask("PUT", "/api/channels/ours", channel, admin)
        assert made.status == 204, made.body
        node = Node(tmp_path / "agent", "111")
        node.folder.mkdir()
        (node.folder / "token").write_text(server.token("--contract", "111", "--enrol"))
        (node.folder / "token").chmod(0o600)
        target = {"url": f"{server.url}/api/metrics", "contract_number": "111", "token_file": "token"}
        configure(node.folder, server=target, collection={"interval_seconds": 2, "reading_seconds": 1})
        with running(node.folder, "--simulate", "2", "--fault", "gpu=1 at=+6s for=15s kind=lost"):
            found = [next_of(notices, "gpu-lost", moment) for moment in ("fired", "resolved")]
        assert found[0]["id"] == found[1]["id"]
        assert found[0]["simulated"] is True
        items = server.ask("GET", "/api/alerts?state=resolved").json["items"]
        assert [alert["rule"] for alert in items if alert["id"] == found[0]["id"]] == ["gpu-lost"]
        assert server.stop() == 0


def next_of(notices: queue.SimpleQueue[dict[str, Any]], rule: str, moment: str) -> dict[str, Any]:
    """The next notice of a rule and moment; others (an Xid comes first) are let pass."""
    while True:
        notice = notices.get(timeout=PATIENCE)
        if (notice["rule"], notice["moment"]) == (rule, moment):
            return notice
