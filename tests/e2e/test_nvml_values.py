"""Values of the NVML source against what the stand-in was told to show, through the real child."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpu_monitor.core.catalogue import DEFAULT_FIELDS, SAMPLED, STATES, Tier
from gpu_monitor.core.model import GpuProcess, Identity, Span, Spread, Status
from tests.e2e.nvml_rig import Rig, number, rig_on
from tests.standin.control import Proc, Standin
from tests.standin.profiles import GEFORCE, H100, L40S, MIB, QUADRO

pytest_plugins = ("tests.standin.fixtures",)

POWER, GPU, MEMORY = 0, 1, 2  # nvmlSamplingType_t
NOT_SUPPORTED, NO_PERMISSION, UNKNOWN = 3, 4, 999


@pytest.fixture
def rig(standin: Standin) -> Iterator[Rig]:
    with rig_on(standin) as made:
        yield made


def test_identity_is_the_cards(rig: Rig) -> None:
    rig.read(Span.WIDE)
    assert rig[0].identity == Identity(
        uid=rig.standin.uuid(0),
        source="nvml",
        name="NVIDIA H100 80GB HBM3",
        pci_bus_id="00000000:0A:00.0",
        memory_total=85_520_809_984,  # 81559 MiB
        index=0,
        serial="9900010000000",
        minor_number=0,
        memory_kind="dedicated",
    )


def test_every_metric_in_catalogue_units(rig: Rig) -> None:
    held = {
        "temperature": 47,
        "memory_temperature": 53,
        "power_instant_mw": 301_250,
        "energy_mj": 7_200_500,
        "graphics_clock": 1410,
        "sm_clock": 1395,
        "memory_clock": 2619,
        "video_clock": 1200,
        "fan_speed": 33,
        "enforced_power_limit_mw": 650_000,
        "performance_state": 2,
        "clocks_event_reasons": 0x4 | 0x20,
        "encoder_utilization": 7,
        "decoder_utilization": 9,
        "pcie_tx_bytes": 5_000_000_001,
        "pcie_rx_bytes": 6_000_000_002,
        "nvlink_tx_bytes": 10 * 1024,
        "nvlink_rx_bytes": 20 * 1024,
        "ecc_corrected_aggregate": 11,
        "ecc_uncorrected_aggregate": 2,
        "remapped_rows_corrected": 3,
        "remapped_rows_uncorrected": 1,
        "recovery_action": 1,
        "memory_used": 1000 * MIB,
        "memory_reserved": 500 * MIB,
        "memory_total": 2000 * MIB,
    }
    for metric, value in held.items():
        rig.standin.hold(0, metric, value)
    rig.read(Span.FULL)
    expected = {
        "temperature": 47,
        "memory_temperature": 53,
        "power_instant": 301.25,
        "energy": 7200.5,
        "graphics_clock": 1410,
        "sm_clock": 1395,
        "memory_clock": 2619,
        "video_clock": 1200,
        "fan_speed": 33,
        "power_limit": 650.0,
        "performance_state": 2,
        "throttle_reasons": 36,
        "encoder_utilization": 7,
        "decoder_utilization": 9,
        "pcie_tx": 5_000_000_001,
        "pcie_rx": 6_000_000_002,
        "nvlink_tx": 10_240,
        "nvlink_rx": 20_480,
        "ecc_corrected": 11,
        "ecc_uncorrected": 2,
        "remapped_rows": 4,
        "recovery_action": "reset",
        "memory_used": 1_048_576_000,
        "memory_reserved": 524_288_000,
        "memory_free": 524_288_000,
        "mig_mode": "off",
        "driver_version": "590.48.01",
        "throttle_time": 0.0,
    }
    values = rig[0].values
    assert {name: values.get(name) for name in expected} == {
        name: value if isinstance(value, (str, int)) else pytest.approx(value)
        for name, value in expected.items()
    }


def test_every_missing_metric_has_its_reason(standin: Standin) -> None:
    standin.gpus([H100, L40S, GEFORCE, QUADRO])
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        for device in rig.last.devices:
            for metric in SAMPLED + STATES:
                assert (metric.name in device.values) != (metric.name in device.reasons), metric.name
        rig.read(Span.FAST)
        for device in rig.last.devices:
            for metric in SAMPLED:
                if metric.tier is Tier.FAST:
                    assert (metric.name in device.values) != (metric.name in device.reasons), metric.name
        rig.read(Span.FULL)
        # What the recordings say of a passive data-centre card and of a small old one.
        assert rig[0].reasons == {"fan_speed": "unsupported", "retired_pages": "unsupported"}
        for name in (
            "power_usage",
            "energy",
            "memory_temperature",
            "ecc_corrected",
            "nvlink_tx",
            "sm_active",
        ):
            assert rig[3].reasons[name] == "unsupported"


def test_the_default_fields_of_a_plain_card_are_all_there(standin: Standin) -> None:
    standin.gpus([GEFORCE])
    with rig_on(standin) as rig:
        rig.read(Span.FULL)
        shown = {**vars(rig[0].identity), **rig[0].values}
        assert [name for name in DEFAULT_FIELDS if shown.get(name) is None] == []


@pytest.mark.parametrize(
    ("code", "reason"), [(NOT_SUPPORTED, "unsupported"), (NO_PERMISSION, "denied"), (UNKNOWN, "failed")]
)
def test_an_error_of_one_metric_costs_only_that_metric(rig: Rig, code: int, reason: str) -> None:
    rig.standin.fail(0, "temperature", code)
    rig.standin.fail(0, "pcie_tx_bytes", code)
    rig.read(Span.FULL)
    assert rig[0].status is Status.OK
    assert (rig[0].reasons["temperature"], rig[0].reasons["pcie_tx"]) == (reason, reason)
    assert number(rig[0], "power_limit") == 700.0
    assert number(rig[0], "pcie_rx") > 0


def test_what_a_card_cannot_do_is_not_asked_each_round_but_again_some_time(rig: Rig) -> None:
    rig.standin.fail(0, "energy_mj", NO_PERMISSION)
    for _ in range(5):
        rig.read(Span.FULL)
    assert rig.standin.calls("nvmlDeviceGetTotalEnergyConsumption", 0) == 1
    rig.standin.fail(0, "energy_mj", 0)
    rig.read(Span.FULL)
    assert rig[0].reasons["energy"] == "denied"
    rig.clock.push(601)
    rig.read(Span.FULL)
    assert number(rig[0], "energy") > 0


@pytest.mark.parametrize(
    ("metric", "raw", "name"),
    [
        ("temperature", 255, "temperature"),
        ("power_mw", 2**32 - 1, "power_usage"),
        ("memory_used", 2**64 - 1, "memory_used"),
        ("energy_mj", 2**64 - 1, "energy"),
        ("energy_mj", 0x7FFFFFFFFFFFFFF2, "energy"),
        ("clocks_event_reasons", 2**64 - 1, "throttle_reasons"),
        ("performance_state", 32, "performance_state"),  # NVML_PSTATE_UNKNOWN
        ("memory_temperature", 2**32 - 1, "memory_temperature"),
        ("pcie_rx_bytes", 2**63 - 14, "pcie_rx"),
        ("graphics_clock", 2**32 - 1, "graphics_clock"),
        ("enforced_power_limit_mw", 2**32 - 1, "power_limit"),
        ("encoder_utilization", 101, "encoder_utilization"),
    ],
)
def test_an_impossible_value_is_null_with_its_reason(rig: Rig, metric: str, raw: int, name: str) -> None:
    rig.standin.hold(0, metric, raw)
    rig.read(Span.FULL)
    assert name not in rig[0].values
    assert rig[0].reasons[name] == "invalid"
    rig.standin.unhold(0, metric)
    rig.read(Span.FULL)
    assert name in rig[0].values


def test_impossible_samples_fall_back_to_the_instant_value_and_that_is_checked_too(rig: Rig) -> None:
    now = rig.clock.now()
    rig.read(Span.FAST)
    rig.standin.samples(0, GPU, [(now + 1, 50), (now + 2, 101)])
    rig.standin.hold(0, "gpu_utilization", 42)
    rig.read(Span.FAST)
    assert rig[0].values["gpu_utilization"] == 42
    rig.standin.hold(0, "gpu_utilization", 101)
    rig.standin.samples(0, GPU, [(now + 3, 101)])
    rig.read(Span.FAST)
    assert rig[0].reasons["gpu_utilization"] == "invalid"


# ------------------------------------------------------------------ sample buffers


def test_samples_are_drained_once_with_mean_and_extremes(rig: Rig) -> None:
    rig.standin.hold(0, "power_mw", 300_000)  # the instant value that the samples are checked against
    rig.read(Span.FAST)
    now = rig.clock.now()
    rig.standin.samples(0, GPU, [(now + 0.1, 10), (now + 0.2, 20), (now + 0.3, 90)])
    rig.standin.samples(0, POWER, [(now + 0.1, 250_000), (now + 0.2, 350_500)])
    rig.standin.samples(0, MEMORY, [(now + 0.1, 5)])
    rig.read(Span.FAST)
    values = rig[0].values
    assert values["gpu_utilization"] == Spread(40.0, 10.0, 90.0, 3)
    assert values["memory_utilization"] == Spread(5.0, 5.0, 5.0, 1)
    power = values["power_usage"]
    assert isinstance(power, Spread)
    assert (power.mean, power.low, power.high, power.count) == pytest.approx((300.25, 250.0, 350.5, 2))
    # Nothing new: the value of the moment, not the samples again.
    rig.read(Span.FAST)
    assert isinstance(rig[0].values["gpu_utilization"], int)
    assert rig[0].values["power_usage"] == pytest.approx(300.0)
    # One new sample beside the old ones: only that.
    rig.standin.samples(0, GPU, [(now + 0.2, 20), (now + 0.3, 90), (now + 0.4, 60)])
    rig.read(Span.FAST)
    assert rig[0].values["gpu_utilization"] == Spread(60.0, 60.0, 60.0, 1)


def test_samples_from_before_the_source_began_are_not_its_own(rig: Rig) -> None:
    now = rig.clock.now()
    rig.standin.samples(0, GPU, [(now - 20, 99), (now - 10, 98)])
    rig.standin.hold(0, "gpu_utilization", 3)
    rig.read(Span.FAST)
    assert rig[0].values["gpu_utilization"] == 3


def test_every_sample_since_the_last_round_counts_across_a_child_that_was_lost(rig: Rig) -> None:
    rig.read(Span.FAST)
    before = rig.last
    rig.standin.samples(0, GPU, [(rig.clock.now() + 0.001, 10), (rig.clock.now() + 0.002, 30)])
    rig.standin.crash(0, "nvmlDeviceGetTemperature", times=1)
    rig.clock.push(1)
    rig.read(Span.FAST)
    assert before.devices[0].identity == rig.last.devices[0].identity
    assert rig.kinds == ["child_crashed"]
    assert rig[0].values["gpu_utilization"] == Spread(20.0, 10.0, 30.0, 2)


def test_power_samples_in_another_unit_are_not_believed(rig: Rig) -> None:
    rig.standin.hold(0, "power_mw", 300_000)
    now = rig.clock.now()
    for round_number in range(3):
        rig.standin.samples(0, POWER, [(now + round_number + 1, 300)])  # watts
        rig.read(Span.FAST)
        assert rig[0].values["power_usage"] == pytest.approx(300.0)


def test_cards_without_buffers_give_the_value_of_the_moment(rig: Rig) -> None:
    rig.standin.fail(None, "nvmlDeviceGetSamples", NOT_SUPPORTED)
    rig.standin.hold(0, "gpu_utilization", 77)
    for _ in range(3):
        rig.read(Span.FAST)
        assert rig[0].values["gpu_utilization"] == 77
        assert rig[0].reasons == {"throttle_time": "pending"}
    assert rig.standin.calls("nvmlDeviceGetSamples", 0) == 3  # one for each kind, then never again


# ------------------------------------------------------------------ counters of the units, throttling, processes


def test_activity_is_the_mean_between_two_full_rounds(rig: Rig) -> None:
    began = rig.clock.now()
    rig.standin.clock(began)
    rig.standin.load(0, 0.5)
    rig.read(Span.FULL)
    assert rig[0].reasons["sm_active"] == "pending"
    rig.standin.advance(30)
    rig.read(Span.FAST)
    assert "sm_active" not in rig[0].values
    rig.standin.advance(30)
    rig.read(Span.FULL)
    # The profile's full load: 98 % of SM time, 60 % tensor, 11 % of bandwidth; the load was one half.
    assert rig[0].values["sm_active"] == pytest.approx(49.0)
    assert rig[0].values["tensor_active"] == pytest.approx(30.0)
    assert rig[0].values["dram_active"] == pytest.approx(5.5)


def test_throttled_time_counts_a_second_once_and_survives_counter_resets(rig: Rig) -> None:
    rig.standin.hold(0, "violation_power_ns", 50_000_000_000)
    rig.standin.hold(0, "hw_thermal_slowdown_ns", 1_000_000_000)
    rig.read(Span.FULL)
    assert number(rig[0], "throttle_time") == 0.0
    rig.clock.push(60)
    rig.standin.hold(0, "violation_power_ns", 62_500_000_000)  # 12.5 s
    rig.standin.hold(0, "hw_thermal_slowdown_ns", 3_000_000_000)  # 2 s
    rig.read(Span.FULL)
    assert number(rig[0], "throttle_time") == pytest.approx(14.5)
    rig.clock.push(10)
    rig.standin.hold(0, "violation_power_ns", 4_000_000_000)  # began anew
    rig.read(Span.FULL)
    assert number(rig[0], "throttle_time") == pytest.approx(18.5)
    rig.clock.push(10)
    rig.standin.hold(0, "violation_power_ns", 13_000_000_000)  # 9 s and 9 s within 10 s
    rig.standin.hold(0, "hw_thermal_slowdown_ns", 12_000_000_000)
    rig.read(Span.FULL)
    assert number(rig[0], "throttle_time") == pytest.approx(28.5, abs=0.5)


def test_throttled_time_of_a_driver_without_the_newer_fields(standin: Standin) -> None:
    standin.gpus([GEFORCE])
    for metric in ("sw_thermal_slowdown_ns", "hw_thermal_slowdown_ns", "hw_power_brake_ns"):
        standin.fail(0, metric, NOT_SUPPORTED)
    with rig_on(standin) as rig:
        standin.hold(0, "violation_power_ns", 0)
        standin.hold(0, "violation_thermal_ns", 5_000_000_000)
        rig.read(Span.FULL)
        rig.clock.push(60)
        standin.hold(0, "violation_thermal_ns", 8_000_000_000)
        rig.read(Span.FULL)
        assert number(rig[0], "throttle_time") == pytest.approx(3.0)


def test_processes_only_in_wide_rounds_each_once(rig: Rig) -> None:
    rig.standin.processes(
        0,
        [
            Proc(4001, 700 * MIB),
            Proc(4002, None),
            Proc(4001, 700 * MIB, graphics=True),
            Proc(4003, 5 * MIB, graphics=True),
        ],
    )
    rig.read(Span.FULL)
    assert rig[0].processes is None
    rig.read(Span.WIDE)
    assert rig[0].processes == (
        GpuProcess(4001, "compute", 700 * MIB),
        GpuProcess(4002, "compute", None),
        GpuProcess(4003, "graphics", 5 * MIB),
    )
    rig.standin.processes(0, [])
    rig.read(Span.WIDE)
    assert rig[0].processes == ()


def test_a_process_list_that_is_denied_is_not_an_empty_one(rig: Rig) -> None:
    for kind in ("Compute", "Graphics"):
        for version in (2, 3):
            rig.standin.fail(0, f"nvmlDeviceGet{kind}RunningProcesses_v{version}", NO_PERMISSION)
    rig.read(Span.WIDE)
    assert rig[0].processes is None
    assert rig[0].reasons["processes"] == "denied"


def test_more_processes_than_there_was_room_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.standin.processes(0, [Proc(5000 + number) for number in range(32)])
    rig.read(Span.WIDE)
    found = rig[0].processes
    assert found is not None
    assert sorted(process.pid for process in found) == list(range(5000, 5032))


def test_xids_become_events_of_their_gpu_once(standin: Standin) -> None:
    standin.gpus([H100, L40S])
    with rig_on(standin) as rig:
        rig.read(Span.WIDE)
        standin.xid(1, 79)
        standin.xid(0, 31)
        rig.read(Span.FAST)
        told = [(event.kind, event.uid, dict(event.detail)) for event in rig.last.events]
        assert told == [
            ("xid", standin.uuid(1), {"xid": 79}),
            ("xid", standin.uuid(0), {"xid": 31}),
        ]
        rig.read(Span.FAST)
        assert rig.last.events == ()


def test_the_slow_calls_are_never_made(rig: Rig) -> None:
    for span in (Span.WIDE, Span.FAST, Span.FULL, Span.WIDE):
        rig.read(span)
    assert rig.standin.calls("nvmlDeviceGetPcieThroughput") == 0
    assert rig.standin.calls("nvmlDeviceGetHandleByUUID") == 0


def test_fields_cost_one_call_a_round(rig: Rig) -> None:
    rig.read(Span.FULL)
    before = rig.standin.calls("nvmlDeviceGetFieldValues", 0)
    rig.read(Span.FULL)
    rig.read(Span.FAST)
    assert rig.standin.calls("nvmlDeviceGetFieldValues", 0) == before + 1
