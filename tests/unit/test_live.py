"""The agent's live side: what it sends when, what it keeps, what it drops, how it follows who watches."""

from __future__ import annotations

import itertools
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gpu_monitor.agent.collect import Collection, GpuRow
from gpu_monitor.agent.live import Live, Origin
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.model import DeviceReading, Identity, Round, Spread, Status
from gpu_monitor.core.outcome import LiveTerms, Outcome, Verdict

PATIENCE = 20.0
NOW = SystemClock().now()
SLOT = int(NOW // 60) * 60
GOOD = Outcome(Verdict.ACKNOWLEDGED, 200)
TAKES = LiveTerms(True, None)
SOON = Outcome(Verdict.WAIT, 503, error="busy", after=0.01)
IDENTITY = Identity("GPU-1", "nvml", "H100", "0000:01:00.0", 85_899_345_920, 0)


def prompt_node() -> str:
    """A node whose own moment within the ten seconds is the first hundredth."""
    return next(
        name for number in itertools.count() if zlib.crc32((name := f"node-{number}").encode()) < 2**32 / 1000
    )


class FakeLiveSink:
    """A server that answers as told, and keeps what it took."""

    def __init__(self, terms: LiveTerms | None = TAKES) -> None:
        self.now_terms = terms
        self.answers: list[Outcome] = []
        self.messages: list[Any] = []
        self._changed = threading.Condition()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = self.cuts = self.closed = 0

    def terms(self) -> LiveTerms | None:
        self.asked += 1
        return self.now_terms

    def send(self, body: bytes) -> Outcome:
        self.may_answer.wait(PATIENCE)
        with self._changed:
            outcome = self.answers.pop(0) if self.answers else GOOD
            self.messages.append((json.loads(body), outcome))
            self._changed.notify_all()
        return outcome

    def cut(self) -> None:
        self.cuts += 1
        self.may_answer.set()

    def close(self) -> None:
        self.closed += 1

    def takes(self, count: int) -> list[Any]:
        """The messages once there were `count` tries, those that were not taken too."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, PATIENCE), self.messages
            return [message for message, _ in self.messages]


def origin(node: str, interval_seconds: int = 0) -> Callable[[], Origin]:
    return lambda: Origin(node, "host", "Linux", "1.2.3", "12345", interval_seconds)


@contextmanager
def live(sink: FakeLiveSink | None, interval_seconds: int = 0) -> Iterator[Live]:
    made = Live(lambda: sink, origin(prompt_node(), interval_seconds), SystemClock(), spacing=0.0)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(autouse=True)
def present() -> None:
    """A test may run long after this module was read, and what ended long ago is not live."""
    global NOW, SLOT
    NOW = SystemClock().now()
    SLOT = int(NOW // 60) * 60


def interval(start: int | None = None, seconds: float = 60.0, gpus: int = 1, **values: float) -> Collection:
    start = SLOT if start is None else start
    rows = [
        GpuRow(Identity(f"GPU-{number}", "nvml"), seconds, values, {"driver_version": "550.1"}, {}, None)
        for number in range(1, gpus + 1)
    ]
    return Collection(start, 60, start + 60.0, tuple(rows))


def read(**values: Any) -> Round:
    return Round((DeviceReading(IDENTITY, values=values),))


def test_an_interval_is_told_once_with_names_units_and_decimals_of_the_catalogue() -> None:
    sink = FakeLiveSink()
    with live(sink, 60) as made:
        made.seen(read(), NOW)
        made.stored(
            interval(
                power_usage=311.4567, temperature=61.25, memory_used=1024.4, throttle_reasons=4, energy=5.0
            )
        )
        (message,) = sink.takes(1)
    assert message["schema"] == 1
    assert message["contract_number"] == "12345"
    assert message["node"] == {
        "id": prompt_node(), "hostname": "host", "simulated": False, "os": "Linux", "agent_version": "1.2.3",
        "driver_version": "550.1",
    }  # fmt: skip
    assert message["collection_interval_seconds"] == 60
    assert message["gpus"] == [
        {
            "uid": "GPU-1",
            "source": "nvml",
            "pci_bus_id": "0000:01:00.0",
            "name": "H100",
            "memory_total": 85899345920,
            "index": 0,
        }
    ]
    (sample,) = message["samples"]
    assert sample.pop("time").endswith("+00:00")
    assert sample == {
        "uid": "GPU-1", "source": "nvml", "seconds": 60.0, "power_usage": 311.46, "temperature": 61.2,
        "memory_used": 1024, "throttle_reasons": ["sw_power_cap"],
    }  # fmt: skip


def test_the_first_message_shows_what_the_start_read() -> None:
    sink = FakeLiveSink()
    with live(sink) as made:
        made.seen(read(temperature=40, power_usage=Spread(99.5, 90, 120)), NOW)
        made.stored(interval(seconds=0.0))
        (message,) = sink.takes(1)
    assert message["samples"] == []
    assert [(one["seconds"], one["temperature"], one["power_usage"]) for one in message["readings"]] == [
        (0.0, 40, 99.5)
    ]


def test_a_server_that_takes_no_samples_is_sent_none_and_nothing_counts_as_lost() -> None:
    sink = FakeLiveSink(LiveTerms(False, None))
    with live(sink) as made:
        made.stored(interval())
        wait_for(lambda: sink.asked == 1)
        sink.now_terms = LiveTerms(True, None)
        made.stored(interval(SLOT + 60))
        (message,) = sink.takes(1)
    assert len(message["samples"]) == 1
    assert made.dropped == 0


def test_switched_off_or_without_a_server_nothing_is_kept() -> None:
    with live(None) as made:
        made.seen(read(), NOW)
        made.stored(interval())
        assert made.watched() is None
    assert made.dropped == 0


def test_what_ended_long_ago_is_not_live() -> None:
    sink = FakeLiveSink()
    with live(sink) as made:
        made.seen(read(), NOW - 86_400)
        made.stored(interval(SLOT - 86_400))
        made.seen(read(), NOW)
        made.stored(interval())
        (message,) = sink.takes(1)
    assert len(message["samples"]) == 1
    assert message["readings"] == []


def test_what_could_not_be_sent_goes_again_with_what_came_meanwhile() -> None:
    sink = FakeLiveSink()
    sink.answers = [SOON, SOON]
    with live(sink) as made:
        sink.may_answer.clear()
        made.stored(interval(SLOT - 60))
        made.stored(interval(SLOT))
        sink.may_answer.set()
        messages = sink.takes(3)
    assert [sample["uid"] for sample in messages[-1]["samples"]] == ["GPU-1", "GPU-1"]
    assert len({sample["time"] for sample in messages[-1]["samples"]}) == 2
    assert made.dropped == 0


@pytest.mark.parametrize("verdict", [Verdict.REJECTED, Verdict.TOO_LARGE, Verdict.CONFLICT])
def test_what_is_rejected_is_dropped_and_counted(verdict: Verdict) -> None:
    sink = FakeLiveSink()
    sink.answers = [Outcome(verdict, 422, error="no", after=0.01)]
    with live(sink) as made:
        made.stored(interval(gpus=3))
        sink.takes(1)
        made.stored(interval(SLOT + 60, gpus=2))
        assert len(sink.takes(2)[1]["samples"]) == 2
    assert made.dropped == 3


def test_a_dead_server_costs_bounded_memory_and_the_oldest() -> None:
    sink = FakeLiveSink()
    sink.answers = [Outcome(Verdict.WAIT, 503, error="busy", after=1.5)]
    with live(sink) as made:
        for minute in range(20):
            made.stored(interval(SLOT - 540 + minute, gpus=500))
            if minute == 0:
                sink.takes(1)
        messages = sink.takes(2)
        wait_for(lambda: made.waiting == 0)
    # Of ten thousand the last two thousand came.
    assert len(messages[1]["samples"]) == 2000
    assert made.dropped == 8000


def test_while_somebody_watches_each_reading_goes_out_until_an_answer_says_that_nobody_does() -> None:
    sink = FakeLiveSink(LiveTerms(True, 2.0))
    with live(sink) as made:
        assert made.watched() is None
        made.seen(read(), NOW)
        made.stored(interval(SLOT - 60))
        sink.takes(1)
        wait_for(lambda: made.watched() == 2.0)
        made.seen(read(gpu_utilization=50.04), NOW + 2)
        message = sink.takes(2)[1]
        assert message["samples"] == []
        assert [(one["seconds"], one["gpu_utilization"]) for one in message["readings"]] == [(2.0, 50)]
        sink.now_terms = LiveTerms(True, None)
        made.seen(read(), NOW + 4)
        sink.takes(3)
        wait_for(lambda: made.watched() is None)
        made.seen(read(), NOW + 6)
        made.stored(interval())
        assert sink.takes(4)[3]["readings"] == []


def test_a_gpu_that_gives_nothing_says_why() -> None:
    sink = FakeLiveSink()
    other = Identity("GPU-2", "nvml")
    with live(sink) as made:
        made.seen(Round((DeviceReading(IDENTITY), DeviceReading(other))), NOW - 20)
        made.stored(interval())
        sink.takes(1)
        lost = DeviceReading(other, Status.LOST, cause="gpu lost")
        made.seen(Round((DeviceReading(IDENTITY), lost)), NOW - 10)
        made.stored(interval(SLOT + 60))
        assert [gpu.get("status", "ok") for gpu in sink.takes(2)[1]["gpus"]] == ["ok", "gpu lost"]
        made.seen(Round((), paused="driver hung"), NOW)
        made.stored(interval(SLOT + 120))
        assert [gpu["status"] for gpu in sink.takes(3)[2]["gpus"]] == ["driver hung", "driver hung"]


def test_a_stop_does_not_wait_for_a_server_that_hangs() -> None:
    sink = FakeLiveSink()
    sink.may_answer.clear()
    with live(sink) as made:
        made.stored(interval())
        wait_for(lambda: sink.asked == 1)
    assert sink.cuts == 1
    assert not made.is_running


def test_other_settings_take_another_sink_at_once() -> None:
    sinks = [FakeLiveSink(), FakeLiveSink()]
    sinks[0].answers = [Outcome(Verdict.REFUSED, 401, error="HTTP 401")]
    order = iter(sinks)
    made = Live(lambda: next(order), origin(prompt_node()), SystemClock(), spacing=0.0)
    made.start()
    try:
        made.stored(interval())
        sinks[0].takes(1)
        made.change()
        (message,) = sinks[1].takes(1)
        assert len(message["samples"]) == 1
        assert sinks[0].closed == 1
    finally:
        made.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came true")


def test_short_intervals_go_out_together() -> None:
    sink = FakeLiveSink()
    made = Live(lambda: sink, origin(prompt_node()), SystemClock(), spacing=0.5)
    made.start()
    try:
        made.stored(interval())
        sink.takes(1)
        for second in range(1, 6):
            made.stored(interval(SLOT + second))
        messages = sink.takes(2)
    finally:
        made.stop()
    assert [len(message["samples"]) for message in messages] == [1, 5]
