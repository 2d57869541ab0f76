"""Events from changes: each series of readings with the events it must give, worked out by hand."""

from __future__ import annotations

from gpu_monitor.agent.changes import ChangeWatch, known_states
from gpu_monitor.core.model import DeviceReading, Identity, Status, Value

GPU = Identity("GPU-a", "nvml")
POWER_CAP, THERMAL, IDLE = 0x4, 0x40, 0x1


def run(watch: ChangeWatch, *series: tuple[float, dict[str, Value]]) -> list[tuple[float, str]]:
    found = []
    for at, values in series:
        found += [(event.time, event.kind) for event in watch.events([DeviceReading(GPU, values=values)], at)]
    return found


def throttled(at: float, mask: int) -> tuple[float, dict[str, Value]]:
    return at, {"throttle_reasons": mask}


def test_throttling_begins_once_and_ends_after_two_quiet_minutes() -> None:
    readings = [throttled(0, 0), throttled(10, POWER_CAP), throttled(20, 0), throttled(30, THERMAL)]
    readings += [throttled(30 + n * 10, 0) for n in range(1, 14)]
    assert run(ChangeWatch({}), *readings) == [(10, "throttle_started"), (30, "throttle_ended")]


def test_idle_and_chosen_clocks_are_no_throttling() -> None:
    assert run(ChangeWatch({}), throttled(0, IDLE), throttled(10, IDLE | 0x2)) == []


def test_memory_errors_that_grow_are_events_and_a_reset_is_none() -> None:
    series = [
        (0.0, {"ecc_uncorrected": 0, "remapped_rows": 1}),
        (10.0, {"ecc_uncorrected": 2, "remapped_rows": 1}),
        (20.0, {"ecc_uncorrected": 0, "remapped_rows": 1}),
        (30.0, {"ecc_uncorrected": 0, "remapped_rows": 3}),
    ]
    assert run(ChangeWatch({}), *series) == [(10, "ecc_changed"), (30, "remap_changed")]  # type: ignore[arg-type]


def test_a_driver_that_changed_while_no_agent_ran_is_noticed() -> None:
    known = known_states([("GPU-a", "driver_version", "550.1"), ("GPU-a", "driver_version", "580.1")])
    assert run(ChangeWatch(known), (0.0, {"driver_version": "580.1"})) == []
    changed = run(ChangeWatch(known), (0.0, {"temperature": 40}), (9.0, {"driver_version": "590.2"}))
    assert changed == [(9.0, "driver_changed")]
    # One that changes under the agent is told by the source, once for the node.
    assert (
        run(ChangeWatch(known), (0.0, {"driver_version": "580.1"}), (9.0, {"driver_version": "590.2"})) == []
    )


def test_what_the_driver_asks_for() -> None:
    series = [
        (0.0, {"recovery_action": "none"}),
        (9.0, {"recovery_action": "reset"}),
        (19.0, {"recovery_action": "none"}),
    ]
    assert run(ChangeWatch({}), *series) == [(9.0, "recovery_action"), (19.0, "recovery_action")]  # type: ignore[arg-type]


def test_a_lost_device_says_nothing() -> None:
    lost = DeviceReading(GPU, Status.LOST, {"throttle_reasons": THERMAL}, cause="GPU is lost")
    assert ChangeWatch({}).events([lost], 0.0) == []
