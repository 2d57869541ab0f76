"""Delivers live samples to a central server that takes them: one try, best effort, light."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.outcome import LiveTerms, Outcome, Verdict
from gpu_monitor.sinks.exchange import Courier, Failure
from gpu_monitor.sinks.judge import judge_failure, refuse, retry_after
from gpu_monitor.sinks.line import Line, Peer, Target
from gpu_monitor.sinks.tokens import NodeTokens
from gpu_monitor.wire.answer import read_object
from gpu_monitor.wire.telemetry import node_of

_SECONDS = 10.0
"""For each wait of an exchange: what is live now is old by then."""


class HttpLiveSink:
    """Where a server's live samples go, once it has said that it takes them. One thread; `cut` from any."""

    def __init__(
        self,
        target: Target,
        token: Callable[[], str | None],
        stop: threading.Event,
        peer: Peer,
        clock: Clock | None = None,
        given: NodeTokens | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._courier = Courier(stop, self._clock)
        self._line = Line(target, token, self._courier, peer, given)

    def terms(self) -> LiveTerms | None:
        """What the server's last answer said; where nobody has asked it yet, it is asked. None: no answer."""
        peer = self._line.peer
        if not peer.is_greeted:
            self._line.greet()
        return LiveTerms(self._place() is not None, peer.accepts.watch_seconds) if peer.is_greeted else None

    def send(self, body: bytes) -> Outcome:
        """Try once to deliver a message; its own proof is asked for nothing, any 2xx will do."""
        url = self._place()
        if url is None:
            return Outcome(Verdict.REFUSED, error="the server takes no live samples")
        packed, headers = self._line.packed(body)
        reply = self._line.carry("POST", url, packed, headers, _SECONDS, node=node_of(body), lightly=True)
        if isinstance(reply, Failure):
            return judge_failure(reply)
        peer = self._line.peer
        if 200 <= reply.status < 300:
            peer.learn(reply)
            return Outcome(Verdict.ACKNOWLEDGED, reply.status)
        if 300 <= reply.status < 400:
            return Outcome(
                Verdict.REFUSED, reply.status, error=f"HTTP {reply.status}: a redirect is not followed"
            )
        data = reply.data or b""
        compressed = "Content-Encoding" in headers
        after = retry_after(reply.headers, self._clock.now()) if reply.status in (429, 503) else None
        outcome = refuse(
            reply.status, read_object(data), data, url, len(body), after=after, is_compressed=compressed
        )
        if outcome.verdict is Verdict.UNCOMPRESSED:
            peer.is_gzip_refused = True
        return outcome

    def cut(self) -> None:
        """Have the exchange that is under way end now."""
        self._courier.cut()

    def close(self) -> None:
        """Let go of connections; the next `send` opens new ones."""
        self._courier.close()

    def _place(self) -> str | None:
        return self._line.place(self._line.peer.accepts.samples)
