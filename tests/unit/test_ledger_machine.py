"""Any order of hours, late facts, faults, kills, restarts and clock steps: nothing lost, nothing twice."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from datetime import datetime
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gpu_monitor.agent.ledger import Ledger
from gpu_monitor.agent.reports import build
from gpu_monitor.agent.resend import ask, find
from gpu_monitor.agent.ship import Shipper
from gpu_monitor.core.buckets import Period
from gpu_monitor.core.outcome import Outcome, Parcel, Verdict
from gpu_monitor.wire.telemetry import content_digest, decode
from tests.fakes.clock import FakeClock
from tests.fakes.hours import FIRST, HOUR, add_event, add_hour, make_store
from tests.fakes.sink import FakeSink

FAULTS = {
    "good": None,
    "500": Outcome(Verdict.RETRY, 500, error="HTTP 500"),
    "gone": Outcome(Verdict.UNREACHABLE, error="no connection"),
    "401": Outcome(Verdict.REFUSED, 401, error="HTTP 401"),
    "wait": Outcome(Verdict.WAIT, 429, error="HTTP 429", after=120.0),
    "400": Outcome(Verdict.REJECTED, 400, error="HTTP 400"),
    "409": Outcome(Verdict.CONFLICT, 409, error="HTTP 409"),
    "split": Outcome(Verdict.SPLIT, 413, error="HTTP 413"),
    "stopped": Outcome(Verdict.INTERRUPTED, error="stopped"),
}

MOODS = [*FAULTS, "killed", "late good", "late 500", "late 400"]


class Killed(BaseException):
    """Stands for SIGKILL at this instant."""


class Deliveries(RuleBasedStateMachine):
    """The ledger and the shipper against a server in memory that keeps what it gets."""

    @initialize(room=st.sampled_from([1, 4]), seed=st.integers(0, 2**32))
    def begin(self, room: int, seed: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="deliveries-"))
        self.writer = make_store(self.folder)
        self.clock = FakeClock(float(FIRST))
        self.hours = 0
        self.mood: list[str] = []
        self.sink = FakeSink(self.answer, room=room)
        # Distinct from hypothesis' own choices: back-off draws from the global generator.
        random.seed(seed)
        self.restart()

    def answer(self, parcel: Parcel) -> Outcome | None:
        kind = self.mood.pop(0) if self.mood else "good"
        if kind == "killed":
            raise Killed
        if kind.startswith("late"):
            # While the report is under way its period gets another fact.
            period = int(datetime.fromisoformat(decode(parcel.body).aggregation_time).timestamp())
            add_event(self.writer, Period(period, HOUR), kind)
            kind = kind.removeprefix("late ")
        if kind == "split" and self.sink.room().reports == 1:
            kind = "500"
        return FAULTS[kind]

    @rule()
    def restart(self) -> None:
        self.shipper = Shipper(
            self.writer, Ledger(self.writer, "1", 300), lambda: self.sink, self.clock, threading.Event()
        )

    @rule(count=st.integers(1, 3))
    def hours_pass(self, count: int) -> None:
        for _ in range(count):
            add_hour(self.writer, self.hours)
            self.hours += 1
            self.clock.advance(HOUR)

    @rule(place=st.integers(0, 1000), text=st.sampled_from(["a", "b"]))
    def a_late_fact(self, place: int, text: str) -> None:
        if self.hours:
            add_event(self.writer, Period(FIRST + place % self.hours * HOUR, HOUR), text)

    @rule(
        mood=st.lists(st.sampled_from(MOODS), min_size=1, max_size=12),
        lost=st.booleans(),
        runs=st.integers(1, 6),
        apart=st.sampled_from([1.0, 30.0, 700.0]),
    )
    def ship(self, mood: list[str], lost: bool, runs: int, apart: float) -> None:
        self.mood = list(mood)
        # A bad answer may come from a server that has stored the report all the same.
        self.sink.keeps_refused = lost and not {"409", "400"} & set(mood)
        for _ in range(runs):
            try:
                self.shipper.run_once()
            except Killed:
                self.restart()
            self.clock.advance(apart)

    @rule(seconds=st.sampled_from([-86400.0, -300.0, 4000.0]))
    def the_clock_is_set(self, seconds: float) -> None:
        self.clock.step(seconds)

    @rule()
    def somebody_resends(self) -> None:
        owed = find(self.writer, 1, 0, 2.0**40, {"rejected", "parked"})
        ask(self.writer, 1, owed, self.clock.now())

    @invariant()
    def every_id_names_one_sequence_of_bytes(self) -> None:
        if not hasattr(self, "sink"):
            return
        bodies: dict[str, set[bytes]] = {}
        for parcel in self.sink.sent:
            bodies.setdefault(parcel.report_id, set()).add(parcel.body)
        assert all(len(found) == 1 for found in bodies.values())

    @invariant()
    def a_period_has_one_newest_report_and_no_other_waits(self) -> None:
        if not hasattr(self, "writer"):
            return
        rows = self.writer.rows("SELECT period, revision, state FROM reports ORDER BY period, revision")
        newest = {period: revision for period, revision, _ in rows}
        assert len(newest) == self.hours
        for period, revision, state in rows:
            if state in ("pending", "parked", "rejected"):
                assert revision == newest[period]

    @invariant()
    def what_the_ledger_calls_sent_the_server_holds(self) -> None:
        if not hasattr(self, "writer"):
            return
        held = self.sink.digests()
        for report_id, sha, body in self.writer.rows(
            "SELECT report_id, sha256, body FROM reports WHERE state = 'sent'"
        ):
            assert held[report_id] == sha
            assert body is None

    @invariant()
    def attempts_are_numbered_without_a_hole(self) -> None:
        if not hasattr(self, "writer"):
            return
        for attempts, count, highest in self.writer.rows(
            "SELECT r.attempts, count(a.id), coalesce(max(a.number), 0) FROM reports r LEFT JOIN attempts a ON a.report = r.id"
            " GROUP BY r.id"
        ):
            assert attempts == count == highest

    def teardown(self) -> None:
        """With a good server and a day everything is delivered, and says what the store says."""
        try:
            self.mood, self.sink.keeps_refused = [], False
            self.restart()
            self.clock.advance(max(0.0, FIRST + self.hours * HOUR + 600 - self.clock.now()))
            self.somebody_resends()
            end = self.clock.monotonic() + 86400
            while self.clock.monotonic() < end:
                self.clock.advance(max(self.shipper.run_once(), 1.0))
                if not find(self.writer, 1, 0, 2.0**40, {"pending", "parked"}):
                    break
            assert [
                one.state for one in find(self.writer, 1, 0, 2.0**40, {"pending", "parked", "rejected"})
            ] == []
            with self.writer.transaction() as connection:
                wanted = {
                    content_digest(build(connection, 1, Period(FIRST + number * HOUR, HOUR)))
                    for number in range(self.hours)
                }
            best: dict[str, tuple[int, str]] = {}
            for body in self.sink.held.values():
                report = decode(body)
                known = best.get(report.aggregation_time, (0, ""))
                best[report.aggregation_time] = max(known, (report.revision, content_digest(report)))
            assert {digest for _, digest in best.values()} == wanted
        finally:
            self.writer.close()
            shutil.rmtree(self.folder)


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(
    max_examples=120, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
