"""Sends what is due, oldest first, and writes down what came of it."""

from __future__ import annotations

import json
import logging
import shlex
import threading
from collections.abc import Callable, Sequence

from gpu_monitor.agent.ledger import Ledger, Try
from gpu_monitor.agent.ship_backoff import ATTEMPTS, PACE_SECONDS, Gate, wait_after
from gpu_monitor.core.clock import Clock
from gpu_monitor.core.outcome import Outcome, Verdict
from gpu_monitor.core.ports import Sink
from gpu_monitor.core.times import format_time
from gpu_monitor.storage.database import Writer

_LOG = logging.getLogger("ship")
_LOOK_SECONDS = 60.0
"""The ledger is looked at this often, so that a `resend` from another process is seen within a minute."""
_TURN_SECONDS = 60.0
"""While older reports are being worked off, the newest gets a turn this often."""
_SHORTEST_PAUSE = 0.5
_IDLE_SECONDS = 86400.0
"""Nowhere to send to: the settings that name a server wake the shipper up."""
SinkFactory = Callable[[], Sink]
_TOLD_SECONDS = 3660.0
"""Failure and recovery are told in pairs, one an hour: a server that takes every other report would fill the
log. A minute more than the hour for which a log holds back what it has said."""
_WAIT_KEY = "ship_wait"
RESEND_KEY = "resend_asked"
"""`meta` key that `resend` changes: whatever held the shipper back, it tries again now."""


class Shipper:
    """Delivers the ledger's reports through a sink. One thread at a time.

    The store's writer is never held while something is sent. The sink is made at the first send, so an
    agent that has nothing to send does not load what sending needs. Without a sink factory nothing is sent
    until `change` gives one.
    """

    def __init__(
        self,
        writer: Writer,
        ledger: Ledger,
        sink_factory: SinkFactory | None,
        clock: Clock,
        stop: threading.Event,
    ) -> None:
        self._writer = writer
        self._ledger = ledger
        self._sink_factory = sink_factory
        self._clock = clock
        self._stop = stop
        self._sink: Sink | None = None
        self._gate = Gate(clock)
        self._is_settled = False
        self._resend_seen: object = None
        self._newest_served = clock.monotonic()
        self._last_sent: float | None = None
        self._is_failing = False
        self._failing_told: float | None = None
        self._fresh: tuple[Ledger, SinkFactory | None] | None = None

    def change(self, ledger: Ledger, sink_factory: SinkFactory | None) -> None:
        """Take other settings before the next request (the configuration was read again); None: send no more.

        Whatever held it back is over.
        """
        self._fresh = (ledger, sink_factory)

    def run_once(self) -> float:
        """Do what is due, for at most a minute; returns the seconds until it wants to be called again.

        Raises StorageError where the ledger cannot be written; nothing is sent that is not on record.
        """
        self._take_over()
        if self._sink_factory is None:
            return _IDLE_SECONDS
        self._settle()
        self._notice_resend()
        try:
            if not self._drain():
                return 0.0
        finally:
            self.close()
        return self._pause()

    def _drain(self) -> bool:
        """Send while something is due and the server takes it; False where a run must follow at once.

        That is where a minute was not enough, or other settings came.
        """
        began = self._clock.monotonic()
        while not self._stop.is_set() and self._gate.wait() <= 0:
            if self._fresh is not None or self._clock.monotonic() - began > _LOOK_SECONDS:
                return False
            tries = self._begin()
            if not tries:
                self._newest_served = self._clock.monotonic()
                break
            self._deliver(tries)
        return True

    def _take_over(self) -> None:
        fresh, self._fresh = self._fresh, None
        if fresh is not None:
            self.close()
            self._ledger, self._sink_factory = fresh
            self._sink = None
            self._gate.open()

    def close(self) -> None:
        """Let go of connections."""
        if self._sink is not None:
            self._sink.close()

    def _settle(self) -> None:
        """Once per start, and after an answer that could not be written down: attempts without an end."""
        if self._is_settled:
            return
        count = self._ledger.settle_interrupted()
        if count:
            _LOG.warning("%d attempts were cut short before an answer came; the same bytes go again", count)
        if self._last_sent is None:
            # A fresh start goes on where the last one stood.
            if self._ledger.was_cut_off():
                self._gate.cut_off()
            self._take_up_wait()
        self._is_settled = True

    def _take_up_wait(self) -> None:
        """A wait that the server asked for outlasts a restart; a wall clock put back does not lengthen it."""
        text = self._writer.get_meta(_WAIT_KEY)
        if text is None:
            return
        since, until = json.loads(text)
        left = min(until - self._clock.now(), until - since)
        if left > 0:
            self._gate.close(left)

    def _notice_resend(self) -> None:
        asked = self._writer.get_meta(RESEND_KEY) or 0
        if self._resend_seen not in (None, asked):
            self._gate.open()
        self._resend_seen = asked

    def _begin(self) -> list[Try]:
        """The next attempts, on record."""
        now = self._clock.now()
        if self._sink is None:
            chosen, most = self._choose(now, 1), 1 << 20
        else:
            room = self._sink.room()
            chosen, most = self._choose(now, 1 if self._gate.is_probing else room.reports), room.bytes
        return self._ledger.begin(chosen, now, most) if chosen else []

    def _choose(self, now: float, limit: int) -> list[int]:
        """Reports to try now: the oldest that are due; else parked ones that earned it; else the last resort."""
        if self._gate.is_cut_off:
            probe = self._ledger.oldest_pending(now)
            if probe is not None:
                return [probe[0]] if probe[1] <= 0 else []
        if self._gate.is_doubtful:
            ids, limit = self._ledger.least_tried(now), 1
        else:
            ids = self._in_turn(now, self._ledger.due(now, limit))
        if ids:
            return ids
        revived = self._ledger.revivable(now, limit)
        if revived:
            return revived
        waited = None if self._last_sent is None else self._clock.monotonic() - self._last_sent
        return self._ledger.last_resort() if waited is None or waited >= PACE_SECONDS else []

    def _in_turn(self, now: float, oldest: list[int]) -> list[int]:
        """`oldest`, or once a minute the newest report where it would have to wait behind many old ones."""
        newest = self._ledger.newest_due(now)
        if newest is None or newest in oldest:
            self._newest_served = self._clock.monotonic()
            return oldest
        has_waited = self._clock.monotonic() - self._newest_served >= _TURN_SECONDS
        if has_waited and not self._gate.is_probing and self._ledger.is_ahead(newest):
            self._newest_served = self._clock.monotonic()
            return [newest]
        return oldest

    def _deliver(self, tries: Sequence[Try]) -> None:
        if self._sink is None:
            assert self._sink_factory is not None  # run_once goes no further without
            self._sink = self._sink_factory()
        self._is_settled = False
        outcomes = self._sink.send([one.parcel for one in tries])
        self._last_sent = self._clock.monotonic()
        states = self._ledger.finish(tries, outcomes, self._clock.now(), wait_after)
        self._is_settled = True
        for one, outcome, state in zip(tries, outcomes, states, strict=True):
            self._tell(one, outcome, state)
        self._gate.note(_most_telling(outcomes))
        self._keep_wait(outcomes[0])

    def _keep_wait(self, outcome: Outcome) -> None:
        if outcome.verdict is Verdict.WAIT and outcome.after is not None:
            now = self._clock.now()
            self._writer.set_meta(_WAIT_KEY, json.dumps([now, now + outcome.after]))

    def _tell(self, one: Try, outcome: Outcome, state: str) -> None:
        """Say what came of an attempt: once when things go wrong, once when they are right again."""
        label = of_what = format_time(one.period)
        if one.imported is not None:  # nodes have reports of the same period, and a log says a line but once
            label, of_what = f"{of_what} of {one.imported}", f"{of_what} --node {shlex.quote(one.imported)}"
        if outcome.verdict is Verdict.ACKNOWLEDGED:
            _LOG.debug("report of %s acknowledged (%s, uid %s)", label, outcome.proof, outcome.uid)
            if self._is_failing:
                _LOG.info("reports are delivered again")
                self._is_failing = False
            if outcome.note:
                _LOG.warning("report of %s: %s", label, outcome.note)
            return
        if state == "rejected":
            _LOG.error(
                "report of %s was rejected: %s; it is kept: mend the cause, then gpu_monitor resend %s",
                label, outcome.error, of_what,
            )  # fmt: skip
        elif state == "parked" and not one.was_parked:
            _LOG.warning(
                "report of %s is parked after %d attempts (%s); it goes out once others do, or: gpu_monitor resend %s",
                label, ATTEMPTS, outcome.error, of_what,
            )  # fmt: skip
        elif outcome.verdict in (Verdict.UNCOMPRESSED, Verdict.SPLIT, Verdict.INTERRUPTED):
            _LOG.debug("report of %s: %s", label, outcome.error)
        elif not self._is_failing and self._may_tell():
            self._is_failing = True
            self._failing_told = self._clock.monotonic()
            _LOG.warning("cannot deliver: %s; reports are kept and tried again", outcome.error)
        else:
            _LOG.debug("report of %s: %s", label, outcome.error)

    def _may_tell(self) -> bool:
        told = self._failing_told
        return told is None or self._clock.monotonic() - told >= _TOLD_SECONDS

    def _pause(self) -> float:
        """Seconds until something may be due; a minute at most."""
        now = self._clock.now()
        if self._gate.is_cut_off:
            probe = self._ledger.oldest_pending(now)
            due = None if probe is None else probe[1]
        else:
            due = self._ledger.next_due(now)
        wait = _LOOK_SECONDS if due is None else max(due, self._gate.wait())
        return min(max(wait, _SHORTEST_PAUSE), _LOOK_SECONDS)


def _most_telling(outcomes: Sequence[Outcome]) -> Outcome:
    """Of a batch, an outcome that shows a working server if there is one; else the first."""
    good = (Verdict.ACKNOWLEDGED, Verdict.REJECTED, Verdict.CONFLICT)
    return next((outcome for outcome in outcomes if outcome.verdict in good), outcomes[0])
