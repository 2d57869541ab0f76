"""What every GPU source promises (core.ports.Source), over each of them and the fake."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpu_monitor.core.catalogue import BY_NAME, SAMPLED, STATES, Kind, Tier
from gpu_monitor.core.model import DeviceReading, Event, Identity, Round, Span, Spread, Status
from gpu_monitor.core.ports import Source
from gpu_monitor.sources.gpu.nvml import NvmlSettings, NvmlSource
from gpu_monitor.sources.gpu.replay import open_replay
from gpu_monitor.sources.gpu.simulated import Fault, SimulatedSource
from gpu_monitor.sources.runner import SourceRunner
from tests.fakes.source import FakeSource, event, reading
from tests.standin.build import NoCompiler, build
from tests.standin.control import Standin
from tests.standin.profiles import GB10, GEFORCE, H100, H100_MIG, QUADRO

START = 1_780_000_000.0
NAMES = frozenset(metric.name for metric in SAMPLED + STATES)
FAST_NAMES = frozenset(metric.name for metric in SAMPLED if metric.tier is Tier.FAST)
REASONS = {
    "unsupported",
    "denied",
    "lost",
    "hung",
    "asleep",
    "invalid",
    "failed",
    "pending",
    "not in the log",
}
RECORDED = """timestamp, uuid, name, temperature.gpu, utilization.gpu [%], power.draw [W]
2023/11/14 22:13:20.000, GPU-00000000-0000-4000-8000-000000000001, NVIDIA A10, 41, 3 %, 21.50 W
2023/11/14 22:13:30.000, GPU-00000000-0000-4000-8000-000000000001, NVIDIA A10, 45, 97 %, [N/A]
2023/11/14 22:13:40.000, GPU-00000000-0000-4000-8000-000000000001, NVIDIA A10, 46, 98 %, 150.00 W
"""


class Case:
    """A source and the time its next round is for."""

    def __init__(self, source: Source, start: float) -> None:
        self.source, self.now = source, start

    def read(self, span: Span, seconds: float = 0.0) -> Round:
        self.now += seconds
        return self.source.read(self.now, span)


def _nvml(tmp_path: Path, hurt: bool = False) -> Case:
    try:
        library = build(tmp_path)
    except NoCompiler as reason:
        pytest.skip(f"NVML IS NOT TESTED HERE: {reason}")
    standin = Standin(tmp_path / "control", library)
    standin.gpus([H100, GEFORCE, QUADRO, GB10, H100_MIG])
    if hurt:
        standin.lose(0)
        standin.hang(1, "nvmlDeviceGetTemperature")
        standin.fail(2, "temperature", 999)
        standin.hold(3, "power_mw", 2**32 - 1)
    settings = NvmlSettings(deadline_seconds=1.0, grace_seconds=8.0, environment=standin.env())
    return Case(NvmlSource(settings), time.time())


def _replay(tmp_path: Path) -> Case:
    log = tmp_path / "log.csv"
    log.write_text(RECORDED)
    return Case(open_replay(log, START), START)


def _simulated_faults(tmp_path: Path) -> Case:
    faults = [
        Fault.parse(text, START)
        for text in ("kind=lost gpu=0 at=+10s for=1h", "kind=hung gpu=1 at=+10s for=1h")
    ]
    return Case(SimulatedSource(4, "h100", faults=faults), START + 60)


def _fake_trouble(tmp_path: Path) -> Case:
    troubled = Round((reading(status=Status.LOST), reading(uid="GPU-b")), (event("gpu_lost", START),))
    paused = Round((), (), "driver hung")
    return Case(FakeSource([troubled, paused] * 4), START)


CASES = {
    "nvml": _nvml,
    "nvml-hurt": lambda tmp_path: _nvml(tmp_path, hurt=True),
    "simulated": lambda tmp_path: Case(SimulatedSource(3, "h100"), START),
    "simulated-mig": lambda tmp_path: Case(SimulatedSource(2, "mig-h100"), START),
    "simulated-faults": _simulated_faults,
    "replay": _replay,
    "fake": lambda tmp_path: Case(FakeSource(), START),
    "fake-trouble": _fake_trouble,
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    with ExitStack() as stack:
        made = CASES[request.param](tmp_path)
        stack.callback(made.source.close)
        yield made


def rounds(case: Case) -> list[tuple[Span, Round]]:
    """A few rounds as the agent asks for them."""
    plan = [(Span.WIDE, 0.0), (Span.FAST, 2.0), (Span.FULL, 2.0), (Span.WIDE, 2.0)]
    return [(span, case.read(span, seconds)) for span, seconds in plan]


def all_readings(case: Case) -> list[tuple[Span, DeviceReading]]:
    return [(span, device) for span, found in rounds(case) for device in found.devices]


def test_it_has_a_name_and_can_be_asked_whether_it_works(case: Case) -> None:
    assert case.source.name
    assert case.source.name == case.source.name.lower()
    assert case.source.probe() is None  # type: ignore[func-returns-value]


def test_a_round_is_a_round_and_gives_something_or_says_why_not(case: Case) -> None:
    for _, found in rounds(case):
        assert isinstance(found, Round)
        assert found.devices or found.paused
        uids = [device.identity.uid for device in found.devices]
        assert len(uids) == len(set(uids)), "each device once"


def test_values_have_known_names_and_possible_values(case: Case) -> None:
    for _, device in all_readings(case):
        for name, value in device.values.items():
            metric = BY_NAME[name]
            assert metric.kind is not Kind.IDENTITY
            ends = (value.low, value.high) if isinstance(value, Spread) else (value, value)
            if isinstance(value, Spread):
                assert metric.kind is Kind.GAUGE
                assert value.low <= value.mean <= value.high
                assert value.count >= 1
            for end in ends:
                if metric.text:
                    assert isinstance(end, str)
                    continue
                assert isinstance(end, (int, float)) and not isinstance(end, bool) and math.isfinite(end)
                assert metric.low <= end
                if metric.kind in (Kind.GAUGE, Kind.STATE):
                    assert end <= metric.high


def test_what_is_missing_has_its_reason_and_what_is_there_has_none(case: Case) -> None:
    for span, device in all_readings(case):
        wanted = FAST_NAMES if span is Span.FAST else NAMES
        assert wanted <= device.values.keys() | device.reasons.keys()
        assert not device.values.keys() & device.reasons.keys()
        for reason in device.reasons.values():
            assert reason in REASONS


def test_a_device_that_does_not_answer_says_why_and_gives_nothing(case: Case) -> None:
    for _, device in all_readings(case):
        if device.status is Status.OK:
            assert device.cause is None
            continue
        assert device.cause
        assert device.values == {}
        assert device.processes is None
        assert set(device.reasons.values()) == {device.status.value}


def test_identities(case: Case) -> None:
    by_uid: dict[str, Identity] = {}
    for _, device in all_readings(case):
        identity = device.identity
        assert identity.uid and identity.source == case.source.name
        assert (identity.parent_uid is None) == (identity.mig_instance is None)
        assert identity.memory_total is None or identity.memory_total > 0
        assert identity.memory_kind in (None, "dedicated", "unified")
        assert by_uid.setdefault(identity.uid, identity) == identity
    for identity in by_uid.values():
        assert identity.parent_uid is None or identity.parent_uid in by_uid


def test_processes_are_told_in_wide_rounds_only_and_each_once(case: Case) -> None:
    for span, device in all_readings(case):
        if span is not Span.WIDE:
            assert device.processes is None
        elif device.processes is not None:
            pids = [process.pid for process in device.processes]
            assert len(pids) == len(set(pids))
            assert all(process.kind in ("compute", "graphics") for process in device.processes)


def test_counters_are_raw_and_do_not_go_back(case: Case) -> None:
    last: dict[tuple[str, str], float] = {}
    for _, device in all_readings(case):
        for name, value in device.values.items():
            if BY_NAME[name].kind in (Kind.TOTAL, Kind.RATE):
                assert isinstance(value, (int, float))
                key = (device.identity.uid, name)
                assert value >= last.get(key, 0)
                last[key] = value


def test_events_can_be_stored(case: Case) -> None:
    for _, found in rounds(case):
        for told in found.events:
            assert isinstance(told, Event)
            assert told.kind and told.message
            assert told.severity in ("info", "warning", "error", "critical")
            assert json.loads(json.dumps(dict(told.detail))) == dict(told.detail)


def test_the_runner_passes_its_rounds_on(case: Case) -> None:
    runner = SourceRunner(case.source)
    assert runner.name == case.source.name
    found = runner.read(case.now, Span.FULL)
    assert (runner.rounds, runner.failures) == (1, 0)
    assert found.devices or found.paused
