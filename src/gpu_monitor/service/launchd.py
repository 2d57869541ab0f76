"""The agent as a launchd job: an agent of one user, or a daemon of the whole machine."""

from __future__ import annotations

import plistlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.service.commands import Commands
from gpu_monitor.service.configuration import Configuration, Folders
from gpu_monitor.service.port import Status
from gpu_monitor.service.program import Program
from gpu_monitor.service.steps import MakeFolder, Note, Remove, Run, Step, WriteFile

LABEL = "com.targoman.gpu-monitor"
FILE_NAME = LABEL + ".plist"

# launchd knows no "~" and gives a job a short PATH, so the shipped file lets a shell find both.
SHIPPED_COMMAND = (
    'state="$HOME/Library/Application Support/gpu_monitor" && mkdir -p "$state" && cd "$state" && '
    'exec gpu_monitor 2>>"$HOME/Library/Logs/gpu_monitor.err.log"'
)
SHIPPED_PATH = "/opt/homebrew/bin:/usr/local/bin:/opt/gpu_monitor/bin:/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class LaunchdPlaces:
    """Where launchd looks for the job, under which domain it runs, and where it keeps its files."""

    plist: Path
    domain: str
    folders: Folders

    @classmethod
    def of_system(cls, root: Path = Path("/")) -> LaunchdPlaces:
        """A daemon of the whole machine."""
        state = root / "Library/Application Support/gpu_monitor"
        folders = Folders(root / "etc/gpu_monitor/config.json", state, root / "Library/Logs/gpu_monitor")
        return cls(root / "Library/LaunchDaemons" / FILE_NAME, "system", folders)

    @classmethod
    def of_user(cls, home: Path, user_id: int) -> LaunchdPlaces:
        """An agent of one user, who must be logged in for it to run."""
        state = home / "Library/Application Support/gpu_monitor"
        folders = Folders(state / "config.json", state, home / "Library/Logs/gpu_monitor")
        return cls(home / "Library/LaunchAgents" / FILE_NAME, f"gui/{user_id}", folders)


def shipped_plist() -> str:
    """The file in scripts/: for any user, started as `gpu_monitor` wherever that is on the usual paths."""
    return _plist(["/bin/sh", "-c", SHIPPED_COMMAND], {"EnvironmentVariables": {"PATH": SHIPPED_PATH}})


def installed_plist(argv: Sequence[str], folders: Folders) -> str:
    """The file that `service install` writes, with absolute paths."""
    console = str(folders.logs / "gpu_monitor.err.log")
    return _plist(
        list(argv),
        {
            "WorkingDirectory": str(folders.state),
            "StandardErrorPath": console,
            "StandardOutPath": console,
        },
    )


def _plist(argv: list[str], more: dict[str, Any]) -> str:
    job: dict[str, Any] = {
        "Label": LABEL,
        "ProgramArguments": argv,
        "RunAtLoad": True,
        "KeepAlive": True,
        # launchd cannot tell a bad configuration (exit code 78) from a crash: it tries again, slowly.
        "ThrottleInterval": 30,
        # The agent needs at most 5 s after SIGTERM; what does not end by itself is killed.
        "ExitTimeOut": 10,
        "ProcessType": "Background",
        "LowPriorityIO": True,
        "Nice": 5,
        "Umask": 0o022,
        "SoftResourceLimits": {"NumberOfFiles": 512, "Core": 0},
        **more,
    }
    return plistlib.dumps(job, sort_keys=False).decode()


@dataclass(frozen=True)
class LaunchdService:
    """The agent under launchd."""

    places: LaunchdPlaces
    program: Program
    commands: Commands
    is_root: bool
    is_user: bool = False

    def require_possible(self, configuration: Configuration) -> None:
        """GpuMonitorError where this user may not install what was asked for."""
        if self.is_user and self.is_root:
            raise GpuMonitorError(
                "root has no login session to run an agent in",
                "Leave --user out for a daemon of the whole machine, or run this without sudo.",
            )
        if not self.is_user and not self.is_root:
            raise GpuMonitorError(
                "installing a daemon of the whole machine needs root",
                f"Run: sudo {self.program.argv[0]} service install\n"
                "  or install it for yourself alone: gpu_monitor service install --user",
            )

    def install(self, configuration: Configuration) -> list[Step]:
        """Folders, configuration, job file; then start it, now and at each boot or login."""
        folders = self.places.folders
        named = () if configuration.is_default else ("--config", str(configuration.path))
        steps: list[Step] = [MakeFolder(folders.state), MakeFolder(folders.logs)]
        if configuration.new_text is not None:
            steps.append(MakeFolder(folders.config.parent))
            steps.append(WriteFile(folders.config, configuration.new_text, keep=True))
        hint = f"Look at: launchctl print {self._target()}, and at {folders.logs}/gpu_monitor.err.log"
        return [
            *steps,
            WriteFile(self.places.plist, installed_plist((*self.program.argv, *named), folders)),
            Run(("launchctl", "bootout", self._target()), may_fail=True),
            Run(("launchctl", "enable", self._target()), hint),
            Run(("launchctl", "bootstrap", self.places.domain, str(self.places.plist)), hint),
            Note(f"store: {folders.state / configuration.settings.database.file}"),
            Note(f"log: {folders.logs}"),
        ]

    def uninstall(self, purge: bool) -> list[Step]:
        """Stop and remove the job; with `purge` also store, log and configuration."""
        folders = self.places.folders
        steps: list[Step] = [
            Run(("launchctl", "bootout", self._target()), may_fail=True),
            Remove(self.places.plist),
        ]
        if not purge:
            return [*steps, Note(f"kept: {folders.config}, {folders.state}, {folders.logs}")]
        owned = dict.fromkeys([*folders.owned, folders.config.parent])
        return [*steps, *(Remove(path) for path in owned)]

    def status(self) -> Status:
        """What launchd says of the job."""
        is_written = self.places.plist.exists()
        answer = self.commands.run(("launchctl", "print", self._target()))
        if answer.code != 0 and not is_written:
            return Status(False, False, (f"{LABEL} is not installed",))
        process = re.search(r"^\s*pid = (\d+)", answer.output, re.MULTILINE)
        ended = re.search(r"^\s*last exit code = (.+)$", answer.output, re.MULTILINE)
        state = "running" if process else "not loaded" if answer.code != 0 else "not running"
        lines = [f"{LABEL}: {state}"]
        if process:
            lines.append(f"  process: {process[1]}")
        elif ended:
            lines.append(f"  last exit code: {ended[1]}")
        lines.append(f"  job: {self.places.plist}" + ("" if is_written else " (not there)"))
        lines.append(f"  configuration: {self.places.folders.config}")
        lines.append(f"  log: {self.places.folders.logs}")
        return Status(True, process is not None, tuple(lines))

    def _target(self) -> str:
        return f"{self.places.domain}/{LABEL}"
