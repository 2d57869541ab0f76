"""Tells the server what happens now: live minutes, and readings in between while somebody watches. Best effort.

Nothing here is kept on disk, and nothing waits for it: the beat puts references down and goes on; a thread of
its own makes them into messages and sends them. What cannot be sent is dropped, oldest first, and counted; the
reports are the record.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gpu_monitor.agent.collect import Collection
from gpu_monitor.agent.live_samples import (
    Present,
    Statuses,
    event_part,
    is_made_up,
    samples_of_interval,
    samples_of_reading,
)
from gpu_monitor.agent.ship_backoff import PACE_SECONDS, wait_seconds
from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.model import Event, Round
from gpu_monitor.core.outcome import Outcome, Verdict
from gpu_monitor.core.ports import LiveSink
from gpu_monitor.core.times import format_time
from gpu_monitor.wire.live import (
    MESSAGE_EVENTS,
    MESSAGE_SAMPLES,
    SCHEMA,
    SampleBase,
    SamplesIn,
    encode_samples,
)
from gpu_monitor.wire.telemetry import NodePart

_LOG = logging.getLogger("live")
KEPT_SAMPLES = 2048
"""Samples that wait while the server is away: four hours of eight GPUs and a minute; 1 MB."""
_KEPT_READINGS = 3
"""Rounds of readings that wait: they are for whoever looks now."""
_KEPT_LISTS = 8
"""Rounds with process lists that the thread has not taken up yet; there are two a minute at most."""
_HANDED_OVER = 32
"""Intervals at most that the beat has put down and the thread has not taken up yet, some 5 KB a GPU."""
_TAKEN_UP = 8
"""With so many the thread is woken to take them up, which makes them small."""
_SPREAD_SECONDS = 10.0
"""A fleet whose intervals all end at the same second sends over as many seconds, each node at its own."""
SPACING_SECONDS = 15.0
"""Unwatched, messages lie at least so far apart, whatever the interval: a message costs as much as a reading."""
_WATCH_LASTS = 60.0
"""A watch that no answer has repeated for so long is over: the server may be gone."""
_LATE_SECONDS = 0.5
"""After its end an interval is read, stored and here."""
_PRESENT_SECONDS = 600.0
"""What ended longer ago (a sped-up simulation, a replay) is not live."""
_END_SECONDS = 1.0
_LOST = (Verdict.REJECTED, Verdict.TOO_LARGE, Verdict.CONFLICT)


@dataclass(frozen=True)
class Origin:
    """Whose samples these are."""

    node: str
    hostname: str | None
    os: str | None
    agent_version: str
    contract_number: str
    interval_seconds: int


@dataclass(frozen=True)
class _Reading:
    round: Round
    at: float
    seconds: float


class Live:
    """The live side of one agent. `stored`, `seen` and `watched` are for the beat's thread and never wait."""

    def __init__(
        self,
        open_sink: Callable[[], LiveSink | None],
        origin: Callable[[], Origin],
        clock: Clock,
        spacing: float = SPACING_SECONDS,
    ) -> None:
        self._open_sink, self._origin, self._clock, self._spacing = open_sink, origin, clock, spacing
        self._real = SystemClock()
        self._fresh: deque[Collection] = deque()
        self._readings: deque[_Reading] = deque(maxlen=_KEPT_READINGS)
        self._newest: Round | None = None
        self._lists: deque[tuple[Round, float]] = deque(maxlen=_KEPT_LISTS)
        self._events: deque[Event] = deque(maxlen=MESSAGE_EVENTS)
        self._present = Present()
        self._seen_at: float | None = None
        self._queue: deque[list[SampleBase]] = deque()
        self._waiting = 0
        self._statuses = Statuses()
        self._driver: str | None = None
        self._wake = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._sink: LiveSink | None = None
        self._is_stale = True
        self._is_shown = False
        self._offset = self._interval = self._ended = 0.0
        self._watch: tuple[float, float] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._due: float | None = None
        self._sent_at = float("-inf")
        self.dropped = 0

    # --- for the beat ---------------------------------------------------------------------------------------

    def stored(self, collection: Collection) -> None:
        """An interval has ended (or was read for the first time)."""
        self._fresh.append(collection)
        if len(self._fresh) > _HANDED_OVER:
            # The thread, held up by a slow answer until now, may just have taken them.
            with suppress(IndexError):
                self.dropped += len(self._fresh.popleft().gpus)
        if not self._is_shown and self._newest is not None and self._seen_at is not None:
            # What a start reads covers no time yet: it only shows that the node is there.
            self._is_shown = True
            if self._is_present(self._seen_at):
                self._readings.append(_Reading(self._newest, self._seen_at, 0.0))
        if self._due is None or self._watch is not None or len(self._fresh) >= _TAKEN_UP:
            self._wake.set()

    def seen(self, found: Round, at: float) -> None:
        """The GPUs were read at `at` (UTC epoch s)."""
        before, self._seen_at, self._newest = self._seen_at, at, found
        if any(device.processes is not None for device in found.devices):
            self._lists.append((found, at))
        urgent = [
            event for event in found.events if event.severity != "info" and self._is_present(event.time)
        ]
        if urgent:
            self._events.extend(urgent)
            self._wake.set()
        if self._watch is not None:
            self._readings.append(_Reading(found, at, max(0.0, at - before) if before is not None else 0.0))
            self._wake.set()

    def watched(self) -> float | None:
        """Seconds between readings that somebody who looks asks for; None where nobody looks."""
        watch = self._watch
        if watch is None:
            return None
        if self._real.monotonic() > watch[1]:
            self._watch = None
            return None
        return watch[0]

    # --- as a part of the agent -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send no more; what waits is dropped."""
        self._is_over = True
        self._wake.set()
        sink = self._sink
        if sink is not None:
            sink.cut()
        if self._thread.is_alive():
            self._thread.join(_END_SECONDS)

    def change(self) -> None:
        """The settings were read again: the sink is opened anew, and whatever held it back is over."""
        self._is_stale = True
        self._wake.set()

    @property
    def is_running(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Samples that wait in memory."""
        return self._waiting

    @property
    def has_news(self) -> bool:
        """Whether the beat has put something down that was not taken up yet."""
        return bool(self._fresh)

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        due: float | None = None
        while not self._is_over:
            self._real.wait(self._wake, self._real.monotonic() + 86400.0 if due is None else due)
            self._wake.clear()
            if not self._is_over:
                due = self._turn()
        if self._sink is not None:
            self._sink.close()

    def _turn(self) -> float | None:
        """Take up what is there and send what is due; when to look again (monotonic), None: when woken."""
        if self._is_stale:
            self._reopen()
        if self._sink is None:
            self._forget()
            return None
        self._take_up()
        if not self._has_some:
            self._due = None
            return None
        now = self._real.monotonic()
        if self._due is None:
            self._due = max(now + self._offset, self._sent_at + self._spacing)
        if self._events:
            self._due = min(self._due, self._sent_at + self._spacing)
        due = self._not_before if self._watch is not None else max(self._due, self._not_before)
        if now < due:
            return due
        terms = self._sink.terms()
        if terms is None:
            self._judge(Outcome(Verdict.UNREACHABLE, error="the server does not answer"))
            return self._not_before
        if not terms.is_wanted:
            self._forget()
            return None
        while self._has_some and not self._is_over:
            if not self._send():
                return self._not_before
        self._due = None if self._watch is not None else self._expected()
        return self._due

    @property
    def _has_some(self) -> bool:
        return bool(self._queue or self._readings or self._events)

    def _expected(self) -> float:
        """When the next interval should have ended and be due (monotonic): no need to be woken for it."""
        ahead = self._ended + self._interval + self._offset + _LATE_SECONDS - self._real.now()
        latest = self._real.monotonic() + min(ahead, self._interval + self._offset)
        return max(latest, self._sent_at + self._spacing)

    def _reopen(self) -> None:
        self._is_stale = False
        if self._sink is not None:
            self._sink.close()
        self._sink, self._watch, self._due = self._open_sink(), None, None
        self._failures, self._not_before, self._sent_at = 0, 0.0, float("-inf")
        origin = self._origin()
        self._interval = float(origin.interval_seconds)
        self._offset = zlib.crc32(origin.node.encode()) / 0xFFFFFFFF * _SPREAD_SECONDS

    def _forget(self) -> None:
        """Nobody takes live samples here: that is no loss."""
        self._fresh.clear()
        self._readings.clear()
        self._events.clear()
        self._queue.clear()
        self._waiting = 0
        self._watch = self._due = None

    def _is_present(self, moment: float) -> bool:
        return self._real.now() - moment <= _PRESENT_SECONDS

    def _take_up(self) -> None:
        while self._fresh:
            collection = self._fresh.popleft()
            if not self._is_present(collection.until):
                continue
            self._ended = collection.until
            self._driver = next(
                (
                    str(row.states["driver_version"])
                    for row in collection.gpus
                    if "driver_version" in row.states
                ),
                self._driver,
            )
            samples = samples_of_interval(collection)
            if samples or not self._queue:  # without a GPU a message still says that the node is there
                self._queue.append(samples)
                self._waiting += len(samples)
        while self._waiting > KEPT_SAMPLES and len(self._queue) > 1:
            lost = len(self._queue.popleft())
            self._waiting -= lost
            self.dropped += lost

    def _send(self) -> bool:
        """One message; False where the next must wait."""
        assert self._sink is not None  # _turn goes no further without
        batch: list[list[SampleBase]] = []
        count = 0
        for samples in self._queue:
            if batch and count + len(samples) > MESSAGE_SAMPLES // 2:
                break
            batch.append(samples)
            count += len(samples)
        readings = [self._readings.popleft() for _ in range(len(self._readings))]
        events = [event for event in tuple(self._events) if self._is_present(event.time)]
        self._sent_at = self._real.monotonic()
        outcome = self._sink.send(self._message(batch, readings, events))
        is_over = outcome.verdict is Verdict.ACKNOWLEDGED or outcome.verdict in _LOST
        if is_over:
            # Only this thread takes from the queue, so these are still its first.
            for _ in batch:
                self._queue.popleft()
            self._waiting -= count
            self._told(events)
        if outcome.verdict in _LOST:
            self.dropped += count
        return self._judge(outcome)

    def _told(self, events: list[Event]) -> None:
        """These went out, and what is too old beside them goes, too; the beat may add some meanwhile."""
        for _ in range(len(self._events)):
            event = self._events.popleft()
            if event not in events and self._is_present(event.time):
                self._events.append(event)

    def _message(self, batch: list[list[SampleBase]], readings: list[_Reading], events: list[Event]) -> bytes:
        while self._lists:
            self._present.take(*self._lists.popleft())
        origin, newest = self._origin(), self._newest
        gpus = self._statuses.parts(newest) if newest is not None else []
        return encode_samples(
            SamplesIn(
                schema=SCHEMA,
                contract_number=origin.contract_number,
                node=NodePart(
                    id=origin.node,
                    hostname=origin.hostname,
                    simulated=is_made_up(gpus),
                    os=origin.os,
                    agent_version=origin.agent_version,
                    driver_version=self._driver,
                ),
                sent=format_time(round(self._clock.now(), 3)),
                collection_interval_seconds=origin.interval_seconds,
                gpus=gpus,
                samples=[sample for samples in batch for sample in samples],
                readings=[
                    sample
                    for one in readings
                    for sample in samples_of_reading(one.round, one.at, one.seconds)
                ],
                processes=self._present.parts(),
                events=[event_part(event) for event in events],
            )
        )

    def _judge(self, outcome: Outcome) -> bool:
        """Learn from an answer; whether the next message may go at once."""
        now = self._real.monotonic()
        if outcome.verdict is Verdict.ACKNOWLEDGED:
            assert self._sink is not None
            if self._failures:
                _LOG.info(
                    "live samples are taken again; %d were dropped so far (the reports hold all)",
                    self.dropped,
                )
            self._failures = 0
            terms = self._sink.terms()
            seconds = None if terms is None else terms.watch_seconds
            self._watch = None if seconds is None else (seconds, now + _WATCH_LASTS)
            return True
        if outcome.verdict is Verdict.UNCOMPRESSED:
            return True
        if self._is_over:
            return False
        self._failures += 1
        if self._failures == 1:
            _LOG.info("live samples cannot be sent: %s (the reports hold all)", outcome.error)
        if outcome.after is not None:
            wait = outcome.after
        elif outcome.verdict is Verdict.REFUSED:
            wait = PACE_SECONDS
        else:
            wait = wait_seconds(self._failures)
        self._not_before = now + wait
        return False
