"""The C structures that the child passes to NVML, laid out as in NVML's reference.

pynvml has them too, but with attribute access written in Python; these are read every round.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_int, c_uint, c_uint64, c_void_p


def version_of(kind: type[ctypes.Structure], number: int) -> int:
    """NVML's version word of a structure: its size with the version above it."""
    return ctypes.sizeof(kind) | number << 24


class Memory(ctypes.Structure):
    """nvmlMemory_t: `used` holds what the driver reserves, too."""

    total: int
    free: int
    used: int
    _fields_ = [("total", c_uint64), ("free", c_uint64), ("used", c_uint64)]


class MemoryV2(ctypes.Structure):
    """nvmlMemory_v2_t: `used` without `reserved`."""

    version: int
    total: int
    reserved: int
    free: int
    used: int
    _fields_ = [
        ("version", c_uint),
        ("total", c_uint64),
        ("reserved", c_uint64),
        ("free", c_uint64),
        ("used", c_uint64),
    ]


class Utilization(ctypes.Structure):
    """nvmlUtilization_t, percent."""

    gpu: int
    memory: int
    _fields_ = [("gpu", c_uint), ("memory", c_uint)]


class Temperature(ctypes.Structure):
    """nvmlTemperature_v1_t, °C."""

    version: int
    sensor: int
    temperature: int
    _fields_ = [("version", c_uint), ("sensor", c_uint), ("temperature", c_int)]


class AddressingMode(ctypes.Structure):
    """nvmlDeviceAddressingMode_v1_t: 0 none, 1 HMM, 2 ATS (the system's page tables and memory)."""

    version: int
    value: int
    _fields_ = [("version", c_uint), ("value", c_uint)]


ATS = 2


class PciInfo(ctypes.Structure):
    """nvmlPciInfo_t, version 3."""

    bus_id: bytes
    _fields_ = [
        ("legacy_bus_id", c_char * 16),
        ("domain", c_uint),
        ("bus", c_uint),
        ("device", c_uint),
        ("pciDeviceId", c_uint),
        ("pciSubSystemId", c_uint),
        ("bus_id", c_char * 32),
    ]


class Violation(ctypes.Structure):
    """nvmlViolationTime_t: microseconds, nanoseconds."""

    reference: int
    violation: int
    _fields_ = [("reference", c_uint64), ("violation", c_uint64)]


class EventData(ctypes.Structure):
    """nvmlEventData_t."""

    device: int | None
    kind: int
    data: int
    gpu_instance: int
    compute_instance: int
    _fields_ = [
        ("device", c_void_p),
        ("kind", c_uint64),
        ("data", c_uint64),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    ]


class GpmSupport(ctypes.Structure):
    """nvmlGpmSupport_t."""

    version: int
    supported: int
    _fields_ = [("version", c_uint), ("supported", c_uint)]
