# SPDX-License-Identifier: MIT
"""Every metric once: its name, unit, range, how a minute keeps it and how an hour rolls it up.

Columns, payload, fields of the command line and the generated tables all come from `METRICS`.
The twelve default columns stand first, in the documented order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a metric is, which decides where it is kept and how it rolls up."""

    IDENTITY = "identity"
    """Says which device a row is about; kept once per change in the table of GPUs."""
    GAUGE = "gauge"
    """A value at an instant; a minute keeps the time-weighted mean."""
    TOTAL = "total"
    """The increase of a hardware counter over the interval; an hour sums it."""
    RATE = "rate"
    """The increase of a hardware counter per second; an hour averages it."""
    FLAGS = "flags"
    """A set of names, kept as a bit mask; an interval keeps every flag that was seen."""
    STATE = "state"
    """Seldom changes; kept on change in a side table; an hour keeps the last."""


class Tier(Enum):
    """How often a metric is read within one interval."""

    FAST = "fast"
    """Every few seconds."""
    SLOW = "slow"
    """Once per interval, at its end."""


@dataclass(frozen=True)
class Metric:
    """One metric. `low` and `high` bound the possible; a reading outside is null with reason invalid.

    `scale`: the store keeps round(value * scale) as an integer. `decimals`: of means in output.
    `spread`: the minute keeps min and max beside the mean.
    """

    name: str
    unit: str
    kind: Kind
    help: str
    low: float = 0.0
    high: float = float("inf")
    scale: float = 1.0
    decimals: int = 0
    tier: Tier = Tier.FAST
    spread: bool = False
    text: bool = False


def _identity(name: str, help: str, unit: str = "", text: bool = True) -> Metric:
    return Metric(name, unit, Kind.IDENTITY, help, tier=Tier.SLOW, text=text)


def _state(name: str, help: str, unit: str = "", text: bool = False, high: float = 2**53) -> Metric:
    return Metric(name, unit, Kind.STATE, help, tier=Tier.SLOW, text=text, high=high)


def _percent(name: str, help: str, spread: bool = False, tier: Tier = Tier.FAST) -> Metric:
    return Metric(name, "%", Kind.GAUGE, help, high=100, scale=10, decimals=1, spread=spread, tier=tier)


def _clock(name: str, help: str, tier: Tier = Tier.SLOW) -> Metric:
    # 10 GHz is above any GPU or memory clock NVML has reported (H100 memory 2619, GDDR7 about 15000/2).
    return Metric(name, "MHz", Kind.GAUGE, help, high=20_000, decimals=0, tier=tier)


def _rate(name: str, help: str) -> Metric:
    # 1e13 B/s: ten times NVLink 5's 1.8 TB/s; kept in units of 1,000 bytes/s.
    return Metric(name, "bytes/s", Kind.RATE, help, high=1e13, scale=1 / 1000, tier=Tier.SLOW)


_BYTES_HIGH = 2.0**44  # 16 TiB: far above any device, far below the 2^64 blank values of drivers

METRICS: tuple[Metric, ...] = (
    _identity("uid", "UUID of the device; SIM- simulated, IMPORT- imported without a UUID"),
    _identity("pci_bus_id", "PCI address, domain:bus:device.function"),
    _identity("name", "product name"),
    Metric("temperature", "°C", Kind.GAUGE, "GPU core", low=-50, high=200, scale=10, decimals=1, spread=True),
    Metric(
        "memory_used",
        "bytes",
        Kind.GAUGE,
        "device memory in use (without what the driver reserves)",
        high=_BYTES_HIGH,
        scale=1 / 1024,
        spread=True,
    ),
    _identity("memory_total", "device memory", unit="bytes", text=False),
    _percent("gpu_utilization", "share of time in which a kernel ran", spread=True),
    _percent("memory_utilization", "share of time in which device memory was read or written", spread=True),
    Metric("power_usage", "W", Kind.GAUGE, "board power", high=10_000, scale=100, decimals=2, spread=True),
    Metric("fan_speed", "%", Kind.GAUGE, "intended speed; over 100 is possible", high=250, tier=Tier.SLOW),
    _clock("graphics_clock", "graphics (shader) clock", Tier.FAST),
    _clock("memory_clock", "memory clock"),
    # Opt-in from here on.
    _identity("index", "index the driver gives it now; changes across reboots", text=False),
    _identity("serial", "board serial number"),
    _identity("minor_number", "N of /dev/nvidiaN", text=False),
    _identity("parent_uid", "UUID of the physical GPU that a MIG instance is part of"),
    _identity("mig_instance", "GPU instance / compute instance, for example 1/0"),
    _identity("memory_kind", "dedicated, or unified where CPU and GPU share one memory"),
    _state("driver_version", "driver", text=True),
    Metric(
        "memory_free",
        "bytes",
        Kind.GAUGE,
        "free device memory",
        high=_BYTES_HIGH,
        scale=1 / 1024,
        tier=Tier.SLOW,
    ),
    _state("memory_reserved", "device memory the driver keeps", unit="bytes", high=_BYTES_HIGH),
    Metric(
        "memory_temperature",
        "°C",
        Kind.GAUGE,
        "HBM or GDDR",
        low=-50,
        high=200,
        scale=10,
        decimals=1,
        tier=Tier.SLOW,
    ),
    _state("power_limit", "enforced power limit", unit="W", high=10_000),
    Metric(
        "power_instant",
        "W",
        Kind.GAUGE,
        "instantaneous board power",
        high=10_000,
        scale=100,
        decimals=2,
        tier=Tier.SLOW,
    ),
    Metric(
        "energy",
        "J",
        Kind.TOTAL,
        "energy over the interval, from the hardware counter",
        high=1e9,
        scale=10,
        decimals=1,
    ),
    _clock("sm_clock", "SM clock"),
    _clock("video_clock", "video clock"),
    _state("performance_state", "P-state, 0 (fastest) to 15", high=15),
    _percent("encoder_utilization", "video encoder", tier=Tier.SLOW),
    _percent("decoder_utilization", "video decoder", tier=Tier.SLOW),
    _rate("pcie_rx", "received over PCIe"),
    _rate("pcie_tx", "sent over PCIe"),
    _rate("nvlink_rx", "received over all NVLinks"),
    _rate("nvlink_tx", "sent over all NVLinks"),
    _percent("sm_active", "share of SM time with a resident warp (GPM)", tier=Tier.SLOW),
    _percent("tensor_active", "share of time the tensor cores ran (GPM)", tier=Tier.SLOW),
    _percent("dram_active", "share of peak memory bandwidth used (GPM)", tier=Tier.SLOW),
    Metric("throttle_reasons", "", Kind.FLAGS, "why clocks were held down at any reading of the interval"),
    Metric(
        "throttle_time", "s", Kind.TOTAL, "time throttled over the interval", high=1e9, scale=1000, decimals=3
    ),
    _state("ecc_corrected", "corrected ECC errors since the counter began"),
    _state("ecc_uncorrected", "uncorrected ECC errors since the counter began"),
    _state("remapped_rows", "remapped memory rows (corrected + uncorrected)"),
    _state("retired_pages", "retired memory pages"),
    _state(
        "recovery_action", "what the driver asks for: none, reset, reboot, drain, drain_and_reset", text=True
    ),
    _state("mig_mode", "on where the device is split into MIG instances", text=True),
)

HOST_METRICS: tuple[Metric, ...] = (
    _percent("cpu_utilization", "share of all cores' time that was not idle", spread=True),
    Metric("load_1m", "", Kind.GAUGE, "load average over one minute", high=1e6, scale=100, decimals=2),
    Metric(
        "memory_used",
        "bytes",
        Kind.GAUGE,
        "memory that is not available to programs",
        high=2.0**50,
        scale=1 / 1024,
    ),
    Metric("memory_total", "bytes", Kind.GAUGE, "memory of the machine", high=2.0**50, scale=1 / 1024),
    Metric("swap_used", "bytes", Kind.GAUGE, "swap in use", high=2.0**50, scale=1 / 1024),
    Metric(
        "disk_used",
        "bytes",
        Kind.GAUGE,
        "used on the disk that holds the store",
        high=2.0**60,
        scale=1 / 1024,
    ),
    Metric(
        "disk_total",
        "bytes",
        Kind.GAUGE,
        "size of the disk that holds the store",
        high=2.0**60,
        scale=1 / 1024,
    ),
    _rate("disk_read", "read from all disks"),
    _rate("disk_write", "written to all disks"),
    _rate("network_rx", "received on all interfaces but loopback"),
    _rate("network_tx", "sent on all interfaces but loopback"),
)
"""What is kept of the machine around the GPUs, each interval."""

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}
DEFAULT_FIELDS: tuple[str, ...] = tuple(metric.name for metric in METRICS[:12])
IDENTITY: tuple[Metric, ...] = tuple(m for m in METRICS if m.kind is Kind.IDENTITY)
STATES: tuple[Metric, ...] = tuple(m for m in METRICS if m.kind is Kind.STATE)
SAMPLED: tuple[Metric, ...] = tuple(m for m in METRICS if m.kind not in (Kind.IDENTITY, Kind.STATE))
"""The metrics that have a column of their own in the table of samples, in catalogue order."""

# Bits of NVML's clock event reasons (nvmlClocksEventReason* in the NVML reference).
THROTTLE_REASONS: tuple[tuple[int, str], ...] = (
    (0x001, "gpu_idle"),
    (0x002, "applications_clocks_setting"),
    (0x004, "sw_power_cap"),
    (0x008, "hw_slowdown"),
    (0x010, "sync_boost"),
    (0x020, "sw_thermal_slowdown"),
    (0x040, "hw_thermal_slowdown"),
    (0x080, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
)
HARMLESS_REASONS = 0x001 | 0x002 | 0x100
"""Reasons that are no throttling: idle, and clocks that somebody chose."""


def throttle_names(mask: int) -> list[str]:
    """The names of the reasons in `mask`; an unknown bit becomes `bit_N`."""
    names = [name for bit, name in THROTTLE_REASONS if mask & bit]
    known = sum(bit for bit, _ in THROTTLE_REASONS)
    rest = mask & ~known
    names.extend(f"bit_{n}" for n in range(rest.bit_length()) if rest >> n & 1)
    return names


def round_value(metric: Metric, value: float | None) -> float | int | None:
    """`value` as it is printed: rounded to the metric's decimals, whole numbers as integers."""
    if value is None:
        return None
    if metric.decimals == 0:
        return round(value)
    rounded = round(value, metric.decimals)
    return int(rounded) if rounded == int(rounded) else rounded


class Reason:
    """Why a value is null. The strings are stored and shown."""

    UNSUPPORTED = "unsupported"
    DENIED = "denied"
    LOST = "lost"
    HUNG = "hung"
    ASLEEP = "asleep"
    INVALID = "invalid"
    FAILED = "failed"
    """The driver answered with an error."""
    PENDING = "pending"
    """Comes with a later reading of the same interval, or with the second one ever (a mean between two)."""
    NOT_IN_LOG = "not in the log"
    """The recording that is imported or replayed does not hold it."""
    MIG = "unsupported"
