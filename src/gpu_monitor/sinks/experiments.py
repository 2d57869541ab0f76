# SPDX-License-Identifier: MIT
"""A server that takes experiments: segments by offset, files by digest, signs of life (docs/segments.md).

One answer, one meaning: `Told`. Every text in it is free of the tokens that were sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from gpu_monitor import __version__
from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import ConfigError
from gpu_monitor.sinks.connection import Connection
from gpu_monitor.sinks.exchange import Failure, Reply
from gpu_monitor.sinks.judge import retry_after, shown
from gpu_monitor.sinks.secrets import mask_tokens
from gpu_monitor.wire.answer import one_line, read_object, reason_of

TIMEOUT_SECONDS = 30.0
"""For one exchange: 1 MiB over a line of 0.3 Mbit/s."""
_FARTHEST = 1 << 53
"""Bytes: no offset is beyond it, and JSON holds it exactly."""


class Meaning(Enum):
    """What an answer means for what was sent."""

    HELD = "held"
    """The server holds it up to `offset`."""
    ELSEWHERE = "elsewhere"
    """It holds another length, `offset`: go on from there."""
    REFUSED = "refused"
    """It will not take this; something has to be mended first."""
    TOO_LARGE = "too large"
    """Send less at once."""
    UNAUTHORISED = "unauthorised"
    """The token is missing, unknown, or does not allow it: so it goes for everything."""
    ABSENT = "absent"
    """The server has no such place: it is older, no server of ours, or the experiment is somebody else's there."""
    LATER = "later"
    """It cannot take it now: after a while, `after` where it said how long."""
    UNREACHABLE = "unreachable"
    """There was no connection."""
    STOPPED = "stopped"
    """We gave up."""


@dataclass(frozen=True)
class Told:
    """What came of one request. `offset`: how far the server holds it, where it said so; `text` is for people.

    `after`: seconds that it asked to be left alone; `status`: of HTTP, where it was a refusal; `standing`: the
    experiment's status there, where an end was told.
    """

    meaning: Meaning
    offset: int | None = None
    text: str = ""
    after: float | None = None
    status: int | None = None
    standing: str | None = None

    @property
    def is_for_all(self) -> bool:
        """Whether the same would be said to anything else that is sent now."""
        return self.meaning in _FOR_ALL


_FOR_ALL = (Meaning.UNAUTHORISED, Meaning.LATER, Meaning.UNREACHABLE, Meaning.STOPPED)


class ExperimentServer:
    """Requests to the server at `base`, one at a time; a thread that waits for another's is let in after it.

    `token` is asked before each request, so that a changed token file counts at once.
    """

    def __init__(
        self,
        base: str,
        token: Callable[[], str | None],
        ca_file: Path | None = None,
        clock: Clock | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.base = base
        self._token = token
        self._clock = clock or SystemClock()
        self._seconds = timeout_seconds
        self._connection = Connection(base, ca_file, self._clock)
        self._lock = threading.Lock()
        self._sent_tokens: list[str] = []
        self._masked: tuple[str, str] = ("", "")

    @property
    def name(self) -> str:
        """The address for people."""
        return shown(self.base)

    def prepare(self) -> Told | None:
        """Load and compile what the first request and the first error need; what is wrong, else None."""
        try:
            self._connection.prepare()
            token = self._token()
        except ConfigError as error:
            return Told(Meaning.UNAUTHORISED, text=one_line(error.message))
        except OSError as error:
            return Told(Meaning.UNREACHABLE, text=one_line(f"cannot read the authorities: {error}"))
        if token is not None:
            self._remember(token)
            mask_tokens("", [token])
        return None

    def put_segment(self, experiment_id: str, segment: str, offset: int, piece: bytes) -> Told:
        """Send whole records that begin at `offset` of a segment."""
        path = f"/api/experiments/{experiment_id}/segments/{segment}?offset={offset}"
        return self._put(path, piece, "application/x-ndjson")

    def put_blob(self, sha256: str, size: int, offset: int, piece: bytes) -> Told:
        """Send bytes of a file of `size` bytes that begin at `offset` of it. No room for files is REFUSED: the
        records that name them need not wait for it."""
        path = f"/api/blobs/{sha256}?offset={offset}&size={size}"
        told = self._put(path, piece, "application/octet-stream")
        return replace(told, meaning=Meaning.REFUSED) if told.status == 507 else told

    def find_blob(self, sha256: str) -> Told:
        """How far the server holds a file: HELD with the file's size where it has all of it, else ELSEWHERE."""
        reply = self._carry("HEAD", f"/api/blobs/{sha256}", {}, None)
        if isinstance(reply, Failure):
            return self._judge_failure(reply)
        if reply.status == 404:
            return Told(Meaning.ELSEWHERE, _number(reply.headers.get("upload-offset")) or 0)
        if reply.status in (200, 204):
            held = _number(reply.headers.get("upload-offset"))
            whole = _number(reply.headers.get("content-length"))
            if held is not None and (whole is None or held < whole):
                return Told(Meaning.ELSEWHERE, held)
            return Told(Meaning.HELD, whole)
        return self._judge(reply)

    def tell_alive(self, experiment_id: str, segment: str, at: int) -> Told:
        """Say that the writer of a segment lives, `at` ms after the segment's start."""
        return self._post(f"/api/experiments/{experiment_id}/alive", {"segment": segment, "at": at})

    def tell_ended(self, experiment_id: str, body: Mapping[str, Any]) -> Told:
        """Say that the writer of a segment is gone (`body` as in docs/segments.md); HELD has `standing`.

        ABSENT, or a `status` of 409: the server does not know the experiment or the writer, or takes no ends at all.
        """
        return self._post(f"/api/experiments/{experiment_id}/ended", body)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply | Failure:
        """What the server answers to a question; an answer beyond 1 MiB has no `data`: ask for ranges of a file."""
        return self._carry("GET", path, headers or {}, None)

    def ask(self, method: str, path: str, body: object = None) -> Reply | Failure:
        """What the server answers to a request with a JSON body (None: none): a change that a person wants."""
        if body is None:
            return self._carry(method, path, {}, None)
        return self._carry(method, path, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def cut(self) -> None:
        """End the request that another thread has under way, and refuse all later ones. Any thread."""
        self._connection.cut()

    def close(self) -> None:
        """Close the idle connection; the next request opens a new one."""
        with self._lock:
            self._connection.close()

    def _post(self, path: str, body: Mapping[str, Any]) -> Told:
        reply = self._carry("POST", path, {"Content-Type": "application/json"}, json.dumps(body).encode())
        if isinstance(reply, Failure):
            return self._judge_failure(reply)
        told = self._judge(reply, needs_offset=False)
        answer = read_object(reply.data or b"") or {}
        standing = answer.get("status") if told.meaning is Meaning.HELD else None
        return replace(told, standing=standing) if isinstance(standing, str) else told

    def _put(self, path: str, piece: bytes, kind: str) -> Told:
        digest = base64.b64encode(hashlib.sha256(piece).digest()).decode()
        headers = {"Content-Type": kind, "Content-Digest": f"sha-256=:{digest}:"}
        reply = self._carry("PUT", path, headers, piece)
        return self._judge_failure(reply) if isinstance(reply, Failure) else self._judge(reply)

    def _carry(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Reply | Failure:
        try:
            token = self._token()
        except ConfigError as error:
            # As if the server had said so: it is for a person to mend, and looked at again after a while.
            return Reply(401, {}, json.dumps({"detail": error.message}).encode())
        given = {
            "User-Agent": f"gpu_monitor/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            **headers,
        }
        if token is not None:
            self._remember(token)
            given["Authorization"] = f"Bearer {token}"
        with self._lock:
            return self._connection.exchange(method, path, given, body, self._seconds)

    def _remember(self, token: str) -> None:
        if token not in self._sent_tokens:
            self._sent_tokens = [token, *self._sent_tokens[:3]]

    def _judge(self, reply: Reply, *, needs_offset: bool = True) -> Told:
        """What an answer means."""
        status, answer = reply.status, read_object(reply.data or b"")
        offset = _whole(answer.get("offset")) if answer is not None else None
        if 200 <= status < 300:
            if needs_offset and offset is None:
                return self._told(
                    Meaning.LATER, f"HTTP {status} from {self.name}, but it does not say what it holds"
                )
            return Told(Meaning.HELD, offset)
        if status == 409 and offset is not None:
            return Told(Meaning.ELSEWHERE, offset)
        if 300 <= status < 400:
            return self._told(
                Meaning.LATER, f"HTTP {status}: {self.name} redirects elsewhere; it was not followed"
            )
        reason = reason_of(answer, reply.data or b"")
        text = f"HTTP {status} from {self.name}" + (f": {reason}" if reason else "")
        meaning = _MEANINGS.get(status, Meaning.REFUSED if 400 <= status < 500 else Meaning.LATER)
        after = retry_after(reply.headers, self._clock.now()) if status in (429, 503) else None
        return replace(self._told(meaning, text, after), status=status)

    def _judge_failure(self, failure: Failure) -> Told:
        if failure.stopped:
            return Told(Meaning.STOPPED, text=failure.text)
        return self._told(Meaning.LATER if failure.reached else Meaning.UNREACHABLE, one_line(failure.text))

    def _told(self, meaning: Meaning, text: str, after: float | None = None) -> Told:
        return Told(meaning, None, self._clean(text), after)

    def _clean(self, text: str) -> str:
        """`text` without tokens; the same text again costs nothing."""
        if self._masked[0] != text:
            self._masked = (text, mask_tokens(text, self._sent_tokens))
        return self._masked[1]


_MEANINGS = {
    401: Meaning.UNAUTHORISED, 403: Meaning.UNAUTHORISED, 407: Meaning.UNAUTHORISED,
    404: Meaning.ABSENT, 405: Meaning.ABSENT, 501: Meaning.ABSENT, 413: Meaning.TOO_LARGE,
    408: Meaning.LATER, 409: Meaning.LATER, 421: Meaning.LATER, 423: Meaning.LATER, 425: Meaning.LATER,
    429: Meaning.LATER,
}  # fmt: skip


def _whole(value: Any) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= _FARTHEST else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 17 else None
