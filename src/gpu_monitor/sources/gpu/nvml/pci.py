"""What Linux says about NVIDIA's PCI devices without waking any of them. Reads files only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_NVIDIA = "0x10de"
_DISPLAY = "0x03"  # PCI base class 3: VGA, 3D and other display controllers


def canonical(address: str) -> str:
    """A PCI address as sysfs writes it: NVML pads the domain to eight digits and uses capitals."""
    domain, _, rest = address.strip().lower().partition(":")
    try:
        return f"{int(domain, 16):04x}:{rest}"
    except ValueError:
        return address.strip().lower()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def bound_addresses(sys_root: Path, proc_root: Path) -> tuple[str, ...]:
    """Addresses of the GPUs that the NVIDIA driver holds, sorted as NVML counts them; empty where unknown.

    Only names of directories are read: looking into them may make the driver talk to the GPU.
    """
    for folder in (proc_root / "driver/nvidia/gpus", sys_root / "bus/pci/drivers/nvidia"):
        try:
            found = [canonical(entry.name) for entry in folder.iterdir() if entry.name.count(":") == 2]
        except OSError:
            continue
        if found:
            return tuple(sorted(found))
    return ()


@dataclass(frozen=True)
class PciGpu:
    """One NVIDIA GPU on the PCI bus; `power` is its folder of power management files."""

    address: str
    power: Path

    def may_suspend(self) -> bool:
        """Whether the kernel is allowed to switch it off while nobody uses it."""
        return _read(self.power / "control") == "auto"

    def is_suspended(self) -> bool:
        """Whether it is switched off now."""
        return _read(self.power / "runtime_status") == "suspended"


def gpus(sys_root: Path) -> tuple[PciGpu, ...]:
    """The NVIDIA GPUs on the PCI bus; empty where there is no such list (not Linux, some containers)."""
    try:
        folders = sorted((sys_root / "bus/pci/devices").iterdir())
    except OSError:
        return ()
    return tuple(
        PciGpu(canonical(folder.name), folder / "power")
        for folder in folders
        if _read(folder / "vendor") == _NVIDIA and (_read(folder / "class") or "").startswith(_DISPLAY)
    )
