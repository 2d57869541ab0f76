"""Why the driver cannot be used, in words, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.core.errors import NotSupported, SourceUnavailable
from gpu_monitor.sources.gpu.nvml_child import codes

NO_DRIVER = "no driver"
MISMATCH = "driver/library version mismatch"
NO_PERMISSION = "no permission to talk to the driver"
NO_GPU = "no GPU"


@dataclass(frozen=True)
class Refusal:
    """`cause` as gaps name it; `message` and `hint` for people."""

    cause: str
    message: str
    hint: str

    def error(self) -> SourceUnavailable:
        """The error that says so."""
        kind = NotSupported if self.cause in (NO_DRIVER, NO_GPU) else SourceUnavailable
        return kind(self.message, self.hint)


_CONTAINER_HINT = (
    "In a container: start it with --gpus all (needs the NVIDIA Container Toolkit) and with "
    "NVIDIA_DRIVER_CAPABILITIES containing `utility`; NVIDIA_VISIBLE_DEVICES must not be `void` or `none`."
)
_WSL_HINT = "Under WSL: install the NVIDIA driver on Windows, none inside WSL; then `wsl --shutdown`."
_INSTALL_HINT = (
    "Install the NVIDIA driver (your distribution's package, or https://www.nvidia.com/drivers) and "
    "check that `nvidia-smi` answers. To try without a GPU: gpu_monitor --simulate 8"
)


def _place_hint(root: Path) -> str:
    """The hint for where we run: a container, WSL, or a plain machine."""
    if any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv")):
        return _CONTAINER_HINT
    if (root / "dev/dxg").exists():
        return _WSL_HINT
    return _INSTALL_HINT


def refusal(code: int, root: Path = Path("/")) -> Refusal:
    """What an NVML error at the opening of the driver means."""
    if code == codes.LIBRARY_NOT_FOUND:
        return Refusal(NO_DRIVER, "no NVIDIA driver: libnvidia-ml.so.1 is not found", _place_hint(root))
    if code == codes.DRIVER_NOT_LOADED:
        hint = "`sudo modprobe nvidia` (then `dmesg | tail`), or reboot. " + _place_hint(root)
        return Refusal(NO_DRIVER, "the NVIDIA driver is installed but not loaded", hint)
    if code == codes.LIB_RM_VERSION_MISMATCH:
        hint = "The driver was upgraded while the old one is loaded: reboot, or unload and load its modules."
        return Refusal(MISMATCH, "the NVIDIA library and the loaded driver have different versions", hint)
    if code == codes.NO_PERMISSION:
        hint = (
            "Let the agent's user read and write /dev/nvidiactl and /dev/nvidia0 … (group, or DeviceAllow)."
        )
        return Refusal(NO_PERMISSION, NO_PERMISSION, hint)
    words = codes.words(code)
    return Refusal(f"driver error: {words}", f"the NVIDIA driver cannot be opened: {words}", "See `dmesg`.")


def no_gpu(root: Path = Path("/")) -> Refusal:
    """The driver answers and shows no device."""
    hint = "`lspci -d 10de:` lists what is plugged in; `dmesg` says why the driver left it. "
    return Refusal(NO_GPU, "the NVIDIA driver shows no GPU", hint + _place_hint(root))


def unavailable(cause: str) -> SourceUnavailable:
    """The error for a driver that was there and gives nothing."""
    if cause == NO_GPU:
        return no_gpu().error()
    hint = "`dmesg | grep -i -e nvrm -e xid` says what the driver met; a reboot ends most hangs."
    return SourceUnavailable(f"the NVIDIA driver gives no readings: {cause}", hint)
