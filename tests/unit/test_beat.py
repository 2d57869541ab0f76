"""The beat against a clock that only moves when told: when it reads, what a jump does to rows and gaps."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from gpu_monitor.agent.beat import Beat, Hooks, Pace, reading_times, span_for
from gpu_monitor.agent.collect import Absence, Collection
from gpu_monitor.core.model import DeviceReading, Event, Identity, Round, Span
from tests.fakes.clock import FakeClock

START = 1_710_945_000.0  # 2024-03-20T14:30:00Z, a whole minute
GPU = Identity("GPU-a", "nvml")


@dataclass
class Log:
    """What a beat did."""

    clock: FakeClock
    stop: threading.Event
    reads: list[tuple[float, Span]] = field(default_factory=list)
    stored: list[Collection] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    gaps: list[Absence] = field(default_factory=list)
    on_read: Callable[[int], None] = lambda number: None
    reads_left: int = 20

    def read(self, at: float, span: Span) -> Round:
        self.reads.append((at, span))
        self.on_read(len(self.reads))
        if len(self.reads) >= self.reads_left:
            self.stop.set()
        return Round((DeviceReading(GPU, values={"temperature": 40}),))

    def record(self, events: list[Event], gaps: list[Absence]) -> None:
        self.events += events
        self.gaps += gaps


def run(
    start: float, pace: Pace, reads: int, on_read: Callable[[Log, int], None] = lambda log, number: None
) -> Log:
    clock, stop = FakeClock(now=start), threading.Event()
    log = Log(clock, stop, reads_left=reads)
    log.on_read = lambda number: on_read(log, number)
    hooks = Hooks(log.read, lambda: None, log.stored.append, log.record)
    Beat(pace, hooks, clock, stop).run()
    return log


def test_reading_times_end_at_the_boundary_and_are_never_closer_than_a_second() -> None:
    for interval, reading in ((60, 10.0), (60, 60.0), (5, 1.0), (1, 10.0), (3600, 10.0), (60, 7.0)):
        times = reading_times(1_710_945_000, interval, reading)
        assert times[-1] == 1_710_945_000 + interval
        gaps = [b - a for a, b in zip([1_710_945_000.0, *times], times, strict=False)]
        assert min(gaps) >= 0.999
    assert reading_times(1_710_945_000, 60, 10.0) == reading_times(1_710_945_000, 60, 10.0)
    assert (
        reading_times(1_710_945_000, 60, 10.0)[0] - 1_710_945_000
        != reading_times(1_710_945_060, 60, 10.0)[0] - 1_710_945_060
    )


def test_process_lists_come_at_most_every_half_minute() -> None:
    wide = [at for at in range(1, 121) if span_for(float(at), at - 1.0, closes=True) is Span.WIDE]
    assert wide == [30, 60, 90, 120]
    assert span_for(10.0, None, closes=False) is Span.WIDE


def test_the_first_short_interval_is_stored_at_once_and_completed_in_place() -> None:
    log = run(START + 25, Pace(60, 10.0), reads=12)
    first, completed = log.stored[0], log.stored[1]
    assert (first.start, completed.start) == (START, START)
    assert first.gpus[0].seconds == 0
    assert completed.gpus[0].seconds == 35
    assert log.stored[2].start == START + 60
    assert log.stored[2].gpus[0].seconds == 60


def test_a_stop_stores_what_the_interval_gave() -> None:
    log = run(START, Pace(60, 10.0), reads=4)
    assert log.stored[-1].start == START
    assert 0 < log.stored[-1].gpus[0].seconds < 60


def test_clock_put_forward_leaves_one_gap_and_an_event() -> None:
    def jump(log: Log, number: int) -> None:
        if number == 3:
            log.clock.step(1200)

    log = run(START, Pace(60, 10.0), reads=8, on_read=jump)
    assert [event.kind for event in log.events] == ["clock_stepped"]
    assert log.events[0].detail["seconds"] == 1200
    (gap,) = log.gaps
    assert gap.cause == "clock put forward"
    assert gap.start == log.reads[2][0]
    assert gap.end == log.reads[3][0]
    assert log.reads[3][0] in [collection.began for collection in log.stored]


def test_clock_put_back_keeps_order_and_tells_the_store() -> None:
    def jump(log: Log, number: int) -> None:
        if number == 8:
            log.clock.step(-3600)

    log = run(START, Pace(60, 10.0), reads=12, on_read=jump)
    assert log.gaps == []
    assert log.reads[8][0] in [collection.began for collection in log.stored]
    assert log.events[0].detail["seconds"] == -3600
    assert log.stored[-1].start < START


def test_a_small_correction_is_no_step() -> None:
    def nudge(log: Log, number: int) -> None:
        log.clock.step(0.2)

    assert run(START, Pace(60, 10.0), reads=9, on_read=nudge).events == []


def test_suspend_makes_one_gap_and_no_burst() -> None:
    def sleep(log: Log, number: int) -> None:
        if number == 3:
            log.clock.suspend(8 * 3600)

    log = run(START, Pace(60, 10.0), reads=9, on_read=sleep)
    assert [(gap.cause, round((gap.end or 0) - gap.start) >= 8 * 3600) for gap in log.gaps] == [
        ("host suspended", True)
    ]
    assert [event.kind for event in log.events] == ["suspended"]
    late = [collection.start for collection in log.stored if collection.start > START]
    assert (
        len(late) == len(set(late)) or late.count(late[0]) == 2
    )  # the first, short interval is completed in place
    assert min(late) >= START + 8 * 3600 - 60


def test_an_agent_that_was_stopped_for_long_has_a_gap() -> None:
    def stall(log: Log, number: int) -> None:
        if number == 3:
            log.clock.advance(600)

    log = run(START, Pace(60, 10.0), reads=8, on_read=stall)
    assert [gap.cause for gap in log.gaps] == ["agent stalled"]
    assert log.gaps[0].start == log.reads[2][0]


def test_a_long_wait_still_says_that_the_agent_lives() -> None:
    clock, stop = FakeClock(now=START), threading.Event()
    log = Log(clock, stop, reads_left=3)
    lives: list[float] = []
    hooks = Hooks(
        log.read, lambda: None, log.stored.append, log.record,
        alive=lambda: lives.append(clock.now()), alive_seconds=40.0,
    )  # fmt: skip
    Beat(Pace(3600, 3600.0), hooks, clock, stop).run()
    said = sorted([START, *lives, *(at for at, _ in log.reads)])
    assert max(after - before for before, after in itertools.pairwise(said)) <= 40
    assert len(lives) >= (1800 + 3600) // 40 - 3  # half an hour to the full hour, then a whole one


def test_a_new_pace_waits_until_intervals_of_both_lengths_begin() -> None:
    clock, stop = FakeClock(now=START + 21), threading.Event()
    log = Log(clock, stop, reads_left=9)
    paced: list[tuple[Pace, float]] = []
    hooks = Hooks(
        log.read,
        lambda: None,
        log.stored.append,
        log.record,
        lambda p, at: paced.append((p, at)),
    )
    beat = Beat(Pace(10, 10.0), hooks, clock, stop)
    beat.change_pace(Pace(60, 30.0))
    beat.run()
    starts = [(collection.start - START, collection.interval) for collection in log.stored]
    assert starts[:5] == [(20, 10), (20, 10), (30, 10), (40, 10), (50, 10)]
    assert starts[5:7] == [(60, 60), (120, 60)]
    assert paced == [(Pace(60, 30.0), START + 60)]


def test_while_somebody_watches_it_reads_at_that_pace_and_stores_as_ever() -> None:
    clock, stop = FakeClock(now=START), threading.Event()
    log = Log(clock, stop, reads_left=70)
    seen: list[float] = []

    # From 20 s on and for a minute.
    def watched() -> float | None:
        return 2.0 if START + 20 <= clock.now() < START + 80 else None

    hooks = Hooks(
        log.read,
        lambda: None,
        log.stored.append,
        log.record,
        seen=lambda _, at: seen.append(at),
        watched=watched,
    )
    Beat(Pace(60, 10.0), hooks, clock, stop).run()
    assert seen == [at for at, _ in log.reads]
    watched_reads = [at - START for at in seen if 22 <= at - START <= 80]
    gaps = [after - before for before, after in itertools.pairwise(watched_reads)]
    assert min(gaps) >= 0.99
    assert max(gaps) <= 3.01
    assert len(watched_reads) > 25
    later = [at - START for at in seen if at - START > 92]
    assert min(after - before for before, after in itertools.pairwise(later)) > 5
    # Each extra one takes all that a minute's end takes, for it is shown; the planned ones are as ever.
    assert {span for at, span in log.reads if 22 <= at - START <= 58} == {Span.FULL, Span.FAST}
    assert [at - START for at, span in log.reads if span is Span.WIDE][:3] == [0, 60, 120]
    # One row an interval, whole, however many readings it has.
    assert [(one.start - START, one.gpus[0].seconds) for one in log.stored[1:3]] == [(0, 60), (60, 60)]
