"""How the NVML source behaves; every default with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpu_monitor.core.model import Identity


@dataclass(frozen=True)
class NvmlSettings:
    """Seconds are of the monotonic clock.

    `known`: devices from earlier runs, so that one that sleeps or hangs at the start has its name.
    `environment`: added to the child's.
    """

    deadline_seconds: float = 5.0
    """A round takes milliseconds; a driver that needs seconds for it is stuck in its firmware's timeouts."""
    init_seconds: float = 20.0
    """Without persistence mode eight GPUs are set up one after the other, a second or two each."""
    grace_seconds: float = 1.0
    """What a replacement for a hung child may take of the same round, and a killed one to be gone."""
    probe_seconds: float = 600.0
    """How often a GPU whose hung call could be ended is tried again."""
    relook_seconds: float = 60.0
    """How often the driver is opened anew while a device is lost."""
    idle_release_seconds: float = 300.0
    """A GPU that may suspend is let go after this long without work; 0: never."""
    longest_backoff_seconds: float = 60.0
    crashes_to_skip: int = 3
    """So many crashes in a row at the same GPU, and it is left alone like one that hangs."""
    sys_root: Path = Path("/sys")
    proc_root: Path = Path("/proc")
    known: tuple[Identity, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
