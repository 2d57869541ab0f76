"""The stand-in NVML library, seen by the real pynvml in other processes.

Expected values come from the recordings named in tests/standin/profiles.py, worked out here by hand.
"""

import re
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.standin.build import NoCompiler, build
from tests.standin.control import Proc, Standin
from tests.standin.layout import FUNCTIONS
from tests.standin.profiles import GB10, GB200, GEFORCE, H100, H100_MIG, L40S, MIB, QUADRO, MigInstance
from tests.standin.talker import NvmlError, Talker

pytest_plugins = ("tests.standin.fixtures",)

UNINITIALIZED, INVALID, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = map(NvmlError, (1, 2, 3, 4, 6))
NOT_LOADED, TIMEOUT, NO_FUNCTION, LOST, RESET_REQUIRED = map(NvmlError, (9, 10, 13, 15, 16))
MISMATCH, GPU_NOT_FOUND, UNKNOWN = NvmlError(18), NvmlError(28), NvmlError(999)
AT = 1_767_225_600.0  # 2026-01-01T00:00:00Z
TEMPERATURE = "n.nvmlDeviceGetTemperature(h(0), 0)"
ENERGY = "n.nvmlDeviceGetTotalEnergyConsumption(h(0))"
UUIDS = "[n.nvmlDeviceGetUUID(h(i)) for i in range(n.nvmlDeviceGetCount())]"
KEEP = "keep.update(gpu=h(0))"
KEPT = "n.nvmlDeviceGetTemperature(keep['gpu'], 0)"

Talk = Callable[[], Talker]


@pytest.fixture
def nvml(talk: Talk) -> Talker:
    """A process that has initialised NVML."""
    talker = talk()
    assert talker("n.nvmlInit()") is None
    return talker


def fields(*ids: int | tuple[int, int]) -> str:
    """An expression that reads these fields and gives (error, value) of each."""
    return (
        f"[(v.nvmlReturn, v.value.uiVal if v.valueType == 1 else v.value.ullVal)"
        f" for v in n.nvmlDeviceGetFieldValues(h(0), {list(ids)})]"
    )


# -------------------------------------------------------------------- the library


def test_every_function_is_exported_and_known_to_pynvml(nvml: Talker) -> None:
    assert nvml(f"[name for name in {FUNCTIONS} if not hasattr(n.nvmlLib, name)]") == []
    source = Path(nvml("n.__file__")).read_text(encoding="utf-8")
    asked_for = set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', source))
    assert set(FUNCTIONS) - asked_for == {"nvmlInit_v2"}


def test_nothing_but_nvml_is_exported(nvml: Talker) -> None:
    assert nvml("hasattr(n.nvmlLib, 'enter_device')") is False


def test_an_older_driver_lacks_a_symbol(talk: Talk, standin: Standin, tmp_path: Path) -> None:
    standin.library = build(tmp_path, missing=["nvmlDeviceGetMemoryInfo_v2"])
    nvml = talk()
    nvml("n.nvmlInit()")
    assert nvml("n.nvmlDeviceGetMemoryInfo(h(0), version=n.nvmlMemory_v2)") == NO_FUNCTION
    assert nvml("n.nvmlDeviceGetMemoryInfo(h(0))")["total"] == 81559 * MIB


def test_a_symbol_that_does_not_exist_cannot_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nvmlNonsense"):
        build(tmp_path, missing=["nvmlNonsense"])


def test_without_a_compiler_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NoCompiler, match="no C compiler"):
        build(tmp_path)


def test_it_is_built_once(standin_library: Path) -> None:
    before = standin_library.stat().st_mtime_ns
    assert build(standin_library.parent.parent) == standin_library
    assert standin_library.stat().st_mtime_ns == before


def test_a_file_of_another_layout_is_refused(talk: Talk, standin: Standin, tmp_path: Path) -> None:
    standin.path = tmp_path / "other"
    standin.path.write_bytes(b"not a control file")
    nvml = talk()
    assert nvml("n.nvmlInit()") == NOT_LOADED
    assert "not a control file" in nvml.ended()[1]


def test_versions(nvml: Talker) -> None:
    assert nvml("n.nvmlSystemGetDriverVersion()") == "590.48.01"
    assert nvml("n.nvmlSystemGetCudaDriverVersion_v2()") == 13010


def test_calls_before_init_and_after_shutdown(talk: Talk) -> None:
    nvml = talk()
    assert nvml("n.nvmlDeviceGetCount()") == UNINITIALIZED
    nvml("n.nvmlInit()")
    nvml(KEEP)
    nvml("n.nvmlShutdown()")
    assert nvml(KEPT) == UNINITIALIZED


# -------------------------------------------------------------------- the cards


def read(nvml: Talker, name: str, *arguments: int) -> Any:
    return nvml(f"n.nvmlDeviceGet{name}(h(0){''.join(f', {a}' for a in arguments)})")


def test_an_idle_h100(nvml: Talker, standin: Standin) -> None:
    standin.load(0, 0.0)
    assert read(nvml, "Name") == "NVIDIA H100 80GB HBM3"
    assert read(nvml, "PciInfo")["busId"] == standin.bus_id(0)
    assert read(nvml, "Temperature", 0) == 41
    assert read(nvml, "TemperatureV", 0) == 41
    assert read(nvml, "UtilizationRates") == {"gpu": 0, "memory": 0}
    assert read(nvml, "PowerUsage") == 69_850
    assert read(nvml, "EnforcedPowerLimit") == 700_000
    assert [read(nvml, "ClockInfo", kind) for kind in range(4)] == [345, 345, 2619, 765]
    assert read(nvml, "CurrentClocksEventReasons") == 0x1
    assert read(nvml, "FanSpeed") == NOT_SUPPORTED
    assert read(nvml, "NumFans") == NOT_SUPPORTED
    assert read(nvml, "EccMode") == [1, 1]
    assert read(nvml, "RemappedRows") == [0, 0, 0, 0]
    assert read(nvml, "RetiredPages", 0) == NOT_SUPPORTED
    assert read(nvml, "MigMode") == [0, 0]
    assert nvml(fields(82, 185, 186, (185, 2))) == [[0, 48], [0, 69_850], [0, 69_620], [0, 43_190]]


def test_a_busy_h100(nvml: Talker, standin: Standin) -> None:
    standin.load(0, 1.0)
    assert read(nvml, "Temperature", 0) == 65
    assert read(nvml, "UtilizationRates") == {"gpu": 100, "memory": 11}
    assert read(nvml, "PowerUsage") == 631_950
    assert [read(nvml, "ClockInfo", kind) for kind in range(4)] == [1980, 1980, 2619, 1545]
    assert read(nvml, "CurrentClocksEventReasons") == 0x0
    assert read(nvml, "PerformanceState") == 0


def test_memory_of_both_kinds(nvml: Talker) -> None:
    total, used, reserved = 81559 * MIB, 19818 * MIB, 479 * MIB
    assert read(nvml, "MemoryInfo") == {
        "total": total,
        "free": total - used - reserved,
        "used": used + reserved,
    }
    new = nvml("n.nvmlDeviceGetMemoryInfo(h(0), version=n.nvmlMemory_v2)")
    assert (new["total"], new["reserved"], new["used"]) == (total, reserved, used)
    assert new["free"] == total - used - reserved
    assert nvml("n.nvmlDeviceGetMemoryInfo(h(0), version=7)") == NvmlError(25)


def test_a_geforce(nvml: Talker, standin: Standin, talk: Talk) -> None:
    standin.gpus([GEFORCE])
    standin.load(0, 0.0)
    standin.reload()
    nvml("n.nvmlInit()")
    assert read(nvml, "Name") == "NVIDIA GeForce RTX 3080"
    assert read(nvml, "Serial") == NOT_SUPPORTED
    assert read(nvml, "Temperature", 0) == 31
    assert read(nvml, "PerformanceState") == 8
    assert read(nvml, "NumFans") == 2
    assert read(nvml, "FanSpeed") == 0
    assert read(nvml, "FanSpeed_v2", 1) == 0
    assert read(nvml, "FanSpeed_v2", 2) == INVALID
    assert read(nvml, "EccMode") == NOT_SUPPORTED
    assert read(nvml, "MigMode") == NOT_SUPPORTED
    assert nvml(fields(82)) == [[NOT_SUPPORTED.code, 0]]
    assert isinstance(nvml(ENERGY), int)


def test_an_old_quadro(nvml: Talker, standin: Standin) -> None:
    standin.gpus([QUADRO])
    standin.follow(live=True)
    assert read(nvml, "Name") == "Quadro P400"
    for name in ("PowerUsage", "EnforcedPowerLimit", "TotalEnergyConsumption", "EccMode", "RemappedRows"):
        assert read(nvml, name) == NOT_SUPPORTED
    assert read(nvml, "Samples", 0, 0) == NOT_SUPPORTED
    assert [error for error, _ in nvml(fields(82, 83, 185, 186, 197, 230))] == [3] * 6
    assert read(nvml, "MemoryInfo")["total"] == 1998 * MIB
    assert 34 <= read(nvml, "FanSpeed") <= 60


def test_unified_memory(nvml: Talker, standin: Standin) -> None:
    standin.gpus([GB10, GB200])
    standin.follow(live=True)
    assert read(nvml, "MemoryInfo") == NOT_SUPPORTED
    assert nvml("n.nvmlDeviceGetMemoryInfo(h(0), version=n.nvmlMemory_v2)") == NOT_SUPPORTED
    assert read(nvml, "AddressingMode") == 2
    assert read(nvml, "NumaNodeId") == NOT_SUPPORTED
    assert isinstance(read(nvml, "PowerUsage"), int)
    assert nvml("n.nvmlDeviceGetNumaNodeId(h(1))") == 2
    standin.load(1, 0.0)
    module = "n.nvmlDeviceGetFieldValues(h(1), [(185, 1)])[0].value.uiVal"
    assert nvml(module) == 467_170


def test_eight_cards_differ_and_keep_their_identity(standin: Standin, talk: Talk) -> None:
    standin.gpus([H100] * 8)
    first, second = talk(), talk()
    first("n.nvmlInit()")
    second("n.nvmlInit()")
    uuids = first(UUIDS)
    assert uuids == [standin.uuid(gpu) for gpu in range(8)]
    assert len(set(uuids)) == 8
    assert second(UUIDS) == uuids
    assert first(f"n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(b'{uuids[5]}'))") == 5
    assert first(f"n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(b'{standin.bus_id(3)}'))") == 3
    assert first("n.nvmlDeviceGetHandleByUUID(b'GPU-none')") == NOT_FOUND
    elsewhere = standin.bus_id(3).replace("00000000:", "00000001:")
    assert first(f"n.nvmlDeviceGetHandleByPciBusId(b'{elsewhere}')") == NOT_FOUND
    assert first("n.nvmlDeviceGetHandleByPciBusId(b'nowhere')") == INVALID
    assert first("h(8)") == INVALID
    temperatures = first("[n.nvmlDeviceGetTemperature(h(i), 0) for i in range(8)]")
    assert all(41 <= t <= 65 for t in temperatures)
    assert len(set(temperatures)) > 1


def test_the_same_seed_gives_the_same_values(standin_library: Path, tmp_path: Path) -> None:
    twins = [Standin(tmp_path / name, standin_library, seed=7) for name in ("a", "b")]
    other = Standin(tmp_path / "c", standin_library, seed=8)
    assert twins[0].uuid(0) == twins[1].uuid(0) != other.uuid(0)


# -------------------------------------------------------------------- values over time


def test_energy_is_the_integral_of_power(nvml: Talker, standin: Standin) -> None:
    standin.clock(AT)
    standin.load(0, 0.5)
    before = nvml(ENERGY)
    standin.advance(10)
    # (69.85 W + 631.95 W) / 2 for 10 s
    assert nvml(ENERGY) - before == 3_509_000
    standin.load(0, 0.0)
    standin.advance(100)
    assert nvml(ENERGY) - before == 3_509_000 + 6_985_000


def test_energy_over_one_whole_wave_is_its_mean(nvml: Talker, standin: Standin) -> None:
    standin.clock(AT)
    standin.load(0, 0.5, amplitude=0.4, period=60)
    before = nvml(ENERGY)
    standin.advance(60)
    assert nvml(ENERGY) - before == pytest.approx(60 * 350_900, abs=1)


def test_energy_over_a_part_of_a_wave_is_the_sum_of_the_power_read_on_the_way(
    nvml: Talker, standin: Standin
) -> None:
    standin.clock(AT)
    standin.load(0, 0.5, amplitude=0.4, period=60)
    both = f"({ENERGY}, n.nvmlDeviceGetPowerUsage(h(0)))"
    before, power = nvml(both)
    total = 0.0
    for _ in range(20):
        standin.advance(0.5)
        energy, now = nvml(both)
        total += 0.5 * (power + now) / 2  # mW over half a second, by trapezoids
        power = now
    # The trapezoids' error is at most seconds * step^2 / 12 * the greatest bend: 0.4 * 562.1 W * (2 pi / 60)^2
    assert energy - before == pytest.approx(total, abs=10 * 0.5**2 / 12 * 2466 + 30)
    assert abs(total - 10 * 350_900) > 10_000  # it is not simply the mean


def test_the_power_moves_within_the_wave(nvml: Talker, standin: Standin) -> None:
    standin.clock(AT)
    standin.load(0, 0.5, amplitude=0.4, period=60)
    seen = []
    for _ in range(60):
        seen.append(nvml("n.nvmlDeviceGetPowerUsage(h(0))"))
        standin.advance(1)
    # 69.85 W and 562.1 W of span, between a load of 0.1 and of 0.9; each of 60 points misses a peak by
    # at most half a second of the sine: 0.4 * 562.1 * (1 - cos(2 pi * 0.5 / 60)) = 0.31 W.
    assert min(seen) == pytest.approx(126_060, abs=320)
    assert max(seen) == pytest.approx(575_740, abs=320)


def test_counters_of_bytes_and_their_fields(nvml: Talker, standin: Standin) -> None:
    standin.clock(AT)
    standin.load(0, 1.0)
    ids = fields(197, 198, (138, 0xFFFFFFFF), (139, 0), (202, 0xFFFFFFFF))
    before = [value for _, value in nvml(ids)]
    standin.advance(10)
    grown = [value - b for (_, value), b in zip(nvml(ids), before, strict=True)]
    # KiB/s of the recording; 18 links together, and one of them, in KiB
    assert grown[:2] == [10 * 3092 * 1024, 10 * 6346 * 1024]
    assert grown[2] == pytest.approx(478_116_000_000 / 1024, abs=1)
    assert grown[3] == pytest.approx(478_116_000_000 / 1024 / 18, abs=1)
    assert grown[4] == 478_116_000_000
    assert nvml("n.nvmlDeviceGetPcieThroughput(h(0), 0)") == 3092
    assert nvml("n.nvmlDeviceGetPcieThroughput(h(0), 1)") == 6346
    assert nvml(fields((138, 18), 9999)) == [[INVALID.code, 0], [NOT_SUPPORTED.code, 0]]


def test_a_clock_that_is_set_disturbs_no_value(nvml: Talker, standin: Standin) -> None:
    standin.clock(AT)
    before = [nvml(ENERGY), nvml("n.nvmlDeviceGetPowerUsage(h(0))")]
    standin.clock(AT + 86_400 * 365)
    assert [nvml(ENERGY), nvml("n.nvmlDeviceGetPowerUsage(h(0))")] == pytest.approx(before, abs=1)


def test_sample_buffers(nvml: Talker, standin: Standin) -> None:
    standin.clock(AT)
    standin.load(0, 0.5)
    standin.advance(30)
    kind, samples = read(nvml, "Samples", 0, 0)
    assert (kind, len(samples)) == (1, 120)
    stamps = [s["timeStamp"] for s in samples]
    assert [b - a for a, b in pairwise(stamps)] == [166_666] * 119
    assert 0 <= (AT + 30) * 1e6 - stamps[-1] < 166_666
    assert {s["sampleValue"]["uiVal"] for s in samples} == {350_900}
    assert len(read(nvml, "Samples", 0, stamps[-4])[1]) == 3
    assert read(nvml, "Samples", 0, stamps[-1]) == NOT_FOUND
    standin.advance(1)
    assert [s["timeStamp"] for s in read(nvml, "Samples", 0, stamps[-1])[1]] == [
        stamps[-1] + 166_666 * k for k in range(1, 7)
    ]


def test_samples_remember_the_load_before(nvml: Talker, standin: Standin) -> None:
    standin.clock(AT)
    standin.load(0, 0.0)
    standin.advance(30)
    standin.load(0, 1.0)
    standin.advance(5)
    samples = read(nvml, "Samples", 1, 0)[1]
    values = [s["sampleValue"]["uiVal"] for s in samples]
    # 20 s of buffer, the last 5 s of it busy: 30 samples of 166.666 ms, the first of them on the change
    assert values == sorted(values)
    assert values.count(100) == sum(s["timeStamp"] >= (AT + 30) * 1e6 for s in samples)
    assert values.count(100) + values.count(0) == 120
    assert 29 <= values.count(100) <= 31


def test_samples_as_given(nvml: Talker, standin: Standin) -> None:
    standin.samples(0, 1, [(AT, 10), (AT + 1, 90), (AT + 2, 35)])
    got = read(nvml, "Samples", 1, 0)[1]
    assert [(s["timeStamp"], s["sampleValue"]["uiVal"]) for s in got] == [
        (AT * 1e6, 10),
        (AT * 1e6 + 1e6, 90),
        (AT * 1e6 + 2e6, 35),
    ]
    standin.samples(0, 1, [])
    assert read(nvml, "Samples", 1, 0) == NOT_FOUND
    standin.samples(0, 1, None)
    assert len(read(nvml, "Samples", 1, 0)[1]) == 120


def test_gpm(nvml: Talker, standin: Standin) -> None:
    standin.clock(AT)
    standin.load(0, 0.5)
    assert nvml("n.nvmlGpmQueryDeviceSupport(h(0))")["isSupportedDevice"] == 1
    nvml("keep.update(a=n.nvmlGpmSampleAlloc(), b=n.nvmlGpmSampleAlloc(), q=n.c_nvmlGpmMetricsGet_t())")
    nvml("n.nvmlGpmSampleGet(h(0), keep['a']) and None")
    standin.advance(10)
    nvml("n.nvmlGpmSampleGet(h(0), keep['b']) and None")
    ask = (
        "[setattr(keep['q'], k, v) for k, v in"
        " dict(version=1, numMetrics=4, sample1=keep['a'], sample2=keep['b']).items()]"
        " and [setattr(keep['q'].metrics[i], 'metricId', m) for i, m in enumerate((2, 5, 20, 12345))]"
        " and n.nvmlGpmMetricsGet(keep['q'])"
        " and [(m.nvmlReturn, m.value) for m in keep['q'].metrics[:4]]"
    )
    got = nvml(ask)
    assert got[0] == [0, pytest.approx(49.0)]  # half of 98 %
    assert got[1] == [0, pytest.approx(30.0)]
    assert got[2] == [0, pytest.approx((352 + 3092) / 2 / 1024)]  # KiB/s of the recording, in MiB/s
    assert got[3][0] == NOT_SUPPORTED.code
    standin.hold(0, "sm_active", float("nan"))
    assert nvml(ask)[0][1] != nvml(ask)[0][1]
    nvml("n.nvmlGpmSampleFree(keep['a'])")
    nvml("n.nvmlGpmSampleFree(keep['b'])")


def test_no_gpm_on_other_cards(nvml: Talker, standin: Standin) -> None:
    standin.gpus([L40S])
    standin.follow(live=True)
    assert nvml("n.nvmlGpmQueryDeviceSupport(h(0))")["isSupportedDevice"] == 0
    assert nvml("n.nvmlGpmSampleGet(h(0), n.nvmlGpmSampleAlloc())") == NOT_SUPPORTED


# -------------------------------------------------------------------- values that are held


@pytest.mark.parametrize(
    ("metric", "value", "expression", "reads"),
    [
        ("gpu_utilization", 101, "n.nvmlDeviceGetUtilizationRates(h(0)).gpu", 101),
        ("temperature", 255, TEMPERATURE, 255),
        ("power_mw", 2**32 - 1, "n.nvmlDeviceGetPowerUsage(h(0))", 2**32 - 1),
        ("energy_mj", 2**64 - 1, ENERGY, 2**64 - 1),
        ("energy_mj", 0, ENERGY, 0),
        ("sm_clock", 1234, "n.nvmlDeviceGetClockInfo(h(0), 1)", 1234),
        ("memory_temperature", 0, fields(82), [[0, 0]]),
        ("fan_speed", 300, "n.nvmlDeviceGetFanSpeed(h(0))", 300),
        ("clocks_event_reasons", 0x48, "n.nvmlDeviceGetCurrentClocksThrottleReasons(h(0))", 0x48),
        ("ecc_uncorrected_volatile", 3, "n.nvmlDeviceGetTotalEccErrors(h(0), 1, 0)", 3),
        ("remapped_rows_pending", 1, "n.nvmlDeviceGetRemappedRows(h(0))", [0, 0, 1, 0]),
        ("violation_thermal_ns", 5, "n.nvmlDeviceGetViolationStatus(h(0), 1).violationTime", 5),
        ("recovery_action", 2, fields(230), [[0, 2]]),
        ("retired_pages_dbe", 2, "len(n.nvmlDeviceGetRetiredPages(h(0), 1))", 2),
    ],
)
def test_a_value_that_is_held(
    nvml: Talker, standin: Standin, metric: str, value: int, expression: str, reads: object
) -> None:
    before = nvml(expression)
    assert before != reads
    standin.hold(0, metric, value)
    assert nvml(expression) == reads
    standin.unhold(0, metric)
    assert nvml(expression) != reads
    assert isinstance(nvml(expression), type(before))


def test_counters_that_jump_and_a_card_that_is_reset(nvml: Talker, standin: Standin) -> None:
    standin.clock(AT)
    before = nvml(ENERGY)
    standin.jump(0, "energy_mj", 5_000_000)
    assert nvml(ENERGY) == before + 5_000_000
    standin.jump(0, "energy_mj", -(10**15))
    assert nvml(ENERGY) == 0
    standin.jump(0, "ecc_corrected_volatile", 7)
    standin.jump(0, "ecc_corrected_aggregate", 7)
    standin.load(0, 0.5)
    standin.reset(0)
    standin.advance(10)
    assert nvml(ENERGY) == pytest.approx(3_509_000, abs=1)
    assert nvml("[n.nvmlDeviceGetTotalEccErrors(h(0), 0, k) for k in (0, 1)]") == [0, 7]
    assert nvml(UUIDS) == [standin.uuid(0)]


# -------------------------------------------------------------------- MIG and processes


def test_mig(nvml: Talker, standin: Standin) -> None:
    standin.gpus([H100_MIG])
    standin.follow(live=True)
    assert read(nvml, "MigMode") == [1, 1]
    assert read(nvml, "MaxMigDeviceCount") == 7
    assert read(nvml, "UtilizationRates") == NOT_SUPPORTED
    assert isinstance(read(nvml, "PowerUsage"), int)
    nvml("keep.update(m=[n.nvmlDeviceGetMigDeviceHandleByIndex(h(0), i) for i in (0, 1)])")
    assert nvml("n.nvmlDeviceGetMigDeviceHandleByIndex(h(0), 2)") == NOT_FOUND
    assert nvml("[n.nvmlDeviceGetUUID(m) for m in keep['m']]") == [
        standin.mig_uuid(0, 0),
        standin.mig_uuid(0, 1),
    ]
    assert standin.mig_uuid(0, 0) != standin.mig_uuid(0, 1)
    one = "keep['m'][1]"
    assert nvml(f"n.nvmlDeviceGetName({one})") == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert nvml(f"n.nvmlDeviceGetMemoryInfo({one})")["total"] == 40448 * MIB
    assert nvml(f"n.nvmlDeviceGetMemoryInfo({one})")["used"] == 2048 * MIB
    assert nvml(f"n.nvmlDeviceGetUtilizationRates({one})") == NOT_SUPPORTED
    assert nvml(f"n.nvmlDeviceGetPowerUsage({one})") == NOT_SUPPORTED
    assert nvml(f"(n.nvmlDeviceGetGpuInstanceId({one}), n.nvmlDeviceGetComputeInstanceId({one}))") == [2, 0]
    assert nvml(f"n.nvmlDeviceGetAttributes({one}).gpuInstanceSliceCount") == 3
    assert nvml("[n.nvmlDeviceIsMigDeviceHandle(g).value for g in (h(0), keep['m'][0])]") == [0, 1]
    parent = f"n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle({one})"
    assert nvml(f"n.nvmlDeviceGetUUID({parent})") == standin.uuid(0)
    by_uuid = f"n.nvmlDeviceGetHandleByUUID(b'{standin.mig_uuid(0, 1)}')"
    assert nvml(f"n.nvmlDeviceGetIndex({by_uuid})") == 1


def test_mig_turned_on_and_off(nvml: Talker, standin: Standin) -> None:
    assert nvml("n.nvmlDeviceGetMigDeviceHandleByIndex(h(0), 0)") == NOT_FOUND
    standin.mig_pending(0, on=True)
    assert read(nvml, "MigMode") == [0, 1]
    standin.mig(0, [MigInstance(slices=1, multiprocessors=16, memory_mib=9856, used_mib=0, label="1g.10gb")])
    nvml("keep.update(m=n.nvmlDeviceGetMigDeviceHandleByIndex(h(0), 0))")
    assert nvml("n.nvmlDeviceGetName(keep['m'])").endswith("MIG 1g.10gb")
    standin.mig(0, [])
    assert read(nvml, "MigMode") == [0, 0]
    assert nvml("n.nvmlDeviceGetName(keep['m'])") == INVALID
    assert isinstance(read(nvml, "UtilizationRates"), dict)
    standin.gpus([GEFORCE])
    with pytest.raises(ValueError, match="no MIG"):
        standin.mig(0, [MigInstance(1, 16, 9856, 0, "1g.10gb")])


def test_processes(nvml: Talker, standin: Standin) -> None:
    assert read(nvml, "ComputeRunningProcesses") == []
    standin.processes(
        0, [Proc(11327, 2566 * MIB), Proc(11345, None, sm=99, mem=10), Proc(77, 5 * MIB, graphics=True)]
    )
    none = 2**32 - 1
    assert read(nvml, "ComputeRunningProcesses") == [
        {"pid": 11327, "usedGpuMemory": 2566 * MIB, "gpuInstanceId": none, "computeInstanceId": none},
        {"pid": 11345, "usedGpuMemory": None, "gpuInstanceId": none, "computeInstanceId": none},
    ]
    assert [p["pid"] for p in read(nvml, "GraphicsRunningProcesses")] == [77]
    busy = read(nvml, "ProcessUtilization", 0)
    assert [(p["pid"], p["smUtil"], p["memUtil"]) for p in busy] == [
        (11327, 0, 0),
        (11345, 99, 10),
        (77, 0, 0),
    ]
    standin.clock(AT)
    last = read(nvml, "ProcessUtilization", 0)[0]["timeStamp"]
    assert read(nvml, "ProcessUtilization", last) == NOT_FOUND


def test_processes_of_mig_instances(nvml: Talker, standin: Standin) -> None:
    standin.gpus([H100_MIG])
    standin.follow(live=True)
    standin.processes(0, [Proc(1, instance=0), Proc(2, instance=1)])
    pids = "[(p.pid, p.gpuInstanceId) for p in n.nvmlDeviceGetComputeRunningProcesses({})]"
    assert nvml(pids.format("h(0)")) == [[1, 1], [2, 2]]
    assert nvml(pids.format("n.nvmlDeviceGetMigDeviceHandleByIndex(h(0), 1)")) == [[2, 2]]
    assert read(nvml, "ProcessUtilization", 0) == NOT_SUPPORTED


# -------------------------------------------------------------------- hurt


def test_a_function_fails_on_one_card_only(nvml: Talker, standin: Standin) -> None:
    standin.gpus([H100, H100])
    standin.follow(live=True)
    standin.fail(1, "nvmlDeviceGetTemperature", UNKNOWN.code)
    both = "n.nvmlDeviceGetTemperature(h({}), 0)"
    assert isinstance(nvml(both.format(0)), int)
    assert nvml(both.format(1)) == UNKNOWN
    assert isinstance(nvml("n.nvmlDeviceGetPowerUsage(h(1))"), int)
    standin.fail(1, "nvmlDeviceGetTemperature", 0)
    assert isinstance(nvml(both.format(1)), int)


def test_a_function_fails_some_times(nvml: Talker, standin: Standin) -> None:
    standin.fail(0, "nvmlDeviceGetTemperature", TIMEOUT.code, times=2)
    got = [nvml(TEMPERATURE) for _ in range(3)]
    assert got[:2] == [TIMEOUT, TIMEOUT]
    assert isinstance(got[2], int)


def test_a_metric_fails_in_every_call_that_gives_it(nvml: Talker, standin: Standin) -> None:
    standin.fail(0, "energy_mj", NO_PERMISSION.code)
    standin.fail(0, "memory_temperature", NO_PERMISSION.code)
    assert nvml(ENERGY) == NO_PERMISSION
    assert [error for error, _ in nvml(fields(82, 83, 185))] == [4, 4, 0]
    standin.fail(0, "energy_mj", 0)
    assert isinstance(nvml(ENERGY), int)


def test_a_hang_stops_one_card_of_one_process(talk: Talk, standin: Standin) -> None:
    standin.gpus([H100, H100])
    stuck, free = talk(), talk()
    stuck("n.nvmlInit()")
    free("n.nvmlInit()")
    standin.hang(1, "nvmlDeviceGetPowerUsage")
    assert isinstance(stuck("n.nvmlDeviceGetPowerUsage(h(0))"), int)
    stuck.ask("n.nvmlDeviceGetPowerUsage(h(1))")
    standin.until_called("nvmlDeviceGetPowerUsage", gpu=1)
    assert standin.last_call() == ("nvmlDeviceGetPowerUsage", 1, stuck.pid)
    # The other process, other functions of the same card; the library's own waits last 0.25 s at most.
    standin.slow(1, "nvmlDeviceGetTemperature", 0.6)
    assert isinstance(free("n.nvmlDeviceGetTemperature(h(1), 0)"), int)
    assert not stuck.has_answered()
    standin.release(1, "nvmlDeviceGetPowerUsage")
    assert isinstance(stuck.answer(), int)


def test_a_hung_process_can_be_killed_and_the_next_one_hangs_too(talk: Talk, standin: Standin) -> None:
    standin.hang(None, "nvmlInit")
    for turn in (1, 2):
        nvml = talk()
        nvml.ask("n.nvmlInit()")
        standin.until_called("nvmlInit", times=turn)
        nvml.kill()
    standin.heal()
    assert talk()("n.nvmlInit()") is None


def test_a_crash_ends_the_process_and_need_not_last(talk: Talk, standin: Standin) -> None:
    standin.crash(0, "nvmlDeviceGetTemperature", times=1)
    first, second = talk(), talk()
    first("n.nvmlInit()")
    first.ask(TEMPERATURE)
    assert first.ended()[0] == -signal.SIGSEGV
    second("n.nvmlInit()")
    assert isinstance(second(TEMPERATURE), int)
    standin.crash(None, "nvmlDeviceGetCount_v2")
    second.ask("n.nvmlDeviceGetCount()")
    assert second.ended()[0] == -signal.SIGSEGV


def test_a_slow_function_sleeps_before_it_answers(talk: Talk, standin: Standin) -> None:
    slow, quick = talk(), talk()
    slow("n.nvmlInit()")
    quick("n.nvmlInit()")
    standin.slow(0, "nvmlDeviceGetTemperature", 3600)
    slow.ask(TEMPERATURE)
    standin.until_called("nvmlDeviceGetTemperature")
    assert all(isinstance(quick("n.nvmlDeviceGetPowerUsage(h(0))"), int) for _ in range(100))
    assert not slow.has_answered()
    standin.slow(0, "nvmlDeviceGetTemperature", 0.001)
    assert isinstance(quick(TEMPERATURE), int)


def test_a_card_is_lost_and_comes_back(nvml: Talker, standin: Standin) -> None:
    standin.gpus([H100, H100])
    standin.follow(live=True)
    nvml(KEEP)
    standin.lose(0)
    assert nvml(KEPT) == LOST
    assert nvml("h(0)") == LOST
    assert nvml("n.nvmlDeviceGetCount()") == 2
    assert isinstance(nvml("n.nvmlDeviceGetTemperature(h(1), 0)"), int)
    standin.lose(0, RESET_REQUIRED.code)
    assert nvml(KEPT) == RESET_REQUIRED
    standin.back(0)
    assert isinstance(nvml(KEPT), int)


def test_unplugged_plugged_and_renumbered_cards_are_seen_at_the_next_init(
    talk: Talk, standin: Standin
) -> None:
    standin.gpus([H100, H100, H100])
    old = talk()
    old("n.nvmlInit()")
    old(KEEP)
    uuids = [standin.uuid(gpu) for gpu in range(3)]
    standin.unplug(0)
    fourth = standin.plug(GEFORCE)
    standin.order([fourth, 2, 1])
    assert old(KEPT) == LOST
    assert old("n.nvmlDeviceGetCount()") == 3
    assert old("n.nvmlDeviceGetUUID(h(1))") == uuids[1]
    new = talk()
    new("n.nvmlInit()")
    assert new(UUIDS) == [standin.uuid(fourth), uuids[2], uuids[1]]
    assert new(f"n.nvmlDeviceGetHandleByUUID(b'{uuids[0]}')") == NOT_FOUND
    standin.replug(0)
    standin.order([0, 1, 2, fourth])
    old("n.nvmlShutdown()")
    old("n.nvmlInit()")
    assert old(UUIDS) == [*uuids, standin.uuid(fourth)]


def test_plugging_is_seen_at_once_where_asked(nvml: Talker, standin: Standin) -> None:
    standin.follow(live=True)
    gpu = standin.plug(GEFORCE)
    assert nvml(UUIDS) == [standin.uuid(0), standin.uuid(gpu)]
    standin.unplug(0)
    assert nvml(UUIDS) == [standin.uuid(gpu)]


def test_a_driver_reload(talk: Talk, standin: Standin) -> None:
    nvml = talk()
    nvml("n.nvmlInit()")
    nvml(KEEP)
    standin.clock(AT)
    standin.load(0, 0.5)
    standin.reload("600.10.01")
    assert nvml(KEPT) == UNINITIALIZED
    assert nvml("n.nvmlDeviceGetCount()") == UNINITIALIZED
    nvml("n.nvmlShutdown()")
    nvml("n.nvmlInit()")
    assert nvml("n.nvmlSystemGetDriverVersion()") == "600.10.01"
    assert nvml(KEPT) == GPU_NOT_FOUND
    assert nvml(UUIDS) == [standin.uuid(0)]
    standin.advance(10)
    assert nvml(ENERGY) == pytest.approx(3_509_000, abs=1)


def test_a_driver_that_is_away(talk: Talk, standin: Standin) -> None:
    old, new = talk(), talk()
    old("n.nvmlInit()")
    standin.unload(stale=UNKNOWN.code)
    assert old("n.nvmlDeviceGetCount()") == UNKNOWN
    assert new("n.nvmlInit()") == NOT_LOADED
    standin.reload(stale=UNKNOWN.code)
    assert new("n.nvmlInit()") is None
    assert old("n.nvmlDeviceGetCount()") == UNKNOWN


def test_a_library_of_another_version_than_the_driver(talk: Talk, standin: Standin) -> None:
    standin.fail(None, "nvmlInit", MISMATCH.code, times=1)
    nvml = talk()
    assert nvml("n.nvmlInit()") == MISMATCH
    assert nvml("n.nvmlInit()") is None


def test_everything_can_fail_and_heal(nvml: Talker, standin: Standin) -> None:
    nvml(KEEP)
    standin.fail(0, "*", UNKNOWN.code)
    assert nvml(KEPT) == UNKNOWN
    standin.heal()
    assert isinstance(nvml(KEPT), int)


# -------------------------------------------------------------------- events, counts


WATCH = "keep.update(s=n.nvmlEventSetCreate()) or n.nvmlDeviceRegisterEvents(h(0), {}, keep['s'])"
WAIT = (
    "[(e.eventType, e.eventData, n.nvmlDeviceGetUUID(e.device)) for e in [n.nvmlEventSetWait(keep['s'], {})]]"
)


def test_an_xid_reaches_a_process_that_waits(talk: Talk, standin: Standin) -> None:
    nvml = talk()
    nvml("n.nvmlInit()")
    nvml(WATCH.format(8))
    assert nvml(WAIT.format(0)) == TIMEOUT
    nvml.ask(WAIT.format(60_000))
    standin.until_called("nvmlEventSetWait_v2", times=2)
    standin.xid(0, 79)
    assert nvml.answer() == [[8, 79, standin.uuid(0)]]
    assert nvml(WAIT.format(0)) == TIMEOUT


def test_events_are_kept_in_order_and_only_for_those_who_asked(nvml: Talker, standin: Standin) -> None:
    standin.gpus([H100, H100])
    standin.follow(live=True)
    standin.xid(0, 13)  # before the set was made
    nvml(WATCH.format(8))
    standin.event(0, 0x4)
    standin.xid(1, 31)
    standin.xid(0, 63)
    standin.xid(0, 94)
    assert [nvml(WAIT.format(0))[0][1] for _ in range(2)] == [63, 94]
    assert nvml(WAIT.format(0)) == TIMEOUT
    for code in range(100):
        standin.xid(0, code)
    assert nvml(WAIT.format(0))[0][1] == 36  # the queue holds the last 64


def test_a_card_without_ecc_has_no_ecc_events(nvml: Talker, standin: Standin) -> None:
    standin.gpus([GEFORCE])
    standin.follow(live=True)
    assert nvml("n.nvmlDeviceGetSupportedEventTypes(h(0))") == 0x1C
    assert nvml(WATCH.format("n.nvmlEventTypeSingleBitEccError")) == NOT_SUPPORTED


def test_a_wait_ends_when_the_card_is_lost(talk: Talk, standin: Standin) -> None:
    nvml = talk()
    nvml("n.nvmlInit()")
    nvml(WATCH.format(8))
    nvml.ask(WAIT.format(60_000))
    standin.until_called("nvmlEventSetWait_v2")
    standin.lose(0)
    assert nvml.answer() == LOST


def test_calls_are_counted(nvml: Talker, standin: Standin) -> None:
    standin.gpus([H100, H100])
    standin.follow(live=True)
    before = standin.calls("nvmlDeviceGetTemperature")
    for index in (0, 1, 1):
        nvml(f"n.nvmlDeviceGetTemperature(h({index}), 0)")
    assert standin.calls("nvmlDeviceGetTemperature") == before + 3
    assert standin.calls("nvmlDeviceGetTemperature", gpu=1) == 2
    assert standin.calls("nvmlDeviceGetPcieThroughput") == 0
    assert standin.last_call() == ("nvmlDeviceGetTemperature", 1, nvml.pid)


def test_waiting_for_a_call_that_does_not_come(standin: Standin) -> None:
    with pytest.raises(TimeoutError, match="0 times"):
        standin.until_called("nvmlDeviceGetName", seconds=0)
