"""Counters of the GPU's units (GPM, Hopper and newer): means between two samples. Runs in the child."""

from __future__ import annotations

import ctypes
import struct

from gpu_monitor.sources.gpu.nvml_child import codes
from gpu_monitor.sources.gpu.nvml_child.layouts import GpmSupport
from gpu_monitor.sources.gpu.nvml_child.library import Handle, Library, argument, check

# nvmlGpmMetricId_t. The whole-GPU activity (1) stands in for the utilisation that MIG takes away.
_GRAPHICS, _SM, _TENSOR, _DRAM = 1, 2, 5, 10
ACTIVITY = {"sm_active": _SM, "tensor_active": _TENSOR, "dram_active": _DRAM}
INSTANCE_ACTIVITY = {"gpu_utilization": _GRAPHICS, **ACTIVITY}


# nvmlGpmMetricsGet_t: version, count, two samples; then nvmlGpmMetric_t: id, code, value, three texts.
_HEAD = struct.Struct("@IIPP")
_ID = struct.Struct("@I")
_ENTRY = "@IIdPPP"
_ANSWER = "4xId" + f"{struct.calcsize('@PPP')}x"  # code and value of it


class Query:
    """The structure that a set of metrics (name to id) is asked with; one serves all devices."""

    def __init__(self, wants: dict[str, int]) -> None:
        self.names = tuple(wants)
        size = struct.calcsize(_ENTRY)
        self._bytes = bytearray(_HEAD.size + size * len(wants))
        for place, number in enumerate(wants.values()):
            _ID.pack_into(self._bytes, _HEAD.size + place * size, number)
        self._answers = struct.Struct("@" + _ANSWER * len(wants))
        self.array = (ctypes.c_char * len(self._bytes)).from_buffer(self._bytes)

    def between(self, first: int, second: int) -> None:
        """Ask for the means between the samples at these two addresses."""
        _HEAD.pack_into(self._bytes, 0, 1, len(self.names), first, second)

    def answers(self) -> tuple[float, ...]:
        """Code and value of each metric, in their order."""
        return self._answers.unpack_from(self._bytes, _HEAD.size)


class Gpm:
    """The activity of one GPU, or of one GPU instance under MIG, between one reading and the next."""

    def __init__(self, library: Library, handle: Handle, query: Query, instance: int | None = None) -> None:
        self._library, self._query = library, query
        self._handle = argument(handle)
        self._instance = instance
        self._before: tuple[int, object] | None = None
        self._spare: tuple[int, object] | None = None
        self.reason = self._support()

    def _support(self) -> str | None:
        """Why the device has no GPM; None where it has. Raises DriverGone, DeviceGone."""
        support = GpmSupport(version=1)
        code = self._library.call("nvmlGpmQueryDeviceSupport", self._handle, ctypes.byref(support))
        check(code)
        return None if not code and support.supported else "unsupported"

    def _sample(self) -> tuple[int, object] | None:
        library, spare = self._library, self._spare
        if spare is None:
            made = ctypes.c_void_p()
            if library.call("nvmlGpmSampleAlloc", ctypes.byref(made)):
                return None
            # Made an argument once: ctypes would make one of it at each call.
            spare = self._spare = (made.value or 0, ctypes.c_void_p.from_param(made.value or 0))
        if self._instance is None:
            code = library.call("nvmlGpmSampleGet", self._handle, spare[1])
        else:
            code = library.call("nvmlGpmMigSampleGet", self._handle, self._instance, spare[1])
        if code:
            check(code)
            if code in codes.UNSUPPORTED:
                self.reason = "unsupported"
            elif code == codes.NO_PERMISSION:
                self.reason = "denied"
            return None
        return spare

    def read(self, values: dict[str, object], reasons: dict[str, str]) -> None:
        """Put the means since the last call into `values`; the first call has none to give."""
        sample = self._sample() if self.reason is None else None
        before = self._before
        if sample is not None:
            self._before, self._spare = sample, before
        if sample is None or before is None:
            # The first sample only begins a stretch; it is no failure, and no value either.
            reasons.update(dict.fromkeys(self._query.names, self.reason or "pending"))
            return
        query = self._query
        query.between(before[0], sample[0])
        code = self._library.call("nvmlGpmMetricsGet", query.array)
        if code:
            check(code)
        answers = query.answers()
        place = 0
        for name in query.names:
            failed = code or answers[place]
            if failed:
                reasons[name] = "unsupported" if failed in codes.UNSUPPORTED else "failed"
            else:
                values[name] = answers[place + 1]
            place += 2

    def close(self) -> None:
        """Give the samples back to the library."""
        for sample in (self._before, self._spare):
            if sample is not None:
                self._library.call("nvmlGpmSampleFree", sample[1])
        self._before = self._spare = None
