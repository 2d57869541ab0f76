"""Delivers reports to a central server over HTTP: single, or in batches where it says it takes them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from gpu_monitor import __version__
from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import ConfigError
from gpu_monitor.core.outcome import Outcome, Parcel, Room, Verdict
from gpu_monitor.sinks.exchange import Courier, Failure, Reply, Request
from gpu_monitor.sinks.judge import acknowledge, judge, judge_failure, refuse, shown
from gpu_monitor.sinks.secrets import mask_tokens, mask_word
from gpu_monitor.wire.answer import Accepts, read_accepts, read_answers, read_object
from gpu_monitor.wire.telemetry import BATCH_BYTES, BATCH_REPORTS, join

_GREETING_SECONDS = 5.0
"""OPTIONS only tells what else the server takes; reports do not wait longer for it."""
_TOKENS_KEPT = 4
"""Of the tokens that were sent: an answer may name one that its file no longer holds."""
_NOT_FOR_BATCHES = (400, 404, 405, 409, 410, 415, 422, 501)
"""Statuses of a whole batch that say nothing about its reports: they go out singly from then on."""


@dataclass(frozen=True)
class Target:
    """Where reports go. `ca_file` None: the system's authorities. The timeout is for a whole exchange."""

    url: str
    contract_number: str
    ca_file: Path | None = None
    timeout_seconds: float = 30.0


class HttpSink:
    """A central server. `token` is asked before each request, so a changed token file counts at once."""

    def __init__(
        self,
        target: Target,
        token: Callable[[], str | None],
        stop: threading.Event,
        clock: Clock | None = None,
    ) -> None:
        self._target = target
        self._token = token
        self._clock = clock or SystemClock()
        self._courier = Courier(stop, self._clock)
        self._accepts = Accepts()
        self._batch_reports = BATCH_REPORTS
        self._is_gzip_refused = False
        self._is_greeted = False
        self._ca_seen: tuple[int, int] | None = None
        self._sent_tokens: deque[str] = deque(maxlen=_TOKENS_KEPT)

    def room(self) -> Room:
        """One report, or as many as a batch may hold where the server takes batches."""
        if self._batch_url() is None:
            return Room(1, BATCH_BYTES)
        return Room(self._batch_reports, BATCH_BYTES)

    def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        """Try once to deliver; one outcome per parcel, in order."""
        if not self._is_greeted:
            self._greet()
        if len(parcels) == 1:
            outcomes = [self._send_one(parcels[0])]
        else:
            outcomes = self._send_batch(parcels)
        return [self._scrubbed(outcome) for outcome in outcomes]

    def close(self) -> None:
        """Close idle connections; the next `send` opens new ones."""
        self._courier.close()

    def _greet(self) -> None:
        """Ask once what else the server takes; whatever goes wrong, it is a plain server until it says more."""
        reply = self._carry("OPTIONS", self._target.url, None, {}, _GREETING_SECONDS)
        if isinstance(reply, Failure):
            # Asked again with the next report if it could not be asked at all.
            self._is_greeted = reply.reached
            return
        self._is_greeted = True
        if 200 <= reply.status < 300:
            self._learn(reply)

    def _learn(self, reply: Reply) -> None:
        answer = read_object(reply.data) if reply.data is not None else None
        found = read_accepts(answer) if answer is not None else None
        if found is not None:
            self._accepts = found

    def _batch_url(self) -> str | None:
        """Where batches go; None where there is no such place, or it is of another origin than the reports'."""
        if self._accepts.batch is None or self._batch_reports < 2:
            return None
        try:
            joined = urljoin(self._target.url, self._accepts.batch)
            ours, theirs = urlsplit(self._target.url), urlsplit(joined)
        except ValueError:
            return None
        # The token goes to the configured origin and nowhere else.
        return joined if (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc) else None

    def _send_one(self, parcel: Parcel) -> Outcome:
        body, headers = self._packed(parcel.body)
        headers["Idempotency-Key"] = parcel.report_id
        reply = self._carry("POST", self._target.url, body, headers, self._target.timeout_seconds)
        if isinstance(reply, Failure):
            return judge_failure(reply)
        compressed = "Content-Encoding" in headers
        outcome = judge(reply, parcel.body, self._target.url, self._clock.now(), is_compressed=compressed)
        self._note(reply, outcome)
        return outcome

    def _send_batch(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        url = self._batch_url() or self._target.url
        body, headers = self._packed(join([parcel.body for parcel in parcels]))
        reply = self._carry("POST", url, body, headers, self._target.timeout_seconds)
        if isinstance(reply, Failure):
            return [judge_failure(reply)] * len(parcels)
        compressed = "Content-Encoding" in headers
        if not 200 <= reply.status < 300:
            whole = self._judge_whole(reply, url, len(parcels), is_compressed=compressed)
            self._note(reply, whole)
            return [whole] * len(parcels)
        outcomes = self._judge_each(reply, parcels, url)
        self._learn(reply)
        return outcomes

    def _judge_whole(self, reply: Reply, url: str, count: int, *, is_compressed: bool) -> Outcome:
        outcome = judge(reply, b"", url, self._clock.now(), is_compressed=is_compressed)
        if outcome.verdict is Verdict.UNCOMPRESSED:
            return outcome
        if reply.status == 413:
            self._batch_reports = count // 2
            text = f"HTTP 413 from {shown(url)}: {count} reports are too much at once"
            return Outcome(Verdict.SPLIT, 413, error=text)
        if reply.status in _NOT_FOR_BATCHES:
            self._batch_reports = 1
            return replace(outcome, verdict=Verdict.SPLIT)
        return outcome

    def _judge_each(self, reply: Reply, parcels: Sequence[Parcel], url: str) -> list[Outcome]:
        answer = read_object(reply.data) if reply.data is not None else None
        answers = (read_answers(answer) if answer is not None else None) or []
        outcomes = []
        for place, parcel in enumerate(parcels):
            one = answers[place] if place < len(answers) else None
            status = one.get("status") if one is not None else None
            if one is None or one.get("report_id") != parcel.report_id or type(status) is not int:
                text = f"HTTP {reply.status} from {shown(url)}, but no answer for this report of the batch"
                outcomes.append(Outcome(Verdict.RETRY, reply.status, error=text))
                self._batch_reports = 1
            elif 200 <= status < 300:
                outcomes.append(acknowledge(status, one, parcel.body, url))
            else:
                outcomes.append(
                    refuse(status, one, b"", url, len(parcel.body), after=None, is_compressed=False)
                )
        return outcomes

    def _note(self, reply: Reply, outcome: Outcome) -> None:
        """What an answer teaches about the server."""
        if outcome.verdict is Verdict.UNCOMPRESSED:
            self._is_gzip_refused = True
        if 200 <= reply.status < 300:
            self._learn(reply)

    def _packed(self, body: bytes) -> tuple[bytes, dict[str, str | bytes]]:
        """The bytes for the wire and the headers that describe them."""
        headers: dict[str, str | bytes] = {"Content-Type": "application/json"}
        if "gzip" in self._accepts.encodings and not self._is_gzip_refused:
            body = gzip.compress(body, mtime=0)
            headers["Content-Encoding"] = "gzip"
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        headers["Content-Digest"] = f"sha-256=:{digest}:"
        return body, headers

    def _carry(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str | bytes], seconds: float
    ) -> Reply | Failure:
        try:
            token, verify = self._token(), self._authorities()
        except ConfigError as error:
            return Failure(error.message, reached=False)
        given: dict[str, str | bytes] = {
            "User-Agent": f"gpu_monitor/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "X-Contract-Number": self._target.contract_number.encode(),
            **headers,
        }
        if token is not None:
            if token not in self._sent_tokens:
                self._sent_tokens.append(token)
            given["Authorization"] = f"Bearer {token}"
        return self._courier.carry(Request(method, url, given, body, verify), seconds)

    def _authorities(self) -> bool | str:
        """What certificates are held against; a changed file closes the connections that the old one let in."""
        path = self._target.ca_file
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
            self._courier.close()
        self._ca_seen = seen
        return str(path)

    def _scrubbed(self, outcome: Outcome) -> Outcome:
        """`outcome` without the tokens that were sent and the contract number, whatever the server answered."""
        contract = self._target.contract_number

        def clean(text: str | None, *, for_people: bool) -> str | None:
            if text is None:
                return None
            masked = mask_tokens(text, self._sent_tokens)
            return mask_word(masked, contract) if for_people else masked

        return replace(
            outcome,
            error=clean(outcome.error, for_people=True),
            note=clean(outcome.note, for_people=True),
            # What the server calls things may hold the contract number; changed, nobody would find them again.
            uid=clean(outcome.uid, for_people=False),
            outcome=clean(outcome.outcome, for_people=False),
        )
