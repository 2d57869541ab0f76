"""Real agents that enrol at the real server: each gets a token of its own, keeps it, and needs it from then on."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import json
import shutil
import sqlite3
import stat
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.program import ask, running
from tests.e2e.waiting import until
from tests.measure.bed import query
from tests.server.e2e.test_whole_server import Node, set_up
from tests.server.rig import PATIENCE, Server, launch, serving

WORDS = ("--simulate", "1:h100", "--speed", "7200", "--start", "-60h")
CONTRACT = "111"


def node_in(folder: Path, url: str, token: str) -> Node:
    folder.mkdir()
    node = Node(folder, CONTRACT)
    set_up(node, url, token)
    return node


def run_for(node: Node, hours: int = 2) -> None:
    """Run the agent until so many more hours were acknowledged."""
    with running(node.folder, *WORDS):
        deliver_on(node, hours)


def deliver_on(node: Node, hours: int = 2) -> None:
    wanted = (len(node.acknowledged()) if node.store.exists() else 0) + hours
    until(lambda: len(node.acknowledged()) >= wanted, f"{wanted} hours delivered", 120)


def own_file(node: Node) -> Path:
    return node.folder / "gpu_metrics.db.token.json"


def own_tokens(node: Node) -> dict[str, str]:
    """The tokens in the agent's file, by node."""
    (of_server,) = json.loads(own_file(node).read_text()).values()
    return {name: given["token"] for name, given in of_server.items()}


def has_own(node: Node) -> bool:
    return own_file(node).exists() and node.id in own_tokens(node)


def listed(server: Server) -> dict[str, dict[str, Any]]:
    """The tokens of nodes in force at the server, by node; a node with two that count would fail here."""
    made = json.loads(server.command("token", "list", "--json").stdout)
    lines = made["items"] if isinstance(made, dict) else made
    used = [one for one in lines if one["node"] and not one["revoked"] and one["first_used"]]
    assert len({one["node"] for one in used}) == len(used)
    return {one["node"]: one for one in used}


def give(node: Node, token: str) -> None:
    (node.folder / "token").write_text(token)


def url_of(server: Server) -> str:
    return f"{server.url}/api/metrics"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_agent_keeps_its_own_token_and_needs_the_enrolling_one_no_more(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        enrol = server.token("--contract", CONTRACT, "--enrol")
        node = node_in(tmp_path / "agent", url_of(server), enrol)
        run_for(node)
        own = own_tokens(node)[node.id]
        assert own != enrol
        assert stat.S_IMODE(own_file(node).stat().st_mode) == 0o600
        assert not own_file(node).with_name(own_file(node).name + ".new").exists()
        assert set(listed(server)) == {node.id}
        (node.folder / "token").unlink()
        run_for(node)
        assert own_tokens(node) == {node.id: own}
        (line,) = server.ask("GET", "/api/nodes").json["items"]
        assert line["last_live"] is not None or line["last_report"] is not None
        # It is nowhere but in its file.
        for path in node.folder.iterdir():
            if path not in (own_file(node), node.folder / "token"):
                assert own.encode() not in path.read_bytes(), path
        assert own not in server.said


class _Cutting(http.server.BaseHTTPRequestHandler):
    """Passes requests on; the first answer with a token is lost, and the server with it."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_OPTIONS(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.server.to, timeout=PATIENCE)
        ) as there:
            try:
                there.request(self.command, self.path, body, headers)
                answer = there.getresponse()
                data = answer.read()
            except OSError:
                self.close_connection = True
                return
        if b'"node_token"' in data and not self.server.lost:
            self.server.lost.append(json.loads(data))
            self.server.kill()
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_words: object) -> None:
        """Nothing on stderr."""


@contextlib.contextmanager
def cutting(server: Server) -> Iterator[Any]:
    """A proxy before the server."""
    proxy: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Cutting)
    proxy.to, proxy.lost, proxy.kill, proxy.daemon_threads = server.port, [], server.kill, True
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def given_in(answer: dict[str, Any]) -> str:
    found = answer.get("node_token") or next(
        one["node_token"] for one in answer["answers"] if "node_token" in one
    )
    return str(found)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_answer_that_is_lost_with_the_server_locks_nobody_out(tmp_path: Path) -> None:
    with serving(tmp_path) as first, cutting(first) as proxy:
        url = f"http://127.0.0.1:{proxy.server_address[1]}/api/metrics"
        node = node_in(tmp_path / "agent", url, first.token("--contract", CONTRACT, "--enrol"))
        with running(node.folder, *WORDS):
            until(lambda: proxy.lost, "an answer is lost", 120)
            first.process.wait(PATIENCE)
            with contextlib.ExitStack() as stack:
                second = launch(tmp_path, database=first.database)
                stack.callback(second.kill)
                assert second.ready.wait(PATIENCE)
                proxy.to = second.port
                until(lambda: len(node.acknowledged()) >= 3, "it delivers again", 120)
                assert own_tokens(node)[node.id] != given_in(proxy.lost[0])
                assert set(listed(second)) == {node.id}
                assert second.command("server", "check").returncode == 0
                # The one that was lost counts no more, since the other one is used.
                lost = given_in(proxy.lost[0])
                assert second.ask("POST", "/api/metrics", b"{}", lost).status == 401
            second.ended.wait(PATIENCE)
            if second.output is not None:
                second.output.close()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rotated_enrolling_token_is_taken_up(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        made = json.loads(
            server.command("token", "create", "--json", "--contract", CONTRACT, "--enrol").stdout
        )
        node = node_in(tmp_path / "agent", url_of(server), made["token"])
        run_for(node)
        first = own_tokens(node)[node.id]
        # Another one is handed out, the old one is still in force: the node has its own and goes on with it.
        second = server.token("--contract", CONTRACT, "--enrol")
        give(node, second)
        run_for(node)
        assert own_tokens(node)[node.id] == first
        # Now the old one is revoked, and what enrolled through it: the node enrols anew.
        assert server.command("token", "revoke", made["id"]).returncode == 0
        run_for(node)
        third = own_tokens(node)[node.id]
        assert third != first
        assert set(listed(server)) == {node.id}
        # An operator's token for the whole contract goes before the node's own.
        give(node, server.token("--contract", CONTRACT))
        run_for(node)
        assert own_tokens(node)[node.id] == third


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_revoked_node_says_what_to_do_and_goes_on_with_the_token_it_is_given(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        made = json.loads(
            server.command("token", "create", "--json", "--contract", CONTRACT, "--enrol").stdout
        )
        node = node_in(tmp_path / "agent", url_of(server), made["token"])
        run_for(node)
        before = own_tokens(node)[node.id]
        assert server.command("token", "revoke", made["id"]).returncode == 0
        console = node.folder / "console.txt"
        with running(node.folder, *WORDS):
            until(lambda: "token create --contract" in console.read_text(), "it says what to do")
        said = console.read_text()
        assert "HTTP 401" in said
        assert before not in said
        assert made["token"] not in said
        give(node, server.token("--contract", CONTRACT, "--enrol"))
        run_for(node)
        assert own_tokens(node)[node.id] != before


def as_image(folder: Path) -> None:
    """Have the folder of an agent be one that was copied from another machine's disk."""
    other = hashlib.sha256(b"the machine of the image").hexdigest()
    path = folder / "gpu_metrics.db.node.json"
    record = json.dumps({**json.loads(path.read_text()), "machine": other})
    path.write_text(record)
    with contextlib.closing(sqlite3.connect(folder / "gpu_metrics.db")) as connection, connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'node_identity'", (record,))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_agents_from_one_disk_image_get_tokens_of_their_own(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        node = node_in(tmp_path / "first", url_of(server), server.token("--contract", CONTRACT, "--enrol"))
        run_for(node)
        original = own_tokens(node)
        copies = []
        for name in ("second", "third"):
            shutil.copytree(node.folder, tmp_path / name)
            as_image(tmp_path / name)
            copies.append(Node(tmp_path / name, CONTRACT))
        with contextlib.ExitStack() as agents:
            for copy in copies:
                agents.enter_context(running(copy.folder, *WORDS))
            for copy in copies:
                until(partial(has_own, copy), "the copy has a token of its own", 120)
                deliver_on(copy)
        ids = {node.id, *(copy.id for copy in copies)}
        assert len(ids) == 3
        assert set(listed(server)) == ids
        tokens = {original[node.id], *(own_tokens(copy)[copy.id] for copy in copies)}
        assert len(tokens) == 3
        run_for(node)
        assert own_tokens(node) == original
        for copy in copies:
            # What was recorded before the copy is delivered by now: the next start drops the first one's token.
            run_for(copy, 1)
            assert set(own_tokens(copy)) <= {copy.id, node.id}
        assert server.command("server", "check").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_imported_node_has_a_token_beside_its_machines(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        node = node_in(tmp_path / "agent", url_of(server), server.token("--contract", CONTRACT, "--enrol"))
        run_for(node)
        take_in(node, days=5)
        is_sent = "SELECT count(*), sum(state = 'sent') FROM reports WHERE node <> 1"
        with running(node.folder, *WORDS):
            until(lambda: query(node.store, is_sent)[0][1] == 3, "three imported hours are sent", 120)
        held = own_tokens(node)
        imported = str(uuid.uuid5(uuid.UUID(node.id), "import:trainer"))
        assert set(held) == {node.id, imported}
        assert held[node.id] != held[imported]
        assert set(listed(server)) >= {node.id}
        # A start keeps both.
        run_for(node, 1)
        assert own_tokens(node) == held


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_hours_older_than_the_server_keeps_are_rejected_with_the_reason(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        node = node_in(tmp_path / "agent", url_of(server), server.token("--contract", CONTRACT))
        run_for(node, 1)
        take_in(node, days=400)
        rejected = "SELECT reason FROM reports WHERE node <> 1 AND state = 'rejected'"
        with running(node.folder, *WORDS):
            until(lambda: len(query(node.store, rejected)) == 3, "three hours are rejected", 60)
            deliver_on(node, 1)  # what is young enough goes on
        for (reason,) in query(node.store, rejected):
            assert "aggregation_time: the period begins before" in str(reason)
        assert len(server.ask("GET", "/api/nodes").json["items"]) == 1


def take_in(node: Node, days: int) -> None:
    """Import three hours of a machine called trainer, of so many days ago, and ask for them to be sent."""
    (node.folder / "gpu.csv").write_text(recording(days))
    done = ask(node.folder, "import", "gpu.csv", "--node", "trainer", "--timezone", "UTC")
    assert done.returncode == 0, done.stderr
    asked = ask(node.folder, "resend", "--node", "trainer", "--yes")
    assert asked.returncode == 0, asked.stderr


def recording(days: int) -> str:
    """Three hours of one GPU as nvidia-smi writes them."""
    start = datetime.now(timezone.utc).replace(hour=6, minute=0, second=0, microsecond=0) - timedelta(
        days=days
    )
    lines = ["timestamp, index, uuid, name, utilization.gpu [%], memory.used [MiB], power.draw [W]"]
    lines += [
        f"{start + timedelta(seconds=60 * step):%Y/%m/%d %H:%M:%S}.000, 0, GPU-5c9c2a8e-0001-4000-8000-000000000001,"
        " NVIDIA H100, 50 %, 1024 MiB, 300.00 W"
        for step in range(180)
    ]
    return "\n".join(lines) + "\n"
