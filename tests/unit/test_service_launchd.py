"""The launchd job: the files are parsed back, launchctl is a stand-in (no macOS here)."""

from __future__ import annotations

import plistlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.service.commands import Answer
from gpu_monitor.service.configuration import choose_configuration
from gpu_monitor.service.launchd import LaunchdPlaces, LaunchdService, shipped_plist
from gpu_monitor.service.program import Program
from gpu_monitor.service.steps import carry_out
from tests.fakes.commands import FakeCommands

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Program(("/opt/gpu & co/bin/gpu_monitor",))
LABEL = "com.targoman.gpu-monitor"


def make(home: Path, commands: FakeCommands) -> LaunchdService:
    return LaunchdService(LaunchdPlaces.of_user(home, 501), PROGRAM, commands, is_root=False, is_user=True)


def install(service: LaunchdService) -> None:
    configuration = choose_configuration(None, service.places.folders)
    carry_out(service.install(configuration), service.commands, lambda line: None)


def test_the_shipped_file_is_the_rendered_one() -> None:
    shipped = (ROOT / "scripts" / f"{LABEL}.plist").read_text(encoding="utf-8")
    assert shipped == shipped_plist(), "render it anew: scripts/check --fix"


def test_the_shipped_job_is_kept_alive_out_of_the_way() -> None:
    job = plistlib.loads(shipped_plist().encode())
    assert job["Label"] == LABEL
    assert job["RunAtLoad"] is True
    assert job["KeepAlive"] is True
    assert job["ProcessType"] == "Background"
    assert job["ExitTimeOut"] > 5
    assert job["Umask"] == 18  # 022 octal


@pytest.mark.skipif(sys.platform == "win32", reason="the job is started by /bin/sh")
def test_the_shipped_job_finds_the_program_and_makes_its_folder(tmp_path: Path) -> None:
    """The command line as launchd would start it, with a program that says where it is."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "gpu_monitor").write_text("#!/bin/sh\npwd\necho trouble >&2\n")
    (tools / "gpu_monitor").chmod(0o755)
    (tmp_path / "home dir/Library/Logs").mkdir(parents=True)
    job = plistlib.loads(shipped_plist().encode())
    path = f"{tools}:{job['EnvironmentVariables']['PATH']}"
    done = subprocess.run(
        job["ProgramArguments"],
        env={"HOME": str(tmp_path / "home dir"), "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    state = tmp_path / "home dir/Library/Application Support/gpu_monitor"
    assert done.stdout.strip() == str(state.resolve())
    assert (tmp_path / "home dir/Library/Logs/gpu_monitor.err.log").read_text() == "trouble\n"


def test_a_user_gets_an_agent(tmp_path: Path) -> None:
    commands = FakeCommands()
    service = make(tmp_path, commands)
    install(service)
    plist = tmp_path / "Library/LaunchAgents" / f"{LABEL}.plist"
    assert commands.ran == [
        f"launchctl bootout gui/501/{LABEL}",
        f"launchctl enable gui/501/{LABEL}",
        f"launchctl bootstrap gui/501 {plist}",
    ]
    job = plistlib.loads(plist.read_bytes())
    assert job["ProgramArguments"] == ["/opt/gpu & co/bin/gpu_monitor"]
    state = tmp_path / "Library/Application Support/gpu_monitor"
    assert job["WorkingDirectory"] == str(state)
    assert (state / "config.json").is_file()
    assert Path(job["StandardErrorPath"]).parent.is_dir()


def test_root_gets_a_daemon_of_the_machine(tmp_path: Path) -> None:
    commands = FakeCommands()
    service = LaunchdService(LaunchdPlaces.of_system(tmp_path), PROGRAM, commands, is_root=True)
    service.require_possible(choose_configuration(None, service.places.folders))
    install(service)
    plist = tmp_path / "Library/LaunchDaemons" / f"{LABEL}.plist"
    assert f"launchctl bootstrap system {plist}" in commands.ran
    assert (tmp_path / "etc/gpu_monitor/config.json").is_file()


def test_who_may_not_is_told_what_to_do(tmp_path: Path) -> None:
    service = make(tmp_path, FakeCommands())
    configuration = choose_configuration(None, service.places.folders)
    service.require_possible(configuration)
    with pytest.raises(GpuMonitorError, match="no login session"):
        replace(service, is_root=True).require_possible(configuration)
    with pytest.raises(GpuMonitorError, match="needs root"):
        replace(service, is_user=False).require_possible(configuration)


PRINTED = """com.targoman.gpu-monitor = {
\tactive count = 1
\tstate = running
\tpid = 812
\tlast exit code = (never exited)
}
"""


@pytest.mark.parametrize(
    ("answer", "is_running", "line"),
    [
        (Answer(0, PRINTED), True, "  process: 812"),
        (
            Answer(0, PRINTED.replace("\tpid = 812\n", "").replace("(never exited)", "78")),
            False,
            "  last exit code: 78",
        ),
        (Answer(113, error="Could not find service"), False, f"{LABEL}: not loaded"),
    ],
)
def test_status(tmp_path: Path, answer: Answer, is_running: bool, line: str) -> None:
    service = make(tmp_path, FakeCommands({"launchctl print": answer}))
    install(service)
    status = service.status()
    assert status.is_installed
    assert status.is_running is is_running
    assert line in status.lines


def test_status_where_nothing_is_installed(tmp_path: Path) -> None:
    service = make(tmp_path, FakeCommands({"launchctl print": Answer(113)}))
    assert not service.status().is_installed


@pytest.mark.parametrize("purge", [False, True])
def test_removing(tmp_path: Path, purge: bool) -> None:
    commands = FakeCommands()
    service = make(tmp_path, commands)
    install(service)
    store = service.places.folders.state / "gpu_metrics.db"
    store.write_text("")
    carry_out(service.uninstall(purge), commands, lambda line: None)
    assert commands.ran[-1] == f"launchctl bootout gui/501/{LABEL}"
    assert not service.places.plist.exists()
    assert store.exists() is not purge
