"""Which machine this is and since when it runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
# ioreg and sysctl answer in milliseconds; a machine too busy for five seconds gets None.
_COMMAND_SECONDS = 5.0


def boot_id(proc_root: str = "/proc") -> str | None:
    """The random id of this boot; None where the system has none (Windows) or hides it."""
    if sys.platform == "darwin":
        return _find_uuid(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"])
    text = _read(Path(proc_root, "sys/kernel/random/boot_id"))
    return text.lower() if text is not None and _UUID.fullmatch(text) else None


def boot_time(proc_root: str = "/proc") -> float | None:
    """When this machine was started, UTC epoch seconds; None where unknown.

    It is the wall clock less the time since boot, so it moves when the wall clock is set.
    """
    for line in (_read(Path(proc_root, "stat")) or "").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    import psutil  # third-party; only needed where there is no /proc

    try:
        return float(psutil.boot_time())
    except (psutil.Error, OSError, RuntimeError):
        return None


def machine_id(files: tuple[str, ...] = _MACHINE_ID_FILES) -> str | None:
    """The id that the installed system gave itself; None where there is none to read.

    Linux: machine-id, Windows: MachineGuid, macOS: IOPlatformUUID. Cloned images share it until they
    make a new one.
    """
    if sys.platform == "win32":
        return _windows_machine_guid()
    if sys.platform == "darwin":
        return _find_uuid(["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"], "IOPlatformUUID")
    for path in files:
        text = _read(Path(path))
        # An image that has not been started yet holds the word "uninitialized".
        if text is not None and _MACHINE_ID.fullmatch(text):
            return text
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _find_uuid(command: list[str], key: str = "") -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    for line in done.stdout.splitlines():
        if key in line and (match := _UUID.search(line)):
            return match[0].lower()
    return None


def _windows_machine_guid() -> str | None:
    import winreg  # exists on Windows only

    try:
        # The 64-bit view: a 32-bit Python would otherwise be shown another, empty key.
        access = winreg.KEY_READ | winreg.KEY_WOW64_64KEY  # type: ignore[attr-defined]
        path = r"SOFTWARE\Microsoft\Cryptography"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path, access=access) as key:  # type: ignore[attr-defined]
            value, _ = winreg.QueryValueEx(key, "MachineGuid")  # type: ignore[attr-defined]
    except OSError:
        return None
    return str(value).lower() if _UUID.fullmatch(str(value)) else None
