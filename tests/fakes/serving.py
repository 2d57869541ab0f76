"""The process behind `ServerProcess`: run as `python serving.py FOLDER PORT PATH [CERTIFICATE KEY]`.

Kinds of steps: `good` (stores, digest), `echo`, `unverified` (uid alone), `wrong_digest`, `wrong_echo`,
`no_uid`, `status` (that status, headers, body), `reset` (half an answer, then RST), `cut` (fewer bytes
than announced), `hang` (no answer for `seconds`), `drip` (the answer a byte every `seconds`), `slow_head`
(the header so), `huge` (5 MiB), `garbage` (HTML with 200), `list` (JSON that is no object), `binary`
(not HTTP), `close` (no answer), `misordered` and `short` (a batch's answers).
It ends when its standard input does, so that it cannot outlive the test.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import socket
import ssl
import struct
import sys
import threading
import uuid
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_STORING = {"good", "echo", "unverified", "wrong_digest", "wrong_echo", "no_uid"}
_HUGE = 5 << 20


class Store:
    """What a correct central server keeps: one body per report id, the highest revision per period."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "held.jsonl"
        self._bodies: dict[str, bytes] = {}
        self._revisions: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                found = json.loads(line)
                self._remember(found["report_id"], base64.b64decode(found["body"]))

    def _remember(self, report_id: str, body: bytes) -> None:
        report = json.loads(body)
        key = (report["node"]["id"], report["aggregation_time"])
        self._bodies[report_id] = body
        self._revisions[key] = max(self._revisions.get(key, 0), report["revision"])

    def take(self, body: bytes) -> tuple[str, str, int]:
        """(report id, stored | repeated | superseded | conflict, highest revision held)."""
        report = json.loads(body)
        report_id, key = report["report_id"], (report["node"]["id"], report["aggregation_time"])
        with self._lock:
            known = self._bodies.get(report_id)
            highest = self._revisions.get(key, 0)
            if known is not None:
                return report_id, "repeated" if known == body else "conflict", highest
            self._remember(report_id, body)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"report_id": report_id, "body": base64.b64encode(body).decode()}) + "\n"
                )
            outcome = "superseded" if report["revision"] < highest else "stored"
            return report_id, outcome, self._revisions[key]


class Behaviour:
    """The script that the test wrote, read anew for each request."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "behaviour.json"
        self._serial, self._next = "", 0
        self._lock = threading.Lock()

    def told(self, take_step: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """(the whole script, the step for this POST)."""
        with self._lock:
            script = json.loads(self._path.read_text(encoding="utf-8"))
            if script["serial"] != self._serial:
                self._serial, self._next = script["serial"], 0
            steps = script["steps"]
            step = steps[self._next] if self._next < len(steps) else script["then"]
            if take_step:
                self._next += 1
            return script, step


def split_reports(text: str) -> list[str]:
    """The exact texts of the reports in a batch, or none where it is no batch."""
    decoder = json.JSONDecoder()
    opened = text.find("[")
    if text[:opened].replace(" ", "") != '{"reports":':
        return []
    at, found = opened + 1, []
    while text[at] != "]":
        _, end = decoder.raw_decode(text, at)
        found.append(text[at:end])
        at = end + 1 if text[end] == "," else end
    return found


def uid_of(report_id: str) -> str:
    """The server's own name for a report."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, report_id))


def answer_for(kind: str, body: bytes, taken: tuple[str, str, int]) -> tuple[int, dict[str, Any]]:
    """Status and answer to one report that was met in the way `kind` says."""
    report_id, outcome, revision = taken
    if outcome == "conflict":
        return 409, {"error": "this report_id is held with other content", "revision": revision}
    answer: dict[str, Any] = {"uid": uid_of(report_id)}
    if kind == "echo":
        return 200, {**answer, "params": json.loads(body)}
    if kind == "wrong_echo":
        return 200, {**answer, "params": {**json.loads(body), "period_seconds": 1}}
    if kind == "unverified":
        return 200, answer
    digest = "0" * 64 if kind == "wrong_digest" else hashlib.sha256(body).hexdigest()
    answer |= {"sha256": digest, "outcome": outcome, "revision": revision, "quarantined": []}
    if kind == "no_uid":
        del answer["uid"]
    return 200, answer


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server
    step: dict[str, Any]
    script: dict[str, Any]

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = self.server.next_connection()

    def do_OPTIONS(self) -> None:
        self.script, _ = self.server.behaviour.told(take_step=False)
        self.step = self.script["options"]
        self._read()
        if self.step["kind"] == "good":
            self._log(200)
            self._send(200, {"accepts": self._accepts()})
        else:
            self._misbehave({"accepts": self._accepts()})

    def do_POST(self) -> None:
        self.script, self.step = self.server.behaviour.told(take_step=False)
        if self.path == self.script.get("samples"):
            self._read()
            self._log(200)
            self._send(200, {"accepts": self._accepts()})
            return
        self.script, self.step = self.server.behaviour.told(take_step=True)
        if not self._read():
            # The client died while it was sending: a server never sees that as a request.
            self.step, self.close_connection = {**self.step, "kind": "half a request"}, True
            self._log(None)
            return
        self.reports = self._reports()
        refused = self._refused() or (422 if not self.wire and self.step["kind"] == "good" else None)
        if refused is not None:
            self._log(refused)
            self._send(refused, {"error": f"refused with {refused}"})
            return
        if self.step["kind"] in _STORING and not self._is_batch():
            self._answer_one(self.step["kind"])
        elif self.step["kind"] in ("good", "misordered", "short"):
            self._answer_batch()
        else:
            if self.step["stored"] and self.step["kind"] != "status":
                self.taken = [self.server.store.take(report) for report in self.reports]
            report = self.reports[0] if self.reports else b"{}"
            _, answer = (
                answer_for("good", report, self.taken[0]) if self.taken else (0, {"error": "as you wish"})
            )
            self._misbehave(answer)

    def _read(self) -> bool:
        """Take the body in; False where the connection ended before all of it came."""
        announced = int(self.headers.get("Content-Length", 0))
        self.wire = self.rfile.read(announced)
        self.body, self.faults = self.wire, []
        self.reports: list[bytes] = []
        self.taken: list[tuple[str, str, int]] = []
        if len(self.wire) < announced:
            return False
        if self.headers.get("Content-Encoding") == "gzip":
            try:
                self.body = gzip.decompress(self.wire)
            except (OSError, EOFError, zlib.error):
                self.faults.append("not gzip")
        if self.command == "POST":
            self._check_headers()
        return True

    def _check_headers(self) -> None:
        digest = base64.b64encode(hashlib.sha256(self.wire).digest()).decode()
        if self.headers.get("Content-Digest") != f"sha-256=:{digest}:":
            self.faults.append("wrong Content-Digest")
        if self.headers.get("Content-Type") != "application/json":
            self.faults.append("wrong Content-Type")
        if not self.headers.get("X-Contract-Number"):
            self.faults.append("no X-Contract-Number")

    def _is_batch(self) -> bool:
        return self.script["batch"] is not None and self.path == self.script["batch"]

    def _reports(self) -> list[bytes]:
        try:
            text = self.body.decode()
            if self._is_batch():
                return [one.encode() for one in split_reports(text)]
            report = json.loads(text)
        except (ValueError, IndexError):
            self.faults.append("not a report")
            return []
        if self.headers.get("Idempotency-Key") != report.get("report_id"):
            self.faults.append("wrong Idempotency-Key")
        return [self.body]

    def _refused(self) -> int | None:
        if self.script["token"] and self.headers.get("Authorization") != f"Bearer {self.script['token']}":
            return 401
        if self.headers.get("Content-Encoding", "identity") not in ("identity", *self.script["encodings"]):
            return 415
        if self.script["max_bytes"] is not None and len(self.wire) > self.script["max_bytes"]:
            return 413
        return None

    def _accepts(self) -> dict[str, Any]:
        return {
            "encodings": self.script["encodings"],
            "batch": self.script["batch"],
            "samples": self.script.get("samples"),
            "watch_seconds": None,
        }

    def _answer_one(self, kind: str) -> None:
        self.taken = [self.server.store.take(report) for report in self.reports]
        status, answer = answer_for(kind, self.reports[0], self.taken[0])
        self._log(status)
        self._send(status, {**answer, "accepts": self._accepts()})

    def _answer_batch(self) -> None:
        answers = []
        for place, report in enumerate(self.reports):
            each = self.step["each"]
            kind = each[place] if place < len(each) else "good"
            if kind.isdigit():
                answers.append(
                    {
                        "report_id": json.loads(report)["report_id"],
                        "status": int(kind),
                        "error": "as you wish",
                    }
                )
                continue
            taken = self.server.store.take(report)
            self.taken.append(taken)
            status, answer = answer_for(kind, report, taken)
            answers.append({"report_id": taken[0], "status": status, **answer})
        if self.step["kind"] == "misordered":
            answers.reverse()
        if self.step["kind"] == "short":
            answers.pop()
        self._log(200)
        self._send(200, {"answers": answers, "accepts": self._accepts()})

    def _log(self, status: int | None) -> None:
        ids = [json.loads(report)["report_id"] for report in self.reports]
        self.server.log(
            method=self.command,
            path=self.path,
            headers=dict(self.headers),
            wire=base64.b64encode(self.wire).decode(),
            body=base64.b64encode(self.body).decode(),
            ids=ids,
            outcomes=[taken[1] for taken in self.taken],
            kind=self.step["kind"],
            status=status,
            faults=self.faults,
            connection=self.number,
        )

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(answer).encode(), headers or {})

    def _send_bytes(
        self, status: int, data: bytes, headers: dict[str, str], announced: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if announced is None else announced))
        self.end_headers()
        self.wfile.write(data)

    def _misbehave(self, answer: dict[str, Any]) -> None:
        kind, text = self.step["kind"], json.dumps(answer).encode()
        self._log(self.step["status"] if kind == "status" else None)
        if kind == "status":
            body = self.step["body"]
            data = json.dumps({"error": "as you wish"}) if body is None else body
            self._send_bytes(self.step["status"], data.encode(), self.step["headers"])
        elif kind == "huge":
            padded = json.dumps({**answer, "padding": "x" * _HUGE}).encode()
            self._send_bytes(200, padded, {})
        elif kind == "garbage":
            self._send_bytes(200, b"<html><body>Welcome to the hotel network</body></html>", {})
        elif kind == "list":
            self._send_bytes(200, b"[1, 2, 3]", {})
        elif kind == "cut":
            self._send_bytes(200, text[:-5], {}, announced=len(text))
            self.close_connection = True
        elif kind == "drip":
            self._drip(text)
        else:
            self._break(kind, text)

    def _break(self, kind: str, text: bytes) -> None:
        self.close_connection = True
        if kind == "hang":
            self.server.ending.wait(self.step["seconds"])
        elif kind == "slow_head":
            self._slowly(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 4096)
        elif kind == "binary":
            self.wfile.write(bytes(range(256)) * 8)
        elif kind == "reset":
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text[: len(text) // 2]
            )
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif kind != "close":
            raise ValueError(f"the fake server knows no step {kind!r}")

    def _drip(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self._slowly(data)

    def _slowly(self, data: bytes) -> None:
        for place in range(len(data)):
            if self.server.ending.wait(self.step["seconds"]):
                return
            self.wfile.write(data[place : place + 1])


class Server(ThreadingHTTPServer):
    """Listens, keeps the store and the record of requests."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, port: int, context: ssl.SSLContext | None) -> None:
        self.store, self.behaviour = Store(folder), Behaviour(folder)
        self.ending = threading.Event()
        self._record = folder / "received.jsonl"
        self._numbers = len(self._record.read_bytes().splitlines()) if self._record.exists() else 0
        self._connections = 0
        self._lock = threading.Lock()
        self._context = context
        super().__init__(("127.0.0.1", port), Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; the TLS handshake is made by the connection's own thread."""
        connection, address = super().get_request()
        if self._context is not None:
            connection = self._context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ends early is what some steps and clients do; anything else is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def next_connection(self) -> int:
        """The number of a new connection."""
        with self._lock:
            self._connections += 1
            return self._connections

    def log(self, **fields: Any) -> None:
        """Append one request to the record."""
        with self._lock, self._record.open("a", encoding="utf-8") as file:
            self._numbers += 1
            file.write(json.dumps({"number": self._numbers, **fields}) + "\n")


def main(arguments: list[str]) -> None:
    """Serve until standard input ends."""
    folder, port = Path(arguments[0]), int(arguments[1])
    context = None
    if len(arguments) > 3:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments[3], arguments[4])
    server = Server(folder, port, context)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    server.ending.set()


if __name__ == "__main__":
    main(sys.argv[1:])
