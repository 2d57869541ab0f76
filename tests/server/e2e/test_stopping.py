"""Starting twice and stopping: the lock, signals, clients that hang on."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path

import pytest

from tests.server.rig import PATIENCE, launch, pss_kib, serving


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_time_whatever_its_clients_do(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path) as server, contextlib.ExitStack() as open_:
        clients = [
            open_.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
            for _ in range(4)
        ]
        head = b"POST /api/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        clients[1].sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
        clients[2].sendall(head + b"Content-Length: 100\r\n\r\n{")
        clients[3].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert clients[3].recv(100).startswith(b"HTTP/1.1 200")
        server.process.send_signal(number)
        # systemd kills after 90 s; we promise 5, and this machine may be busy.
        assert server.process.wait(timeout=20) == 0
        assert server.ended.wait(PATIENCE)
        assert "Traceback" not in server.said
        rest = clients[2].recv(10_000)
        assert rest == b"" or rest.startswith(b"HTTP/1.1 503")
    with serving(tmp_path) as again:
        assert again.ask("GET", "/healthz").status == 200


def test_one_server_a_file(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        second = launch(tmp_path)
        assert second.ended.wait(PATIENCE)
        assert second.process.wait(PATIENCE) == 1
        assert f"in use by process {server.process.pid}" in second.said
        assert second.output is not None
        second.output.close()
        server.kill()
    with serving(tmp_path) as after:
        assert after.ask("GET", "/readyz").json["ready"] is True


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        (tmp_path / "other").mkdir()
        second = launch(tmp_path / "other", "--port", str(server.port))
        assert second.ended.wait(PATIENCE)
        assert second.process.wait(PATIENCE) == 1
        assert f"cannot listen on localhost port {server.port}" in second.said
        assert "--port" in second.said
        assert second.output is not None
        second.output.close()


def test_a_database_that_cannot_be_is_told_without_its_password(tmp_path: Path) -> None:
    server = launch(tmp_path, database="mysql://me:very-secret@db/x")
    assert server.ended.wait(PATIENCE)
    assert server.process.wait(PATIENCE) == 78
    assert "mysql" in server.said
    assert "very-secret" not in server.said
    assert server.output is not None
    server.output.close()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps_rollup")
def test_idle_it_is_light(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.ask("GET", "/readyz").status == 200
        assert pss_kib(server.process.pid) <= 90 * 1024
