"""How busy the processors are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CpuTimes:
    """Seconds since boot, summed over all processors."""

    busy: float
    total: float


def sum_times(names: Sequence[str], values: Sequence[float]) -> CpuTimes:
    """Busy and total seconds of one reading of all processors.

    Waiting for a disk (iowait) is idle time. A guest's time is in user and nice already.
    """
    by_name = dict(zip(names, values, strict=True))
    total = sum(value for name, value in by_name.items() if name not in ("guest", "guest_nice"))
    idle = by_name.get("idle", 0.0) + by_name.get("iowait", 0.0)
    return CpuTimes(total - idle, total)


def busy_percent(before: CpuTimes | None, after: CpuTimes) -> float | None:
    """Percent of the time between two readings; None for the first one, or where no time passed."""
    if before is None or after.total <= before.total:
        return None
    # The kernel's iowait can run backwards a little, which would give a shade below 0 or above 100.
    return min(100.0, max(0.0, 100.0 * (after.busy - before.busy) / (after.total - before.total)))


def load_average() -> float | None:
    """Mean number of runnable processes over the last minute; None on Windows."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
