"""The driver's own sample buffers, drained without a loop over samples in Python. Runs in the child."""

from __future__ import annotations

import ctypes

from gpu_monitor.sources.gpu.nvml_child import codes
from gpu_monitor.sources.gpu.nvml_child.library import Handle, Library, argument, check

TOTAL_POWER, GPU_UTILIZATION, MEMORY_UTILIZATION = 0, 1, 2
"""nvmlSamplingType_t."""

_DOUBLE, _UINT, _ULONG, _ULONGLONG = 0, 1, 2, 3  # nvmlValueType_t
_SECOND_OF_2001 = 10**15
"""Stamps below this (µs) do not count from 1970."""
_LARGEST = 65536
_ENOUGH = 10

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

    def stamps_of(self, count: int) -> list[int]:
        """When the first `count` samples were taken, in microseconds."""
        return self.stamps[0 : 2 * count : 2].tolist()


class Drain:
    """One kind of samples of one device, each handed over once.

    `reason` is set once the device is known not to have them. `since` (UTC epoch, µs): older ones
    belong to nobody here.
    """

    __slots__ = (
        "_buffer",
        "_is_ordered",
        "_function",
        "_handle",
        "_kind",
        "_scale",
        "_seen",
        "floor",
        "metric",
        "reason",
    )

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
        self._buffer, self._kind, self._scale = buffer, kind, scale
        self._handle = argument(handle)
        self._seen, self.floor = ctypes.c_uint64(0), since
        self._is_ordered = False
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
        if self._is_ordered:
            oldest, newest = buffer.stamps[0], buffer.stamps[2 * count - 2]
        else:
            stamps = buffer.stamps_of(count)
            oldest, newest = min(stamps), max(stamps)
            # A driver that gave a good many in order does so always; three might be chance.
            self._is_ordered = count >= _ENOUGH and stamps == sorted(stamps)
        floor, self.floor = self.floor, newest
        self._seen.value = newest
        if newest < _SECOND_OF_2001 and floor >= _SECOND_OF_2001:
            return None  # stamps of another clock cannot be told from what came before us
        if oldest <= floor:
            together = zip(buffer.stamps_of(count), values, strict=True)
            values = [value for stamp, value in together if stamp > floor]
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
