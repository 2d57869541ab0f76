"""The agent as a systemd service, of the whole machine or of one user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.service.commands import Commands
from gpu_monitor.service.configuration import Configuration, Folders, require_readable
from gpu_monitor.service.port import Status
from gpu_monitor.service.program import Program, first_blocked
from gpu_monitor.service.steps import MakeFolder, Note, Remove, Run, Step, WriteFile
from gpu_monitor.service.unit import system_unit, user_unit

UNIT = "gpu-monitor.service"
ACCOUNT = "gpu-monitor"
SHOWN = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "Result",
    "ExecMainStatus",
    "NRestarts",
    "StatusText",
    "ActiveEnterTimestamp",
)


@dataclass(frozen=True)
class Host:
    """What the service must know of the machine."""

    is_root: bool
    user_name: str
    has_systemd: bool
    first_process: str


@dataclass(frozen=True)
class SystemdPlaces:
    """Where systemd looks for units and accounts, and where the service keeps its files."""

    unit: Path
    account: Path
    runtime: Path
    folders: Folders

    @classmethod
    def of_system(cls, root: Path = Path("/")) -> SystemdPlaces:
        """The places of the machine's own service manager."""
        return cls(
            unit=root / "etc/systemd/system" / UNIT,
            account=root / "etc/sysusers.d/gpu-monitor.conf",
            runtime=root / "run/gpu_monitor",
            folders=Folders(
                config=root / "etc/gpu_monitor/config.json",
                state=root / "var/lib/gpu_monitor",
                logs=root / "var/log/gpu_monitor",
            ),
        )

    @classmethod
    def of_user(cls, config_home: Path, state_home: Path, runtime_home: Path) -> SystemdPlaces:
        """The places of one user's service manager."""
        state = state_home / "gpu_monitor"
        return cls(
            unit=config_home / "systemd/user" / UNIT,
            account=Path(),
            runtime=runtime_home / "gpu_monitor",
            folders=Folders(config=config_home / "gpu_monitor/config.json", state=state, logs=state),
        )


@dataclass(frozen=True)
class SystemdService:
    """The agent under systemd; `is_user` says whose service manager is meant."""

    places: SystemdPlaces
    program: Program
    commands: Commands
    host: Host
    is_user: bool = False

    def require_possible(self, configuration: Configuration) -> None:
        """GpuMonitorError where systemd is not running, or where this user or program will not do."""
        if not self.host.has_systemd:
            raise GpuMonitorError(
                f"systemd does not run this machine: its first process is {self.host.first_process!r}",
                "In a container, let `gpu_monitor` be the container's command (it needs no root).\n"
                "  Under WSL, put `[boot]` and `systemd=true` into /etc/wsl.conf and restart WSL.\n"
                "  Under another init, let it run `gpu_monitor` in the foreground and restart it.",
            )
        if self.is_user:
            return
        if not self.host.is_root:
            raise GpuMonitorError(
                "installing a service of the whole machine needs root",
                f"Run: sudo {self.program.argv[0]} service install\n"
                "  or install it for yourself alone: gpu_monitor service install --user",
            )
        self.program.require_readable_by_all()
        if configuration.new_text is None:
            require_readable(configuration.path, first_blocked(configuration.path))

    def install(self, configuration: Configuration) -> list[Step]:
        """Account, folders, configuration, unit; then enable and start it."""
        return [*self._prepare(configuration), *self._start(), *self._tell(configuration)]

    def uninstall(self, purge: bool) -> list[Step]:
        """Stop, disable, remove the unit; with `purge` also store, log, configuration and account."""
        # What runs must be stopped before its unit goes; where there is no unit, nothing runs.
        must_stop = self.places.unit.exists() and (self.is_user or self.host.has_systemd)
        steps: list[Step] = [
            Run(self._systemctl("disable", "--now", UNIT), may_fail=not must_stop),
            Remove(self.places.unit),
            Run(self._systemctl("daemon-reload"), may_fail=True),
            Run(self._systemctl("reset-failed", UNIT), may_fail=True),
        ]
        folders = self.places.folders
        if not purge:
            kept = dict.fromkeys(map(str, [folders.config, *folders.owned]))
            return [*steps, Note(f"kept: {', '.join(kept)}")]
        private = [own.parent / "private" / own.name for own in folders.owned]
        steps += [Remove(path) for path in dict.fromkeys([*folders.owned, *private, self.places.runtime])]
        steps.append(Remove(folders.config.parent))
        if not self.is_user:
            steps += [Remove(self.places.account), Run(("userdel", ACCOUNT), may_fail=True)]
        return steps

    def status(self) -> Status:
        """What systemd says of the unit; the unit file alone where systemd does not answer."""
        is_written = self.places.unit.exists()
        answer = self.commands.run(self._systemctl("show", UNIT, *(f"--property={name}" for name in SHOWN)))
        if answer.code != 0:
            said = " ".join(answer.error.split()) or f"exit code {answer.code}"
            lines = (f"{UNIT}: systemd does not answer ({said})", self._file_line(is_written))
            return Status(is_written, False, lines)
        facts = dict(line.split("=", 1) for line in answer.output.splitlines() if "=" in line)
        if facts.get("LoadState") == "not-found":
            return Status(False, False, (f"{UNIT} is not installed",))
        return Status(
            True, facts.get("ActiveState") == "active", tuple(self._status_lines(facts, is_written))
        )

    def _prepare(self, configuration: Configuration) -> list[Step]:
        folders = self.places.folders
        outside = configuration.folders_outside(folders)
        steps: list[Step] = []
        is_named = not self.is_user and self.commands.find("systemd-sysusers") is not None
        if is_named:
            if self._has_dynamic_user():
                # While it runs, systemd answers for that name, and no lasting account would be made.
                steps.append(Run(self._systemctl("stop", UNIT)))
            account = f'u {ACCOUNT} - "gpu_monitor agent" {folders.state} -\n'
            steps.append(WriteFile(self.places.account, account))
            steps.append(Run(("systemd-sysusers", str(self.places.account))))
            owner = ("install", "-d", "-o", ACCOUNT, "-g", ACCOUNT)
            steps += [Run((*owner, str(folder))) for folder in outside if not folder.exists()]
        if self.is_user:
            steps += [MakeFolder(folder) for folder in (folders.state, *outside)]
        if configuration.new_text is not None:
            steps.append(MakeFolder(folders.config.parent))
            steps.append(WriteFile(folders.config, configuration.new_text, keep=True))
        # The agent finds the usual file by itself; naming it would only make it compulsory.
        named = () if configuration.is_default else ("--config", str(configuration.path))
        argv = (*self.program.argv, *named)
        text = user_unit(argv, folders.state) if self.is_user else system_unit(argv, is_named, outside)
        return [*steps, WriteFile(self.places.unit, text)]

    def _has_dynamic_user(self) -> bool:
        """Whether the unit that is there now (the shipped one, copied) has a dynamic user."""
        unit = self.places.unit
        return unit.is_file() and "\nDynamicUser=yes\n" in unit.read_text(encoding="utf-8")

    def _start(self) -> list[Step]:
        hint = f"Look at: {self._journal()} -n 30 --no-pager"
        if self.is_user:
            hint += "\n  (a service of your own needs a login session: `loginctl` must list you)"
        return [
            Run(self._systemctl("daemon-reload"), hint),
            Run(self._systemctl("enable", UNIT), hint),
            Run(self._systemctl("restart", UNIT), hint),
        ]

    def _tell(self, configuration: Configuration) -> list[Step]:
        folders, settings = self.places.folders, configuration.settings
        steps: list[Step] = [
            Note(f"store: {folders.state / settings.database.file}"),
            Note(f"log: {self._journal()}"),
        ]
        if settings.server.url is None:
            steps.append(
                Note(
                    f"it reports to nobody yet: put server.url and server.contract_number into "
                    f"{configuration.path}, then run: {' '.join(self._systemctl('restart', UNIT))}"
                )
            )
        named = [str(folder) for folder in configuration.folders_outside(folders) if folder.exists()]
        named += [settings.server.token_file] if settings.server.token_file else []
        if named and not self.is_user:
            steps.append(
                Note(f"the user {ACCOUNT} must own what the configuration names: {', '.join(named)}")
            )
        if self.is_user:
            steps.append(
                Note(f"to run it while you are logged out: loginctl enable-linger {self.host.user_name}")
            )
        return steps

    def _status_lines(self, facts: dict[str, str], is_written: bool) -> list[str]:
        state, detail = facts.get("ActiveState", "unknown"), facts.get("SubState", "")
        since = facts.get("ActiveEnterTimestamp")
        lines = [f"{UNIT}: {state} ({detail})" + (f" since {since}" if since and state == "active" else "")]
        when = "login" if self.is_user else "boot"
        lines.append(f"  starts at {when}: {'yes' if facts.get('UnitFileState') == 'enabled' else 'no'}")
        if facts.get("MainPID", "0") != "0":
            lines.append(f"  process: {facts['MainPID']}, restarted {facts.get('NRestarts', '0')} times")
        if facts.get("StatusText"):
            lines.append(f"  says: {facts['StatusText']}")
        if facts.get("Result", "success") != "success":
            lines.append(f"  last end: {facts['Result']}, exit code {facts.get('ExecMainStatus', '?')}")
        if facts.get("ExecMainStatus") == "78":
            lines.append(
                "  78 is a bad configuration: it stays down until that is mended and it is restarted"
            )
        lines += [self._file_line(is_written), f"  configuration: {self.places.folders.config}"]
        return [*lines, f"  log: {self._journal()}"]

    def _file_line(self, is_written: bool) -> str:
        return f"  unit: {self.places.unit}" + ("" if is_written else " (not there)")

    def _systemctl(self, *words: str) -> tuple[str, ...]:
        return ("systemctl", *(("--user",) if self.is_user else ()), *words)

    def _journal(self) -> str:
        return f"journalctl {'--user ' if self.is_user else ''}-u gpu-monitor"
