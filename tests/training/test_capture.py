"""Facts of a run, found by real processes in real folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gpu_monitor.training.capture import cuda_facts, slurm_facts
from gpu_monitor.training.capture_child import find_packages
from gpu_monitor.training.topics import TOPICS, UnknownTopics, wanted_topics
from gpu_monitor.wire.training import Header
from tests.training.recorded import facts, media, only, records


def run(tmp_path: Path, *arguments: str, capture: object = True, **environment: str) -> Path:
    """The folder of the experiment of a script that only begins and ends."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from gpu_monitor.training import TrainingMonitor
            with TrainingMonitor("x", directory={str(tmp_path / "e")!r}, capture={capture!r}):
                pass
            """
        )
    )
    subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, **environment},
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    return only(tmp_path / "e")


def test_everything_at_once(tmp_path: Path) -> None:
    folder = run(
        tmp_path, "--lr", "0.1", "--hf-token", "abc", "--url=https://u:pw@h/",
        SLURM_JOB_ID="77", SLURM_JOB_NAME="night", SLURM_SUBMIT_DIR="https://u:pw@h/", USER="somebody",
    )  # fmt: skip
    found = facts(folder)
    command = found["command"]["arguments"]
    assert command[-4:] == ["0.1", "--hf-token", "***", "--url=https://u:***@h/"]
    assert found["command"]["program"] == str(tmp_path / "train.py")
    assert found["command"]["folder"] == str(tmp_path)
    assert found["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert found["host"]["user"] == "somebody"
    assert found["host"]["cpus"] == os.cpu_count()
    assert found["slurm"] == {"job_id": "77", "job_name": "night", "submit_dir": "https://u:***@h/"}
    assert {"msgspec", "pytest"} <= set(found["packages"])
    assert "driver" in found["cuda"]
    assert "abc" not in "".join(path.read_text() for path in folder.glob("*.log"))


@pytest.mark.skipif(shutil.which("id") is None, reason="there is no id(1) here")
def test_the_user_is_known_without_the_environment_too(tmp_path: Path) -> None:
    """Everywhere as in the header: a container sets none of the variables."""
    code = """if True:
        import gpu_monitor
        with gpu_monitor.TrainingMonitor("t", directory="e", server=""):
            print(gpu_monitor.get_system_info()["user"])
    """
    bare = {
        name: value
        for name, value in os.environ.items()
        if name not in ("USER", "LOGNAME", "LNAME", "USERNAME")
    }
    told = subprocess.check_output(
        [sys.executable, "-c", code], env=bare, cwd=tmp_path, text=True, timeout=60
    )
    mine = subprocess.check_output(["id", "-un"], text=True).strip()
    folder = only(tmp_path / "e")
    header = records(folder)[0]
    assert isinstance(header, Header)
    assert (told.strip(), facts(folder)["host"]["user"], header.about.writer.user) == (mine, mine, mine)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_of_the_script_and_its_changes(tmp_path: Path) -> None:
    for command in (["init", "-q", "-b", "work"], ["add", "."]):
        (tmp_path / "train.py").touch()
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit = ["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-q", "-m", "m"]
    subprocess.run(["git", *commit], cwd=tmp_path, check=True)
    folder = run(tmp_path, capture=["git"])
    found = facts(folder)
    assert set(found) == {"git"}
    assert (found["git"]["branch"], found["git"]["dirty"]) == ("work", True)
    (diff,) = media(folder)
    assert (diff.kind, diff.name) == ("text", "git diff")
    assert "+from gpu_monitor.training import TrainingMonitor" in diff.more["data"]


def test_nothing_where_nothing_is_wanted(tmp_path: Path) -> None:
    assert facts(run(tmp_path, capture=False)) == {}


def test_other_ranks_of_a_machine_leave_out_what_is_the_same_for_all(tmp_path: Path) -> None:
    found = facts(run(tmp_path, LOCAL_RANK="3"))
    assert {"command", "python", "host"} <= set(found)
    assert not {"git", "packages", "gpu"} & set(found)


def test_a_run_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    code = f"""
        import os
        from gpu_monitor.training import TrainingMonitor
        m = TrainingMonitor("x", directory={str(tmp_path / "e")!r})
        import subprocess
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True)
        print(found.stdout, flush=True)
        input()
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    children = [int(line) for line in iter(process.stdout.readline, "\n") if line.strip()]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert children
    for pid in children:  # SIGIO by the kernel, as soon as the pipe closed
        for _ in range(200):
            if not Path(f"/proc/{pid}/stat").exists():
                break
            subprocess.run(["sleep", "0.05"], check=True)
        assert not Path(f"/proc/{pid}").exists()


def test_packages_are_those_of_the_path(tmp_path: Path) -> None:
    for name, version in (("Zeta", "1.0"), ("alpha", "2.5rc1")):
        about = tmp_path / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (tmp_path / "broken-1.dist-info").mkdir()
    assert find_packages([str(tmp_path), str(tmp_path / "nowhere")]) == {"alpha": "2.5rc1", "Zeta": "1.0"}
    assert json.dumps(find_packages([str(tmp_path)])) == '{"alpha": "2.5rc1", "Zeta": "1.0"}'  # in this order


def test_the_driver_is_read_from_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    found = cuda_facts(file)
    assert (found["driver"], found["cuda_visible_devices"]) == ("550.54.14", "0,1")
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  Release Build  (root@b)\nGCC\n"
    )
    assert cuda_facts(file)["driver"] == "580.105.08"
    missing = cuda_facts(tmp_path / "none")
    assert missing["driver"] is None
    assert "no NVIDIA driver" in missing["reason"]


def test_no_slurm_no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm_facts() == {}


def test_what_a_choice_means() -> None:
    assert wanted_topics(True) == wanted_topics(None) == set(TOPICS)
    assert wanted_topics(False) == wanted_topics([]) == set()
    assert wanted_topics(["git", "console"]) == {"git", "console"}
    assert wanted_topics("git") == {"git"}
    assert wanted_topics({"git": False, "gpu": True}) == set(TOPICS) - {"git"}
    with pytest.raises(UnknownTopics, match="did you mean 'packages'") as raised:
        wanted_topics(["package", "git"])
    assert raised.value.wanted == {"git"}
    with pytest.raises(UnknownTopics, match="'zzz', which nothing is recorded under; there are command"):
        wanted_topics({"zzz": True})
