"""Delivers reports to a central server over HTTP: single, or in batches where it says it takes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.outcome import Outcome, Parcel, Room, Verdict
from gpu_monitor.sinks.exchange import Courier, Failure, Reply
from gpu_monitor.sinks.judge import acknowledge, judge, judge_failure, refuse, shown
from gpu_monitor.sinks.line import Line, Peer, is_refused
from gpu_monitor.sinks.line import Target as Target
from gpu_monitor.sinks.secrets import mask_tokens, mask_word
from gpu_monitor.sinks.tokens import NodeTokens
from gpu_monitor.wire.answer import read_answers, read_object
from gpu_monitor.wire.telemetry import BATCH_BYTES, BATCH_REPORTS, join, node_of

_NOT_FOR_BATCHES = (400, 404, 405, 409, 410, 415, 422, 501)
"""Statuses of a whole batch that say nothing about its reports: they go out singly from then on."""


_FOR_ALL = (Verdict.UNREACHABLE, Verdict.INTERRUPTED, Verdict.WAIT, Verdict.UNCOMPRESSED)
"""What came of one request holds for what was to follow it, too."""


def _refuses_one(reply: Reply) -> bool:
    """Whether the token is refused for the batch, or for a report in it."""
    if is_refused(reply):
        return True
    answer = read_object(reply.data) if reply.data is not None else None
    answers = (read_answers(answer) if answer is not None else None) or []
    return any(one is not None and one.get("status") in (401, 403) for one in answers)


class HttpSink:
    """A central server. `token` is asked before each request, so a changed token file counts at once."""

    def __init__(
        self,
        target: Target,
        token: Callable[[], str | None],
        stop: threading.Event,
        clock: Clock | None = None,
        peer: Peer | None = None,
        given: NodeTokens | None = None,
    ) -> None:
        self._target = target
        self._clock = clock or SystemClock()
        self._line = Line(target, token, Courier(stop, self._clock), peer, given)
        self._peer = self._line.peer
        self._batch_reports = BATCH_REPORTS

    def room(self) -> Room:
        """One report, or as many as a batch may hold where the server takes batches."""
        if self._batch_url() is None:
            return Room(1, BATCH_BYTES)
        return Room(self._batch_reports, BATCH_BYTES)

    def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        """Try once to deliver; one outcome per parcel, in order."""
        nodes = [node_of(parcel.body) for parcel in parcels]
        if not self._peer.is_greeted:
            self._line.greet(nodes[0])
        outcomes: dict[int, Outcome] = {}
        broken: Outcome | None = None
        for places in self._by_token(nodes):
            if broken is not None:
                outcomes.update(dict.fromkeys(places, broken))
                continue
            found = self._send_alike([parcels[place] for place in places], nodes[places[0]])
            outcomes.update(zip(places, found, strict=True))
            broken = next((outcome for outcome in found if outcome.verdict in _FOR_ALL), None)
        return [self._scrubbed(outcomes[place]) for place in range(len(parcels))]

    def _by_token(self, nodes: Sequence[str | None]) -> list[list[int]]:
        """Places of parcels, parted by the token that their node has: a request shows one."""
        parts: dict[str | None, list[int]] = {}
        for place, node in enumerate(nodes):
            parts.setdefault(self._line.keys.own(node) if node is not None else None, []).append(place)
        return list(parts.values())

    def _send_alike(self, parcels: Sequence[Parcel], node: str | None) -> list[Outcome]:
        if len(parcels) == 1:
            return [self._send_one(parcels[0], node)]
        return self._send_batch(parcels, node)

    def close(self) -> None:
        """Close idle connections; the next `send` opens new ones."""
        self._line.courier.close()

    def _batch_url(self) -> str | None:
        """Where batches go; None where there is no such place."""
        return self._line.place(self._peer.accepts.batch) if self._batch_reports >= 2 else None

    def _send_one(self, parcel: Parcel, node: str | None) -> Outcome:
        body, headers = self._line.packed(parcel.body)
        headers["Idempotency-Key"] = parcel.report_id
        seconds = self._target.timeout_seconds
        reply = self._line.carry("POST", self._target.url, body, headers, seconds, node=node)
        if isinstance(reply, Failure):
            return judge_failure(reply)
        compressed = "Content-Encoding" in headers
        outcome = judge(reply, parcel.body, self._target.url, self._clock.now(), is_compressed=compressed)
        self._note(reply, outcome)
        if outcome.verdict is Verdict.ACKNOWLEDGED:
            self._keep_token(read_object(reply.data or b""), parcel)
        return outcome

    def _keep_token(self, answer: Mapping[str, Any] | None, parcel: Parcel) -> None:
        """A node that enrols learns its own token from the answer to a report of it."""
        found = None if answer is None else answer.get("node_token")
        node = None if found is None else node_of(parcel.body)
        if node is None:
            return
        kept = self._line.keys.keep(node, found, self._line.shown)
        if kept is not None and kept not in self._line.sent_tokens:
            self._line.sent_tokens.append(kept)

    def _send_batch(self, parcels: Sequence[Parcel], node: str | None) -> list[Outcome]:
        url = self._batch_url() or self._target.url
        body, headers = self._line.packed(join([parcel.body for parcel in parcels]))
        has_own = node is not None and self._line.keys.own(node) is not None
        reply = self._line.carry(
            "POST", url, body, headers, self._target.timeout_seconds, node=node,
            refuses=_refuses_one if has_own else is_refused,
        )  # fmt: skip
        if isinstance(reply, Failure):
            return [judge_failure(reply)] * len(parcels)
        compressed = "Content-Encoding" in headers
        if not 200 <= reply.status < 300:
            whole = self._judge_whole(reply, url, len(parcels), is_compressed=compressed)
            self._note(reply, whole)
            return [whole] * len(parcels)
        outcomes = self._judge_each(reply, parcels, url)
        self._peer.learn(reply)
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
                if outcomes[-1].verdict is Verdict.ACKNOWLEDGED:
                    self._keep_token(one, parcel)
            else:
                outcomes.append(
                    refuse(status, one, b"", url, len(parcel.body), after=None, is_compressed=False)
                )
        return outcomes

    def _note(self, reply: Reply, outcome: Outcome) -> None:
        """What an answer teaches about the server."""
        if outcome.verdict is Verdict.UNCOMPRESSED:
            self._peer.is_gzip_refused = True
        if 200 <= reply.status < 300:
            self._peer.learn(reply)

    def _scrubbed(self, outcome: Outcome) -> Outcome:
        """`outcome` without the tokens that were sent and the contract number, whatever the server answered."""
        contract = self._target.contract_number

        def clean(text: str | None, *, for_people: bool) -> str | None:
            if text is None:
                return None
            masked = mask_tokens(text, self._line.sent_tokens)
            return mask_word(masked, contract) if for_people else masked

        return replace(
            outcome,
            error=clean(outcome.error, for_people=True),
            note=clean(outcome.note, for_people=True),
            # What the server calls things may hold the contract number; changed, nobody would find them again.
            uid=clean(outcome.uid, for_people=False),
            outcome=clean(outcome.outcome, for_people=False),
        )
