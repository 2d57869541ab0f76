"""What every sink guarantees (the docstring of `core.ports.Sink`), over each there is and the fake."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpu_monitor.core.outcome import Outcome, Parcel, Verdict
from gpu_monitor.core.ports import Sink
from gpu_monitor.sinks.http import HttpSink, Target
from tests.fakes.server import ServerProcess, Step
from tests.fakes.sink import FakeSink


@dataclass
class Rig:
    """A sink, what its other side keeps, and how to break that side."""

    sink: Sink
    held: Callable[[], dict[str, bytes]]
    break_down: Callable[[], None]
    stop: threading.Event
    has_batches: bool = False


def http(folder: Path, batch: str | None) -> Iterator[Rig]:
    with ServerProcess(folder) as server:
        server.behave(batch=batch)
        stop = threading.Event()
        sink = HttpSink(Target(server.url, "1", timeout_seconds=5), lambda: None, stop)
        yield Rig(sink, server.held, server.stop, stop, batch is not None)
        sink.close()


def fake(folder: Path, room: int) -> Iterator[Rig]:
    stop = threading.Event()
    sink = FakeSink(stop=stop, room=room)

    def break_down() -> None:
        sink.answer = lambda parcel: Outcome(Verdict.UNREACHABLE, error="gone")

    yield Rig(sink, lambda: sink.held, break_down, stop, room > 1)


SINKS: dict[str, Callable[[Path], Iterator[Rig]]] = {
    "http": lambda folder: http(folder, None),
    "http with batches": lambda folder: http(folder, "/batch"),
    "fake": lambda folder: fake(folder, 1),
    "fake with batches": lambda folder: fake(folder, 8),
}


@pytest.fixture(params=SINKS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    yield from SINKS[request.param](tmp_path)


def parcel(number: int, revision: int = 1, text: str = "") -> Parcel:
    body = json.dumps(
        {
            "report_id": f"id-{number}-{revision}", "revision": revision, "node": {"id": "n"},
            "aggregation_time": f"t{number}", "text": text,
        }
    )  # fmt: skip
    return Parcel(f"id-{number}-{revision}", body.encode())


def test_exact_bytes_arrive_and_are_acknowledged_with_a_uid(rig: Rig) -> None:
    sent = parcel(1, text='ä\u2028\U0001f600 and \\u0000 "quotes"')
    (outcome,) = rig.sink.send([sent])
    assert outcome.verdict is Verdict.ACKNOWLEDGED
    assert outcome.uid
    assert outcome.proof == "digest"
    assert rig.held() == {sent.report_id: sent.body}


def test_one_outcome_per_parcel_in_order_as_far_as_there_is_room(rig: Rig) -> None:
    rig.sink.send([parcel(0)])
    room = rig.sink.room()
    assert room.reports >= 1
    assert room.bytes >= 1
    assert (room.reports > 1) == rig.has_batches
    parcels = [parcel(number) for number in range(1, min(room.reports, 6) + 1)]
    outcomes = rig.sink.send(parcels)
    assert [outcome.verdict for outcome in outcomes] == [Verdict.ACKNOWLEDGED] * len(parcels)
    assert len({outcome.uid for outcome in outcomes}) == len(parcels)
    assert {one.report_id: one.body for one in parcels}.items() <= rig.held().items()


def test_sending_again_is_harmless(rig: Rig) -> None:
    first, again = (rig.sink.send([parcel(1)])[0] for _ in range(2))
    assert (first.verdict, first.uid) == (again.verdict, again.uid)
    assert len(rig.held()) == 1


def test_other_bytes_under_the_same_id_are_a_conflict_and_change_nothing(rig: Rig) -> None:
    rig.sink.send([parcel(1)])
    (outcome,) = rig.sink.send([parcel(1, text="other")])
    assert outcome.verdict is Verdict.CONFLICT
    assert rig.held() == {"id-1-1": parcel(1).body}


def test_a_side_that_is_gone_raises_nothing_and_can_come_to_later(rig: Rig) -> None:
    rig.break_down()
    (outcome,) = rig.sink.send([parcel(1)])
    assert outcome.verdict is Verdict.UNREACHABLE
    assert outcome.error
    assert outcome.uid is None


def test_close_may_be_called_at_any_time(rig: Rig) -> None:
    rig.sink.close()
    rig.sink.send([parcel(1)])
    rig.sink.close()
    rig.sink.close()
    assert rig.sink.send([parcel(2)])[0].verdict is Verdict.ACKNOWLEDGED
    assert len(rig.held()) == 2


def test_nothing_goes_out_once_the_agent_stops(rig: Rig) -> None:
    rig.stop.set()
    (outcome,) = rig.sink.send([parcel(1)])
    assert outcome.verdict is Verdict.INTERRUPTED
    assert rig.held() == {}


def test_a_hanging_server_is_left_at_once_when_the_agent_stops(tmp_path: Path) -> None:
    """SIGTERM has 5 s for everything; here the server would take ten minutes and the time-out as long."""
    with ServerProcess(tmp_path) as server:
        server.behave(then=Step("hang", seconds=600))
        stop, over = threading.Event(), threading.Event()
        sink = HttpSink(Target(server.url, "1", timeout_seconds=600), lambda: None, stop)
        found: list[Outcome] = []

        def send() -> None:
            found.extend(sink.send([parcel(1)]))
            over.set()

        worker = threading.Thread(target=send)
        worker.start()
        while not server.received():
            assert not over.wait(0.01)
        stop.set()
        assert over.wait(5)
        worker.join()
        assert [outcome.verdict for outcome in found] == [Verdict.INTERRUPTED]
        assert threading.active_count() == 1, "no thread is left hanging on the socket"
        sink.close()
