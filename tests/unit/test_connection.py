"""The SDK's own HTTP connection: certificates, proxies, deadlines, and what it never does."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gpu_monitor.sinks.connection import Connection
from gpu_monitor.sinks.exchange import Failure, Reply
from tests.fakes.experiments import Fault, Shelf
from tests.fakes.server import make_authority

PLACE = "/api/blobs/" + "0" * 64
_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*_NAMES, *(name.upper() for name in _NAMES)):
        monkeypatch.delenv(name, raising=False)


def ask(connection: Connection, path: str = PLACE, seconds: float = 10.0) -> Reply | Failure:
    found = connection.exchange("HEAD", path, {}, None, seconds)
    connection.close()
    return found


def test_a_certificate_is_held_against_the_file_that_is_named(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with Shelf(authority=authority) as shelf:
        trusted = ask(Connection(shelf.url, authority.ca_file))
        assert isinstance(trusted, Reply)
        assert trusted.status == 404
        doubted = ask(Connection(shelf.url))
        assert isinstance(doubted, Failure)
        assert "is not trusted" in doubted.text
        assert len(shelf.asked) == 1, "nothing is sent to a server that is not trusted"


def test_a_missing_file_of_authorities_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Connection("https://127.0.0.1:9", tmp_path / "none.pem").prepare()


def test_plain_http_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Shelf() as proxy:
        monkeypatch.setenv("http_proxy", f"http://ada:se%40cret@127.0.0.1:{proxy.port}")
        found = ask(Connection("http://fleet.invalid:8000/deep"))
        assert isinstance(found, Reply)
        (asked,) = proxy.asked
        assert (asked.method, asked.path) == ("HEAD", f"/deep{PLACE}")
        assert proxy.heads[-1]["Host"] == "fleet.invalid:8000"
        word = base64.b64encode(b"ada:se@cret").decode()
        assert proxy.heads[-1]["Proxy-Authorization"] == f"Basic {word}"
        monkeypatch.setenv("no_proxy", "fleet.invalid")
        direct = ask(Connection("http://fleet.invalid:8000"))
        assert isinstance(direct, Failure)
        assert direct.text == "the name of fleet.invalid:8000 is not known"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "http://", "http://127.0.0.1:99999"])
def test_a_proxy_that_cannot_be_used_is_said(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    found = ask(Connection("http://fleet.invalid"))
    assert isinstance(found, Failure)
    assert "the proxy of the environment" in found.text


@pytest.fixture
def tunnel() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that connects to whatever it is told; its address and what it was told."""
    told: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                inside, _ = listening.accept()
                with inside:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += inside.recv(4096)
                    told.append(head)
                    host, _, port = head.split()[1].decode().rpartition(":")
                    with socket.create_connection((host, int(port))) as outside:
                        inside.sendall(b"HTTP/1.1 200 Fine\r\n\r\n")
                        back = threading.Thread(target=pump, args=(outside, inside), daemon=True)
                        back.start()
                        pump(inside, outside)
                        back.join(10)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", told
        with suppress(OSError):
            socket.socket.shutdown(listening, socket.SHUT_RDWR)
        thread.join(10)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_tls_goes_through_a_tunnel(
    tunnel: tuple[str, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, told = tunnel
    authority = make_authority(tmp_path)
    with Shelf(authority=authority) as shelf:
        monkeypatch.setenv("https_proxy", url)
        found = ask(Connection(shelf.url, authority.ca_file))
        assert isinstance(found, Reply)
        assert told[0].startswith(f"CONNECT 127.0.0.1:{shelf.port} HTTP/1.".encode())


def test_a_redirect_is_an_answer_like_any_other() -> None:
    with Shelf() as shelf:
        shelf.behave(Fault("status", status=307, headers={"Location": "http://127.0.0.1:9/"}))
        found = ask(Connection(shelf.url))
        assert isinstance(found, Reply)
        assert found.status == 307


def test_a_long_answer_is_no_answer() -> None:
    with Shelf() as shelf:
        shelf.behave(Fault("status", status=200, body="x" * 20_000_000))
        connection = Connection(shelf.url)
        found = connection.exchange("PUT", PLACE, {}, b"", 10.0)
        assert isinstance(found, Reply)
        assert (found.status, found.data) == (200, None)
        again = connection.exchange("HEAD", PLACE, {}, None, 10.0)
        assert isinstance(again, Reply), "the next one has a connection of its own"
        connection.close()


def test_another_thread_cuts_a_request_that_hangs() -> None:
    with Shelf() as shelf:
        shelf.behave(then="hang")
        connection = Connection(shelf.url)
        found: list[Reply | Failure] = []
        thread = threading.Thread(target=lambda: found.append(ask(connection, seconds=60.0)))
        thread.start()
        while not shelf.links:
            thread.join(0.01)
        connection.cut()
        thread.join(20)
        assert isinstance(found[0], Failure)
        assert found[0].stopped
        late = ask(connection)
        assert isinstance(late, Failure)
        assert late.stopped


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", b"\xff" * 70000]
)
def test_what_is_no_http_is_a_broken_connection(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            link, _ = listening.accept()
            with link, suppress(OSError):
                link.recv(65536)
                link.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        connection = Connection(f"http://127.0.0.1:{listening.getsockname()[1]}")
        found = connection.exchange("PUT", PLACE, {}, b"x", 10.0)
        connection.close()
        thread.join(10)
    assert isinstance(found, Failure)
    assert found.reached
    assert "broke" in found.text
