"""The real `gpu_monitor serve` in a process of its own, and HTTP to it."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import pty
import re
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from gpu_monitor.config.server import NAMES
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.server.auth.passwords import hash_password
from gpu_monitor.server.auth.tokens import Grant, check_grant, create_token
from gpu_monitor.server.auth.users import add_user, grant_role
from gpu_monitor.server.store.engine import open_store
from tests.e2e.program import PROGRAM, environment
from tests.e2e.waiting import until
from tests.server.prepared import prepare

PATIENCE = 60.0
_TOKEN = argparse.ArgumentParser()
for _option in ("--contract", "--node", "--name"):
    _TOKEN.add_argument(_option)
_TOKEN.add_argument("--enrol", action="store_true")
_TOKEN.add_argument("--scope", action="append")
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

    process: subprocess.Popen[bytes]
    folder: Path
    database: str
    output: IO[str] | None
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
            # A server that refuses a body by its length answers, and closes, before all of it is sent.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(),
            )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A `gpu_monitor` command on this server's database, run to its end."""
        return self.command_with("", *words)

    def command_with(self, typed: str, *words: str) -> subprocess.CompletedProcess[str]:
        """The same with `typed` on its stdin."""
        return subprocess.run(
            [*PROGRAM, *words], cwd=self.folder, env=serving_environment(self.folder, DATABASE_URL=self.database),
            input=typed, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    def token(self, *words: str) -> str:
        """A new token: `server.token("--contract", "12345", "--enrol")`; made here, in a fiftieth of a command's time."""
        wanted = _TOKEN.parse_args(words)
        scopes = frozenset(wanted.scope or ("report:write",))
        grant = Grant(scopes, wanted.contract, wanted.node, wanted.enrol, None, wanted.name)
        check_grant(grant)
        with contextlib.closing(open_store(self.database)) as store, store.write() as connection:
            return create_token(connection, grant, SystemClock().now()).secret

    def typed_token(self, *words: str) -> str:
        """The same, made by the command."""
        made = self.command("token", "create", "--json", *words)
        assert made.returncode == 0, made.stderr
        return str(json.loads(made.stdout)["token"])

    def user(self, name: str, password: str, *grants: tuple[str, str, str], is_admin: bool = False) -> None:
        """A new user with roles: (contract number, role, project or nothing); made here, as `token` does."""
        hashed, now = hash_password(password), SystemClock().now()
        with contextlib.closing(open_store(self.database)) as store, store.write() as connection:
            add_user(connection, name, hashed, is_admin, now)
            for contract, role, project in grants:
                grant_role(connection, name, contract, role, project)

    def wait_for(self, pattern: str) -> str:
        """Wait until it has said this; the first group of the pattern."""
        found: list[str] = []

        def look() -> bool:
            match = re.search(pattern, self.said)
            found.extend([match[1] if match.re.groups else match[0]] if match else [])
            return bool(found)

        until(look, f"it says {pattern}")
        return found[0]

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(timeout=PATIENCE)

    def _listen(self) -> None:
        assert self.output is not None
        with contextlib.suppress(OSError):  # a terminal ends with an error when its last user is gone
            for line in self.output:
                self._hear(line)
        self.ended.set()
        self.ready.set()

    def _hear(self, line: str) -> None:
        self.lines.append(line)
        found = _READY.search(line)
        if found:
            self.url = found[1]
            self.ready.set()


def serving_environment(home: Path, **more: str) -> dict[str, str]:
    """The test's environment without a setting of the server but those in `more`."""
    kept = {name: value for name, value in environment(home).items() if name not in NAMES}
    return {**kept, "XDG_STATE_HOME": str(home / ".local/state"), **more}


def launch(
    folder: Path, *words: str, database: str | None = None, on_terminal: bool = False, **more: str
) -> Server:
    """Start `gpu_monitor serve` in `folder`, on a free port unless `words` name one; do not wait.

    `database`: its DATABASE_URL; None is a SQLite file in `folder`, put there with its tables where it is not yet.
    `on_terminal`: its stderr is a terminal.
    """
    if database is None:
        prepare(folder / "server.db")
    url = database or f"sqlite:///{folder / 'server.db'}"
    port = [] if "--port" in words else ["--port", "0"]
    ends = pty.openpty() if on_terminal else os.pipe()
    process = subprocess.Popen(
        [*PROGRAM, "serve", *port, *words],
        cwd=folder,
        env=serving_environment(folder, **{"DATABASE_URL": url, **more}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=ends[1],
    )
    os.close(ends[1])
    server = Server(process, folder, url, os.fdopen(ends[0], encoding="utf-8", errors="replace"))
    threading.Thread(target=server._listen, daemon=True).start()
    return server


@contextlib.contextmanager
def serving(
    folder: Path, *words: str, database: str | None = None, on_terminal: bool = False, **more: str
) -> Iterator[Server]:
    """A server that is ready; killed at the end if it still runs."""
    server = launch(folder, *words, database=database, on_terminal=on_terminal, **more)
    try:
        assert server.ready.wait(PATIENCE), "it said nothing"
        assert server.url, f"it ended: {server.said}"
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(timeout=PATIENCE)
        server.ended.wait(PATIENCE)
        if server.output is not None:
            server.output.close()


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
