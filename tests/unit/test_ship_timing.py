"""When the shipper sends what: waits, parking, revival, turns, the gate. A fake clock and a sink in memory."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from gpu_monitor.agent.identity import establish
from gpu_monitor.agent.ledger import Ledger, add_revision, share_of
from gpu_monitor.agent.ship import Shipper
from gpu_monitor.agent.ship_backoff import wait_seconds
from gpu_monitor.core.buckets import Period
from gpu_monitor.core.errors import StorageError, StorageFull
from gpu_monitor.core.outcome import Outcome, Parcel, Verdict
from gpu_monitor.storage.database import Writer
from tests.fakes.clock import FakeClock
from tests.fakes.hours import FIRST, HOUR, add_hour, make_store
from tests.fakes.sink import Answer, FakeSink, take

DAY = 24 * HOUR
BROKEN = Outcome(Verdict.RETRY, 500, error="HTTP 500")
GONE = Outcome(Verdict.UNREACHABLE, error="no connection")
REFUSED = Outcome(Verdict.REFUSED, 401, error="HTTP 401")


class Line:
    """A store, a sink in memory and a shipper; `log` is (seconds since the start, hour number) of each attempt."""

    def __init__(
        self, folder: Path, answer: Answer = take, hours: int = 1, seconds_each: float = 0.0
    ) -> None:
        self.writer: Writer = make_store(folder)
        for number in range(hours):
            add_hour(self.writer, number)
        self.hours = hours
        self.clock = FakeClock(float(FIRST + hours * HOUR + 600))
        self.start = self.clock.monotonic()
        self.log: list[tuple[float, int]] = []
        self.stop = threading.Event()
        self._answer = answer
        self._seconds_each = seconds_each
        self.sink = FakeSink(self._met, self.stop)
        self.restart()

    def restart(self) -> None:
        """A new process on the same store."""
        self.shipper = Shipper(
            self.writer, Ledger(self.writer, "1", 300), lambda: self.sink, self.clock, self.stop
        )

    def _met(self, parcel: Parcel) -> Outcome | None:
        self.log.append((self.clock.monotonic() - self.start, hour_of(parcel)))
        self.clock.advance(self._seconds_each)
        return self._answer(parcel)

    def behave(self, answer: Answer) -> None:
        self._answer = answer

    def run(self, seconds: float, every_hour: bool = False) -> None:
        """Let `seconds` pass as a scheduler would; with `every_hour` each hour that ends is rolled up."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            if every_hour and self.clock.now() >= FIRST + (self.hours + 1) * HOUR:
                add_hour(self.writer, self.hours)
                self.hours += 1
            wait = self.shipper.run_once()
            self.clock.advance(min(max(wait, 0.01), max(0.0, end - self.clock.monotonic())))

    def states(self) -> list[str]:
        return [row[0] for row in self.writer.rows("SELECT state FROM reports ORDER BY period, revision")]

    def count(self, hour: int) -> int:
        return sum(1 for _, number in self.log if number == hour)


def hour_of(parcel: Parcel) -> int:
    stamp = json.loads(parcel.body)["aggregation_time"]
    days, hours = int(stamp[8:10]) - 14, int(stamp[11:13]) - 23
    return days * 24 + hours


def poison(*hours: int) -> Answer:
    return lambda parcel: BROKEN if hour_of(parcel) in hours else None


def always(outcome: Outcome) -> Answer:
    return lambda parcel: outcome


def test_waits_double_with_jitter_up_to_ten_minutes() -> None:
    for attempt in range(1, 60):
        half = min(5.0 * 2 ** (attempt - 1), 300.0)
        waits = [wait_seconds(attempt) for _ in range(50)]
        assert all(half <= wait <= 2 * half for wait in waits)
        assert max(waits) - min(waits) > half / 10, "jitter: a fleet must not come back in step"


def test_ten_attempts_then_parked_then_every_ten_minutes(tmp_path: Path) -> None:
    on = Line(tmp_path, always(BROKEN))
    on.run(2 * HOUR)
    times = [at for at, _ in on.log]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    for number, gap in enumerate(gaps[:9], 1):
        half = min(5.0 * 2 ** (number - 1), 300.0)
        # The gate's own wait may be the longer of the two; it is drawn from the same range.
        assert half <= gap <= 2 * half + 1, (number, gap)
    assert on.states() == ["parked"]
    assert on.writer.value("SELECT spent FROM reports") == len(times)
    assert all(599.999 <= gap <= 661 for gap in gaps[9:]), gaps
    assert len(gaps) > 12


def test_attempts_are_counted_over_restarts(tmp_path: Path) -> None:
    on = Line(tmp_path, always(BROKEN))
    for _ in range(9):
        on.run(700)
        on.restart()
        if len(on.log) >= 9:
            break
    before = len(on.log)
    assert on.writer.value("SELECT attempts FROM reports") == before
    on.run(2 * HOUR)
    assert on.writer.value("SELECT number FROM attempts WHERE id = (SELECT parked_by FROM reports)") == 10
    numbers = [row[0] for row in on.writer.rows("SELECT number FROM attempts ORDER BY id")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_parked_report_goes_when_another_is_acknowledged(tmp_path: Path) -> None:
    on = Line(tmp_path, always(BROKEN))
    on.run(HOUR - 700)
    assert on.states() == ["parked"]
    on.behave(take)
    add_hour(on.writer, 1)
    on.clock.advance(2 * HOUR)
    on.run(120)
    assert on.states() == ["sent", "sent"]


def test_a_revived_report_gets_one_attempt_in_six_hours(tmp_path: Path) -> None:
    on = Line(tmp_path, poison(0))
    on.run(HOUR - 700)
    assert on.states() == ["parked"]
    on.log.clear()
    on.run(2 * DAY, every_hour=True)
    # At the first acknowledgement, and then every six hours: 1 + 48 / 6, give or take the ends.
    # Before that the oldest of all parked ones is tried every ten minutes.
    first = next(at for at, hour in on.log if hour == 1)
    times = [at for at, hour in on.log if hour == 0 and at >= first]
    assert times[0] - first < 60
    assert all(later - earlier >= 6 * HOUR - 0.001 for earlier, later in pairwise(times))
    assert 7 <= len(times) <= 9
    assert on.states() == ["parked"] + ["sent"] * (on.hours - 1)


def test_a_poisoned_report_does_not_stop_the_others(tmp_path: Path) -> None:
    on = Line(tmp_path, poison(0), hours=20)
    on.shipper.run_once()
    assert on.states() == ["pending"] + ["sent"] * 19
    assert on.count(0) == 1


@pytest.mark.parametrize("bad", [(0, 1), (0, 19), (3, 4, 5, 6)])
def test_several_poisoned_reports_do_not_stop_the_others(tmp_path: Path, bad: tuple[int, ...]) -> None:
    on = Line(tmp_path, poison(*bad), hours=20)
    # Four bad ones in a row: the gate closes for up to 20 + 40 + 80 s before a good one shows.
    on.run(150)
    assert [hour for hour, state in enumerate(on.states()) if state != "sent"] == list(bad)
    on.run(DAY, every_hour=True)
    states = on.states()
    assert [hour for hour, state in enumerate(states) if state == "parked"] == list(bad)
    assert states.count("sent") == on.hours - len(bad)


def test_oldest_first(tmp_path: Path) -> None:
    on = Line(tmp_path, hours=100)
    on.shipper.run_once()
    assert [hour for _, hour in on.log] == list(range(100))


def test_the_newest_gets_its_turn_while_old_ones_are_worked_off(tmp_path: Path) -> None:
    on = Line(tmp_path, hours=100, seconds_each=25.0)
    on.run(60 * 60, every_hour=True)
    first = next(at for at, hour in on.log if hour == 99)
    assert first <= 120
    fresh = next(at for at, hour in on.log if hour == 100)
    # The hour ended 3000 s after the start; at most 300 s of spread and 85 s of turn later it is there.
    assert fresh <= 3000 + 300 + 85 + 25
    old = [hour for _, hour in on.log if hour < 99]
    assert old == list(range(len(old))), "all others go oldest first"


def test_a_dead_server_costs_attempts_of_one_report_at_a_time(tmp_path: Path) -> None:
    on = Line(tmp_path, always(GONE), hours=50)
    on.run(30 * 60)
    assert {hour for _, hour in on.log} == {0}
    assert (
        on.writer.rows("SELECT period, attempts FROM reports WHERE attempts > 0 AND period <> ?", (FIRST,))
        == []
    )
    assert len(on.log) <= 10


def test_forty_days_without_a_network_lose_nothing(tmp_path: Path) -> None:
    on = Line(tmp_path, always(GONE), hours=1)
    on.run(40 * DAY, every_hour=True)
    assert on.hours > 950
    per_day = len(on.log) / 40
    assert per_day < 260, "one probe at most every five minutes"
    on.behave(take)
    on.run(HOUR, every_hour=True)
    assert set(on.states()) == {"sent"}
    assert len(on.sink.held) == on.hours
    on.log.clear()
    on.run(DAY, every_hour=True)
    assert len(on.log) == 24, "once each, nothing twice"


def test_a_refusal_is_tried_every_ten_minutes_at_most(tmp_path: Path) -> None:
    on = Line(tmp_path, always(REFUSED), hours=30)
    on.run(DAY)
    times = [at for at, _ in on.log]
    assert all(later - earlier >= 599.999 for earlier, later in pairwise(times))
    assert len(times) >= DAY / 661
    assert on.writer.value("SELECT max(spent) FROM reports WHERE state = 'pending'") <= 10
    on.behave(take)
    on.run(700)
    assert set(on.states()) == {"sent"}


def test_a_server_that_fails_for_all_is_not_hammered(tmp_path: Path) -> None:
    on = Line(tmp_path, always(BROKEN), hours=200)
    on.run(DAY)
    assert len(on.log) < 300, "the gate keeps 200 reports from trying each by itself"
    on.behave(take)
    on.run(HOUR)
    assert set(on.states()) == {"sent"}


def test_the_share_of_the_minutes_after_the_hour(tmp_path: Path) -> None:
    shares = [share_of(f"00000000-0000-4000-8000-{n:012d}", 300) for n in range(2000)]
    assert min(shares) == 5
    assert max(shares) == 300
    thirds = [sum(1 for share in shares if low <= share < low + 100) for low in (5, 105, 205)]
    assert all(500 < count < 850 for count in thirds), thirds
    assert {share_of("a", 5), share_of("b", 5)} == {5}


def test_the_newest_hour_goes_at_the_nodes_own_second(tmp_path: Path) -> None:
    on = Line(tmp_path, hours=0)
    on.clock = FakeClock(float(FIRST + HOUR))
    on.restart()
    on.start = on.clock.monotonic()
    add_hour(on.writer, 0)
    share = share_of(establish(on.writer, "machine-1", FIRST), 300)
    on.run(301)
    ((at, hour),) = on.log
    assert hour == 0
    assert share <= at <= share + 1


@pytest.mark.parametrize("answer", [BROKEN, GONE, REFUSED], ids=["500", "gone", "401"])
def test_a_clock_put_back_a_year_does_not_hold_reports_up(tmp_path: Path, answer: Outcome) -> None:
    on = Line(tmp_path, always(answer), hours=3)
    on.run(120)
    on.clock.step(-365 * DAY)
    on.restart()
    on.behave(take)
    on.run(700)
    assert set(on.states()) == {"sent"}


def test_a_clock_put_back_does_not_lengthen_what_the_server_asked_for(tmp_path: Path) -> None:
    on = Line(tmp_path, always(Outcome(Verdict.WAIT, 503, error="wait", after=900.0)))
    on.run(10)
    on.clock.step(-DAY)
    on.restart()
    on.behave(take)
    on.run(960)
    assert on.states() == ["sent"]


def test_a_parked_report_is_revived_even_if_the_clock_went_back(tmp_path: Path) -> None:
    on = Line(tmp_path, always(BROKEN))
    on.run(HOUR - 700)
    assert on.states() == ["parked"]
    on.clock.step(-30 * DAY)
    on.behave(take)
    add_hour(on.writer, 1)
    on.run(700)
    assert on.states() == ["sent", "sent"]


def test_nothing_is_sent_once_the_agent_stops(tmp_path: Path) -> None:
    on = Line(tmp_path, hours=5)

    def stop_after_two(parcel: Parcel) -> None:
        if hour_of(parcel) == 1:
            on.stop.set()

    on.behave(stop_after_two)
    on.shipper.run_once()
    assert [hour for _, hour in on.log] == [0, 1]
    assert on.states() == ["sent", "sent", "pending", "pending", "pending"]
    assert not on.sink.is_open


def test_an_interrupted_attempt_is_named_and_not_counted(tmp_path: Path) -> None:
    class Killed(BaseException):
        """Stands for SIGKILL: nothing after it runs."""

    def die(_: Parcel) -> None:
        raise Killed

    on = Line(tmp_path, die)
    for _ in range(15):
        with pytest.raises(Killed):
            on.shipper.run_once()
        on.restart()
    on.behave(take)
    on.shipper.run_once()
    assert on.states() == ["sent"]
    rows = on.writer.rows("SELECT number, verdict, ended IS NULL, error FROM attempts ORDER BY id")
    assert [row[:3] for row in rows[:15]] == [(n, "interrupted", 1) for n in range(1, 16)]
    assert "interrupted" in rows[0][3]
    assert rows[15][:3] == (16, "acknowledged", 0)
    assert on.writer.rows("SELECT attempts, spent FROM reports") == [(16, 1)]
    assert len({parcel.body for parcel in on.sink.sent}) == 1


def test_connections_are_let_go_of_after_each_run(tmp_path: Path) -> None:
    on = Line(tmp_path)
    on.shipper.run_once()
    assert on.sink.sent
    assert not on.sink.is_open


def test_new_settings_count_from_the_next_run_on(tmp_path: Path) -> None:
    on = Line(tmp_path, always(REFUSED))
    on.shipper.run_once()
    other = FakeSink()
    on.shipper.change(Ledger(on.writer, "2", 300), lambda: other)
    on.clock.advance(601)
    on.shipper.run_once()
    assert len(other.held) == 1
    (body,) = other.held.values()
    assert json.loads(body)["contract_number"] == "1", "frozen bytes do not change"


def test_nothing_is_sent_that_is_not_on_record(tmp_path: Path) -> None:
    on = Line(tmp_path, hours=40)
    pages = on.writer.value("PRAGMA page_count")
    on.writer.maintain(f"PRAGMA max_page_count = {pages}")
    for _ in range(3):
        with pytest.raises(StorageFull):
            while on.shipper.run_once() < 60:
                on.clock.advance(60)
        attempts = on.writer.value("SELECT count(*) FROM attempts")
        assert len(on.sink.sent) == attempts
        on.clock.advance(60)
    on.writer.maintain("PRAGMA max_page_count = 100000")
    on.run(600)
    assert set(on.states()) == {"sent"}
    assert len(on.sink.held) == 40


def test_an_answer_that_could_not_be_written_down_is_asked_for_again(tmp_path: Path) -> None:
    on = Line(tmp_path)
    with on.writer.transaction() as connection:
        connection.execute(
            "CREATE TRIGGER broken BEFORE UPDATE OF ended ON attempts BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
    with pytest.raises(StorageError):
        on.shipper.run_once()
    assert on.states() == ["pending"]
    with on.writer.transaction() as connection:
        connection.execute("DROP TRIGGER broken")
    on.shipper.run_once()
    assert on.states() == ["sent"]
    first, second = on.sink.sent
    assert first == second
    verdicts = on.writer.rows("SELECT verdict FROM attempts ORDER BY id")
    assert verdicts == [("interrupted",), ("acknowledged",)]


def test_the_writer_is_free_while_something_is_sent(tmp_path: Path) -> None:
    on = Line(tmp_path, hours=3)
    stored: list[int] = []

    def store_a_sample(parcel: Parcel) -> None:
        # Another thread's transaction, as the beat's: it would wait for ever behind a held writer.
        def write() -> None:
            with on.writer.transaction() as connection:
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('sample', ?)", (hour_of(parcel),))
            stored.append(hour_of(parcel))

        beat = threading.Thread(target=write, daemon=True)
        beat.start()
        beat.join(30)

    on.behave(store_a_sample)
    on.shipper.run_once()
    assert stored == [0, 1, 2]


def test_a_server_that_takes_every_other_report_is_told_once_an_hour(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ship")
    line = Line(tmp_path, lambda parcel: BROKEN if hour_of(parcel) % 2 == 0 else None, hours=6)
    end = line.clock.monotonic() + HOUR / 2
    while line.clock.monotonic() < end:
        line.clock.advance(max(line.shipper.run_once(), 0.01))
    assert len({hour for _, hour in line.log}) == 6
    told = [one.getMessage().split(":")[0] for one in caplog.records if "deliver" in one.getMessage()]
    assert told == ["cannot deliver", "reports are delivered again"]


def test_each_rejected_report_has_a_line_with_its_period(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Outcome(Verdict.REJECTED, 400, error="HTTP 400: no such field")
    line = Line(tmp_path, lambda parcel: refused, hours=3)
    line.shipper.run_once()
    told = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    # FIRST is 2023-11-14T23:00:00Z.
    starts = ["2023-11-14T23:00:00+00:00", "2023-11-15T00:00:00+00:00", "2023-11-15T01:00:00+00:00"]
    assert [text.split(" was rejected")[0] for text in told] == [f"report of {start}" for start in starts]
    assert all(text.endswith(f"gpu_monitor resend {start}") for text, start in zip(told, starts, strict=True))


def test_imported_nodes_rejected_for_the_same_period_are_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = Line(tmp_path, lambda parcel: Outcome(Verdict.REJECTED, 400, error="HTTP 400"))
    with line.writer.transaction() as connection:
        for number, name in ((2, "trainer"), (3, "old lab")):
            connection.execute("INSERT INTO nodes (id, name, kind) VALUES (?, ?, 'import')", (number, name))
            add_revision(connection, number, Period(FIRST, HOUR), FIRST, "resend")
    line.run(1)
    told = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert [(text.split(" was rejected")[0], text.split("then ")[1]) for text in told] == [
        ("report of 2023-11-14T23:00:00+00:00", "gpu_monitor resend 2023-11-14T23:00:00+00:00"),
        (
            "report of 2023-11-14T23:00:00+00:00 of trainer",
            "gpu_monitor resend 2023-11-14T23:00:00+00:00 --node trainer",
        ),
        (
            "report of 2023-11-14T23:00:00+00:00 of old lab",
            "gpu_monitor resend 2023-11-14T23:00:00+00:00 --node 'old lab'",
        ),
    ]


def test_without_a_server_nothing_is_tried_until_one_is_named(tmp_path: Path) -> None:
    line = Line(tmp_path, hours=2)
    ledger = Ledger(line.writer, "1", 300)
    line.shipper = Shipper(line.writer, ledger, None, line.clock, line.stop)
    line.run(HOUR)
    assert line.log == []
    assert line.writer.value("SELECT count(*) FROM attempts") == 0
    line.shipper.change(ledger, lambda: line.sink)
    line.run(1)
    assert line.states() == ["sent", "sent"]


def test_a_server_that_is_taken_away_gets_nothing_more_not_even_what_is_due(tmp_path: Path) -> None:
    ledgers: list[Ledger] = []

    def take_one(parcel: Parcel) -> Outcome | None:
        line.shipper.change(ledgers[0], None)
        return None

    line = Line(tmp_path, take_one, hours=5)
    ledgers.append(Ledger(line.writer, "1", 300))
    line.run(DAY)
    assert line.log == [(0.0, 0)]
    assert line.states() == ["sent", "pending", "pending", "pending", "pending"]
