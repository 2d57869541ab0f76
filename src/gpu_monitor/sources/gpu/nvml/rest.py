"""Letting GPUs sleep: those that the kernel may switch off are neither woken nor kept awake by us.

An open NVML handle keeps a GPU awake, so one that has been idle for minutes is let go. If it then
sleeps, it is recorded as asleep until somebody else wakes it; if it does not (a display, another
program), it is taken up again and left longer the next time.
"""

from __future__ import annotations

from gpu_monitor.core.model import DeviceReading, Spread
from gpu_monitor.sources.gpu.nvml.pci import PciGpu, gpus
from gpu_monitor.sources.gpu.nvml.settings import NvmlSettings

SUSPENDED = "suspended by power management"
LET_GO = "let go so that it can sleep"

_LIST_SECONDS = 600.0
"""How often the PCI bus is searched: devices that may suspend are soldered into laptops."""
_FALL_ASLEEP_SECONDS = 30.0
"""The kernel's autosuspend delay is a few seconds; a GPU still awake after this is held by somebody."""
_LONGEST_WAIT_SECONDS = 3600.0


class Rest:
    """Which GPUs not to touch now. Times are of the monotonic clock; addresses as sysfs writes them."""

    def __init__(self, settings: NvmlSettings) -> None:
        self._root = settings.sys_root
        self._idle_seconds = settings.idle_release_seconds
        self._gpus: tuple[PciGpu, ...] = ()
        self._listed_at: float | None = None
        self._all: frozenset[str] = frozenset()
        self._busy_at: dict[str, float] = {}
        self._has_processes: dict[str, bool] = {}
        self._let_go_at: dict[str, float] = {}
        self._wait: dict[str, float] = {}
        self._not_before: dict[str, float] = {}

    def look(self, moment: float) -> dict[str, str]:
        """Addresses of the GPUs that sleep, or were let go so that they can, each with which of the two."""
        if self._listed_at is None or moment - self._listed_at >= _LIST_SECONDS:
            found = gpus(self._root)
            self._all = frozenset(gpu.address for gpu in found)
            self._gpus = tuple(gpu for gpu in found if gpu.may_suspend())
            self._listed_at = moment
        if not self._gpus:
            return {}
        resting = ((gpu.address, self._rests(gpu, moment)) for gpu in self._gpus)
        return {address: why for address, why in resting if why is not None}

    @property
    def all(self) -> frozenset[str]:
        """Every NVIDIA GPU on the bus; empty where the bus is not shown."""
        return self._all

    def _rests(self, gpu: PciGpu, moment: float) -> str | None:
        address = gpu.address
        if gpu.is_suspended():
            self._let_go_at.pop(address, None)
            self._busy_at.pop(address, None)
            self._wait.pop(address, None)
            return SUSPENDED
        let_go = self._let_go_at.get(address)
        if let_go is not None:
            if moment - let_go < _FALL_ASLEEP_SECONDS:
                return LET_GO
            del self._let_go_at[address]
            wait = min(self._wait.get(address, self._idle_seconds) * 2, _LONGEST_WAIT_SECONDS)
            self._wait[address] = wait
            self._not_before[address] = moment + wait
            self._busy_at[address] = moment
            return None
        if self._is_idle(address, moment):
            self._let_go_at[address] = moment
            return LET_GO
        return None

    def _is_idle(self, address: str, moment: float) -> bool:
        busy_at = self._busy_at.get(address)
        if not self._idle_seconds or busy_at is None or moment < self._not_before.get(address, 0.0):
            return False
        return moment - busy_at >= self._idle_seconds

    @property
    def is_watching(self) -> bool:
        """Whether any GPU may suspend, so that it matters which are in use."""
        return bool(self._gpus)

    def note(self, address: str, reading: DeviceReading, moment: float) -> None:
        """Take in whether a GPU is in use: idle means no utilisation and no process on it."""
        if reading.processes is not None:
            self._has_processes[address] = bool(reading.processes)
        used = reading.values.get("gpu_utilization")
        peak = used.high if isinstance(used, Spread) else used
        is_busy = not isinstance(peak, (int, float)) or peak > 0 or self._has_processes.get(address, True)
        if is_busy or address not in self._busy_at:
            self._busy_at[address] = moment
