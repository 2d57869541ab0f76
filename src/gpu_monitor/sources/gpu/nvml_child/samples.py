"""The driver's own sample buffers, drained without a loop over samples in Python. Runs in the child."""

from __future__ import annotations

import ctypes

from gpu_monitor.sources.gpu.nvml_child import codes
from gpu_monitor.sources.gpu.nvml_child.library import Handle, Library, check

TOTAL_POWER, GPU_UTILIZATION, MEMORY_UTILIZATION = 0, 1, 2
"""nvmlSamplingType_t."""

_DOUBLE, _UINT, _ULONG, _ULONGLONG = 0, 1, 2, 3  # nvmlValueType_t
_SECOND_OF_2001 = 10**15
"""Stamps below this (µs) do not count from 1970."""
_LARGEST = 65536

Drained = tuple[float, float, float, int]
"""Mean, lowest, highest, how many."""


class Buffer:
    """Room for samples, shared by all devices and kinds, with a view for each type of value."""

    def __init__(self) -> None:
        self.kind, self.count = ctypes.c_uint(), ctypes.c_uint()
        self.kind_ref, self.count_ref = ctypes.byref(self.kind), ctypes.byref(self.count)
        self.make_room(256)  # the buffers of the drivers seen hold about 120 samples

    def make_room(self, capacity: int) -> None:
        """Forget what is there and hold `capacity` samples from now on."""
        self.capacity = capacity
        self.array = (ctypes.c_uint64 * (2 * capacity))()  # nvmlSample_t: stamp (µs), value
        plain = memoryview(self.array).cast("B")
        self.stamps = plain.cast("Q")
        self.views: dict[int, tuple[memoryview[int] | memoryview[float], int, int]] = {
            _UINT: (plain.cast("I"), 2, 4),
            _ULONG: (self.stamps, 1, 2),
            _ULONGLONG: (self.stamps, 1, 2),
            _DOUBLE: (plain.cast("d"), 1, 2),
        }

    def values(self, count: int) -> list[int] | list[float] | None:
        """The first `count` values; None where their type is none of ours."""
        found = self.views.get(self.kind.value)
        if found is None:
            return None
        view, first, step = found
        return view[first : first + step * count : step].tolist()


class Drain:
    """One kind of samples of one device, each handed over once.

    `reason` is set once the device is known not to have them. `since` (UTC epoch, µs): older ones
    belong to nobody here.
    """

    __slots__ = ("_buffer", "_function", "_handle", "_kind", "_scale", "_seen", "floor", "metric", "reason")

    def __init__(
        self,
        library: Library,
        handle: Handle,
        buffer: Buffer,
        kind: int,
        metric: str,
        scale: float,
        since: int,
    ) -> None:
        self._function = library.find("nvmlDeviceGetSamples")
        self._handle, self._buffer, self._kind, self._scale = handle, buffer, kind, scale
        self._seen, self.floor = ctypes.c_uint64(0), since
        self.metric = metric
        self.reason = "unsupported" if self._function is None else None

    def take(self) -> Drained | None:
        """What came since the last call; None where nothing did. Raises DriverGone, DeviceGone."""
        buffer = self._buffer
        code = self._call(buffer)
        while code == codes.INSUFFICIENT_SIZE and buffer.capacity < _LARGEST:
            buffer.make_room(buffer.capacity * 4)
            code = self._call(buffer)
        if code:
            self._failed(code)
            return None
        count = min(buffer.count.value, buffer.capacity)
        values = buffer.values(count)
        if not count or not values:
            return None
        stamps = buffer.stamps[0 : 2 * count : 2].tolist()
        newest, floor = max(stamps), self.floor
        self._seen.value = self.floor = newest
        if newest < _SECOND_OF_2001 and floor >= _SECOND_OF_2001:
            return None  # stamps of another clock cannot be told from what came before us
        if min(stamps) <= floor:
            values = [value for stamp, value in zip(stamps, values, strict=True) if stamp > floor]
            if not values:
                return None
        scale, count = self._scale, len(values)
        return sum(values) / count * scale, min(values) * scale, max(values) * scale, count

    def _call(self, buffer: Buffer) -> int:
        buffer.count.value = buffer.capacity
        assert self._function is not None
        return self._function(
            self._handle, self._kind, self._seen, buffer.kind_ref, buffer.count_ref, buffer.array
        )

    def _failed(self, code: int) -> None:
        check(code)
        if code in codes.UNSUPPORTED:
            self.reason = "unsupported"
        elif code == codes.NO_PERMISSION:
            self.reason = "denied"
