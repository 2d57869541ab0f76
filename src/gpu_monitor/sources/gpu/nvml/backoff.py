"""When the driver is opened again after it could not be: 1, 2, 4 … 60 seconds, then when something changed."""

from __future__ import annotations

from pathlib import Path

from gpu_monitor.sources.gpu.nvml.settings import NvmlSettings

_UNCHANGED_SECONDS = 600.0
"""A machine without a driver is not asked each minute: starting a child costs as much as days of readings."""
_TRACES = (
    "proc/driver/nvidia/version",
    "dev/nvidiactl",
    "dev/dxg",  # WSL
    "etc/ld.so.cache",
    "usr/lib/wsl/lib/libnvidia-ml.so.1",
)


class Backoff:
    """Times are of the monotonic clock. `cause` is why we wait."""

    def __init__(self, settings: NvmlSettings, root: Path = Path("/")) -> None:
        self._longest = settings.longest_backoff_seconds
        self._root = root
        self._failures = 0
        self._next = 0.0
        self._traces: tuple[float | None, ...] | None = None
        self.cause = ""

    def may_try(self, moment: float) -> bool:
        """Whether it is time, or a driver came or went since it was refused."""
        if moment >= self._next:
            return True
        return self._traces is not None and self._traces != self._look()

    def failed(self, moment: float, cause: str) -> bool:
        """A child ended by itself. True where a fresh one may be started at once: the first time."""
        self._failures += 1
        self._traces = None
        self._wait(moment, cause, min(self._longest, 2.0 ** (self._failures - 2)))
        return self._failures == 1

    def refused(self, moment: float, cause: str) -> bool:
        """The driver cannot be opened. True where that is news."""
        is_news = self.cause != cause
        self._failures += 1
        seconds = min(self._longest, 2.0 ** (self._failures - 1))
        self._traces = self._look() if seconds >= self._longest else None
        self._wait(moment, cause, seconds if self._traces is None else _UNCHANGED_SECONDS)
        return is_news

    def hold(self, moment: float, cause: str, seconds: float) -> None:
        """Do not try for so long."""
        self._traces = None
        self._wait(moment, cause, seconds)

    def _wait(self, moment: float, cause: str, seconds: float) -> None:
        self._next, self.cause = moment + seconds, cause

    def worked(self) -> None:
        """A round was read: the next failure is the first again."""
        self._failures, self._next, self._traces, self.cause = 0, 0.0, None, ""

    def _look(self) -> tuple[float | None, ...]:
        return tuple(_changed_at(self._root / trace) for trace in _TRACES)


def _changed_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
