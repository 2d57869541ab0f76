"""Main memory and swap."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes. `used` is what cannot be had without swapping (total less available)."""

    used: int | None = None
    total: int | None = None
    swap_used: int | None = None


_WANTED = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")


def parse_meminfo(text: str) -> Memory | None:
    """The figures of /proc/meminfo; None where it lacks the estimate of available memory."""
    amounts: dict[str, int] = {}
    lines = "\n" + text
    for name in _WANTED:
        begin = lines.find(f"\n{name}:")
        if begin < 0:
            continue
        amount, *unit = lines[begin + len(name) + 2 : begin + len(name) + 40].split("\n", 1)[0].split()
        amounts[name] = int(amount) * (1024 if unit else 1)
    total, available = amounts.get("MemTotal"), amounts.get("MemAvailable")
    if total is None or available is None:
        return None
    swap, swap_free = amounts.get("SwapTotal"), amounts.get("SwapFree")
    swap_used = swap - swap_free if swap is not None and swap_free is not None else None
    return Memory(max(0, total - available), total, swap_used)


def read_memory(proc_root: str = "/proc") -> Memory:
    """Memory now; what the system does not tell is None."""
    if sys.platform.startswith("linux"):
        try:
            # One file for memory and swap; psutil reads three and warns where /proc/vmstat is hidden.
            text = Path(proc_root, "meminfo").read_text(encoding="ascii", errors="replace")
        except OSError:
            return Memory()
        if memory := parse_meminfo(text):
            return memory
    import psutil  # third-party; loaded on first use

    try:
        physical = psutil.virtual_memory()
        swap = psutil.swap_memory()
    except (psutil.Error, OSError, RuntimeError):
        return Memory()
    return Memory(int(physical.total - physical.available), int(physical.total), int(swap.used))
