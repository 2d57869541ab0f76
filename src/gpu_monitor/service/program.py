"""The program a service starts, and whether the service's own user can reach it."""

from __future__ import annotations

import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import gpu_monitor
from gpu_monitor.core.errors import GpuMonitorError


@dataclass(frozen=True)
class Program:
    """The command that starts the agent, and the paths it is read from."""

    argv: tuple[str, ...]
    read_from: tuple[Path, ...] = ()

    def require_readable_by_all(self) -> None:
        """GpuMonitorError with the first path on the way that a service user cannot enter or read."""
        for path in self.read_from:
            blocked = first_blocked(path)
            if blocked is not None:
                raise GpuMonitorError(
                    f"the service's own user cannot run {path}: {blocked} is closed to other users",
                    "Install the program where everybody may read it, for example:\n"
                    "    python3 -m venv /opt/gpu_monitor\n"
                    "    /opt/gpu_monitor/bin/pip install THE CHECKOUT OR WHEEL   (not with -e)\n"
                    "    /opt/gpu_monitor/bin/gpu_monitor service install\n"
                    "  or run it as your own user: gpu_monitor service install --user",
                )


def this_program() -> Program:
    """The program that runs now, as a service would start it."""
    name = "gpu_monitor.exe" if sys.platform == "win32" else "gpu_monitor"
    script = Path(sys.executable).with_name(name)
    argv = (str(script),) if script.is_file() else (sys.executable, "-m", "gpu_monitor")
    package = Path(gpu_monitor.__file__).parent
    return Program(argv, (Path(argv[0]), Path(sys.executable), Path(sys.base_prefix), package))


def first_blocked(path: Path, below: Path = Path("/")) -> Path | None:
    """The first part of a path, below a folder, that others than its owner and group may not enter or read.

    Links are followed, and both what they stand in and what they lead to are looked at. None: all may.
    """
    for way in (path.resolve(), path.absolute()):
        for part in (*reversed(way.parents), way):
            mode = part.stat().st_mode
            needed = stat.S_IXOTH if stat.S_ISDIR(mode) and part != way else stat.S_IROTH
            if not mode & needed and part.is_relative_to(below):
                return part
    return None
