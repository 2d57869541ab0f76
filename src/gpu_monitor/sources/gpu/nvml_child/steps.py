"""Metrics that one call each gives: which function, which arguments, what of its answer. Runs in the child.

A step has several ways where drivers differ: the first that the driver and the card know is used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from gpu_monitor.sources.gpu.nvml_child import codes
from gpu_monitor.sources.gpu.nvml_child.layouts import (
    Memory,
    MemoryV2,
    Temperature,
    Utilization,
    Violation,
    version_of,
)
from gpu_monitor.sources.gpu.nvml_child.library import Function, Handle, Library, argument

_BLANK_64 = 0x7FFF_FFFF_FFFF_FFE0  # blank values of 64 bits lie from here on

Values = dict[str, object]
Take = Callable[[Values, dict[str, str]], None]
Build = Callable[[Handle], tuple[tuple[object, ...], Take]]
Ready = tuple[int, Function, tuple[object, ...], "ctypes.c_uint | None", str, Take, "Step"]
"""A call to make: its number, function, arguments; a plain number's place and metric; else `take`; the step."""
Way = tuple[str, Build]


class Plain:
    """Takes an unsigned int as it is. A round reads it without calling this: half of all answers are such."""

    __slots__ = ("metric", "out")

    def __init__(self, metric: str, out: ctypes.c_uint) -> None:
        self.metric, self.out = metric, out

    def __call__(self, values: Values, reasons: dict[str, str]) -> None:
        """Put the answer into `values`."""
        values[self.metric] = self.out.value


def _number(metric: str, *first: int, scale: float = 1) -> Build:
    """An unsigned int, times `scale`. What is impossible is told by the catalogue's bounds, in the agent."""

    def build(handle: Handle) -> tuple[tuple[object, ...], Take]:
        out = ctypes.c_uint()

        def take_scaled(values: Values, reasons: dict[str, str]) -> None:
            values[metric] = out.value * scale

        return (handle, *first, ctypes.byref(out)), Plain(metric, out) if scale == 1 else take_scaled

    return build


def _wide(metric: str, *first: int, scale: float = 1, kind: type[ctypes.c_uint64] = ctypes.c_uint64) -> Build:
    """An unsigned 64-bit number whose blank values no bound of the catalogue would show."""

    def build(handle: Handle) -> tuple[tuple[object, ...], Take]:
        out = kind()

        def take(values: Values, reasons: dict[str, str]) -> None:
            raw = out.value
            if raw >= _BLANK_64:
                reasons[metric] = "invalid"
            else:
                values[metric] = raw if scale == 1 else raw * scale

        return (handle, *first, ctypes.byref(out)), take

    return build


def _with_period(metric: str) -> Build:
    """A percentage and the period it was measured over, which nobody asks for."""

    def build(handle: Handle) -> tuple[tuple[object, ...], Take]:
        out, period = ctypes.c_uint(), ctypes.c_uint()
        return (handle, ctypes.byref(out), ctypes.byref(period)), Plain(metric, out)

    return build


def _memory(kind: type[Memory] | type[MemoryV2]) -> Build:
    def build(handle: Handle) -> tuple[tuple[object, ...], Take]:
        info = kind()
        if isinstance(info, MemoryV2):
            info.version = version_of(MemoryV2, 2)

        def take(values: Values, reasons: dict[str, str]) -> None:
            values["memory_used"] = info.used
            values["memory_free"] = info.free
            if isinstance(info, MemoryV2):
                values["memory_reserved"] = info.reserved
            else:
                reasons["memory_reserved"] = "unsupported"

        return (handle, ctypes.byref(info)), take

    return build


def _utilization(handle: Handle) -> tuple[tuple[object, ...], Take]:
    rates = Utilization()

    def take(values: Values, reasons: dict[str, str]) -> None:
        values.setdefault("gpu_utilization", rates.gpu)
        values.setdefault("memory_utilization", rates.memory)

    return (handle, ctypes.byref(rates)), take


def _temperature_v(handle: Handle) -> tuple[tuple[object, ...], Take]:
    reading = Temperature(version=version_of(Temperature, 1), sensor=0)

    def take(values: Values, reasons: dict[str, str]) -> None:
        values["temperature"] = reading.temperature

    return (handle, ctypes.byref(reading)), take


def _mig_mode(handle: Handle) -> tuple[tuple[object, ...], Take]:
    current, pending = ctypes.c_uint(), ctypes.c_uint()

    def take(values: Values, reasons: dict[str, str]) -> None:
        values["mig_mode"] = "on" if current.value else "off"

    return (handle, ctypes.byref(current), ctypes.byref(pending)), take


def _violation(policy: int, name: str) -> Build:
    """Seconds for which a policy (nvmlPerfPolicyType_t) held clocks down, beside those of others."""

    def build(handle: Handle) -> tuple[tuple[object, ...], Take]:
        status = Violation()

        def take(values: Values, reasons: dict[str, str]) -> None:
            if status.violation >= _BLANK_64:
                reasons[name] = "invalid"
                return
            before = values.get(name)
            parts = before if isinstance(before, tuple) else ()
            values[name] = (*parts, status.violation / 1e9)

        return (handle, policy, ctypes.byref(status)), take

    return build


def _remapped_rows(handle: Handle) -> tuple[tuple[object, ...], Take]:
    corrected, uncorrected, pending, failed = (ctypes.c_uint() for _ in range(4))

    def take(values: Values, reasons: dict[str, str]) -> None:
        values["remapped_rows"] = corrected.value + uncorrected.value

    return (handle, *(ctypes.byref(out) for out in (corrected, uncorrected, pending, failed))), take


Plan = tuple[tuple[str, ...], tuple[Way, ...]]
"""The metrics a step gives, and the ways to get them."""


def _plain(metric: str, function: str, *first: int, scale: float = 1) -> Plan:
    return ((metric,), ((function, _number(metric, *first, scale=scale)),))


UTILIZATION: Plan = (
    ("gpu_utilization", "memory_utilization"),
    (("nvmlDeviceGetUtilizationRates", _utilization),),
)
POWER: Plan = _plain("power_usage", "nvmlDeviceGetPowerUsage", scale=0.001)  # mW

FAST: tuple[Plan, ...] = (
    (
        ("memory_used", "memory_free", "memory_reserved"),
        (
            ("nvmlDeviceGetMemoryInfo_v2", _memory(MemoryV2)),
            ("nvmlDeviceGetMemoryInfo", _memory(Memory)),
        ),
    ),
    (
        ("temperature",),
        (
            ("nvmlDeviceGetTemperature", _number("temperature", 0)),
            ("nvmlDeviceGetTemperatureV", _temperature_v),
        ),
    ),
    _plain("graphics_clock", "nvmlDeviceGetClockInfo", 0),
    (
        ("throttle_reasons",),
        (
            ("nvmlDeviceGetCurrentClocksEventReasons", _wide("throttle_reasons")),
            ("nvmlDeviceGetCurrentClocksThrottleReasons", _wide("throttle_reasons")),
        ),
    ),
    (("energy",), (("nvmlDeviceGetTotalEnergyConsumption", _wide("energy", scale=0.001)),)),  # mJ
)

SLOW: tuple[Plan, ...] = (
    _plain("memory_clock", "nvmlDeviceGetClockInfo", 2),
    _plain("sm_clock", "nvmlDeviceGetClockInfo", 1),
    _plain("video_clock", "nvmlDeviceGetClockInfo", 3),
    _plain("fan_speed", "nvmlDeviceGetFanSpeed"),
    _plain("power_limit", "nvmlDeviceGetEnforcedPowerLimit", scale=0.001),  # mW
    _plain("performance_state", "nvmlDeviceGetPerformanceState"),
    (("encoder_utilization",), (("nvmlDeviceGetEncoderUtilization", _with_period("encoder_utilization")),)),
    (("decoder_utilization",), (("nvmlDeviceGetDecoderUtilization", _with_period("decoder_utilization")),)),
    (("mig_mode",), (("nvmlDeviceGetMigMode", _mig_mode),)),
)

# For devices whose field values do not have these. Counters since the driver keeps them (aggregate: 1).
INSTEAD_OF_FIELDS: tuple[Plan, ...] = (
    (("ecc_corrected",), (("nvmlDeviceGetTotalEccErrors", _wide("ecc_corrected", 0, 1)),)),
    (("ecc_uncorrected",), (("nvmlDeviceGetTotalEccErrors", _wide("ecc_uncorrected", 1, 1)),)),
    (("remapped_rows",), (("nvmlDeviceGetRemappedRows", _remapped_rows),)),
    (("throttle_time",), (("nvmlDeviceGetViolationStatus", _violation(0, "throttle_time")),)),
    (("throttle_time",), (("nvmlDeviceGetViolationStatus", _violation(1, "throttle_time")),)),
)

MEMORY: Plan = FAST[0]
"""What a MIG instance can be asked for, too."""


class Step:
    """One call for one device, ready to be made: `code = step.function(*step.args)`, then `take`."""

    __slots__ = ("_handle", "_library", "_way", "_ways", "args", "function", "metrics", "number", "take")

    def __init__(self, plan: Plan, library: Library, handle: Handle) -> None:
        self.metrics, self._ways = plan
        self._library = library
        self._handle = argument(handle)
        self._way = -1
        self.function: Function
        self.args: tuple[object, ...]
        self.take: Take
        self.number = 0

    def next_way(self) -> bool:
        """Turn to the next way that the driver has; False where there is none left."""
        while self._way + 1 < len(self._ways):
            self._way += 1
            name, build = self._ways[self._way]
            function = self._library.find(name)
            if function is not None:
                self.function, self.number = function, codes.NUMBER[name]
                self.args, self.take = build(self._handle)
                return True
        return False

    def ready(self) -> Ready:
        """The call as a round makes it."""
        take = self.take
        if isinstance(take, Plain):
            return self.number, self.function, self.args, take.out, take.metric, take, self
        return self.number, self.function, self.args, None, "", take, self
