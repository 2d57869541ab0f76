"""The agent as a Windows service, under NSSM (the service manager that runs any console program)."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.service.commands import NOT_FOUND, Commands
from gpu_monitor.service.configuration import Configuration, Folders
from gpu_monitor.service.port import Status
from gpu_monitor.service.program import Program
from gpu_monitor.service.steps import MakeFolder, Note, Remove, Run, Step, WriteFile

NAME = "GPU-Monitor"
# A Windows account with few rights, as the service of other systems has a user of its own.
ACCOUNT = r"NT AUTHORITY\LocalService"
# S-1-5-19 is that account in every language of Windows; M lets it change what stands in its folder.
ACCESS = "*S-1-5-19:(OI)(CI)M"

# The console's output, rotated while it runs at 10 MB; the agent's own log rotates by itself.
# Ctrl-C first, for 5 s: the agent ends within that, with everything committed.
SETTINGS: tuple[tuple[str, ...], ...] = (
    ("DisplayName", "GPU Monitor"),
    ("Description", "Flight recorder and ledger of the GPUs of this machine."),
    ("Start", "SERVICE_DELAYED_AUTO_START"),
    ("ObjectName", ACCOUNT),
    ("AppPriority", "BELOW_NORMAL_PRIORITY_CLASS"),
    ("AppNoConsole", "0"),
    ("AppStdoutCreationDisposition", "4"),
    ("AppStderrCreationDisposition", "4"),
    ("AppRotateFiles", "1"),
    ("AppRotateOnline", "1"),
    ("AppRotateBytes", "10485760"),
    ("AppStopMethodConsole", "5000"),
    ("AppStopMethodWindow", "1000"),
    ("AppStopMethodThreads", "1000"),
    ("AppExit", "Default", "Restart"),
    ("AppExit", "78", "Exit"),
    ("AppRestartDelay", "10000"),
)
HOW_TO_GET_IT = (
    "Install NSSM from nssm.cc (or: choco install nssm) so that nssm.exe is on PATH, then run this again\n"
    "  in a PowerShell that was started as administrator."
)


@dataclass(frozen=True)
class NssmPlaces:
    """Where the service keeps its files."""

    folders: Folders

    @classmethod
    def of_system(cls, program_data: Path) -> NssmPlaces:
        """The usual folder of services' data."""
        state = program_data / "gpu_monitor"
        return cls(Folders(config=state / "config.json", state=state, logs=state / "logs"))


@dataclass(frozen=True)
class NssmService:
    """The agent under NSSM."""

    places: NssmPlaces
    program: Program
    commands: Commands

    def require_possible(self, configuration: Configuration) -> None:
        """GpuMonitorError where nssm.exe is not there."""
        if self.commands.find("nssm") is None:
            raise GpuMonitorError(
                "NSSM, which runs the agent as a Windows service, is not on PATH", HOW_TO_GET_IT
            )

    def install(self, configuration: Configuration) -> list[Step]:
        """Folders, configuration, service and its settings; then start it."""
        folders = self.places.folders
        program, *arguments = self.program.argv
        if not configuration.is_default:
            arguments += ["--config", str(configuration.path)]
        console = str(folders.logs / "console.log")
        steps: list[Step] = [
            MakeFolder(folders.state),
            MakeFolder(folders.logs),
            Run(("icacls", str(folders.state), "/grant", ACCESS)),
        ]
        if configuration.new_text is not None:
            steps.append(WriteFile(folders.config, configuration.new_text, keep=True))
        if self.status().is_installed:
            steps.append(self._nssm("stop", may_fail=True))
            steps.append(self._nssm("set", "Application", program))
        else:
            steps.append(self._nssm("install", program))
        # NSSM keeps the arguments as one line of text, which the program's start-up splits again.
        own = (
            ("AppParameters", subprocess.list2cmdline(arguments)),
            ("AppDirectory", str(folders.state)),
            ("AppStdout", console),
            ("AppStderr", console),
        )
        steps += [self._nssm("set", *setting) for setting in (*own, *SETTINGS)]
        return [
            *steps,
            self._nssm("start"),
            Note(f"store: {folders.state / configuration.settings.database.file}"),
            Note(f"log: {folders.logs}"),
        ]

    def uninstall(self, purge: bool) -> list[Step]:
        """Stop and remove the service; with `purge` also store, log and configuration."""
        folders = self.places.folders
        steps: list[Step] = [
            self._nssm("stop", may_fail=True),
            self._nssm("remove", "confirm", may_fail=True),
        ]
        return [*steps, Remove(folders.state) if purge else Note(f"kept: {folders.state}")]

    def status(self) -> Status:
        """What NSSM says of the service."""
        answer = self.commands.run(("nssm", "status", NAME))
        if answer.code == NOT_FOUND:
            return Status(False, False, (f"{NAME}: NSSM is not on PATH, so nothing is known of it",))
        if answer.code != 0:
            return Status(False, False, (f"{NAME} is not installed",))
        state = answer.output.strip()
        lines = (
            f"{NAME}: {state}",
            f"  configuration: {self.places.folders.config}",
            f"  log: {self.places.folders.logs}",
        )
        return Status(True, state == "SERVICE_RUNNING", lines)

    def _nssm(self, verb: str, *words: str, may_fail: bool = False) -> Run:
        hint = f"Look at: nssm status {NAME}, and run this in a PowerShell started as administrator."
        return Run(("nssm", verb, NAME, *words), hint, may_fail)
