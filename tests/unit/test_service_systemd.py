"""Installing, looking at and removing the systemd service, with systemd's commands as a stand-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_monitor.config import load
from gpu_monitor.core.errors import ConfigError, GpuMonitorError
from gpu_monitor.service.commands import Answer
from gpu_monitor.service.configuration import choose_configuration
from gpu_monitor.service.program import Program, first_blocked
from gpu_monitor.service.steps import WriteFile, carry_out
from gpu_monitor.service.systemd import Host, SystemdPlaces, SystemdService
from gpu_monitor.service.unit import shipped_unit
from tests.fakes.commands import FakeCommands

HOST = Host(is_root=True, user_name="ann", has_systemd=True, first_process="systemd")
PROGRAM = Program(("/opt/gpu_monitor/bin/gpu_monitor",))


def make(root: Path, commands: FakeCommands | None = None, host: Host = HOST) -> SystemdService:
    return SystemdService(SystemdPlaces.of_system(root), PROGRAM, commands or FakeCommands(), host)


def make_for_user(home: Path, commands: FakeCommands | None = None) -> SystemdService:
    places = SystemdPlaces.of_user(home / ".config", home / ".local/state", home / "run")
    return SystemdService(
        places, PROGRAM, commands or FakeCommands(), replace(HOST, is_root=False), is_user=True
    )


def install(service: SystemdService, config: str | None = None) -> list[str]:
    said: list[str] = []
    configuration = choose_configuration(config, service.places.folders)
    carry_out(service.install(configuration), service.commands, said.append)
    return said


def exec_start(unit: Path) -> str:
    return next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))


def test_a_bare_machine_gets_account_configuration_and_unit_and_the_service_starts(tmp_path: Path) -> None:
    commands = FakeCommands()
    said = install(make(tmp_path, commands))
    account = tmp_path / "etc/sysusers.d/gpu-monitor.conf"
    assert commands.ran == [
        f"systemd-sysusers {account}",
        "systemctl daemon-reload",
        "systemctl enable gpu-monitor.service",
        "systemctl restart gpu-monitor.service",
    ]
    config = tmp_path / "etc/gpu_monitor/config.json"
    written = json.loads(config.read_text())
    assert written["database"]["file"] == str(tmp_path / "var/lib/gpu_monitor/gpu_metrics.db")
    assert written["logging"]["file"] == str(tmp_path / "var/log/gpu_monitor/gpu_monitor.log")
    assert config.stat().st_mode & 0o777 == 0o644
    assert load.read_file(config).collection.interval_seconds == 60
    unit = tmp_path / "etc/systemd/system/gpu-monitor.service"
    assert exec_start(unit) == "ExecStart=/opt/gpu_monitor/bin/gpu_monitor"
    assert "User=gpu-monitor\nGroup=gpu-monitor\n" in unit.read_text()
    assert f"wrote {unit}" in said
    assert any("reports to nobody yet" in line for line in said)


def test_installing_again_keeps_the_configuration_and_makes_the_unit_anew(tmp_path: Path) -> None:
    service = make(tmp_path)
    install(service)
    config = tmp_path / "etc/gpu_monitor/config.json"
    config.write_text('{"server": {"url": "https://example.com/api/metrics", "contract_number": "12345"}}')
    unit = service.places.unit
    fresh = unit.read_text()
    unit.write_text("# spoiled\n")
    said = install(service)
    assert "example.com" in config.read_text()
    assert unit.read_text() == fresh
    assert f"replaced {unit}" in said
    assert not any("reports to nobody" in line for line in said)


def test_a_copied_unit_is_stopped_before_its_user_is_made(tmp_path: Path) -> None:
    """systemd-sysusers makes no account of a name that a running dynamic user has (seen with systemd 252)."""
    commands = FakeCommands()
    service = make(tmp_path, commands)
    service.places.unit.parent.mkdir(parents=True)
    service.places.unit.write_text(shipped_unit())
    install(service)
    assert commands.ran[0] == "systemctl stop gpu-monitor.service"
    assert commands.ran[1].startswith("systemd-sysusers ")
    commands.ran.clear()
    install(service)
    assert commands.ran[0].startswith("systemd-sysusers ")


def test_a_configuration_of_ones_own_is_named_and_its_folders_made_writable(tmp_path: Path) -> None:
    store = tmp_path / "srv" / "gpus"
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"database": {"file": str(store / "store.db")}, "logging": {"file": "x.log"}}))
    commands = FakeCommands()
    install(make(tmp_path / "root", commands), str(mine))
    unit = (tmp_path / "root/etc/systemd/system/gpu-monitor.service").read_text()
    assert f"ExecStart=/opt/gpu_monitor/bin/gpu_monitor --config {mine}\n" in unit
    assert f"ReadWritePaths={store}\n" in unit
    assert f"install -d -o gpu-monitor -g gpu-monitor {store}" in commands.ran
    assert not (tmp_path / "root/etc/gpu_monitor/config.json").exists()


def test_a_bad_configuration_stops_the_installation_before_it_begins(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"collection": {"interval_second": 60}}')
    commands = FakeCommands()
    with pytest.raises(ConfigError, match="interval_seconds"):
        install(make(tmp_path, commands), str(bad))
    with pytest.raises(ConfigError, match=r"there is no configuration file .*absent\.json"):
        install(make(tmp_path, commands), str(tmp_path / "absent.json"))
    assert commands.ran == []


def test_without_sysusers_the_service_gets_a_dynamic_user(tmp_path: Path) -> None:
    commands = FakeCommands(missing=["systemd-sysusers"])
    install(make(tmp_path, commands))
    assert commands.ran[0] == "systemctl daemon-reload"
    assert not (tmp_path / "etc/sysusers.d").exists()
    assert "\nDynamicUser=yes\n" in (tmp_path / "etc/systemd/system/gpu-monitor.service").read_text()


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_systemd_makes_the_account_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    service = make(Path("/"))
    steps = service.install(choose_configuration(None, make(tmp_path).places.folders))
    account = next(step for step in steps if isinstance(step, WriteFile) and "sysusers" in str(step.path))
    conf = tmp_path / "gpu-monitor.conf"
    conf.write_text(account.text)
    asked = ["systemd-sysusers", f"--root={tmp_path}", str(conf)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode != 0 and os.geteuid() != 0:
        pytest.skip(f"systemd-sysusers wants root here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    name, _, _, _, _, home, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert (name, home) == ("gpu-monitor", "/var/lib/gpu_monitor")
    assert shell.endswith("nologin")


def test_a_failed_start_says_where_to_look(tmp_path: Path) -> None:
    failed = Answer(1, error="Job for gpu-monitor.service failed.\nSee systemctl status.")
    commands = FakeCommands({"systemctl restart": failed})
    with pytest.raises(GpuMonitorError) as caught:
        install(make(tmp_path, commands))
    assert "Job for gpu-monitor.service failed." in caught.value.message
    assert "journalctl -u gpu-monitor" in (caught.value.hint or "")


def test_a_user_gets_a_service_without_root(tmp_path: Path) -> None:
    commands = FakeCommands()
    said = install(make_for_user(tmp_path, commands))
    assert commands.ran == [
        "systemctl --user daemon-reload",
        "systemctl --user enable gpu-monitor.service",
        "systemctl --user restart gpu-monitor.service",
    ]
    state = tmp_path / ".local/state/gpu_monitor"
    assert state.is_dir()
    assert f"WorkingDirectory={state}" in (tmp_path / ".config/systemd/user/gpu-monitor.service").read_text()
    written = json.loads((tmp_path / ".config/gpu_monitor/config.json").read_text())
    assert written["database"]["file"] == str(state / "gpu_metrics.db")
    assert any("loginctl enable-linger ann" in line for line in said)


@pytest.mark.parametrize(
    ("host", "message", "hint"),
    [
        (replace(HOST, has_systemd=False, first_process="tini"), "first process is 'tini'", "In a container"),
        (replace(HOST, is_root=False), "needs root", "sudo /opt/gpu_monitor/bin/gpu_monitor service install"),
    ],
)
def test_what_cannot_work_here_is_said_with_what_to_do(
    tmp_path: Path, host: Host, message: str, hint: str
) -> None:
    service = make(tmp_path, host=host)
    with pytest.raises(GpuMonitorError) as caught:
        service.require_possible(choose_configuration(None, service.places.folders))
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_the_first_closed_part_of_a_path_is_found(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "gpu_monitor"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    link = tmp_path / "gpu_monitor"
    link.symlink_to(program)
    assert first_blocked(program, below=home) is None
    home.chmod(0o700)
    assert first_blocked(program, below=home) == home
    assert first_blocked(link, below=home) == home, "a link does not open what it leads to"
    home.chmod(0o711)
    assert first_blocked(link, below=home) is None, "entering needs no reading"
    program.chmod(0o750)
    assert first_blocked(link, below=home) == program
    assert first_blocked(Path("/etc/passwd")) is None


def test_a_program_or_file_the_services_user_cannot_read_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.write_text("{}")
    closed.chmod(0o600)
    service = make(tmp_path)
    with pytest.raises(GpuMonitorError, match="closed to other users") as caught:
        replace(service, program=Program(("run",), (closed,))).require_possible(
            choose_configuration(None, service.places.folders)
        )
    assert "/opt/gpu_monitor" in (caught.value.hint or "")
    readable = replace(service, program=Program(("/etc/passwd",), (Path("/etc/passwd"),)))
    readable.require_possible(choose_configuration(None, service.places.folders))
    with pytest.raises(ConfigError, match=f"cannot read {closed}"):
        readable.require_possible(choose_configuration(str(closed), service.places.folders))


SHOWN = """LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
MainPID=4242
Result=success
ExecMainStatus=0
NRestarts=2
StatusText=8 GPUs, last sample 12:00:00 UTC, a=b
ActiveEnterTimestamp=Wed 2024-03-20 14:30:00 UTC
"""


def test_status_of_a_running_service(tmp_path: Path) -> None:
    commands = FakeCommands({"systemctl show": Answer(0, SHOWN)})
    service = make(tmp_path, commands)
    status = service.status()
    assert status.is_installed
    assert status.is_running
    text = "\n".join(status.lines)
    assert "active (running) since Wed 2024-03-20 14:30:00 UTC" in text
    assert "starts at boot: yes" in text
    assert "process: 4242, restarted 2 times" in text
    assert "says: 8 GPUs, last sample 12:00:00 UTC, a=b" in text


def test_status_of_one_that_stays_down(tmp_path: Path) -> None:
    facts = (
        SHOWN.replace("=active", "=failed").replace("Status=0", "Status=78").replace("success", "exit-code")
    )
    status = make(tmp_path, FakeCommands({"systemctl show": Answer(0, facts)})).status()
    assert status.is_installed
    assert not status.is_running
    assert any("78 is a bad configuration" in line for line in status.lines)


def test_status_where_nothing_is_installed_or_systemd_is_not_there(tmp_path: Path) -> None:
    absent = make(tmp_path, FakeCommands({"systemctl show": Answer(0, "LoadState=not-found\n")})).status()
    assert not absent.is_installed
    silent = make(tmp_path, FakeCommands({"systemctl show": Answer(1, error="Host is down")}))
    assert not silent.status().is_installed
    assert "Host is down" in silent.status().lines[0]
    silent.places.unit.parent.mkdir(parents=True)
    silent.places.unit.write_text("")
    assert silent.status().is_installed
    assert not silent.status().is_running


def fill_folders(service: SystemdService) -> list[Path]:
    """Something recorded in every folder of the service."""
    folders = service.places.folders
    files = [folders.state / "gpu_metrics.db", folders.logs / "gpu_monitor.log", folders.config]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return files


def test_removing_keeps_what_was_recorded(tmp_path: Path) -> None:
    commands = FakeCommands()
    service = make(tmp_path, commands)
    install(service)
    files = fill_folders(service)
    commands.ran.clear()
    said: list[str] = []
    carry_out(service.uninstall(purge=False), commands, said.append)
    assert commands.ran == [
        "systemctl disable --now gpu-monitor.service",
        "systemctl daemon-reload",
        "systemctl reset-failed gpu-monitor.service",
    ]
    assert not service.places.unit.exists()
    assert all(path.exists() for path in files)
    assert str(service.places.folders.state) in said[-1]


def test_a_service_that_does_not_stop_is_not_removed(tmp_path: Path) -> None:
    commands = FakeCommands({"systemctl disable": Answer(1, error="timed out")})
    service = make(tmp_path, commands)
    install(service)
    with pytest.raises(GpuMonitorError, match="timed out"):
        carry_out(service.uninstall(purge=True), commands, lambda line: None)
    assert service.places.unit.exists()


def test_purging_takes_everything_the_dynamic_users_folders_too(tmp_path: Path) -> None:
    commands = FakeCommands()
    service = make(tmp_path, commands)
    install(service)
    files = fill_folders(service)
    private = tmp_path / "var/lib/private/gpu_monitor"
    private.mkdir(parents=True)
    carry_out(service.uninstall(purge=True), commands, lambda line: None)
    assert not any(path.exists() for path in (*files, private, service.places.account))
    assert commands.ran[-1] == "userdel gpu-monitor"
    assert (tmp_path / "var/lib").is_dir()


def test_purging_a_users_service_touches_no_account(tmp_path: Path) -> None:
    commands = FakeCommands()
    service = make_for_user(tmp_path, commands)
    install(service)
    files = fill_folders(service)
    carry_out(service.uninstall(purge=True), commands, lambda line: None)
    assert not any(path.exists() for path in files)
    assert not any(line.startswith("userdel") for line in commands.ran)
    assert (tmp_path / ".config").is_dir()
