"""Devices that come, go, change places, are reset, are split, or share their memory with the CPU."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gpu_monitor.core.model import GpuProcess, Span, Status
from tests.e2e.nvml_rig import number, rig_on
from tests.standin.control import Proc, Standin
from tests.standin.profiles import GB10, GB200, H100, H100_MIG, L40S, MIB, MigInstance

pytest_plugins = ("tests.standin.fixtures",)

OK, LOST = Status.OK, Status.LOST


def kernel_list(root: Path, standin: Standin, gpus: list[int]) -> Path:
    """A /proc in which the kernel module holds these cards."""
    folder = root / "driver/nvidia/gpus"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {standin.bus_id(gpu)[4:].lower() for gpu in gpus}
    for entry in list(folder.iterdir()):
        if entry.name not in wanted:
            entry.rmdir()
    for name in wanted:
        (folder / name).mkdir(exist_ok=True)
    return root


# ------------------------------------------------------------------ coming and going


def test_a_gpu_that_is_plugged_in_where_the_driver_shows_it_at_once(standin: Standin) -> None:
    standin.follow(True)
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        new = standin.plug(L40S)
        rig.read(Span.FAST)
        assert rig.statuses == [OK], "only a wide round looks which devices there are"
        rig.read(Span.WIDE)
        assert rig.statuses == [OK, OK]
        assert rig[new].identity.name == "NVIDIA L40S"
        event = rig.event("gpu_appeared")
        assert (event.uid, event.detail["pci_bus_id"]) == (standin.uuid(new), standin.bus_id(new))


def test_a_gpu_that_only_a_newcomer_sees_is_found_by_the_kernels_list(
    standin: Standin, tmp_path: Path
) -> None:
    root = kernel_list(tmp_path / "proc", standin, [0])
    with rig_on(standin, changes={"proc_root": root}) as rig:
        rig.read(Span.WIDE)
        standin.plug(L40S)
        rig.read(Span.WIDE)
        assert rig.statuses == [OK]
        kernel_list(root, standin, [0, 1])
        rig.read(Span.WIDE)
        assert rig.statuses == [OK, OK]
        assert rig.kinds == ["gpu_appeared"]
        assert len(rig.children()) == 1


def test_a_gpu_that_is_unplugged_is_lost_then_gone_then_back(standin: Standin) -> None:
    standin.gpus([H100, L40S, H100])
    standin.follow(True)
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        standin.unplug(1)
        rig.read(Span.FAST)
        assert rig.statuses == [OK, LOST, OK]
        rig.read(Span.WIDE)
        assert rig.statuses == [OK, OK]
        assert [device.identity.uid for device in rig.last.devices] == [standin.uuid(0), standin.uuid(2)]
        assert rig.event("gpu_disappeared").uid == standin.uuid(1)
        standin.replug(1)
        rig.read(Span.WIDE)
        assert rig.statuses == [OK] * 3
        assert rig.kinds == ["gpu_lost", "gpu_disappeared", "gpu_appeared"]


def test_a_gpu_the_driver_hides_while_its_module_still_holds_it_stays_lost(
    standin: Standin, tmp_path: Path
) -> None:
    standin.gpus([H100, L40S])
    standin.follow(True)
    root = kernel_list(tmp_path / "proc", standin, [0, 1])
    with rig_on(standin, changes={"proc_root": root}) as rig:
        rig.read(Span.WIDE)
        standin.unplug(1)
        rig.read(Span.WIDE)
        assert rig.statuses == [OK, LOST]
        assert rig[1].cause == "no longer found by the driver"
        assert rig.kinds == ["gpu_lost"]
        standin.replug(1)
        rig.read(Span.WIDE)
        assert rig.statuses == [OK, OK]
        assert rig.kinds == ["gpu_lost", "gpu_back"]


def test_the_last_gpu_goes(standin: Standin) -> None:
    standin.follow(True)
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        standin.unplug(0)
        rig.read(Span.WIDE)
        assert (rig.last.devices, rig.last.paused) == ((), "no GPU")
        assert rig.kinds == ["gpu_disappeared"]
        standin.replug(0)
        rig.clock.push(61)
        rig.read(Span.WIDE)
        assert rig.statuses == [OK]


def test_renumbered_gpus_are_followed_by_their_uuid(standin: Standin) -> None:
    standin.gpus([H100, L40S, H100])
    standin.follow(True)
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        names = {gpu: rig[gpu].identity.name for gpu in range(3)}
        for gpu in range(3):
            standin.hold(gpu, "temperature", 30 + gpu)
        standin.order([2, 0, 1])
        rig.read(Span.WIDE)
        assert {gpu: rig[gpu].identity.index for gpu in range(3)} == {0: 1, 1: 2, 2: 0}
        assert {gpu: rig[gpu].identity.name for gpu in range(3)} == names
        assert [rig[gpu].values["temperature"] for gpu in range(3)] == [30, 31, 32]
        assert [device.identity.index for device in rig.last.devices] == [0, 1, 2]
        assert rig.events == []


def test_a_reset_goes_on_under_the_same_uuid_with_counters_anew(standin: Standin) -> None:
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        before = number(rig[0], "energy")
        standin.lose(0, 16)
        rig.read()
        assert rig[0].cause == "GPU requires reset"
        standin.reset(0)
        standin.back(0)
        rig.read(Span.FULL)
        assert rig.statuses == [OK]
        assert number(rig[0], "energy") < before


def test_known_devices_of_an_earlier_run_bring_no_event(standin: Standin) -> None:
    with rig_on(standin) as first:
        first.read(Span.WIDE)
        known = tuple(device.identity for device in first.last.devices)
    with rig_on(standin, changes={"known": known}) as rig:
        rig.read(Span.WIDE)
        assert rig.events == []
        assert rig[0].identity == known[0]


# ------------------------------------------------------------------ MIG


def test_mig_parent_and_instances(standin: Standin) -> None:
    standin.gpus([H100_MIG, L40S])
    standin.processes(0, [Proc(6001, 300 * MIB, instance=1), Proc(6002, 100 * MIB, instance=0)])
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        assert len(rig.last.devices) == 4
        parent = rig[0]
        assert parent.values["mig_mode"] == "on"
        for name in ("gpu_utilization", "memory_utilization", "encoder_utilization"):
            assert parent.reasons[name] == "unsupported"
        assert number(parent, "power_limit") == 700.0
        assert parent.processes == (), "told by the instances"
        for place, used in ((0, 1024), (1, 2048)):
            instance = rig.device(standin.mig_uuid(0, place))
            identity = instance.identity
            assert identity.parent_uid == standin.uuid(0)
            assert identity.mig_instance == f"{place + 1}/0"
            assert identity.name == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
            assert identity.memory_total == 40448 * MIB
            assert identity.pci_bus_id == standin.bus_id(0)
            assert instance.values["memory_used"] == used * MIB
            assert instance.reasons["temperature"] == "unsupported"
        assert rig.device(standin.mig_uuid(0, 1)).processes == (GpuProcess(6001, "compute", 300 * MIB),)
        assert rig.device(standin.mig_uuid(0, 0)).processes == (GpuProcess(6002, "compute", 100 * MIB),)
        assert rig[1].values["memory_used"] != 0


def test_under_mig_gpm_gives_the_utilisation(standin: Standin) -> None:
    standin.gpus([H100_MIG])
    standin.clock(time.time())
    standin.load(0, 0.5)
    with rig_on(standin) as rig:
        rig.read(Span.FULL)
        instance = rig.device(standin.mig_uuid(0, 0))
        assert instance.reasons["gpu_utilization"] == "pending"
        standin.advance(60)
        rig.read(Span.FULL)
        instance = rig.device(standin.mig_uuid(0, 0))
        assert instance.values["gpu_utilization"] == pytest.approx(50.0)
        assert instance.values["sm_active"] == pytest.approx(49.0)
        assert standin.calls("nvmlGpmMigSampleGet", 0) > 0


def test_under_mig_without_gpm_there_is_no_utilisation(standin: Standin) -> None:
    standin.gpus([H100_MIG])
    standin.fail(0, "gpm_supported", 3)
    with rig_on(standin) as rig:
        rig.read(Span.FULL)
        rig.read(Span.FULL)
        for uid in (standin.uuid(0), standin.mig_uuid(0, 0)):
            assert "gpu_utilization" not in rig.device(uid).values
            assert rig.device(uid).reasons["gpu_utilization"] == "unsupported"


def test_mig_is_turned_on_and_off_and_split_anew(standin: Standin) -> None:
    half = MigInstance(slices=3, multiprocessors=60, memory_mib=40448, used_mib=512, label="3g.40gb")
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        assert len(rig.last.devices) == 1
        assert "gpu_utilization" in rig[0].values
        standin.mig(0, [half])
        rig.read(Span.WIDE)
        assert len(rig.last.devices) == 2
        assert "gpu_utilization" not in rig[0].values
        appeared = rig.event("gpu_appeared")
        assert appeared.uid == standin.mig_uuid(0, 0)
        standin.mig(0, [half, half])
        rig.read(Span.WIDE)
        assert len(rig.last.devices) == 3
        standin.mig(0, [])
        rig.read(Span.WIDE)
        assert len(rig.last.devices) == 1
        assert "gpu_utilization" in rig[0].values
        assert rig.kinds == ["gpu_appeared", "gpu_appeared", "gpu_disappeared", "gpu_disappeared"]


def test_instances_share_the_trouble_of_their_gpu(standin: Standin) -> None:
    standin.gpus([H100_MIG, L40S])
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        standin.hang(0, "nvmlDeviceGetTemperature")
        rig.read()
        assert [device.status for device in rig.last.devices].count(Status.HUNG) == 3
        assert rig.kinds == ["gpu_hung"]
        assert rig[1].status is OK
    standin.heal()
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        standin.lose(0)
        rig.read()
        assert [device.status for device in rig.last.devices].count(LOST) == 3
        rig.read(Span.WIDE)
        assert [device.status for device in rig.last.devices].count(LOST) == 3
        assert rig.kinds == ["gpu_lost"]
        standin.back(0)
        rig.read(Span.WIDE)
        assert [device.status for device in rig.last.devices] == [OK] * 4


# ------------------------------------------------------------------ unified memory


def test_unified_memory_without_memory_information(standin: Standin) -> None:
    standin.gpus([GB10])
    with rig_on(standin) as rig:
        rig.read(Span.FULL)
        identity = rig[0].identity
        assert (identity.memory_kind, identity.memory_total) == ("unified", None)
        for name in ("memory_used", "memory_free", "memory_reserved"):
            assert name not in rig[0].values
            assert rig[0].reasons[name] == "unsupported"
        assert number(rig[0], "temperature") > 0


def test_a_numa_gpu_says_that_its_memory_is_shared_and_gives_the_drivers_total(standin: Standin) -> None:
    standin.gpus([GB200])
    with rig_on(standin) as rig:
        rig.read(Span.FULL)
        identity = rig[0].identity
        assert (identity.memory_kind, identity.memory_total) == ("unified", 189471 * MIB)
