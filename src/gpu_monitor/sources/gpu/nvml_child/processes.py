"""Which processes hold memory on a device. Runs in the child."""

from __future__ import annotations

import ctypes
import struct

from gpu_monitor.sources.gpu.nvml_child import codes
from gpu_monitor.sources.gpu.nvml_child.library import Handle, Library, check

_ENTRY = struct.Struct("=I4xQII")  # nvmlProcessInfo_t, version 2 and 3: pid, bytes, GPU and compute instance
_NOT_AVAILABLE = 2**64 - 1
_LARGEST = 65536

_LISTS = (
    ("compute", ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")),
    ("graphics", ("nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2")),
)

Found = tuple[int, str, "int | None"]
"""pid, compute or graphics, bytes."""


class Room:
    """Room for a list of processes, shared by all devices."""

    def __init__(self) -> None:
        self.make(64)

    def make(self, capacity: int) -> None:
        """Hold `capacity` processes from now on."""
        self.capacity = capacity
        self.bytes = bytearray(_ENTRY.size * capacity)
        self.array = (ctypes.c_char * len(self.bytes)).from_buffer(self.bytes)


def read(library: Library, handle: Handle, room: Room) -> tuple[tuple[Found, ...] | None, str | None]:
    """The processes on a device, each once, or None and the reason. Raises DriverGone, DeviceGone.

    A process with both kinds of context is `compute`; the driver gives its whole memory with either.
    """
    found: dict[int, Found] = {}
    answered, reason = False, "unsupported"
    for kind, names in _LISTS:
        code, count = _list(library, handle, names, room)
        check(code)
        if code:
            if code not in codes.UNSUPPORTED:
                reason = "denied" if code == codes.NO_PERMISSION else "failed"
            continue
        answered = True
        for place in range(min(count, room.capacity)):
            pid, memory, _, _ = _ENTRY.unpack_from(room.bytes, place * _ENTRY.size)
            if pid not in found:
                found[pid] = (pid, kind, None if memory == _NOT_AVAILABLE else memory)
    return (tuple(found.values()), None) if answered else (None, reason)


def _list(library: Library, handle: Handle, names: tuple[str, ...], room: Room) -> tuple[int, int]:
    count = ctypes.c_uint()
    code = codes.FUNCTION_NOT_FOUND
    for name in names:
        while True:
            count.value = room.capacity
            code = library.call(name, handle, ctypes.byref(count), room.array)
            if code != codes.INSUFFICIENT_SIZE or room.capacity >= _LARGEST:
                break
            room.make(max(room.capacity * 2, count.value * 2))
        if code not in codes.UNSUPPORTED:
            break
    return code, count.value
