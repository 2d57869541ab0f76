"""The systemd unit in its renderings: what stands in it, what systemd itself says of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gpu_monitor.service.template import fill
from gpu_monitor.service.unit import exec_line, shipped_unit, system_unit, user_unit

ROOT = Path(__file__).resolve().parents[2]
ANALYZE = shutil.which("systemd-analyze")
needs_systemd_analyze = pytest.mark.skipif(
    ANALYZE is None, reason="systemd-analyze is not installed: nobody checks the units (apt install systemd)"
)

# A program that is there, so that systemd's own check of the file has nothing else to say.
PROGRAM = shutil.which("true") or "/bin/true"
SYSTEM_UNITS = {
    "shipped": shipped_unit().replace("/usr/local/bin/gpu_monitor", PROGRAM),
    "named user": system_unit([PROGRAM], is_named=True, extra_paths=[]),
    "other folders": system_unit([PROGRAM, "--config", "/srv/my gpus/c.json"], True, [Path("/srv/my gpus")]),
    "dynamic user": system_unit([PROGRAM], is_named=False, extra_paths=[]),
}


def settings(unit: str) -> dict[str, list[str]]:
    """Every setting of a unit with its values in order."""
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def test_the_shipped_file_is_the_rendered_one() -> None:
    shipped = (ROOT / "scripts/gpu-monitor.service").read_text(encoding="utf-8")
    assert shipped == shipped_unit(), "render it anew: scripts/check --fix"


@pytest.mark.parametrize("name", SYSTEM_UNITS)
def test_a_system_unit_promises(name: str) -> None:
    found = settings(SYSTEM_UNITS[name])
    assert found["Type"] == ["notify"]
    assert int(found["WatchdogSec"][0]) > 0
    assert found["Restart"] == ["always"]
    assert found["RestartPreventExitStatus"] == ["78"]
    assert found["ExecReload"] == ['/bin/sh -c "kill -HUP ${MAINPID}"']
    assert 5 < int(found["TimeoutStopSec"][0]) <= 15
    assert found["StateDirectory"] == found["RuntimeDirectory"] == found["LogsDirectory"] == ["gpu_monitor"]
    # systemd 252 gives a new one to the service's user, who has no business in /etc.
    assert "ConfigurationDirectory" not in found
    assert found["StateDirectoryMode"] == ["0755"]
    assert found["UMask"] == ["0022"]
    assert found["RuntimeDirectoryMode"] == ["0755"]
    assert found["ExecStartPre"] == ["/usr/bin/install -d -m 1777 %t/gpu_monitor/experiments"]
    assert {"MemoryMax", "LimitNOFILE", "CPUWeight", "Nice", "IOSchedulingClass"} <= set(found)
    assert int(found["LimitNOFILE"][0]) <= 1024


@pytest.mark.parametrize("name", SYSTEM_UNITS)
def test_the_service_reaches_the_cards_and_no_other_device(name: str) -> None:
    found = settings(SYSTEM_UNITS[name])
    assert found["DevicePolicy"] == ["closed"]
    # 195 is the number that the Linux kernel's list and NVIDIA's driver give char-nvidia.
    assert found["DeviceAllow"] == [
        "char-nvidia rw",
        "char-nvidia-frontend rw",
        "char-nvidia-caps rw",
        "char-195 rw",
    ]
    assert "PrivateDevices" not in found, "it would hide the cards"
    assert "ProtectClock" not in found, "it allows the real-time clock's device"


@pytest.mark.parametrize("name", [*SYSTEM_UNITS, "user"])
def test_the_owners_of_processes_stay_visible(name: str) -> None:
    found = settings(
        SYSTEM_UNITS.get(name) or user_unit([PROGRAM], Path("/home/ann/.local/state/gpu_monitor"))
    )
    assert "PrivateUsers" not in found
    assert found.get("ProtectProc", ["default"]) == ["default"]
    assert found.get("ProcSubset", ["all"]) == ["all"]


def test_only_a_lasting_user_keeps_what_trainings_registered() -> None:
    named, dynamic = settings(SYSTEM_UNITS["named user"]), settings(SYSTEM_UNITS["dynamic user"])
    assert named["RuntimeDirectoryPreserve"] == ["yes"]
    assert "DynamicUser" not in named
    # systemd would move a preserved folder of a dynamic user to /run/private, closed to trainings.
    assert "RuntimeDirectoryPreserve" not in dynamic
    assert dynamic["DynamicUser"] == ["yes"]


def test_folders_named_by_the_configuration_are_writable() -> None:
    found = settings(SYSTEM_UNITS["other folders"])
    assert found["ReadWritePaths"] == ['"/srv/my gpus"']
    assert found["ExecStart"] == [f'{PROGRAM} --config "/srv/my gpus/c.json"']
    assert "ReadWritePaths" not in settings(SYSTEM_UNITS["named user"])


def test_a_users_unit_asks_for_nothing_that_only_root_may() -> None:
    found = settings(user_unit([PROGRAM], Path("/home/ann/50%/state")))
    assert found["WorkingDirectory"] == ["/home/ann/50%%/state"]
    assert found["WantedBy"] == ["default.target"]
    assert not {"User", "DynamicUser", "DeviceAllow", "ProtectSystem", "PrivateTmp", "StateDirectory"} & set(
        found
    )
    assert found["Type"] == ["notify"]


@needs_systemd_analyze
@pytest.mark.parametrize("name", SYSTEM_UNITS)
def test_systemd_scores_the_exposure_at_two_or_less(name: str, tmp_path: Path) -> None:
    assert ANALYZE is not None
    unit = tmp_path / "gpu-monitor.service"
    unit.write_text(SYSTEM_UNITS[name], encoding="utf-8")
    asked = [ANALYZE, "security", "--offline=true", "--no-pager", "--threshold=20", str(unit)]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    score = re.search(r"exposure level for \S+: ([\d.]+)", answer.stdout)
    assert score is not None, answer.stderr
    assert float(score[1]) <= 2.0
    assert answer.returncode == 0


@needs_systemd_analyze
@pytest.mark.parametrize("name", SYSTEM_UNITS)
def test_systemd_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    assert ANALYZE is not None
    unit = tmp_path / "gpu-monitor.service"
    unit.write_text(SYSTEM_UNITS[name], encoding="utf-8")
    answer = subprocess.run(
        [ANALYZE, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    about_ours = [line for line in answer.stderr.splitlines() if "gpu-monitor" in line]
    assert about_ours == []
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/opt/gpu_monitor/bin/gpu_monitor"], "/opt/gpu_monitor/bin/gpu_monitor"),
        (["/opt/my gpus/run", "-c", "a b"], '"/opt/my gpus/run" -c "a b"'),
        (["run", "100%", "$HOME"], "run 100%% $$HOME"),
        (["run", 'say "hi"', "back\\slash", ""], r'run "say \"hi\"" "back\\slash" ""'),
    ],
)
def test_words_are_quoted_as_systemd_reads_them(words: list[str], line: str) -> None:
    assert exec_line(words) == line


def test_a_template_keeps_named_blocks_and_needs_every_value() -> None:
    template = "a=@one@\n@if x\nx\n@if y\nxy\n@end\n@end\nFilter=@system-service\n"
    assert fill(template, {"x"}, {"one": "1"}) == "a=1\nx\nFilter=@system-service\n"
    assert fill(template, {"x", "y"}, {"one": "1"}) == "a=1\nx\nxy\nFilter=@system-service\n"
    assert fill(template, {"y"}, {"one": "1"}) == "a=1\nFilter=@system-service\n"
    with pytest.raises(KeyError):
        fill(template, set(), {})
