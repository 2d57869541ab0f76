"""The NVML source against a real card, and against what nvidia-smi says of it at the same time."""

from __future__ import annotations

import csv
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gpu_monitor.core.catalogue import BY_NAME, DEFAULT_FIELDS, SAMPLED, STATES
from gpu_monitor.core.model import DeviceReading, Round, Span, Spread, Status
from gpu_monitor.sources.gpu.nvml import NvmlSource

pytestmark = pytest.mark.hardware

MIB = 1024 * 1024
# Name in nvidia-smi, ours, what one of theirs is in our unit, by how much two looks may differ.
COMPARED: tuple[tuple[str, str, float, Callable[[float], float]], ...] = (
    ("temperature.gpu", "temperature", 1, lambda value: 6),
    ("memory.used", "memory_used", MIB, lambda value: max(256 * MIB, value * 0.05)),
    ("memory.total", "memory_total", MIB, lambda value: 2 * MIB),
    ("power.draw", "power_usage", 1, lambda value: max(25, value * 0.4)),
    ("fan.speed", "fan_speed", 1, lambda value: 15),
    ("clocks.gr", "graphics_clock", 1, lambda value: max(300, value * 0.5)),
    ("clocks.mem", "memory_clock", 1, lambda value: max(100, value * 0.2)),
    ("enforced.power.limit", "power_limit", 1, lambda value: 1),
)
TEXTS = (("pci.bus_id", "pci_bus_id"), ("name", "name"))


def read(card: NvmlSource, span: Span) -> Round:
    return card.read(time.time(), span)


def shown(device: DeviceReading) -> dict[str, object]:
    """Identity and values as one, spreads as their mean."""
    values = {name: v.mean if isinstance(v, Spread) else v for name, v in device.values.items()}
    return {**vars(device.identity), **values}


def test_every_default_field_is_there_or_says_why(card: NvmlSource) -> None:
    found = read(card, Span.WIDE)
    assert found.paused is None and found.devices
    for device in found.devices:
        assert device.status is Status.OK
        values = shown(device)
        for name in DEFAULT_FIELDS:
            value = values.get(name)
            if value is None:
                assert device.reasons.get(name) == "unsupported" or device.identity.memory_kind == "unified"
                continue
            metric = BY_NAME[name]
            if not metric.text:
                assert isinstance(value, (int, float)) and metric.low <= value <= metric.high
        for metric in SAMPLED + STATES:
            assert (metric.name in device.values) != (metric.name in device.reasons), metric.name


def smi() -> dict[str, Mapping[str, str]]:
    """What nvidia-smi says now, by UUID; skips where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no nvidia-smi to compare with")
    names = ["uuid", *(name for name, *_ in COMPARED), *(name for name, _ in TEXTS)]
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    rows = csv.reader(said.splitlines(), skipinitialspace=True)
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def test_it_agrees_with_nvidia_smi(card: NvmlSource) -> None:
    theirs = smi()
    ours = {device.identity.uid: device for device in read(card, Span.FULL).devices}
    cards = {uid: device for uid, device in ours.items() if device.identity.parent_uid is None}
    assert set(theirs) == set(cards)
    for uid, row in theirs.items():
        values = shown(cards[uid])
        for name, own in TEXTS:
            assert values[own] == row[name]
        for name, own, unit, tolerance in COMPARED:
            text, value = row[name], values.get(own)
            try:
                expected = float(text) * unit
            except ValueError:  # [N/A], [Not Supported] …
                assert value is None, f"{own}: nvidia-smi says {text}, we say {value}"
                continue
            assert isinstance(value, (int, float)), f"{own}: nvidia-smi says {text}, we say nothing"
            assert abs(value - expected) <= tolerance(expected), f"{own}: {value} against {text}"


def test_the_energy_counter_rises_as_power_says(card: NvmlSource) -> None:
    first, began = read(card, Span.FAST), time.monotonic()
    counters = {d.identity.uid: d.values.get("energy") for d in first.devices}
    if all(value is None for value in counters.values()):
        pytest.skip("this card has no energy counter")
    deadline, powers = began + 20, []
    grown: dict[str, float] = {}
    while time.monotonic() < deadline and (not grown or min(grown.values()) < 50):
        time.sleep(0.5)
        for device in read(card, Span.FAST).devices:
            before, now = counters.get(device.identity.uid), device.values.get("energy")
            if isinstance(before, (int, float)) and isinstance(now, (int, float)):
                grown[device.identity.uid] = now - before
                powers.append(shown(device)["power_usage"])
    seconds = time.monotonic() - began
    assert grown and min(grown.values()) > 0
    numbers = [power for power in powers if isinstance(power, (int, float))]
    expected = sum(numbers) / len(numbers) * seconds * len(grown)
    assert sum(grown.values()) == pytest.approx(expected, rel=0.5)


def test_counters_only_rise(card: NvmlSource) -> None:
    names = ("energy", "pcie_rx", "pcie_tx", "nvlink_rx", "nvlink_tx", "throttle_time")
    last: dict[tuple[str, str], float] = {}
    for _ in range(5):
        for device in read(card, Span.FULL).devices:
            for name in names:
                value = device.values.get(name)
                if isinstance(value, (int, float)):
                    key = (device.identity.uid, name)
                    assert value >= last.get(key, 0)
                    last[key] = value
        time.sleep(0.2)
    assert last


def test_our_own_process_is_not_on_the_gpu(card: NvmlSource) -> None:
    """NVML alone makes no context: the agent never shows up among the processes it counts."""
    assert card._worker is not None
    ours = card._worker.child.pid
    for device in read(card, Span.WIDE).devices:
        assert ours not in [process.pid for process in device.processes or ()]


def test_what_a_round_costs_is_on_record(
    card: NvmlSource, record_property: Callable[[str, object], None]
) -> None:
    """Milliseconds of CPU in the child and of waiting, by span; see `record` for the same as a file."""
    read(card, Span.WIDE)
    assert card._worker is not None
    account = Path(f"/proc/{card._worker.child.pid}/schedstat")
    for span in Span:
        before, began = int(account.read_text().split()[0]), time.monotonic()
        for _ in range(20):
            assert read(card, span).paused is None
        cpu = (int(account.read_text().split()[0]) - before) / 20 / 1e6
        record_property(f"{span.name.lower()}_child_cpu_ms", round(cpu, 3))
        record_property(f"{span.name.lower()}_wait_ms", round((time.monotonic() - began) / 20 * 1e3, 3))
