"""The Windows service: NSSM is a stand-in (no Windows here); the shipped script says the same settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.service.commands import Answer
from gpu_monitor.service.configuration import choose_configuration
from gpu_monitor.service.nssm import SETTINGS, NssmPlaces, NssmService
from gpu_monitor.service.program import Program
from gpu_monitor.service.steps import carry_out
from tests.fakes.commands import FakeCommands

ROOT = Path(__file__).resolve().parents[2]
NOT_INSTALLED = {"nssm status": Answer(3, error="Can't open service!")}


def make(program_data: Path, commands: FakeCommands, program: Program | None = None) -> NssmService:
    return NssmService(
        NssmPlaces.of_system(program_data), program or Program((r"C:\gpus\gpu_monitor.exe",)), commands
    )


def install(service: NssmService, config: str | None = None) -> list[str]:
    configuration = choose_configuration(config, service.places.folders)
    service.require_possible(configuration)
    carry_out(service.install(configuration), service.commands, lambda line: None)
    return service.commands.ran  # type: ignore[attr-defined]


def test_a_bare_machine_gets_the_service(tmp_path: Path) -> None:
    ran = install(make(tmp_path, FakeCommands(NOT_INSTALLED)))
    state = tmp_path / "gpu_monitor"
    assert ran[:3] == [
        "nssm status GPU-Monitor",
        f"icacls {state} /grant *S-1-5-19:(OI)(CI)M",
        r"nssm install GPU-Monitor C:\gpus\gpu_monitor.exe",
    ]
    assert ran[-1] == "nssm start GPU-Monitor"
    assert f"nssm set GPU-Monitor AppDirectory {state}" in ran
    assert "nssm set GPU-Monitor AppStopMethodConsole 5000" in ran
    assert "nssm set GPU-Monitor AppExit Default Restart" in ran
    assert "nssm set GPU-Monitor AppExit 78 Exit" in ran
    assert r"nssm set GPU-Monitor ObjectName NT AUTHORITY\LocalService" in ran
    assert (state / "config.json").is_file()
    assert (state / "logs").is_dir()


def test_arguments_become_one_line(tmp_path: Path) -> None:
    config = tmp_path / "my config.json"
    config.write_text("{}")
    program = Program((r"C:\gpus\python.exe", "-m", "gpu_monitor"))
    ran = install(make(tmp_path, FakeCommands(NOT_INSTALLED), program), str(config))
    assert r"nssm install GPU-Monitor C:\gpus\python.exe" in ran
    assert f'nssm set GPU-Monitor AppParameters -m gpu_monitor --config "{config}"' in ran


def test_installing_again_changes_the_service_that_is_there(tmp_path: Path) -> None:
    ran = install(make(tmp_path, FakeCommands({"nssm status": Answer(0, "SERVICE_RUNNING\r\n")})))
    assert "nssm stop GPU-Monitor" in ran
    assert r"nssm set GPU-Monitor Application C:\gpus\gpu_monitor.exe" in ran
    assert not any(line.startswith("nssm install") for line in ran)


def test_without_nssm_it_says_how_to_get_it(tmp_path: Path) -> None:
    service = make(tmp_path, FakeCommands(missing=["nssm"]))
    with pytest.raises(GpuMonitorError) as caught:
        install(service)
    assert "nssm.cc" in (caught.value.hint or "")
    assert not service.status().is_installed
    assert "NSSM is not on PATH" in service.status().lines[0]


@pytest.mark.parametrize(
    ("answer", "is_installed", "is_running"),
    [
        (Answer(0, "SERVICE_RUNNING\r\n"), True, True),
        (Answer(0, "SERVICE_STOPPED\r\n"), True, False),
        (Answer(3, error="Can't open service!"), False, False),
    ],
)
def test_status(tmp_path: Path, answer: Answer, is_installed: bool, is_running: bool) -> None:
    status = make(tmp_path, FakeCommands({"nssm status": answer})).status()
    assert (status.is_installed, status.is_running) == (is_installed, is_running)


@pytest.mark.parametrize("purge", [False, True])
def test_removing(tmp_path: Path, purge: bool) -> None:
    commands = FakeCommands(NOT_INSTALLED)
    service = make(tmp_path, commands)
    install(service)
    store = service.places.folders.state / "gpu_metrics.db"
    store.write_text("")
    carry_out(service.uninstall(purge), commands, lambda line: None)
    assert commands.ran[-2:] == ["nssm stop GPU-Monitor", "nssm remove GPU-Monitor confirm"]
    assert store.exists() is not purge


def test_the_shipped_script_makes_the_same_settings() -> None:
    text = (ROOT / "scripts/install-nssm.ps1").read_text(encoding="utf-8")
    made = [
        tuple(word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line))
        for line in re.findall(r"^Invoke-Nssm set \$service (.+)$", text, re.MULTILINE)
        if "$" not in line
    ]
    assert made == list(SETTINGS)
    assert '$service = "GPU-Monitor"' in text
