"""A server that takes experiments as docs/segments.md says, good or bad on demand: real sockets, real HTTP/1.1.

    with Shelf() as shelf:
        shelf.behave(Fault("status", status=503), "lost", then="good")
        ...                                  # upload to shelf.url
        shelf.held("x", "seg-a0000000")      # the bytes it keeps

What it holds survives `stop()` and `start()`, as a real server's would.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.server import Authority

_SEGMENT = re.compile(r"/api/experiments/([A-Za-z0-9][A-Za-z0-9._-]{0,127})/segments/(seg-[a-z0-9]{8,64})")
_BLOB = re.compile(r"/api/blobs/([0-9a-f]{64})")
_ALIVE = re.compile(r"/api/experiments/([^/]+)/alive")
_ENDED = re.compile(r"/api/experiments/([^/]+)/ended")
_MOST = 1 << 20


@dataclass(frozen=True)
class Fault:
    """How one request is met. good; status (of `status`, taking nothing); reset (before taking); lost (after taking);
    hang (until `release` or the end); drip (the answer, a byte every `seconds`); says (200 with offset `offset`)."""

    kind: str
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = '{"detail": "on purpose"}'
    seconds: float = 0.2
    offset: int = 0


@dataclass(frozen=True)
class Asked:
    """One request that came in whole."""

    method: str
    path: str
    offset: int | None
    size: int
    token: str | None
    status: int | None
    kind: str


class Shelf:
    """The server; a context manager. `url` is its address."""

    def __init__(
        self, token: str | None = None, most: int = _MOST, authority: Authority | None = None
    ) -> None:
        self.token = token
        self.most = most
        self._authority = authority
        self.segments: dict[tuple[str, str], bytearray] = {}
        self.blobs: dict[str, bytearray] = {}
        self.whole: set[str] = set()
        self.asked: list[Asked] = []
        self.alive: list[tuple[str, Any]] = []
        self.ended: list[tuple[str, Any]] = []
        """What it was told of writers that vanished, by experiment."""
        self.ended_status: int | None = None
        """What it answers to that instead, which it then does not take; None: it takes it."""
        self.broken: dict[str, int] = {}
        """The status that is answered to each request for a segment of this name."""
        self.release = threading.Event()
        self._faults: deque[Fault] = deque()
        self._then = Fault("good")
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self.links: set[socket.socket] = set()
        self.heads: list[Mapping[str, str]] = []
        """The headers of each request."""
        self.port = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"{'https' if self._authority else 'http'}://127.0.0.1:{self.port}"

    def behave(self, *faults: Fault | str, then: Fault | str = "good") -> None:
        """Meet the next requests so, one each, and all later ones as `then`."""
        with self._lock:
            self._faults = deque(_fault(one) for one in faults)
            self._then = _fault(then)

    def held(self, experiment: str, segment: str) -> bytes:
        """What it keeps of a segment."""
        return bytes(self.segments.get((experiment, segment), b""))

    def count(self, method: str, part: str = "") -> int:
        """Requests so far, by method and what their path holds."""
        return sum(one.method == method and part in one.path for one in self.asked)

    def start(self) -> Shelf:
        """Listen, again on the same port."""
        shelf = self

        class Handler(_Handler):
            pass

        Handler.shelf = shelf
        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        if self._authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._authority.certificate, self._authority.key)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = server.server_address[1]
        self._server = server
        self.release.clear()
        self._thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End it; open connections are reset."""
        self.release.set()
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        with self._lock:
            links, self.links = self.links, set()
        for link in links:
            _reset(link)
        assert self._thread is not None
        self._thread.join()

    def __enter__(self) -> Shelf:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def next_fault(self) -> Fault:
        """How the request that has come now is met."""
        with self._lock:
            return self._faults.popleft() if self._faults else self._then

    def joined(self, link: socket.socket) -> None:
        """A connection was made."""
        with self._lock:
            self.links.add(link)

    def take(
        self, method: str, path: str, offset: int | None, body: bytes, digest: str | None
    ) -> tuple[int, Any]:
        """Status and answer to a request, by the contract."""
        with self._lock:
            if found := _SEGMENT.fullmatch(path):
                return self._take_segment(found[1], found[2], offset, body, digest)
            if found := _BLOB.fullmatch(path):
                return self._take_blob(method, found[1], offset, body, digest)
            if found := _ALIVE.fullmatch(path):
                self.alive.append((found[1], json.loads(body)))
                return 200, {}
            if (found := _ENDED.fullmatch(path)) and self.ended_status is None:
                self.ended.append((found[1], json.loads(body)))
                return 200, {"experiment_id": found[1], "status": "crashed"}
            if found and self.ended_status is not None:
                return self.ended_status, {"detail": "this end is not taken"}
            return 404, {"detail": "there is no such place"}

    def _take_segment(
        self, experiment: str, segment: str, offset: int | None, body: bytes, digest: str | None
    ) -> tuple[int, Any]:
        if segment in self.broken:
            return self.broken[segment], {"detail": "this one breaks it"}
        problem = _problem(body, digest, self.most)
        if problem is not None:
            return problem
        assert offset is not None
        kept = self.segments.get((experiment, segment), bytearray())
        if offset > len(kept):
            return 409, {"offset": len(kept)}
        if not body.endswith(b"\n"):
            return 422, {"detail": "no whole records"}
        if not kept and json.loads(body.split(b"\n")[0])[0] != "h":
            return 422, {"detail": "the first record is no header"}
        again = kept[offset : offset + len(body)]
        if again != body[: len(again)]:
            return 422, {"detail": "it differs from what is held"}
        self.segments[experiment, segment] = kept + body[len(again) :]
        return 200, {"offset": len(self.segments[experiment, segment])}

    def _take_blob(
        self, method: str, sha256: str, offset: int | None, body: bytes, digest: str | None
    ) -> tuple[int, Any]:
        kept = self.blobs.get(sha256, bytearray())
        if method == "HEAD":
            return (200, {"offset": len(kept)}) if sha256 in self.whole else (404, {"offset": len(kept)})
        problem = _problem(body, digest, self.most)
        if problem is not None:
            return problem
        assert offset is not None
        if offset > len(kept):
            return 409, {"offset": len(kept)}
        again = kept[offset : offset + len(body)]
        if again != body[: len(again)]:
            return 422, {"detail": "it differs from what is held"}
        self.blobs[sha256] = kept = kept + body[len(again) :]
        if hashlib.sha256(kept).hexdigest() == sha256:
            self.whole.add(sha256)
        return 200, {"offset": len(kept)}


def _fault(one: Fault | str) -> Fault:
    return Fault(one) if isinstance(one, str) else one


def _problem(body: bytes, digest: str | None, most: int) -> tuple[int, Any] | None:
    if len(body) > most:
        return 413, {"detail": f"more than {most} bytes"}
    right = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
    return None if digest == right else (422, {"detail": "the bytes do not have their digest"})


def _reset(link: socket.socket) -> None:
    """Close so that the other side gets a reset."""
    with contextlib.suppress(OSError):
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.shutdown(link, socket.SHUT_RDWR)
    link.close()


class _Handler(BaseHTTPRequestHandler):
    shelf: Shelf
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def setup(self) -> None:
        self.shelf.joined(self.request)
        super().setup()

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_PUT(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        given = parse_qs(parts.query).get("offset")
        offset = int(given[0]) if given else None
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.shelf.heads.append(dict(self.headers))
        fault = self.shelf.next_fault()
        status, answer = self._met(fault, parts.path, offset, body, token)
        self.shelf.asked.append(Asked(self.command, parts.path, offset, len(body), token, status, fault.kind))
        if status is not None:
            self._say(fault, status, answer)

    def _met(
        self, fault: Fault, path: str, offset: int | None, body: bytes, token: str | None
    ) -> tuple[int | None, Any]:
        if fault.kind == "hang":
            self.shelf.release.wait(30)
        if fault.kind in ("hang", "reset"):
            return self._cut()
        if self.shelf.token is not None and token != self.shelf.token:
            return 401, {"detail": f"the token {token} is not known"}
        if fault.kind == "status":
            return fault.status, fault.body
        if fault.kind == "says":
            return 200, {"offset": fault.offset}
        found = self.shelf.take(self.command, path, offset, body, self.headers.get("Content-Digest"))
        return self._cut() if fault.kind == "lost" else found

    def _cut(self) -> tuple[None, None]:
        self.close_connection = True
        _reset(self.request)
        return None, None

    def _say(self, fault: Fault, status: int, answer: Any) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        if self.command == "HEAD":
            held = str(answer["offset"]) if isinstance(answer, dict) and "offset" in answer else "0"
            self.send_header("Upload-Offset", held)
            self.send_header("Content-Length", held if status == 200 else "0")
            self.end_headers()
            return
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault.kind == "drip":
            self.wfile.flush()
            for place in range(len(data)):
                if self.shelf.release.wait(fault.seconds):
                    return
                self.wfile.write(data[place : place + 1])
                self.wfile.flush()
            return
        self.wfile.write(data)
