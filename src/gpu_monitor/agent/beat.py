"""The beat: when to read, when an interval ends, what a jump of the clock means. Runs on monotonic time."""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from gpu_monitor.agent.collect import Absence, Collection, Collector
from gpu_monitor.core.clock import Clock
from gpu_monitor.core.model import Event, HostReading, Round, Span
from gpu_monitor.core.times import format_duration

_LOG = logging.getLogger("collect")
STEP_SECONDS = 1.0
"""A change of wall against monotonic time beyond this between two readings is a step, not a drift."""
_WIDE_SECONDS = 30
"""Process lists are read at most this often."""
_JITTER = 0.2
"""Part of the distance between readings by which they are moved, so that they do not beat with periodic load."""


def reading_times(start: int, interval: int, reading_seconds: float) -> list[float]:
    """When to read within the interval [start, start + interval): jittered, the last exactly at its end.

    A function of `start`, so that a simulated day is the same whenever it is run.
    """
    count = max(1, round(interval / reading_seconds))
    gap = interval / count
    room = min(gap * _JITTER, max(0.0, (gap - 1.0) / 2))
    times = []
    for number in range(1, count):
        part = zlib.crc32(f"{start}:{number}".encode()) / 0xFFFFFFFF
        times.append(round(start + number * gap + (2 * part - 1) * room, 3))
    return [*times, float(start + interval)]


def span_for(at: float, before: float | None, closes: bool) -> Span:
    """How much to read at `at`, when the last reading was at `before`.

    Process lists come with the end of an interval, at most every 30 s; in long intervals each minute.
    """
    if before is None:
        return Span.WIDE
    if closes:
        return Span.WIDE if at // _WIDE_SECONDS != before // _WIDE_SECONDS else Span.FULL
    return Span.WIDE if at // 60 != before // 60 else Span.FAST


@dataclass(frozen=True)
class Pace:
    """Seconds of an interval, and between readings within it."""

    interval: int
    reading: float


@dataclass(frozen=True)
class Hooks:
    """What the beat calls. `read` answers in bounded time; none of the others raises.

    `paced` is told that another pace holds from a moment on. `alive` is called at least every
    `alive_seconds` of waiting (None: never). `seen` is shown each round; `watched` says how many seconds
    may lie between readings because somebody looks (None: nobody does).
    """

    read: Callable[[float, Span], Round]
    read_host: Callable[[], HostReading | None]
    store: Callable[[Collection], None]
    record: Callable[[list[Event], list[Absence]], None]
    paced: Callable[[Pace, float], None] = lambda pace, at: None
    alive: Callable[[], None] = lambda: None
    alive_seconds: float | None = None
    seen: Callable[[Round, float], None] = lambda found, at: None
    watched: Callable[[], float | None] = lambda: None


class Beat:
    """Reads and closes intervals until `stop` is set. One thread."""

    def __init__(self, pace: Pace, hooks: Hooks, clock: Clock, stop: threading.Event) -> None:
        self.pace = pace
        self._hooks = hooks
        self._clock = clock
        self._stop = stop
        self._collector = Collector(longest=_longest(pace))
        self._slot = 0
        self._times: list[float] = []
        self._last: float | None = None
        self._offset = 0.0
        self._asleep = 0.0
        self._next_pace: Pace | None = None

    def first(self) -> float:
        """Take the first reading and return its time; what is before it is the hole that a start puts on record."""
        return self._take_first()

    def run(self) -> None:
        """Store the first reading at once, then read on time until stopped; what the last interval gave is stored."""
        if self._last is None:
            self._take_first()
        self._hooks.store(self._collector.snapshot(self._slot, self.pace.interval))
        while not self._stop.is_set():
            at = self._next()
            # On monotonic time, so that a clock put back by an hour does not hold the next reading for one.
            self._wait(at - self._offset)
            if self._stop.is_set():
                break
            if self._jumped() or self._stalled(at):
                continue
            if at < self._times[0]:
                self._read(at, closes=False, least=Span.FULL)
                continue
            self._times.pop(0)
            self._read(at, closes=not self._times)
            if not self._times:
                self._close()
        if self._slot:
            self._hooks.store(self._collector.close(self._slot, self.pace.interval))

    def _next(self) -> float:
        """When to read: as planned, or sooner while somebody watches."""
        planned, watched = self._times[0], self._hooks.watched()
        if watched is None or self._last is None:
            return planned
        # One that falls beside a planned reading adds nothing to it.
        sooner = self._last + watched
        return sooner if sooner + watched / 2 < planned else planned

    def _wait(self, deadline: float) -> None:
        """Wait for the monotonic `deadline` or the stop, and say every now and then that the agent lives."""
        step = self._hooks.alive_seconds
        while not self._stop.is_set():
            until = deadline if step is None else min(deadline, self._clock.monotonic() + step)
            if self._clock.wait(self._stop, until) or until >= deadline:
                return
            self._hooks.alive()

    def change_pace(self, pace: Pace) -> None:
        """Take another pace from the next moment on at which intervals of both lengths begin."""
        self._next_pace = pace

    def _take_first(self) -> float:
        """Read in the middle of an interval, with nothing before it."""
        now = self._clock.now()
        self._offset, self._asleep = now - self._clock.monotonic(), self._clock.suspended()
        self._enter(int(now // self.pace.interval) * self.pace.interval, now)
        self._collector.cut(now)
        self._last = None
        self._read(now, closes=False)
        return now

    def _begin(self) -> None:
        """Start again after a hole, and store what there is at once."""
        self._take_first()
        self._hooks.store(self._collector.snapshot(self._slot, self.pace.interval))

    def _enter(self, slot: int, now: float) -> None:
        fresh = self._next_pace
        # Only where intervals of both lengths begin: a new one never overlaps one that is stored already.
        if fresh is not None and slot % fresh.interval == 0:
            self.pace, self._next_pace = fresh, None
            self._collector.longest = _longest(fresh)
            self._hooks.paced(fresh, float(slot))
        self._slot = slot
        times = reading_times(slot, self.pace.interval, self.pace.reading)
        self._times = [time for time in times if time > now + 0.001]

    def _read(self, at: float, closes: bool, least: Span = Span.FAST) -> None:
        found = self._hooks.read(at, max(least, span_for(at, self._last, closes)))
        self._collector.add(found, at)
        self._hooks.seen(found, at)
        if closes or self._last is None:
            host = self._hooks.read_host()
            if host is not None:
                self._collector.add_host(host, at)
        self._last = at

    def _close(self) -> None:
        ended = self._slot + self.pace.interval
        self._hooks.store(self._collector.close(self._slot, self.pace.interval))
        self._enter(ended, float(ended))

    def _jumped(self) -> bool:
        """Notice a stepped clock or a suspended machine; True where the beat began anew."""
        # Held up between the two clocks we would see a step that was none: the moment lies somewhere in between.
        before, now, after = self._clock.monotonic(), self._clock.now(), self._clock.monotonic()
        asleep = self._clock.suspended()
        slept = asleep - self._asleep
        expected = self._offset + slept
        offset = min(max(expected, now - after), now - before)
        step = offset - expected
        self._offset, self._asleep = offset, asleep
        if slept > STEP_SECONDS:
            self._restart(
                now, "host suspended", f"the machine slept for {format_duration(slept)}", "suspended"
            )
        elif abs(step) <= STEP_SECONDS:
            return False
        elif step > 0:
            text = f"the clock was put forward by {format_duration(step)}"
            self._restart(now, "clock put forward", text, "clock_stepped", step)
        else:
            text = f"the clock was put back by {format_duration(-step)}"
            self._restart(now, None, text, "clock_stepped", step)
        return True

    def _stalled(self, at: float) -> bool:
        """Notice that whole intervals were missed without a jump (the agent was stopped or starved)."""
        now = self._clock.now()
        if now < self._slot + 2 * self.pace.interval:
            return False
        text = f"the agent did not run for {format_duration(now - at)}"
        self._restart(now, "agent stalled", text, "agent_stalled", now - at)
        return True

    def _restart(self, now: float, cause: str | None, text: str, kind: str, seconds: float = 0.0) -> None:
        """Store what the interval gave so far, put the hole on record, and begin anew at `now`."""
        _LOG.warning("%s", text)
        since = self._last if self._last is not None else now
        self._hooks.store(self._collector.close(self._slot, self.pace.interval))
        event = Event(now, kind, text, "warning", detail={"seconds": round(seconds, 3)})
        gaps = [Absence(since, now, cause, None, text)] if cause is not None and now > since else []
        self._hooks.record([event], gaps)
        self._begin()


def _longest(pace: Pace) -> float:
    """A reading stands for at most two and a half distances between readings."""
    return 2.5 * min(pace.reading, float(pace.interval))
