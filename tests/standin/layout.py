"""The control file's layout in ctypes: the same fields, in the same order, as control.h.

The names of functions and metrics are read from the tables that the C code includes, so that a row
added there is known here.
"""

import ctypes
import re
from ctypes import c_char, c_double, c_int32, c_uint32, c_uint64
from pathlib import Path

HERE = Path(__file__).parent
MAGIC, VERSION = 0x4D4C564E, 1
SLOTS, INSTANCES, PROCESSES, EVENTS, SAMPLES, SAMPLING_TYPES = 16, 7, 32, 64, 120, 10


def _rows(table: str, head: str) -> tuple[str, ...]:
    text = (HERE / table).read_text(encoding="utf-8")
    return tuple(re.findall(rf"^{head}\((\w+),", text, re.MULTILINE))


FUNCTIONS = _rows("functions.def", "FUNCTION")
METRICS = _rows("metrics.def", "METRIC")


class Fault(ctypes.Structure):
    """What one function does to its caller."""

    calls: int
    slow_ms: int
    hang: int
    crashes: int
    errors: int
    error: int
    _fields_ = [
        ("calls", c_uint32),
        ("slow_ms", c_uint32),
        ("hang", c_uint32),
        ("crashes", c_int32),
        ("errors", c_int32),
        ("error", c_int32),
    ]


class Reading(ctypes.Structure):
    """What one metric of one card gives."""

    low: float
    high: float
    base: float
    hold_real: float
    hold: int
    held: int
    error: int
    _fields_ = [
        ("low", c_double),
        ("high", c_double),
        ("base", c_double),
        ("hold_real", c_double),
        ("hold", c_uint64),
        ("held", c_uint32),
        ("error", c_int32),
    ]


class Load(ctypes.Structure):
    """How busy a card is over time, 0 to 1."""

    mean: float
    amplitude: float
    period: float
    phase: float
    born: float
    since: float
    integral: float
    _fields_ = [
        (name, c_double) for name in ("mean", "amplitude", "period", "phase", "born", "since", "integral")
    ]


class Instance(ctypes.Structure):
    """One MIG instance."""

    _fields_ = [
        ("uuid", c_char * 96),
        ("name", c_char * 96),
        ("gpu_instance", c_uint32),
        ("compute_instance", c_uint32),
        ("slices", c_uint32),
        ("multiprocessors", c_uint32),
        ("memory_total", c_uint64),
        ("memory_reserved", c_uint64),
        ("memory_used", c_uint64),
    ]


class Process(ctypes.Structure):
    """One process on a card."""

    _fields_ = [
        ("pid", c_uint32),
        ("graphics", c_uint32),
        ("memory", c_uint64),
        ("gpu_instance", c_uint32),
        ("compute_instance", c_uint32),
        ("sm", c_uint32),
        ("mem", c_uint32),
        ("enc", c_uint32),
        ("dec", c_uint32),
    ]


class Sample(ctypes.Structure):
    """One entry of a sample buffer."""

    _fields_ = [("time_us", c_uint64), ("value", c_uint64)]


class Series(ctypes.Structure):
    """A sample buffer with given content."""

    given: int
    count: int
    _fields_ = [("given", c_uint32), ("count", c_uint32), ("samples", Sample * SAMPLES)]


class Gpu(ctypes.Structure):
    """One card."""

    _fields_ = [
        ("present", c_uint32),
        ("lost", c_int32),
        ("mig_capable", c_uint32),
        ("mig_current", c_uint32),
        ("mig_pending", c_uint32),
        ("instance_count", c_uint32),
        ("process_count", c_uint32),
        ("active_load", c_uint32),
        ("pci_domain", c_uint32),
        ("pci_bus", c_uint32),
        ("pci_device", c_uint32),
        ("pci_device_id", c_uint32),
        ("pci_subsystem_id", c_uint32),
        ("reserved", c_uint32),
        ("uuid", c_char * 96),
        ("name", c_char * 96),
        ("serial", c_char * 32),
        ("loads", Load * 2),
        ("readings", Reading * len(METRICS)),
        ("faults", Fault * len(FUNCTIONS)),
        ("instances", Instance * INSTANCES),
        ("processes", Process * PROCESSES),
        ("series", Series * SAMPLING_TYPES),
    ]


class Event(ctypes.Structure):
    """One queued NVML event."""

    _fields_ = [
        ("slot", c_uint32),
        ("gpu_instance", c_uint32),
        ("compute_instance", c_uint32),
        ("reserved", c_uint32),
        ("type", c_uint64),
        ("data", c_uint64),
    ]


class Control(ctypes.Structure):
    """The whole file."""

    _fields_ = [
        ("magic", c_uint32),
        ("version", c_uint32),
        ("size", c_uint32),
        ("driver_epoch", c_uint32),
        ("driver_error", c_int32),
        ("stale_error", c_int32),
        ("live", c_uint32),
        ("count", c_uint32),
        ("order", c_uint32 * SLOTS),
        ("event_head", c_uint32),
        ("last_function", c_uint32),
        ("last_slot", c_uint32),
        ("last_pid", c_uint32),
        ("cuda_version", c_int32),
        ("reserved", c_uint32),
        ("clock_us", c_uint64),
        ("sample_period_us", c_uint64),
        ("driver", c_char * 80),
        ("nvml", c_char * 80),
        ("faults", Fault * len(FUNCTIONS)),
        ("events", Event * EVENTS),
        ("gpus", Gpu * SLOTS),
    ]
