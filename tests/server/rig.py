"""The real `gpu_monitor serve` in a process of its own, and HTTP to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpu_monitor.config.server import NAMES
from tests.e2e.program import PROGRAM, environment

PATIENCE = 60.0
_READY = re.compile(r"gpu_monitor serves on (https?://\S+)")


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@dataclass
class Server:
    """A running server. `lines` grows with what it says on stderr."""

    process: subprocess.Popen[str]
    folder: Path
    database: str
    lines: list[str] = field(default_factory=list)
    url: str = ""
    ready: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        """Where it listens."""
        return urlsplit(self.url).port or 0

    @property
    def said(self) -> str:
        """All it has said so far."""
        return "".join(self.lines)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> Answer:
        """One request on a connection of its own; a body that is no bytes goes as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if data is not None else {}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        kind = http.client.HTTPSConnection if self.url.startswith("https") else http.client.HTTPConnection
        more = {"context": context} if context is not None else {}
        host = urlsplit(self.url).hostname or ""
        with contextlib.closing(kind(host, self.port, timeout=PATIENCE, **more)) as connection:
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(),
            )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A `gpu_monitor` command on this server's database, run to its end."""
        return subprocess.run(
            [*PROGRAM, *words], cwd=self.folder, env=serving_environment(self.folder, DATABASE_URL=self.database),
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    def token(self, *words: str) -> str:
        """A new token: `server.token("--contract", "12345", "--enrol")`."""
        made = self.command("token", "create", "--json", *words)
        assert made.returncode == 0, made.stderr
        return str(json.loads(made.stdout)["token"])

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(timeout=PATIENCE)

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            found = _READY.search(line)
            if found:
                self.url = found[1]
                self.ready.set()
        self.ended.set()
        self.ready.set()


def serving_environment(home: Path, **more: str) -> dict[str, str]:
    """The test's environment without a setting of the server but those in `more`."""
    kept = {name: value for name, value in environment(home).items() if name not in NAMES}
    return {**kept, "XDG_STATE_HOME": str(home / ".local/state"), **more}


def launch(folder: Path, *words: str, database: str | None = None, **more: str) -> Server:
    """Start `gpu_monitor serve` in `folder`, on a free port unless `words` name one; do not wait."""
    url = database or f"sqlite:///{folder / 'server.db'}"
    port = [] if "--port" in words else ["--port", "0"]
    process = subprocess.Popen(
        [*PROGRAM, "serve", *port, *words],
        cwd=folder,
        env=serving_environment(folder, DATABASE_URL=url, **more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    server = Server(process, folder, url)
    threading.Thread(target=server._listen, daemon=True).start()
    return server


@contextlib.contextmanager
def serving(folder: Path, *words: str, database: str | None = None, **more: str) -> Iterator[Server]:
    """A server that is ready; killed at the end if it still runs."""
    server = launch(folder, *words, database=database, **more)
    try:
        assert server.ready.wait(PATIENCE), "it said nothing"
        assert server.url, f"it ended: {server.said}"
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(timeout=PATIENCE)
        server.ended.wait(PATIENCE)
        if server.process.stderr is not None:
            server.process.stderr.close()


def pss_kib(pid: int) -> int:
    """Proportional set size of a process, KiB (Linux)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]


def is_alive(pid: int) -> bool:
    """Whether the process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
