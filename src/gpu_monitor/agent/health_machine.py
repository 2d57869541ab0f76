"""The machine, for `gpu_monitor doctor`: NVIDIA driver and devices, kernel log, clock. Loads no driver here."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpu_monitor.agent.health import Check, Level, ok, problem, warning
from gpu_monitor.core.errors import SourceUnavailable
from gpu_monitor.core.model import Round, Span, Status
from gpu_monitor.core.ports import Source
from gpu_monitor.sources.gpu.nvml import pci
from gpu_monitor.sources.host.kernel_log import KernelLog

_LIBRARY = "libnvidia-ml.so.1"
_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "usr/lib/wsl/lib",
    "lib/x86_64-linux-gnu", "usr/local/nvidia/lib64", "run/opengl-driver/lib", "usr/local/cuda/compat",
)  # fmt: skip
"""Where distributions, WSL, container runtimes and NixOS put NVIDIA's libraries."""
_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


@dataclass(frozen=True)
class Place:
    """Where to look: the root of the file system, so that a test can make its own; `known` GPUs of before."""

    root: Path = Path("/")
    known: tuple[str, ...] = ()
    library_path: str | None = None
    """LD_LIBRARY_PATH of the agent's environment."""


@dataclass(frozen=True)
class Surroundings:
    """What kind of place this is."""

    is_container: bool
    is_wsl: bool
    cards: tuple[str, ...]
    """PCI addresses of NVIDIA display controllers, as far as they can be seen."""
    drivers: tuple[str, ...] = field(default=())
    """Kernel drivers that hold them."""


def surroundings(root: Path) -> Surroundings:
    """Look around without waking a device."""
    marks = (".dockerenv", "run/.containerenv", "run/systemd/container")
    version = (_read(root / "proc/version") or "").lower()
    cards = pci.gpus(root / "sys")
    folders = [root / "sys/bus/pci/devices" / card.address for card in cards]
    links = [(folder / "driver").readlink() for folder in folders if (folder / "driver").is_symlink()]
    return Surroundings(
        is_container=any((root / mark).exists() for mark in marks),
        is_wsl="microsoft" in version or (root / "dev/dxg").exists(),
        cards=tuple(card.address for card in cards),
        drivers=tuple(sorted({link.name for link in links})),
    )


def check_nvidia(place: Place, source: Source) -> Iterator[Check]:
    """Driver, device nodes, library, and what NVML answers (in the source's own child)."""
    seen = surroundings(place.root)
    answer = _check_answer(place, seen, source)
    if sys.platform.startswith("linux"):
        yield _check_driver(place.root, seen)
        yield from _check_nodes(place.root)
        yield from _check_library(place, answer.level is Level.OK)
    yield answer


def _check_driver(root: Path, seen: Surroundings) -> Check:
    text = _read(root / "proc/driver/nvidia/version")
    modules = _read(root / "proc/modules") or ""
    if text is not None:
        return ok("nvidia driver", text.splitlines()[0].replace("NVRM version: ", "").strip())
    if seen.is_wsl:
        return ok("nvidia driver", "WSL: the driver is the one of Windows")
    if "nouveau" in seen.drivers or any(line.startswith("nouveau ") for line in modules.splitlines()):
        advice = "Install NVIDIA's driver and blacklist nouveau, then reboot."
        return problem("nvidia driver", "the open driver nouveau holds the GPU; it gives no NVML", advice)
    if seen.cards:
        advice = "Install the NVIDIA driver, or load it: sudo modprobe nvidia"
        return problem(
            "nvidia driver", f"{len(seen.cards)} NVIDIA GPU(s) on PCI and no driver loaded", advice
        )
    where = " in this container" if seen.is_container else ""
    return ok("nvidia driver", f"none loaded{where}, and no NVIDIA GPU on PCI")


def _check_nodes(root: Path) -> Iterator[Check]:
    """/dev/nvidia*: NVML opens them for reading and writing."""
    try:
        names = sorted(entry.name for entry in (root / "dev").iterdir() if entry.name.startswith("nvidia"))
    except OSError:
        names = []
    nodes = [root / "dev" / name for name in names if (root / "dev" / name).is_char_device()]
    if not nodes:
        if (root / "proc/driver/nvidia/version").exists():
            advice = "Run: sudo nvidia-modprobe -u -c=0; in a container: --gpus all"
            yield problem("device nodes", "the driver is loaded and /dev/nvidia* is missing", advice)
        return
    shut = [str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK) and "caps" not in node.name]
    if shut:
        advice = f"Let this user read and write it: ls -l {shut[0]} shows its group"
        yield problem("device nodes", f"this user may not open {', '.join(shut)}", advice)
    else:
        yield ok("device nodes", f"{len(nodes)} /dev/nvidia* nodes can be opened")


def _check_library(place: Place, has_answer: bool) -> Iterator[Check]:
    """libnvidia-ml.so.1, and whether its version is the loaded driver's."""
    folders = [Path(one) for one in (place.library_path or "").split(":") if one]
    folders += [place.root / one for one in _LIBRARY_FOLDERS]
    found = next((folder / _LIBRARY for folder in folders if (folder / _LIBRARY).exists()), None)
    loaded = _read(place.root / "proc/driver/nvidia/version")
    if found is None:
        if loaded is not None and not has_answer:
            advice = (
                "Install the driver's compute libraries (libnvidia-compute, nvidia-driver-libs);"
                " in a container NVIDIA_DRIVER_CAPABILITIES must contain utility."
            )
            yield problem("nvidia library", f"{_LIBRARY} is not where it usually is", advice)
        return
    version = found.resolve().name.partition(".so.")[2]
    if loaded is not None and "." in version and version not in loaded:
        advice = "The driver was upgraded under the loaded one: reboot, or reload its modules."
        yield problem("nvidia library", f"{found} is {version}, the loaded driver is another", advice)
    else:
        yield ok("nvidia library", f"{found} ({version})")


def _check_answer(place: Place, seen: Surroundings, source: Source) -> Check:
    """One round of readings, in the child that may hang."""
    try:
        source.probe()
        readings = source.read(0.0, Span.FAST)
    except SourceUnavailable as error:
        return _no_answer(place, seen, error)
    finally:
        source.close()
    return _judge(readings)


def _no_answer(place: Place, seen: Surroundings, error: SourceUnavailable) -> Check:
    advice = error.hint or "Check that nvidia-smi answers."
    if seen.cards or place.known:
        before = f"; this store has recorded {len(place.known)} before" if place.known else ""
        return problem("nvml", f"{error.message}{before}", advice)
    return warning("nvml", f"{error.message}: the host alone is recorded", advice)


def _judge(readings: Round) -> Check:
    if readings.paused is not None:
        return problem("nvml", readings.paused, "dmesg | grep -i -e nvrm -e xid says what the driver met.")
    bad = [one for one in readings.devices if one.status is not Status.OK]
    asleep = [one for one in bad if one.status is Status.ASLEEP]
    text = f"{len(readings.devices) - len(bad)} of {len(readings.devices)} GPUs answer"
    if len(asleep) < len(bad):
        named = "; ".join(
            f"{one.identity.uid}: {one.cause or one.status.value}" for one in bad if one not in asleep
        )
        return problem("nvml", f"{text}; {named}", "A reset (nvidia-smi -r -i N) or a reboot may help.")
    return ok("nvml", text + (f", {len(asleep)} asleep" if asleep else ""))


def check_kernel_log(is_wanted: bool, path: str = "/dev/kmsg") -> Check:
    """Whether Xid errors can be read from the kernel log."""
    if not is_wanted:
        return ok("kernel log", "not read (collection.kernel_log is false); Xids come from the driver")
    log = KernelLog(path)
    log.close()
    if log.reason is None:
        return ok("kernel log", "readable")
    return ok("kernel log", f"{log.reason}; Xids come from the driver alone")


def check_clock() -> Check:
    """Whether something keeps the clock right, asked of the Linux kernel."""
    state = _clock_state()
    if state is None:
        return ok("clock", "cannot be told on this system")
    if state == _UNSYNCHRONISED:
        advice = "Turn on NTP: sudo timedatectl set-ntp true (or chrony); a stepped clock tears holes."
        return warning("clock", "nothing keeps it right (the kernel says: unsynchronised)", advice)
    return ok("clock", "kept right (NTP)")


def _clock_state() -> int | None:
    """The return value of adjtimex(2), which any user may ask; None where there is no such call."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    # struct timex is 208 bytes on 64-bit Linux; all zero asks and changes nothing.
    state = int(call(ctypes.create_string_buffer(512)))
    return state if state >= 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
