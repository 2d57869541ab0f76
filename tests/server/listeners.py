"""Real servers on loopback that notifications are sent to: HTTP, HTTPS and mail."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return msgspec.json.decode(self.body)


@dataclass
class Listener:
    """A web server that answers with `status` and keeps what it got. `news` is set with each request."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    got: list[Received] = field(default_factory=list)
    port: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int, seconds: float = 30.0) -> list[Received]:
        """The requests, once there are so many; AssertionError where they do not come."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.got) >= count, seconds), self.got
            return list(self.got)

    def notices(self) -> list[tuple[str, str, str]]:
        """Id, rule and moment of every notice a webhook got, in order."""
        with self.changed:
            return [
                (one["id"], one["rule"], one["moment"])
                for request in self.got
                for one in request.json["alerts"]
            ]

    def wait_for_notice(self, rule: str, moment: str, seconds: float = 60.0) -> str:
        """The id of the first notice of this rule and moment, once it is there."""

        def found() -> str | None:
            return next((name for name, of, when in self.notices() if (of, when) == (rule, moment)), None)

        with self.changed:
            assert self.changed.wait_for(lambda: found() is not None, seconds), self.notices()
            return str(found())


@contextlib.contextmanager
def listening(context: ssl.SSLContext | None = None, port: int = 0, **settings: Any) -> Iterator[Listener]:
    """A running listener."""
    listener = Listener(**settings)
    listener.changed = threading.Condition(threading.RLock())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with listener.changed:
                held = {name.lower(): value for name, value in self.headers.items()}
                listener.got.append(Received(self.path, held, body))
                status, headers, answer = listener.status, dict(listener.headers), listener.body
            self.send_response(status)
            for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)
            with listener.changed:
                listener.changed.notify_all()

        def log_message(self, *_: object) -> None:
            """Say nothing: what was received is kept."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that breaks off, or does not trust us, is what some tests are about."""

    server = Quiet(("127.0.0.1", port), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    listener.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Mail:
    """A mail that was handed in."""

    sender: str
    to: list[str]
    content: bytes
    was_tls: bool


class Mailbox:
    """Keeps what was handed in."""

    def __init__(self) -> None:
        self.got: list[Mail] = []
        self.came = threading.Event()

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:
        """Take a mail."""
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        self.got.append(Mail(str(envelope.mail_from), envelope.rcpt_tos, content, session.ssl is not None))
        self.came.set()
        return "250 kept"


USER, PASSWORD = "me", "right one"


def _knows(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
    is_right = isinstance(data, LoginPassword) and (data.login, data.password) == (
        USER.encode(),
        PASSWORD.encode(),
    )
    return AuthResult(success=is_right, handled=False)


@contextlib.contextmanager
def mail_server(
    tls: ssl.SSLContext | None = None, *, from_start: bool = False
) -> Iterator[tuple[Mailbox, int]]:
    """A mail server that knows USER; STARTTLS where there is `tls`, or TLS `from_start`."""
    mailbox, ready = Mailbox(), threading.Event()
    loop = asyncio.new_event_loop()
    ports: list[int] = []

    def make() -> SMTP:
        starttls = None if from_start else tls
        return SMTP(
            mailbox, hostname="test", authenticator=_knows, tls_context=starttls, auth_require_tls=not from_start,
            loop=loop,
        )  # fmt: skip

    ended = asyncio.Event()

    async def serve() -> None:
        server = await loop.create_server(make, "127.0.0.1", 0, ssl=tls if from_start else None)
        async with server:
            ports.append(server.sockets[0].getsockname()[1])
            ready.set()
            await ended.wait()
        others = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.05)  # connections close in callbacks of their own

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield mailbox, ports[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
