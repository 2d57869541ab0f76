"""What live messages tell of processes and events: kept once, idempotent, bounded, joined with a run's segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, select

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.experiment_gpus import Stay, Stays, experiments_on_gpu, gpus_of_experiment
from gpu_monitor.server.store.schema import live_events, live_processes, processes
from gpu_monitor.server.store.schema_experiments import experiments
from gpu_monitor.server.store.shape import Shaper
from gpu_monitor.server.store.span import Span
from gpu_monitor.server.store.write import GroupRecorder
from gpu_monitor.server.store.write_live import shape_live
from gpu_monitor.wire.intake import Malformed
from gpu_monitor.wire.live_intake import read_live
from tests.server.posts import CONTRACT, NODE, iso
from tests.server.runs import Segment, write_segment

NOW = 1_710_943_200.0
LOCAL = Principal("local", "the local token", frozenset(("report:write",)))
GPU, OTHER_GPU = "GPU-A", "GPU-B"
Tell = Callable[..., None]


def process(pid: int, first: float, last: float, **more: Any) -> dict[str, Any]:
    """A process on the first GPU, as an agent tells of it."""
    named = {"uid": GPU, "source": "nvml", "pid": pid, "first_seen": iso(first), "last_seen": iso(last)}
    return {**named, **more}


def event(time: float, xid: int = 79) -> dict[str, Any]:
    """An Xid."""
    return {
        "time": iso(time), "uid": GPU, "kind": "xid", "severity": "error", "message": f"Xid {xid}", "detail": {"xid": xid},
    }  # fmt: skip


def message(**more: Any) -> bytes:
    """A live message of a node with two GPUs."""
    gpus = [{"uid": uid, "source": "nvml"} for uid in (GPU, OTHER_GPU)]
    whole = {
        "schema": 1, "contract_number": CONTRACT, "node": {"id": NODE}, "sent": iso(NOW),
        "collection_interval_seconds": 60, "gpus": gpus, **more,
    }  # fmt: skip
    return msgspec.json.encode(whole)


@pytest.fixture
def tell(store: Store) -> Tell:
    recorder = GroupRecorder()

    def send(now: float = NOW, **more: Any) -> None:
        batch = shape_live(Shaper(), read_live(message(**more)), LOCAL, now)
        with store.write() as connection:
            store.lock_sequence(connection)
            written = recorder.write_group(connection, [], now, [batch])
        recorder.keep()
        assert written.live == [None]

    return send


def rows(store: Store, table: Any, *names: str) -> list[tuple[Any, ...]]:
    """Some columns of a table."""
    with store.read() as connection:
        return sorted(tuple(row) for row in connection.execute(select(*(table.c[name] for name in names))))


def stays_of(store: Store, run: str) -> Stays:
    """The GPUs of a run."""
    with store.read() as connection:
        row = connection.execute(select(experiments).where(experiments.c.uid == run)).one()
        return gpus_of_experiment(connection, row, NOW)


def test_a_process_is_kept_once_with_its_last_sight(store: Store, tell: Tell) -> None:
    tell(processes=[process(7, NOW - 90, NOW - 60, start_ticks=5, boot_id="boot")])
    tell(processes=[process(7, NOW - 90, NOW - 5, start_ticks=5, boot_id="boot", experiment_id="run-a")])
    # An older message, and one without the experiment, take nothing back.
    tell(processes=[process(7, NOW - 90, NOW - 60, start_ticks=5, boot_id="boot", experiment_id="run-b")])
    tell(
        processes=[process(7, NOW - 90, NOW - 5, start_ticks=5, boot_id="boot"), process(8, NOW - 9, NOW - 5)]
    )
    assert rows(store, live_processes, "pid", "start_ticks", "since", "until", "experiment_id") == [
        (7, 5, NOW - 90, NOW - 5, "run-a"),
        (8, -1, NOW - 9, NOW - 5, None),
    ]


def test_events_are_kept_once_and_old_ones_are_the_reports_to_tell(store: Store, tell: Tell) -> None:
    tell(events=[event(NOW - 10), event(NOW - 7200, 31)])
    tell(events=[event(NOW - 10), event(NOW - 3, 31)])
    assert rows(store, live_events, "time", "message") == [(NOW - 10, "Xid 79"), (NOW - 3, "Xid 31")]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"processes": [process(0, NOW, NOW)]}, "pid"),
        ({"processes": [{**process(1, NOW, NOW), "boot_id": "b" * 200}]}, "boot_id"),
        ({"processes": [process(1, NOW, NOW)] * 5000}, "processes"),
        ({"events": [{**event(NOW), "detail": {"a": {"b": 1}}}]}, "detail"),
        ({"events": [event(NOW)] * 300}, "events"),
    ],
)
def test_what_is_no_process_or_event_is_refused(more: dict[str, Any], field: str) -> None:
    with pytest.raises(Malformed) as refused:
        read_live(message(**more))
    assert field in refused.value.field + refused.value.reason


def test_a_run_is_joined_by_its_writer_whichever_came_first(store: Store, tell: Tell) -> None:
    seen = process(900, NOW - 300, NOW - 10, start_ticks=99, boot_id="boot", ns_pid=4711)
    others = [
        process(901, NOW - 300, NOW - 10, start_ticks=98, boot_id="boot", ns_pid=4711),
        process(902, NOW - 300, NOW - 10, start_ticks=99, boot_id="else", ns_pid=4711),
        process(4711, NOW - 300, NOW - 10, start_ticks=99, boot_id="boot", ns_pid=12),
    ]
    tell(processes=[seen, *others])
    write_segment(store, CONTRACT, Segment("run-a", "resnet", "vision", NOW - 400), NOW)
    found = stays_of(store, "run-a")
    ((place, held),) = next(iter(found.of.values())).items()
    assert held == [Stay(NOW - 300, NOW - 10, "process")]
    assert found.boards[place].uid == GPU
    with store.read() as connection:
        back, runs = experiments_on_gpu(connection, [place], GPU, Span(NOW - 3600, NOW))
        assert len(runs) == 1
        assert back.of == found.of
        assert experiments_on_gpu(connection, [place], GPU, Span(NOW - 7200, NOW - 3600))[1] == set()


def test_a_run_of_another_contract_has_no_gpu_here(store: Store, tell: Tell) -> None:
    tell(
        processes=[
            process(900, NOW - 9, NOW, start_ticks=99, boot_id="boot", ns_pid=4711, experiment_id="run-a")
        ]
    )
    write_segment(store, "another", Segment("run-a", "resnet", "vision", NOW - 400), NOW)
    assert stays_of(store, "run-a").of == {}


def test_reports_and_live_messages_of_one_stay_are_one(store: Store, tell: Tell) -> None:
    """An hour's report, a child that only inherited the experiment, and what is live; and a stay of another day."""
    tell(processes=[process(900, NOW - 60, NOW - 10, start_ticks=99, boot_id="boot", ns_pid=4711)])
    write_segment(store, CONTRACT, Segment("run-a", "resnet", "vision", NOW - 90_000), NOW)
    hour = int(NOW) // 3600 - 1
    told: dict[str, Any] = {"agent": 1, "kind": "compute", "ended": False, "uid": GPU}
    with store.write() as connection:
        writer = {"pid": 900, "start_ticks": 99, "boot_id": "boot", "ns_pid": 4711}
        for first, last, of, more in (
            (NOW - 3600, NOW - 100, hour, writer),
            (NOW - 1000, NOW - 50, hour, {"pid": 77, "experiment_id": "run-a"}),
            (NOW - 86_400, NOW - 86_000, hour - 24, {"pid": 76, "experiment_id": "run-a"}),
        ):
            values = {**told, "hour": of, "first_seen": first, "last_seen": last, **more}
            connection.execute(insert(processes).values(values))
    ((_, held),) = next(iter(stays_of(store, "run-a").of.values())).items()
    assert held == [Stay(NOW - 86_400, NOW - 86_000, "process"), Stay(NOW - 3600, NOW - 10, "process")]
