"""Xid errors as NVML events. Runs in the child."""

from __future__ import annotations

import ctypes

from gpu_monitor.sources.gpu.nvml_child import codes
from gpu_monitor.sources.gpu.nvml_child.layouts import EventData
from gpu_monitor.sources.gpu.nvml_child.library import DriverGone, Library

_XID = 0x8  # nvmlEventTypeXidCriticalError
_MOST = 64
"""Events taken in one round; a GPU that floods is heard out over several."""


class XidEvents:
    """The Xids of all devices that can report them, since the last look."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._set: ctypes.c_void_p | None = None
        self._uids: dict[int, str] = {}
        self._data = EventData()
        self._ref = ctypes.byref(self._data)

    def watch(self, devices: list[tuple[ctypes.c_void_p, str]]) -> None:
        """Listen to these devices (handle, uid) and to no others. Raises DriverGone."""
        self.close()
        made = ctypes.c_void_p()
        code = self._library.call("nvmlEventSetCreate", ctypes.byref(made))
        if code:
            return
        self._set, self._uids = made, {}
        for handle, uid in devices:
            supported = ctypes.c_uint64()
            code = self._library.call("nvmlDeviceGetSupportedEventTypes", handle, ctypes.byref(supported))
            if code or not supported.value & _XID:
                continue
            if self._library.call("nvmlDeviceRegisterEvents", handle, ctypes.c_uint64(_XID), made) == 0:
                self._uids[handle.value or 0] = uid
        if not self._uids:
            self.close()

    def drain(self) -> list[tuple[str | None, int]]:
        """Uid and number of each Xid since the last call. Raises DriverGone."""
        found: list[tuple[str | None, int]] = []
        if self._set is None:
            return found
        for _ in range(_MOST):
            code = self._library.call("nvmlEventSetWait_v2", self._set, self._ref, 0)
            if code in codes.DRIVER_GONE:
                raise DriverGone(code)
            if code:  # a timeout: nothing more; or a device is lost, which its readings tell
                break
            if self._data.kind & _XID:
                found.append((self._uids.get(self._data.device or 0), int(self._data.data)))
        return found

    def close(self) -> None:
        """Stop listening."""
        if self._set is not None:
            self._library.call("nvmlEventSetFree", self._set)
            self._set = None
