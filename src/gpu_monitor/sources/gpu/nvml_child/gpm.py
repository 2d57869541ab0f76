"""Counters of the GPU's units (GPM, Hopper and newer): means between two samples. Runs in the child."""

from __future__ import annotations

import ctypes

from gpu_monitor.sources.gpu.nvml_child import codes
from gpu_monitor.sources.gpu.nvml_child.layouts import GpmQuery, GpmSupport
from gpu_monitor.sources.gpu.nvml_child.library import Handle, Library, check

# nvmlGpmMetricId_t. The whole-GPU activity (1) stands in for the utilisation that MIG takes away.
_GRAPHICS, _SM, _TENSOR, _DRAM = 1, 2, 5, 10
ACTIVITY = {"sm_active": _SM, "tensor_active": _TENSOR, "dram_active": _DRAM}
INSTANCE_ACTIVITY = {"gpu_utilization": _GRAPHICS, **ACTIVITY}


class Query:
    """The structure that metrics are asked with; one serves all devices."""

    def __init__(self) -> None:
        self.data = GpmQuery()
        self.data.version = 1
        self.ref = ctypes.byref(self.data)


class Gpm:
    """The activity of one GPU, or of one GPU instance under MIG, between one reading and the next."""

    def __init__(
        self,
        library: Library,
        handle: Handle,
        query: Query,
        wants: dict[str, int],
        instance: int | None = None,
    ) -> None:
        self._library, self._handle, self._query, self._wants = library, handle, query, wants
        self._instance = instance
        self._before: ctypes.c_void_p | None = None
        self._spare: ctypes.c_void_p | None = None
        self.reason = self._support()

    def _support(self) -> str | None:
        """Why the device has no GPM; None where it has. Raises DriverGone, DeviceGone."""
        support = GpmSupport(version=1)
        code = self._library.call("nvmlGpmQueryDeviceSupport", self._handle, ctypes.byref(support))
        check(code)
        return None if not code and support.supported else "unsupported"

    def _sample(self) -> ctypes.c_void_p | None:
        spare = self._spare
        if spare is None:
            spare = ctypes.c_void_p()
            if self._library.call("nvmlGpmSampleAlloc", ctypes.byref(spare)):
                return None
            self._spare = spare
        if self._instance is None:
            code = self._library.call("nvmlGpmSampleGet", self._handle, spare)
        else:
            code = self._library.call("nvmlGpmMigSampleGet", self._handle, self._instance, spare)
        check(code)
        if code:
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
            reasons.update(dict.fromkeys(self._wants, self.reason or "pending"))
            return
        data = self._query.data
        data.count, data.first, data.second = len(self._wants), before, sample
        for place, number in enumerate(self._wants.values()):
            data.metrics[place].id = number
        code = self._library.call("nvmlGpmMetricsGet", self._query.ref)
        check(code)
        for place, name in enumerate(self._wants):
            failed = code or data.metrics[place].code
            if failed:
                reasons[name] = "unsupported" if failed in codes.UNSUPPORTED else "failed"
            else:
                values[name] = data.metrics[place].value

    def close(self) -> None:
        """Give the samples back to the library."""
        for sample in (self._before, self._spare):
            if sample is not None:
                self._library.call("nvmlGpmSampleFree", sample)
        self._before = self._spare = None
