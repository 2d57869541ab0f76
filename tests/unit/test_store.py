"""Where rows go: completed after a restart, beside others when the clock was put back, waiting when they must."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpu_monitor.agent.collect import Absence, Collection, GpuRow
from gpu_monitor.agent.recovery import LastRun, Machine, begin_run, end_run, find_hole
from gpu_monitor.agent.store import Store
from gpu_monitor.agent.waiting import Queue
from gpu_monitor.core.buckets import PeriodPlan
from gpu_monitor.core.errors import StorageFull
from gpu_monitor.core.model import Event, Identity
from gpu_monitor.storage.database import Writer
from tests.fakes.clock import FakeClock

NOON = 1_774_008_000
"""2026-03-20T12:00:00Z."""
GPU = Identity("GPU-a", "nvml", "Card", "0", 80 << 30, 0)
OTHER = Identity("GPU-b", "nvml", "Card", "1", 80 << 30, 1)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "s.db")
    with writer.transaction() as connection:
        connection.execute("INSERT INTO nodes VALUES (1, 'here', 'local', NULL)")
    yield writer
    writer.close()


def row(seconds: float, identity: Identity = GPU, **values: float) -> GpuRow:
    return GpuRow(identity, seconds, values, {}, {}, None)


def part(
    start: int, first: float, until: float, *rows: GpuRow, began: bool = False, host: float | None = None
) -> Collection:
    """The readings of [first, until) in the minute from `start`."""
    seconds = until - first
    return Collection(
        start, 60, until, rows or (row(seconds, power_usage=100.0),),
        None if host is None else (seconds, {"cpu_utilization": host}), began=first if began else None,
    )  # fmt: skip


def stored(writer: Writer) -> list[tuple[object, ...]]:
    return writer.rows(
        "SELECT start, era, uid, seconds, power_usage, power_usage_min, power_usage_max FROM samples"
    )


def test_the_first_reading_is_replaced_by_the_whole_minute(writer: Writer) -> None:
    store = Store(writer, PeriodPlan())
    store.write(part(NOON, NOON + 20.0, NOON + 20.0, row(0, power_usage=50.0), began=True))
    store.write(part(NOON, NOON + 20.0, NOON + 60.0, row(40, power_usage=70.0), began=True))
    assert stored(writer) == [(NOON, 0, "GPU-a", 40.0, 70.0, 70.0, 70.0)]


def test_a_restart_within_a_minute_completes_its_row(writer: Writer) -> None:
    first = Store(writer, PeriodPlan())
    first.write(
        part(NOON, NOON + 0.0, NOON + 20.0,
             row(20, power_usage=100.0, power_usage_min=90.0, power_usage_max=300.0, energy=2000.0, throttle_reasons=4),
             row(20, OTHER, power_usage=10.0), host=10.0)
    )  # fmt: skip
    second = Store(writer, PeriodPlan())  # as a new process sees it
    values = {"power_usage": 400.0, "power_usage_min": 95.0, "power_usage_max": 500.0, "energy": 8000.0}
    for until in (NOON + 30.0, NOON + 60.0):  # its first reading, then all of its part
        second.write(
            part(
                NOON,
                NOON + 30.0,
                until,
                row(until - NOON - 30, **values, throttle_reasons=64),
                began=True,
                host=70.0,
            )
        )
    # 20 s at 100 W and 30 s at 400 W: 280 W over 50 s. The other card gave nothing since.
    assert stored(writer) == [
        (NOON, 0, "GPU-a", 50.0, 280.0, 90.0, 500.0),
        (NOON, 0, "GPU-b", 20.0, 10.0, 10.0, 10.0),
    ]
    assert writer.rows("SELECT energy, throttle_reasons FROM samples WHERE uid = 'GPU-a'") == [(10000.0, 68)]
    assert writer.rows("SELECT seconds, cpu_utilization FROM hosts") == [
        (50.0, 46.0)
    ]  # (20 x 10 + 30 x 70) / 50
    second.write(part(NOON + 60, NOON + 60.0, NOON + 120.0))
    assert [found[:2] for found in stored(writer)] == [(NOON, 0), (NOON, 0), (NOON + 60, 0)]


def test_a_sleep_within_a_minute_completes_its_row(writer: Writer) -> None:
    """The same without a restart: what the machine read before it slept is not written over."""
    store = Store(writer, PeriodPlan())
    store.write(part(NOON, NOON + 0.0, NOON + 20.0, row(20, power_usage=100.0)))
    store.write(part(NOON, NOON + 40.0, NOON + 40.0, row(0, power_usage=400.0), began=True))
    store.write(part(NOON, NOON + 40.0, NOON + 60.0, row(20, power_usage=400.0), began=True))
    assert stored(writer) == [(NOON, 0, "GPU-a", 40.0, 250.0, 100.0, 400.0)]


def test_a_clock_put_back_keeps_both_rows_in_order(writer: Writer) -> None:
    store = Store(writer, PeriodPlan())
    for minute in range(30):
        at = NOON + minute * 60
        store.write(part(at, at, at + 60.0, row(60, power_usage=float(minute))))
    back = NOON + 10 * 60 + 15.0
    store.write(part(NOON + 600, back, back, row(0, power_usage=500.0), began=True))
    store.write(part(NOON + 600, back, NOON + 660.0, row(45, power_usage=500.0), began=True))
    for minute in range(11, 40):
        at = NOON + minute * 60
        store.write(part(at, at, at + 60.0, row(60, power_usage=500.0 + minute)))
    found = stored(writer)
    assert [(line[0], line[1]) for line in found] == sorted(
        [(NOON + minute * 60, 0) for minute in range(30)]
        + [(NOON + minute * 60, 1) for minute in range(10, 30)]
        + [(NOON + minute * 60, 0) for minute in range(30, 40)]
    )
    assert [line[4] for line in found if line[1] == 0 and line[0] < NOON + 1800] == [
        float(n) for n in range(30)
    ]
    assert next(line[3:5] for line in found if line[1] == 1) == (45.0, 500.0)


def test_a_clock_put_back_again_and_again_loses_nothing(writer: Writer) -> None:
    """By two seconds, each minute, for an hour: the places for it do not run out."""
    store = Store(writer, PeriodPlan())
    covered = 0.0
    for minute in range(60):
        at = NOON + minute * 60
        store.write(part(at, at, at + 30.0, row(30, power_usage=1.0)))
        store.write(part(at, at + 28.0, at + 60.0, row(32, power_usage=3.0), began=True))
        covered += 62.0
    assert writer.value("SELECT sum(seconds) FROM samples") == covered
    assert writer.rows("SELECT era, count(*) FROM samples GROUP BY era") == [(0, 60), (1, 60)]
    for times in range(40):  # far more often than there are places, over one minute
        store.write(part(NOON, NOON + 0.0, NOON + 9.0, row(9, power_usage=5.0 + times), began=True))
        store.write(part(NOON + 60, NOON + 60.0, NOON + 70.0))
        covered += 9.0 + 10.0
    assert writer.value("SELECT sum(seconds) FROM samples") == pytest.approx(covered)
    assert writer.value("SELECT max(era) FROM samples") == 15


def test_after_a_restart_the_second_pass_still_writes_over_nothing(writer: Writer) -> None:
    """The clock was put back, rows of the second pass were stored, then the agent was killed and started again."""
    store = Store(writer, PeriodPlan())
    for minute in range(20):
        at = NOON + minute * 60
        store.write(part(at, at, at + 60.0, row(60, power_usage=1.0)))
    store.write(part(NOON, NOON + 10.0, NOON + 60.0, row(50, power_usage=2.0), began=True))
    restarted = Store(writer, PeriodPlan())
    later = NOON + 300
    restarted.write(part(later, later + 5.0, later + 60.0, row(55, power_usage=3.0), began=True))
    restarted.write(part(later + 60, later + 60.0, later + 120.0, row(60, power_usage=4.0)))
    assert writer.value("SELECT count(*) FROM samples WHERE power_usage = 1.0") == 20
    assert [line[:2] + line[4:5] for line in stored(writer) if line[1]] == [
        (NOON, 1, 2.0), (later, 1, 3.0), (later + 60, 1, 4.0),
    ]  # fmt: skip


def test_imported_rows_are_not_in_the_way(writer: Writer) -> None:
    with writer.transaction() as connection:
        connection.execute(
            "INSERT INTO gpus (id, node, uid, source, first_seen) VALUES (1, 2, 'I', 'import', 0)"
        )
        connection.execute("INSERT INTO samples_raw (id, seconds) VALUES (?, 600)", ((NOON << 20) | 1,))
    Store(writer, PeriodPlan()).write(part(NOON, NOON, NOON + 60.0))
    assert [line[:3] for line in stored(writer)] == [(NOON, 0, "I"), (NOON, 0, "GPU-a")]


def test_a_failed_write_leaves_no_trace(writer: Writer) -> None:
    store = Store(writer, PeriodPlan())
    store.write(part(NOON, NOON, NOON + 60.0))
    with writer.transaction() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    events = tuple(Event(NOON + 60.0, "note", "x" * 900) for _ in range(50))
    new = Collection(NOON + 60, 60, NOON + 120.0, (row(60, OTHER, power_usage=5.0),), None, events)
    for _ in range(3):
        with pytest.raises(StorageFull):
            store.write(new)
    assert writer.value("SELECT count(*) FROM gpus") == 1
    assert writer.value("SELECT count(*) FROM events") == 0
    with writer.transaction() as connection:
        connection.execute("PRAGMA max_page_count = 100000")
    store.write(new)
    assert [line[:3] for line in stored(writer)] == [(NOON, 0, "GPU-a"), (NOON + 60, 0, "GPU-b")]
    assert writer.value("SELECT count(*) FROM events") == 50


def fill_up(writer: Writer, full: bool) -> None:
    with writer.transaction() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages if full else 1_000_000}")


def heavy(minute: int) -> Collection:
    """A minute that does not fit into a full store: its event is longer than a page."""
    at = NOON + minute * 60
    event = Event(at + 1.0, "note", f"minute {minute} " + "x" * 5000)
    return Collection(at, 60, at + 60.0, (row(60, power_usage=1.0), row(60, OTHER)), None, (event,))


def test_what_waits_is_stored_in_order_and_nothing_is_lost(writer: Writer) -> None:
    store, queue = Store(writer, PeriodPlan()), Queue(100)
    fill_up(writer, True)
    for minute in range(50):
        assert queue.push(heavy(minute)) == []
        queue.note([Event(NOON + minute * 60.0, "clock_stepped", "between")], [])
        with pytest.raises(StorageFull):
            queue.drain(store, NOON + 3600.0)
    assert len(queue) == 50
    fill_up(writer, False)
    assert queue.drain(store, NOON + 3600.0) == 0
    assert len(queue) == 0
    assert writer.rows("SELECT DISTINCT start FROM samples") == [
        (NOON + minute * 60,) for minute in range(50)
    ]
    assert writer.value("SELECT count(*) FROM events WHERE kind = 'note'") == 50
    assert writer.value("SELECT count(*) FROM events WHERE kind = 'clock_stepped'") == 50
    assert writer.value("SELECT count(*) FROM losses") == writer.value("SELECT count(*) FROM gaps") == 0


def test_what_overflows_is_one_gap_and_is_counted_and_its_events_are_kept(writer: Writer) -> None:
    store, queue = Store(writer, PeriodPlan()), Queue(10)
    fill_up(writer, True)
    first = part(NOON, NOON + 30.0, NOON + 30.0, row(0, power_usage=1.0), began=True)
    whole = part(NOON, NOON + 30.0, NOON + 60.0, row(30, power_usage=1.0), began=True)
    dropped = queue.push(first) + queue.push(whole)
    for minute in range(1, 31):
        dropped += queue.push(heavy(minute))
    # 31 minutes, ten places: 21 minutes went, the first reading of the first of them uncounted.
    assert [collection.start for collection in dropped] == [NOON + minute * 60 for minute in range(21)]
    with pytest.raises(StorageFull):
        queue.drain(store, NOON + 3600.0)
    fill_up(writer, False)
    assert queue.drain(store, NOON + 3600.0) == 1 + 20 * 2
    assert writer.rows("SELECT min(start), max(start), count(*) FROM samples") == [
        (NOON + 21 * 60, NOON + 30 * 60, 20)
    ]
    assert writer.rows('SELECT start, "end", cause, uid FROM gaps') == [
        (NOON + 30.0, NOON + 21 * 60.0, "store not writable", None)
    ]
    assert writer.rows("SELECT time, what, cause, rows FROM losses") == [
        (NOON + 3600.0, "samples", "store not writable", 41)
    ]
    assert writer.value("SELECT count(*) FROM events") == 30
    assert queue.drain(store, NOON + 3700.0) == 0
    assert writer.value("SELECT count(*) FROM gaps") == 1


Machines = Callable[[], Machine]
BOOT = Machine("boot-1", NOON - 86_400.0)
AGAIN = Machine("boot-2", NOON + 1800.0)
STEPPED = "clock_stepped"


@pytest.mark.parametrize(
    ("last", "machine", "data_end", "slept", "events", "gaps"),
    [
        (None, BOOT, None, 0.0, [], []),
        (LastRun(None, "boot-1"), BOOT, None, 0.0, [], []),
        (LastRun(None, "boot-1"), BOOT, NOON, 0.0, ["agent_killed"], [(NOON, NOON + 3600, "agent killed")]),
        (LastRun("stopped", "boot-1"), BOOT, NOON, 0.0, [], [(NOON, NOON + 3600, "agent stopped")]),
        (
            LastRun(None, "boot-1"), AGAIN, NOON, 0.0, ["agent_killed"],
            [(NOON, NOON + 1800, "host down"), (NOON + 1800, NOON + 3600, "agent not started")],
        ),
        (
            LastRun("stopped", "boot-1"), AGAIN, NOON, 0.0, [],
            [(NOON, NOON + 1800, "agent stopped"), (NOON + 1800, NOON + 3600, "agent not started")],
        ),
        # A boot before the data ended (a clock that was wrong then) splits nothing.
        (
            LastRun(None, "boot-0"), BOOT, NOON, 0.0, ["agent_killed"], [(NOON, NOON + 3600, "agent killed")],
        ),
        (LastRun(None, "boot-1"), BOOT, NOON, 3000.0, ["agent_killed"], [(NOON, NOON + 3600, "host suspended")]),
        (LastRun(None, "boot-1"), BOOT, NOON, 300.0, ["agent_killed"], [(NOON, NOON + 3600, "agent killed")]),
        (LastRun("stopped", "boot-1"), BOOT, NOON, 0.5, [], [(NOON, NOON + 3600, "agent stopped")]),
        # What slept before a boot has no meaning after it.
        (
            LastRun(None, "boot-1"), AGAIN, NOON, 3000.0, ["agent_killed"],
            [(NOON, NOON + 1800, "host down"), (NOON + 1800, NOON + 3600, "agent not started")],
        ),
        # The system does not tell which boot it is.
        (LastRun(None, None), Machine(None, None), NOON, 0.0, ["agent_killed"], [(NOON, NOON + 3600, "agent killed")]),
        # The clock was put back while no agent ran: no time is missing on it, and that is said.
        (LastRun(None, "boot-1"), BOOT, NOON + 7200, 0.0, ["agent_killed", STEPPED], []),
        (LastRun("stopped", "boot-1"), BOOT, NOON + 7200, 0.0, [STEPPED], []),
        (LastRun(None, "boot-1"), AGAIN, NOON + 7200, 0.0, ["agent_killed", STEPPED], []),
        # Half a second is no step.
        (LastRun("stopped", "boot-1"), BOOT, NOON + 3600.5, 0.0, [], []),
    ],
)  # fmt: skip
def test_what_a_start_finds(
    last: LastRun | None,
    machine: Machine,
    data_end: float | None,
    slept: float,
    events: list[str],
    gaps: list[tuple[float, float, str]],
) -> None:
    found, absences = find_hole(data_end, last, machine, NOON + 3600.0, slept)
    assert [event.kind for event in found] == events
    assert [(gap.start, gap.end, gap.cause) for gap in absences] == gaps
    for event in found:
        if event.kind == STEPPED:
            assert event.detail["seconds"] == -3600.0
            assert "60 min" in event.message


def run(store: Store, clock: FakeClock, machine: Machine = BOOT) -> int:
    return begin_run(store, clock, machine, now=clock.now(), interval=60, pid=7, version="0", describe="test")


def test_sleep_that_is_on_record_is_not_the_cause_of_a_later_hole(writer: Writer) -> None:
    clock = FakeClock(NOON)
    store = Store(writer, PeriodPlan())
    run(store, clock)
    store.write(part(NOON, NOON, NOON + 60.0))
    slept_from = clock.now()
    clock.suspend(8 * 3600)
    store.record([], [Absence(slept_from, clock.now(), "host suspended")])
    at = int(clock.now())
    store.write(part(at, at, at + 60.0, began=True))
    clock.advance(60 + 3600)
    run(Store(writer, PeriodPlan()), clock)
    assert writer.rows("SELECT cause FROM gaps ORDER BY id") == [("host suspended",), ("agent killed",)]
    # Asleep for most of the next hole: now it is the cause.
    clock.suspend(3000)
    clock.advance(100)
    run(Store(writer, PeriodPlan()), clock)
    assert writer.rows("SELECT cause FROM gaps ORDER BY id DESC LIMIT 1") == [("host suspended",)]


def test_starts_killed_before_their_first_row_name_each_minute_once(writer: Writer) -> None:
    clock = FakeClock(NOON)
    store = Store(writer, PeriodPlan())
    run(store, clock)
    store.write(part(NOON, NOON, NOON + 60.0))
    clock.advance(60)
    for _ in range(5):
        clock.advance(600)
        run(Store(writer, PeriodPlan()), clock)
    gaps = writer.rows('SELECT start, "end" FROM gaps ORDER BY start')
    assert gaps[0][0] == NOON + 60
    assert gaps[-1][1] == NOON + 60 + 3000
    assert all(before[1] == after[0] for before, after in itertools.pairwise(gaps))


def test_a_clock_put_back_while_no_agent_ran_writes_over_nothing(writer: Writer) -> None:
    clock = FakeClock(NOON)
    store = Store(writer, PeriodPlan())
    number = run(store, clock)
    for minute in range(30):
        at = NOON + minute * 60
        store.write(part(at, at, at + 60.0, row(60, power_usage=1.0)))
    clock.advance(1800)
    end_run(store, number, clock.now(), "stopped")
    clock.step(-1200.0)
    again = Store(writer, PeriodPlan())
    run(again, clock)
    at = int(clock.now())
    assert at == NOON + 600
    again.write(part(at, at, at, row(0, power_usage=2.0), began=True))
    again.write(part(at, at, at + 60.0, row(60, power_usage=2.0), began=True))
    again.write(part(at + 60, at + 60.0, at + 120.0, row(60, power_usage=2.0)))
    assert writer.value("SELECT count(*) FROM samples WHERE power_usage = 1.0") == 30
    assert [line[:2] for line in stored(writer) if line[1]] == [(at, 1), (at + 60, 1)]
    assert writer.rows("SELECT kind FROM events WHERE kind = 'clock_stepped'") == [(STEPPED,)]
    assert writer.value("SELECT count(*) FROM gaps") == 0


def test_any_order_of_jumps_and_restarts_keeps_every_second(writer: Writer) -> None:
    """Random histories: what was read, in seconds, is what is stored, whatever the clock did."""
    chance = random.Random(7)
    clock = FakeClock(NOON + 13.0)
    store, read = Store(writer, PeriodPlan()), 0.0
    run(store, clock)
    begin: float | None = clock.now()
    for number in range(400):
        now = clock.now()
        slot = int(now // 60) * 60
        if begin is not None:
            store.write(part(slot, begin, begin, row(0, power_usage=1.0), began=True))
        first = begin if begin is not None else float(slot)
        what = chance.choice(["whole"] * 4 + ["back", "ahead", "sleep", "restart", "killed"])
        until = slot + 60.0 if what == "whole" else min(slot + 60.0, first + chance.randrange(1, 50))
        seconds = round(until - first)
        clock.step(until - now)
        store.write(
            part(slot, first, first + seconds, row(seconds, power_usage=2.0), began=begin is not None)
        )
        read += seconds
        begin = None
        if what == "whole":
            continue
        if what == "back":
            clock.step(-float(chance.choice([3, 20, 70, 500, 4000])))
        elif what in ("ahead", "sleep"):
            clock.step(float(chance.choice([3, 20, 70, 500])))
        else:
            clock.advance(chance.choice([2.0, 30.0, 400.0]))
            store = Store(writer, PeriodPlan())
            run(store, clock)
        begin = int(clock.now()) + number * 1e-4  # no two parts begin at the very same time
    assert writer.value("SELECT sum(seconds) FROM samples") == pytest.approx(read)
