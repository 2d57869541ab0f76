"""Tells a central server that the process of a training run is gone: one try, idempotent there."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.outcome import Outcome, Verdict
from gpu_monitor.sinks.exchange import Courier, Failure
from gpu_monitor.sinks.judge import judge_failure, refuse, retry_after
from gpu_monitor.sinks.line import Line, Peer, Target
from gpu_monitor.sinks.tokens import NodeTokens
from gpu_monitor.wire.answer import read_object

_SECONDS = 10.0


class HttpEndings:
    """Where the ends of runs are told, once the server has said that it takes them. One thread; `cut` from any."""

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

    def is_wanted(self) -> bool | None:
        """Whether the server takes them; where nobody has asked it yet, it is asked. None: no answer."""
        peer = self._line.peer
        if not peer.is_greeted:
            self._line.greet()
        return self._place() is not None if peer.is_greeted else None

    def send(self, experiment_id: str, body: bytes, node: str) -> Outcome:
        """Try once to tell of an end; `node` is whose token goes first. Any 2xx will do."""
        place = self._place()
        if place is None:
            return Outcome(Verdict.REFUSED, error="the server does not take the ends of runs")
        url = f"{place.rstrip('/')}/{experiment_id}/ended"
        packed, headers = self._line.packed(body)
        reply = self._line.carry("POST", url, packed, headers, _SECONDS, node=node)
        if isinstance(reply, Failure):
            return judge_failure(reply)
        if 200 <= reply.status < 300:
            return Outcome(Verdict.ACKNOWLEDGED, reply.status)
        if 300 <= reply.status < 400:
            return Outcome(
                Verdict.REFUSED, reply.status, error=f"HTTP {reply.status}: a redirect is not followed"
            )
        data = reply.data or b""
        after = retry_after(reply.headers, self._clock.now()) if reply.status in (429, 503) else None
        is_compressed = "Content-Encoding" in headers
        outcome = refuse(
            reply.status, read_object(data), data, url, len(body), after=after, is_compressed=is_compressed
        )
        if outcome.verdict is Verdict.UNCOMPRESSED:
            self._line.peer.is_gzip_refused = True
        return outcome

    def cut(self) -> None:
        """Have the exchange that is under way end now."""
        self._courier.cut()

    def close(self) -> None:
        """Let go of connections; the next `send` opens new ones."""
        self._courier.close()

    def _place(self) -> str | None:
        return self._line.place(self._line.peer.accepts.experiments)
