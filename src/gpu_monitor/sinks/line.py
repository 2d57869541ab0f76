"""What everything sent to one server has in common: origin, token, authorities, encoding, and what it takes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from gpu_monitor import __version__
from gpu_monitor.core.errors import ConfigError
from gpu_monitor.sinks.exchange import Courier, Failure, Reply, Request
from gpu_monitor.sinks.tokens import Keyring, NodeTokens
from gpu_monitor.wire.answer import Accepts, read_accepts, read_object

_GREETING_SECONDS = 5.0
"""OPTIONS only tells what else the server takes; reports do not wait longer for it."""
_TOKENS_KEPT = 4
"""Of the tokens that were sent: an answer may name one that its file no longer holds."""


@dataclass(frozen=True)
class Target:
    """Where reports go. `ca_file` None: the system's authorities. The timeout is for a whole exchange."""

    url: str
    contract_number: str
    ca_file: Path | None = None
    timeout_seconds: float = 30.0


class Peer:
    """What the server at `server.url` takes, as its last answer said; shared by all that send to it. Any thread."""

    def __init__(self) -> None:
        self.greeting = threading.Lock()
        self.accepts = Accepts()
        self.is_greeted = False
        self.is_gzip_refused = False

    def learn(self, reply: Reply) -> Accepts | None:
        """Take note of what an answer says it accepts; None where it says nothing."""
        answer = read_object(reply.data) if reply.data is not None else None
        found = read_accepts(answer) if answer is not None else None
        if found is not None:
            self.accepts = found
        return found


def is_refused(reply: Reply) -> bool:
    """Whether the server does not take the token of a request."""
    return reply.status in (401, 403)


class Line:
    """Requests to one server. `token` is asked before each, so a changed token file counts at once. One thread.

    `given`: the tokens that the server gave to nodes, which go before the configured one.
    """

    def __init__(
        self,
        target: Target,
        token: Callable[[], str | None],
        courier: Courier,
        peer: Peer | None = None,
        given: NodeTokens | None = None,
    ) -> None:
        self.target = target
        self.courier = courier
        self.peer = peer or Peer()
        self.sent_tokens: deque[str] = deque(maxlen=_TOKENS_KEPT)
        self.keys = Keyring(target.url, token, given)
        self.shown: str | None = None
        """The token of the last request that was answered."""
        self._ca_seen: tuple[int, int] | None = None

    def greet(self, node: str | None = None) -> None:
        """Ask once what else the server takes; whatever goes wrong, it is a plain server until it says more."""
        with self.peer.greeting:
            if self.peer.is_greeted:
                return
            reply = self.carry("OPTIONS", self.target.url, None, {}, _GREETING_SECONDS, node=node)
            if isinstance(reply, Failure):
                # Asked again with the next report if it could not be asked at all.
                self.peer.is_greeted = reply.reached
                return
            self.peer.is_greeted = True
            if 200 <= reply.status < 300:
                self.peer.learn(reply)

    def place(self, relative: str | None) -> str | None:
        """The address of something the server named; None where it is of another origin than the reports'."""
        if relative is None:
            return None
        try:
            joined = urljoin(self.target.url, relative)
            ours, theirs = urlsplit(self.target.url), urlsplit(joined)
        except ValueError:
            return None
        # The token goes to the configured origin and nowhere else.
        return joined if (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc) else None

    def packed(self, body: bytes) -> tuple[bytes, dict[str, str | bytes]]:
        """The bytes for the wire and the headers that describe them."""
        headers: dict[str, str | bytes] = {"Content-Type": "application/json"}
        if "gzip" in self.peer.accepts.encodings and not self.peer.is_gzip_refused:
            body = gzip.compress(body, mtime=0)
            headers["Content-Encoding"] = "gzip"
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        headers["Content-Digest"] = f"sha-256=:{digest}:"
        return body, headers

    def carry(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: dict[str, str | bytes],
        seconds: float,
        *,
        node: str | None = None,
        refuses: Callable[[Reply], bool] = is_refused,
        lightly: bool = False,
    ) -> Reply | Failure:
        """The answer to a request, within `seconds`; `lightly`: as `Courier.carry_lightly`.

        Where the token of `node` is refused (as `refuses` says) and there is another, that is tried, too, once.
        """
        tried: list[tuple[str | None, int]] = []
        while True:
            try:
                token, verify = self._next_token(node, tried), self._authorities()
            except ConfigError as error:
                return Failure(error.message, reached=False)
            reply = self._carry_with(token, verify, (method, url, body, headers), seconds, lightly)
            if isinstance(reply, Failure):
                return reply
            self.shown = token
            tried.append((token, reply.status))
            if is_refused(reply):
                self.keys.refused(node, token, reply.status)
            if self._is_final(node, tried, reply, refuses):
                return reply

    def _next_token(self, node: str | None, tried: list[tuple[str | None, int]]) -> str | None:
        shown = [token for token, _ in tried]
        return next(token for token in self.keys.choices(node) if token not in shown)

    def _is_final(
        self,
        node: str | None,
        tried: list[tuple[str | None, int]],
        reply: Reply,
        refuses: Callable[[Reply], bool],
    ) -> bool:
        """Whether this answer is the one; where another token had been refused, which goes first is settled."""
        if refuses(reply):
            try:
                # Asked anew: the node may have been given its token while this one was on its way.
                choices = self.keys.choices(node)
            except ConfigError:
                return True
            return not set(choices) - {token for token, _ in tried}
        if len(tried) > 1 and 200 <= reply.status < 300:
            self.keys.settled(node, tried)
        return True

    def _carry_with(
        self,
        token: str | None,
        verify: bool | str,
        what: tuple[str, str, bytes | None, dict[str, str | bytes]],
        seconds: float,
        lightly: bool,
    ) -> Reply | Failure:
        method, url, body, headers = what
        given: dict[str, str | bytes] = {
            "User-Agent": f"gpu_monitor/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "X-Contract-Number": self.target.contract_number.encode(),
            **headers,
        }
        if token is not None:
            if token not in self.sent_tokens:
                self.sent_tokens.append(token)
            given["Authorization"] = f"Bearer {token}"
        request = Request(method, url, given, body, verify)
        return (self.courier.carry_lightly if lightly else self.courier.carry)(request, seconds)

    def _authorities(self) -> bool | str:
        """What certificates are held against; a changed file closes the connections that the old one let in."""
        path = self.target.ca_file
        if path is None:
            return True
        try:
            status = path.stat()
        except OSError as error:
            raise ConfigError(
                f"cannot read server.ca_file {path}: {error.strerror}", "Check server.ca_file."
            ) from error
        seen = (status.st_mtime_ns, status.st_size)
        if self._ca_seen not in (None, seen):
            self.courier.close()
        self._ca_seen = seen
        return str(path)
