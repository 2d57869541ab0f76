"""A central server in another process, good or bad on demand: real sockets, real HTTP/1.1, real TLS.

    with ServerProcess(tmp_path) as server:
        server.behave(Step("status", status=503, headers={"Retry-After": "7"}), "reset", then="good")
        ...                      # ship to server.url
        server.held()            # report_id -> the exact bytes the server keeps
        server.received()        # every request, exact bytes, the answer's status, and faults it found

What each kind of step does stands in `tests/fakes/serving.py`. State (what is held) survives
`stop()` and `start()`, as a real server's would.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import pytest

_SERVING = Path(__file__).with_name("serving.py")


@dataclass(frozen=True)
class Step:
    """How one request is met. `seconds`: wait before the answer (hang) or between bytes (drip).

    `stored`: whether the report is kept before the fault shows. `each`: kinds for the reports of a
    batch, in order; the rest are met as good.
    """

    kind: str = "good"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    seconds: float = 0.0
    stored: bool = True
    each: tuple[str, ...] = ()


@dataclass(frozen=True)
class Received:
    """One request: `wire` as it came, `body` after gzip, `ids` of the reports in it, `faults` the server saw."""

    number: int
    method: str
    path: str
    headers: Mapping[str, str]
    wire: bytes
    body: bytes
    ids: tuple[str, ...]
    outcomes: tuple[str, ...]
    kind: str
    status: int | None
    faults: tuple[str, ...]
    connection: int


@dataclass(frozen=True)
class Authority:
    """A throw-away certificate authority and a server certificate it signed for localhost and 127.0.0.1."""

    ca_file: Path
    certificate: Path
    key: Path


def make_authority(folder: Path) -> Authority:
    """A fresh authority made with the openssl program; the test is skipped where there is none."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("NOT RUN: TLS needs the openssl program to make a throw-away authority")
    folder.mkdir(parents=True, exist_ok=True)
    made = Authority(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    ca_key, request = folder / "ca.key", folder / "server.csr"
    extensions = folder / "server.ext"
    extensions.write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    key_kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for command in (
        [*["req", "-x509", "-days", "2", "-subj", "/CN=throw-away"], *key_kind,
         "-addext", "keyUsage=critical,keyCertSign", "-keyout", ca_key, "-out", made.ca_file],
        [*["req", "-subj", "/CN=localhost"], *key_kind, "-keyout", made.key, "-out", request],
        [*["x509", "-req", "-days", "2", "-CAcreateserial"], "-in", request, "-CA", made.ca_file, "-CAkey", ca_key,
         "-extfile", extensions, "-out", made.certificate],
    ):  # fmt: skip
        subprocess.run([program, *map(str, command)], check=True, capture_output=True)
    return made


class ServerProcess:
    """The server's process and the handle on its behaviour; `url` is where reports are posted."""

    def __init__(
        self, folder: Path, *, authority: Authority | None = None, path: str = "/api/metrics"
    ) -> None:
        self._folder = folder / "server"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._authority = authority
        self._path = path
        self._process: subprocess.Popen[str] | None = None
        self._serial = 0
        self.port = 0
        self.behave()

    @property
    def url(self) -> str:
        """Where reports are posted."""
        scheme = "https" if self._authority else "http"
        return f"{scheme}://127.0.0.1:{self.port}{self._path}"

    def start(self) -> ServerProcess:
        """Start it (again on the same port); returns when it listens."""
        command = [sys.executable, str(_SERVING), str(self._folder), str(self.port), self._path]
        if self._authority:
            command += [str(self._authority.certificate), str(self._authority.key)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fake server ended at start with {self._process.wait()}")
        self.port = int(line)
        return self

    def stop(self) -> None:
        """End it; open connections are reset."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def behave(
        self,
        *steps: Step | str,
        then: Step | str = "good",
        encodings: tuple[str, ...] = (),
        batch: str | None = None,
        options: Step | str = "good",
        max_bytes: int | None = None,
        token: str | None = None,
        samples: str | None = None,
    ) -> None:
        """From the next request on: POSTs meet `steps` in order, then `then` for ever.

        `encodings`, `batch` and `samples` are what `accepts` lists (all live samples are taken); a body over
        `max_bytes` gets 413; with `token` anything but that bearer gets 401. `options` is how OPTIONS is met.
        """
        self._serial += 1
        told = {
            "serial": f"{os.getpid()}-{self._serial}",
            "steps": [asdict(_step(step)) for step in steps],
            "then": asdict(_step(then)),
            "options": asdict(_step(options)),
            "encodings": list(encodings),
            "batch": batch,
            "max_bytes": max_bytes,
            "token": token,
            "samples": samples,
        }
        new = self._folder / "behaviour.new"
        new.write_text(json.dumps(told), encoding="utf-8")
        new.replace(self._folder / "behaviour.json")

    def _lines(self, name: str) -> list[dict[str, object]]:
        path = self._folder / name
        if not path.exists():
            return []
        # A line without its end is one the server is writing now.
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.split("\n") if line]

    def received(self, method: str | None = "POST") -> list[Received]:
        """Every request so far in order of arrival, written before its answer; None: of any method."""
        found = [_received(line) for line in self._lines("received.jsonl")]
        return [one for one in found if method is None or one.method == method]

    def held(self) -> dict[str, bytes]:
        """report_id to the exact bytes the server keeps, in the order they were first stored."""
        return {
            str(line["report_id"]): base64.b64decode(str(line["body"])) for line in self._lines("held.jsonl")
        }

    def newest(self) -> dict[tuple[str, str], bytes]:
        """(node id, aggregation time) to the exact bytes of the highest revision the server keeps."""
        best: dict[tuple[str, str], tuple[int, bytes]] = {}
        for body in self.held().values():
            report = json.loads(body)
            key = (report["node"]["id"], report["aggregation_time"])
            if key not in best or best[key][0] < report["revision"]:
                best[key] = (report["revision"], body)
        return {key: body for key, (_, body) in best.items()}


def _step(step: Step | str) -> Step:
    return Step(step) if isinstance(step, str) else step


def _received(line: dict[str, object]) -> Received:
    fields = dict(line)
    for name in ("wire", "body"):
        fields[name] = base64.b64decode(str(fields[name]))
    for name in ("ids", "outcomes", "faults"):
        found = fields[name]
        assert isinstance(found, list)
        fields[name] = tuple(found)
    return Received(**fields)  # type: ignore[arg-type]
