"""One GPU, or the driver, goes wrong under the NVML source; the others go on being read."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gpu_monitor.core.errors import SourceUnavailable
from gpu_monitor.core.model import Span, Status
from tests.e2e.nvml_rig import number, rig_on
from tests.standin.build import build
from tests.standin.control import Standin
from tests.standin.profiles import GEFORCE, H100, L40S

pytest_plugins = ("tests.standin.fixtures",)

OK, LOST, HUNG = Status.OK, Status.LOST, Status.HUNG
MISMATCH, RESET_REQUIRED = 18, 16


@pytest.fixture
def four(standin: Standin) -> Standin:
    standin.gpus([H100, H100, L40S, GEFORCE])
    return standin


# ------------------------------------------------------------------ lost


@pytest.mark.parametrize(
    ("code", "cause"), [(15, "GPU is lost"), (RESET_REQUIRED, "requires reset"), (28, "not found")]
)
def test_a_lost_gpu_and_its_return(four: Standin, code: int, cause: str) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.lose(1, code)
        rig.read()
        assert rig.statuses == [OK, LOST, OK, OK]
        assert cause in (rig[1].cause or "")
        assert rig[1].values == {}
        assert set(rig[1].reasons.values()) == {"lost"}
        since = rig[1].since
        rig.read(Span.WIDE)
        assert (rig[1].status, rig[1].since) == (LOST, since)
        lost = rig.event("gpu_lost")
        assert (lost.uid, lost.severity) == (four.uuid(1), "error")
        four.back(1)
        rig.read()
        assert rig.statuses == [OK] * 4
        assert rig.kinds == ["gpu_lost", "gpu_back"]


def test_a_gpu_that_only_a_newcomer_sees_again_is_found_again(four: Standin) -> None:
    """After a reset a process must open the driver anew; the source does so once a minute."""
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.unplug(2)
        rig.read()
        assert rig.statuses == [OK, OK, LOST, OK]
        four.replug(2)
        four.lose(2)
        rig.clock.push(61)
        rig.read(Span.WIDE)
        assert rig[2].status is LOST
        four.back(2)
        rig.clock.push(61)
        rig.read(Span.WIDE)
        assert rig.statuses == [OK] * 4
        assert rig.kinds == ["gpu_lost", "gpu_back"]


# ------------------------------------------------------------------ hung


@pytest.mark.parametrize(
    ("call", "span"),
    [
        ("nvmlDeviceGetTemperature", Span.FAST),
        ("nvmlDeviceGetSamples", Span.FAST),
        ("nvmlDeviceGetFieldValues", Span.FULL),
        ("nvmlDeviceGetEnforcedPowerLimit", Span.FULL),
        ("nvmlGpmSampleGet", Span.FULL),
        ("nvmlDeviceGetComputeRunningProcesses_v3", Span.WIDE),
        ("nvmlDeviceGetUUID", Span.WIDE),
    ],
)
def test_a_hang_in_one_call_marks_that_gpu_and_the_others_are_read_in_the_same_round(
    four: Standin, call: str, span: Span
) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.hang(1, call)
        asked = rig.clock.now()
        rig.read(span)
        assert rig.statuses == [OK, HUNG, OK, OK]
        assert rig[1].cause == f"hung in {call}"
        assert rig[1].since is not None and asked <= rig[1].since <= asked + 0.5
        assert set(rig[1].reasons.values()) == {"hung"}
        assert number(rig[3], "temperature") > 0
        event = rig.event("gpu_hung")
        assert (event.uid, event.message) == (four.uuid(1), f"GPU 1: hung in {call}")
        # The hung GPU is not touched by the replacement: no handle of it is taken, nothing asked.
        touched = four.calls("*", 1)
        for later in (Span.FAST, Span.FULL, Span.WIDE):
            rig.read(later)
            assert rig.statuses == [OK, HUNG, OK, OK]
        assert four.calls("*", 1) == touched
        assert len(rig.children()) == 1


def test_a_hang_that_could_be_ended_is_probed_every_ten_minutes(four: Standin) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.hang(1, "nvmlDeviceGetTemperature")
        rig.read()
        rig.clock.push(300)
        rig.read()
        assert len(rig.children()) == 1, "too early for a probe"
        calls = four.calls("nvmlDeviceGetTemperature", 1)
        rig.clock.push(301)
        rig.read()
        four.until_called("nvmlDeviceGetTemperature", 1, calls + 1)
        assert len(rig.children()) == 2
        rig.read()
        assert rig.statuses == [OK, HUNG, OK, OK], "a probe that hangs delays nobody"
        rig.clock.push(30)
        rig.read()
        rig.read()
        assert len(rig.children()) == 1, "the probe that hung was ended"
        four.release(1)
        rig.clock.push(600)
        rig.until([OK] * 4)
        assert rig.kinds == ["gpu_hung", "gpu_recovered"]
        rig.read(Span.WIDE)
        assert len(rig.children()) == 1


def test_two_gpus_hang_one_after_the_other(four: Standin) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.hang(0, "nvmlDeviceGetTemperature")
        rig.read()
        four.hang(2, "nvmlDeviceGetMemoryInfo_v2")
        rig.read()
        assert rig.statuses == [HUNG, OK, HUNG, OK]
        assert (rig[0].cause, rig[2].cause) == (
            "hung in nvmlDeviceGetTemperature",
            "hung in nvmlDeviceGetMemoryInfo_v2",
        )


def test_all_gpus_hang_and_the_source_says_that_the_driver_hangs(standin: Standin) -> None:
    standin.gpus([H100, L40S])
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        standin.hang(0, "nvmlDeviceGetTemperature")
        rig.read()
        standin.hang(1, "nvmlDeviceGetTemperature")
        rig.read()
        assert rig.statuses == [HUNG, HUNG]
        assert rig.last.paused == "driver hung"
        assert rig.children() == []
        standin.heal()
        rig.clock.push(601)
        rig.until([OK, HUNG])
        rig.until([OK, OK])
        assert rig.last.paused is None
        assert sorted(rig.kinds) == ["gpu_hung", "gpu_hung", "gpu_recovered", "gpu_recovered"]


def test_a_gpu_that_hangs_when_it_is_first_opened_is_found_by_the_kernels_list(
    four: Standin, tmp_path: Path
) -> None:
    root = tmp_path / "proc"
    for gpu in range(4):
        (root / "driver/nvidia/gpus" / four.bus_id(gpu)[4:].lower()).mkdir(parents=True)
    four.hang(2, "nvmlDeviceGetHandleByIndex_v2")
    with rig_on(four, changes={"proc_root": root, "init_seconds": 1.0}) as rig:
        rig.read(Span.WIDE)
        assert rig.statuses == [OK, OK, OK], "its UUID is not known yet, so it cannot be shown"
        (event,) = rig.events
        assert (event.kind, event.uid) == ("gpu_hung", None)
        assert event.detail["pci_bus_id"] == four.bus_id(2)[4:].lower()
        four.release(2)
        rig.clock.push(601)
        rig.until([OK] * 4, Span.WIDE)


def test_init_hangs(four: Standin) -> None:
    four.hang(None, "nvmlInit")
    with rig_on(four, changes={"grace_seconds": 1.0}) as rig:
        rig.read(Span.WIDE)
        assert rig.last.paused == "driver starting"
        rig.read()
        rig.clock.push(3)
        rig.read()
        assert (rig.last.paused, rig.last.devices) == ("driver hung", ())
        assert rig.event("driver_hung").detail["call"] == "nvmlInitWithFlags"
        assert rig.children() == []
        rig.clock.push(60)
        rig.read()
        assert rig.children() == [], "it was killed: one try in ten minutes"
        four.heal()
        rig.clock.push(541)
        rig.until([OK] * 4, Span.WIDE)
        assert rig.kinds == ["driver_hung", "driver_recovered"]


def test_init_that_is_slow_is_waited_for_without_a_word_of_hanging(four: Standin) -> None:
    four.slow(None, "nvmlInit", 1.5)
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        assert rig.last.paused == "driver starting"
        rig.until([OK] * 4)
        assert rig.events == []


def test_a_hang_on_no_gpu_in_particular_is_tried_once_more_then_paused(four: Standin) -> None:
    with rig_on(four, changes={"grace_seconds": 2.0}) as rig:
        rig.read(Span.WIDE)
        four.hang(None, "nvmlEventSetWait_v2")
        rig.read()
        assert rig.last.paused is not None
        rig.clock.push(2)
        rig.read()
        assert rig.last.paused == "driver hung"
        assert rig.event("driver_hung").detail["call"] == "nvmlEventSetWait_v2"
        assert rig.children() == []
        four.heal()
        rig.clock.push(601)
        rig.read()
        assert rig.statuses == [OK] * 4


# ------------------------------------------------------------------ crashes


def test_a_crash_costs_no_round_and_is_an_event(four: Standin) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.crash(3, "nvmlDeviceGetPowerUsage", times=1)
        four.fail(3, "nvmlDeviceGetSamples", 6)  # nothing new in the buffers
        rig.read()
        assert rig.statuses == [OK] * 4
        crash = rig.event("child_crashed")
        assert crash.uid == four.uuid(3)
        assert crash.detail["how"] == signal.SIGSEGV.name
        assert crash.detail["call"] == "nvmlDeviceGetPowerUsage"


def test_a_driver_that_keeps_crashing_is_tried_less_and_less_often(four: Standin) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.crash(None, "nvmlSystemGetDriverVersion")
        four.crash(None, "nvmlEventSetWait_v2", times=1)
        rig.read()
        assert rig.last.paused == "driver crashed"
        tries = []
        for _ in range(260):
            rig.clock.push(1)
            before = four.calls("nvmlSystemGetDriverVersion")
            rig.read()
            tries.append(four.calls("nvmlSystemGetDriverVersion") - before)
        when = [second for second, tried in enumerate(tries, 1) if tried]
        gaps = [later - earlier for earlier, later in zip([0, *when], when, strict=False)]
        assert gaps[:7] == [1, 2, 4, 8, 16, 32, 60]
        four.heal()
        rig.clock.push(61)
        rig.read()
        assert rig.statuses == [OK] * 4


def test_a_gpu_at_which_the_library_crashes_each_time_is_left_alone(four: Standin) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.crash(1, "nvmlDeviceGetTemperature")
        for _ in range(4):
            rig.clock.push(5)
            rig.read()
        assert rig.statuses == [OK, LOST, OK, OK]
        assert rig[1].cause == "the driver library crashes in nvmlDeviceGetTemperature"
        assert rig.kinds.count("child_crashed") == 3


def test_a_chatty_library_neither_breaks_the_frames_nor_fills_anything(four: Standin) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        worker = rig.source._worker
        assert worker is not None
        pid = worker.child.pid
        # What the child has as standard output is its standard error: a library may print what it likes.
        assert os.stat(f"/proc/{pid}/fd/1").st_ino == os.stat(f"/proc/{pid}/fd/2").st_ino
        with open(f"/proc/{pid}/fd/1", "ab") as printed:
            printed.write(b"NVRM: noise\n" * 50_000)
        assert worker.child.last_words().endswith("NVRM: noise")
        rig.read(Span.WIDE)
        assert rig.statuses == [OK] * 4
        assert os.stat(f"/proc/{pid}/fd/1").st_size == 0


# ------------------------------------------------------------------ the driver comes and goes


def test_the_driver_is_reloaded_under_us(four: Standin) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.reload()
        rig.read(Span.FULL)
        assert rig.statuses == [OK] * 4
        assert rig.events == []


@pytest.mark.parametrize("stale", [1, 9, 18])
def test_an_upgrade_is_followed_and_told(four: Standin, stale: int) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.unload(stale=stale)
        rig.read()
        assert rig.last.paused == "no driver"
        assert rig.last.devices == ()
        rig.clock.push(10)
        rig.read()
        assert rig.last.paused == "no driver"
        four.reload("595.10.02")
        rig.clock.push(10)
        rig.read(Span.FULL)
        assert rig.statuses == [OK] * 4
        assert rig[0].values["driver_version"] == "595.10.02"
        (event,) = rig.events
        assert event.kind == "driver_changed"
        assert event.detail == {"from": "590.48.01", "to": "595.10.02"}


def test_a_library_that_does_not_fit_the_loaded_driver(four: Standin) -> None:
    with rig_on(four) as rig:
        rig.read(Span.WIDE)
        four.unload(MISMATCH, stale=MISMATCH)
        rig.read()
        assert rig.last.paused == "driver/library version mismatch"
        assert rig.children() == []
        four.reload()
        rig.clock.push(2)
        rig.read()
        assert rig.statuses == [OK] * 4


def test_functions_that_an_older_driver_does_not_have(standin: Standin, tmp_path: Path) -> None:
    absent = [
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetSamples",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlGpmQueryDeviceSupport",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetAddressingMode",
        "nvmlDeviceGetNumaNodeId",
        "nvmlEventSetWait_v2",
    ]
    older = Standin(standin.path, build(tmp_path, absent))
    older.hold(0, "memory_used", 3_000_000_000)
    older.hold(0, "memory_reserved", 500_000_000)
    older.hold(0, "clocks_event_reasons", 4)
    older.hold(0, "ecc_corrected_aggregate", 8)
    older.hold(0, "remapped_rows_corrected", 2)
    with rig_on(older) as rig:
        rig.read(Span.WIDE)
        values, reasons = rig[0].values, rig[0].reasons
        assert values["memory_used"] == 3_500_000_000, "the old call counts what the driver reserves"
        assert values["throttle_reasons"] == 4
        assert values["ecc_corrected"] == 8
        assert values["remapped_rows"] == 2
        assert rig[0].processes == ()
        assert rig[0].identity.memory_kind == "dedicated"
        for name in ("memory_reserved", "energy", "pcie_rx", "sm_active", "mig_mode", "memory_temperature"):
            assert reasons[name] == "unsupported", name


# ------------------------------------------------------------------ probe()


def test_probe_passes_where_there_is_a_gpu(four: Standin) -> None:
    with rig_on(four) as rig:
        rig.source.probe()
        rig.read(Span.FULL)
        assert rig.statuses == [OK] * 4


@pytest.mark.parametrize(
    ("code", "says", "hint"),
    [
        (9, "not loaded", "modprobe"),
        (MISMATCH, "different versions", "reboot"),
        (4, "permission", "/dev/nvidiactl"),
        (999, "unknown driver error", "dmesg"),
    ],
)
def test_probe_says_why_not_and_what_to_do(four: Standin, code: int, says: str, hint: str) -> None:
    four.unload(code)
    with rig_on(four) as rig:
        with pytest.raises(SourceUnavailable) as refused:
            rig.source.probe()
        assert says in refused.value.message
        assert hint in (refused.value.hint or "")
        four.reload()
        rig.clock.push(2)
        rig.read()
        assert rig.statuses == [OK] * 4, "the driver came later"


def test_probe_without_a_library(standin: Standin) -> None:
    with rig_on(standin) as rig:
        environment = rig.source._settings.environment
        assert isinstance(environment, dict)
        environment["LD_LIBRARY_PATH"] = ""
        with pytest.raises(SourceUnavailable, match="libnvidia-ml"):
            rig.source.probe()
        rig.read()
        assert (rig.last.paused, rig.children()) == ("no driver", [])


def test_probe_without_a_gpu(standin: Standin) -> None:
    standin.gpus([])
    with rig_on(standin) as rig:
        with pytest.raises(SourceUnavailable, match="shows no GPU"):
            rig.source.probe()
        rig.read()
        assert (rig.last.paused, rig.children()) == ("no GPU", [])


def test_probe_where_init_hangs(four: Standin) -> None:
    four.hang(None, "nvmlInit")
    with rig_on(four, changes={"init_seconds": 1.0}) as rig:
        with pytest.raises(SourceUnavailable, match="driver hung"):
            rig.source.probe()
        assert rig.children() == []
