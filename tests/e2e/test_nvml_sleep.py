"""GPUs that the kernel may switch off: not woken by us, and not kept awake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.core.model import Span, Status
from tests.e2e.nvml_rig import Rig, rig_on
from tests.standin.control import Proc, Standin
from tests.standin.profiles import GEFORCE, L40S

pytest_plugins = ("tests.standin.fixtures",)

OK, ASLEEP = Status.OK, Status.ASLEEP


class Bus:
    """A /sys with the stand-in's cards on the PCI bus, and an audio function that is not a GPU."""

    def __init__(self, root: Path, standin: Standin, cards: int) -> None:
        self.root, self._standin = root, standin
        for gpu in range(cards):
            self._device(self._address(gpu), "0x10de", "0x030200")
            self._device(self._address(gpu)[:-1] + "1", "0x10de", "0x040300")
            self.control(gpu, "auto")
            self.status(gpu, "active")
        self._device("0000:00:02.0", "0x8086", "0x030000")

    def _address(self, gpu: int) -> str:
        return self._standin.bus_id(gpu)[4:].lower()

    def _power(self, address: str) -> Path:
        return self.root / "bus/pci/devices" / address / "power"

    def _device(self, address: str, vendor: str, kind: str) -> None:
        power = self._power(address)
        power.mkdir(parents=True)
        (power.parent / "vendor").write_text(vendor + "\n")
        (power.parent / "class").write_text(kind + "\n")
        (power / "control").write_text("on\n")
        (power / "runtime_status").write_text("active\n")

    def control(self, gpu: int, mode: str) -> None:
        """auto: may be switched off; on: never."""
        (self._power(self._address(gpu)) / "control").write_text(mode + "\n")

    def status(self, gpu: int, status: str) -> None:
        """What the kernel says: active, suspended."""
        (self._power(self._address(gpu)) / "runtime_status").write_text(status + "\n")


@pytest.fixture
def bus(standin: Standin, tmp_path: Path) -> Bus:
    standin.gpus([GEFORCE, L40S])
    return Bus(tmp_path / "sys", standin, 2)


@pytest.fixture
def rig(standin: Standin, bus: Bus) -> Iterator[Rig]:
    with rig_on(standin, changes={"sys_root": bus.root, "idle_release_seconds": 300.0}) as made:
        yield made


def test_while_every_gpu_sleeps_nvml_is_not_touched(rig: Rig, bus: Bus) -> None:
    for gpu in (0, 1):
        bus.status(gpu, "suspended")
    rig.source.probe()
    for span in (Span.WIDE, Span.FAST, Span.FULL):
        rig.read(span)
        assert (rig.last.devices, rig.last.paused) == ((), "asleep")
    assert rig.standin.calls("*") == 0
    assert rig.children() == []
    bus.status(1, "active")
    rig.read(Span.WIDE)
    assert rig.statuses == [OK], "the one that sleeps on has no name yet"
    assert rig.standin.calls("*", 0) == 0
    bus.status(0, "active")
    rig.read(Span.WIDE)
    assert rig.statuses == [OK, OK]


def test_known_gpus_are_recorded_as_asleep_and_the_others_read_on(rig: Rig, bus: Bus) -> None:
    rig.read(Span.WIDE)
    bus.status(0, "suspended")
    rig.read()
    assert rig.statuses == [ASLEEP, OK]
    assert rig[0].cause == "suspended by power management"
    assert set(rig[0].reasons.values()) == {"asleep"}
    touched = rig.standin.calls("*", 0)
    rig.read(Span.WIDE)
    assert rig.standin.calls("*", 0) == touched
    bus.status(1, "suspended")
    rig.read()
    assert (rig.statuses, rig.last.paused) == ([ASLEEP, ASLEEP], "asleep")
    assert rig.children() == [], "an open driver would keep them awake"
    bus.status(0, "active")
    rig.read()
    assert rig.statuses == [OK, ASLEEP]
    assert rig.events == [], "sleeping is no fault"


def test_a_gpu_of_an_earlier_run_is_asleep_by_name(standin: Standin, bus: Bus) -> None:
    changes = {"sys_root": bus.root}
    with rig_on(standin, changes=changes) as first:
        first.read(Span.WIDE)
        known = tuple(device.identity for device in first.last.devices)
    for gpu in (0, 1):
        bus.status(gpu, "suspended")
    with rig_on(standin, changes={**changes, "known": known}) as rig:
        calls = standin.calls("*")
        rig.read(Span.WIDE)
        assert rig.statuses == [ASLEEP, ASLEEP]
        assert rig[0].identity == known[0]
        assert standin.calls("*") == calls


def idle(standin: Standin, gpu: int) -> None:
    standin.hold(gpu, "gpu_utilization", 0)
    standin.processes(gpu, [])


def test_idle_gpus_are_let_go_so_that_they_can_sleep(rig: Rig, bus: Bus) -> None:
    idle(rig.standin, 0)
    idle(rig.standin, 1)
    rig.read(Span.WIDE)
    rig.clock.push(299)
    rig.read(Span.WIDE)
    assert rig.statuses == [OK, OK]
    rig.clock.push(2)
    rig.read(Span.WIDE)
    assert rig.statuses == [ASLEEP, ASLEEP]
    assert rig[0].cause == "let go so that it can sleep"
    assert rig.children() == []
    bus.status(0, "suspended")
    rig.clock.push(40)
    rig.read(Span.WIDE)
    # The one that fell asleep is left alone; the other did not, somebody holds it, so we read it again.
    assert rig.statuses == [ASLEEP, OK]
    assert rig[0].cause == "suspended by power management"
    rig.clock.push(500)
    rig.read(Span.WIDE)
    assert rig.statuses == [ASLEEP, OK], "twice as long before the next attempt"
    rig.clock.push(101)
    rig.read(Span.WIDE)
    assert rig.statuses == [ASLEEP, ASLEEP]


def test_a_gpu_in_use_is_not_let_go(rig: Rig) -> None:
    idle(rig.standin, 0)
    rig.standin.processes(0, [Proc(4001)])  # holds memory, does nothing
    idle(rig.standin, 1)
    rig.standin.hold(1, "gpu_utilization", 1)
    for _ in range(5):
        rig.read(Span.WIDE)
        rig.clock.push(200)
    assert rig.statuses == [OK, OK]


def test_a_gpu_that_may_not_suspend_is_never_let_go(standin: Standin, bus: Bus) -> None:
    for gpu in (0, 1):
        bus.control(gpu, "on")
        idle(standin, gpu)
    with rig_on(standin, changes={"sys_root": bus.root}) as rig:
        for _ in range(5):
            rig.read(Span.WIDE)
            rig.clock.push(200)
        assert rig.statuses == [OK, OK]
