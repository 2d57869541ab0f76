"""Steps: what is shown is what is done; nothing is half written; the system's commands run for real."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.service.commands import SystemCommands, decode
from gpu_monitor.service.steps import MakeFolder, Note, Remove, Run, WriteFile, carry_out, describe
from tests.fakes.commands import FakeCommands

POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="modes and /bin/sh are POSIX")


def done(steps: list, commands=None) -> list[str]:
    said: list[str] = []
    carry_out(steps, commands or FakeCommands(), said.append)
    return said


@POSIX_ONLY
def test_a_file_is_written_with_its_mode_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "unit"
    assert done([WriteFile(path, "one\n", mode=0o640)]) == [f"wrote {path}"]
    assert path.read_bytes() == b"one\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert done([WriteFile(path, "two\n")]) == [f"replaced {path}"]
    assert path.read_bytes() == b"two\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["unit"]


def test_a_users_own_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("mine")
    assert done([WriteFile(path, "ours", keep=True)]) == [f"kept {path} as it is"]
    assert path.read_text() == "mine"


def test_folders_files_and_dangling_links_go_and_what_is_not_there_is_not_mentioned(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    (folder / "within").mkdir(parents=True)
    (folder / "file").write_text("x")
    link.symlink_to(tmp_path / "nowhere")
    said = done([Remove(folder), Remove(link), Remove(tmp_path / "absent")])
    assert said == [f"removed {folder}", f"removed {link}"]
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_folder_goes_and_the_folder_stays(tmp_path: Path) -> None:
    folder, link = tmp_path / "private", tmp_path / "link"
    folder.mkdir()
    (folder / "store.db").write_text("x")
    link.symlink_to(folder)
    done([Remove(link)])
    assert not link.exists()
    assert (folder / "store.db").exists()


def test_the_first_command_that_fails_ends_the_work(tmp_path: Path) -> None:
    commands = SystemCommands()
    fails = Run((sys.executable, "-c", "import sys; sys.exit('no bus\\nat all')"), hint="Ask somebody.")
    with pytest.raises(GpuMonitorError) as caught:
        carry_out([fails, WriteFile(tmp_path / "never", "")], commands, lambda line: None)
    assert "exit code 1: no bus at all" in caught.value.message
    assert caught.value.hint == "Ask somebody."
    assert not (tmp_path / "never").exists()


def test_a_command_that_may_fail_does_not_end_it(tmp_path: Path) -> None:
    may = Run((sys.executable, "-c", "raise SystemExit(5)"), may_fail=True)
    said = done([may, WriteFile(tmp_path / "after", "")], SystemCommands())
    assert "exit code 5" in said[0]
    assert (tmp_path / "after").exists()


def test_a_command_that_is_not_there_is_an_answer() -> None:
    answer = SystemCommands().run(["gpu-monitor-has-no-such-command"])
    assert answer.code == 127
    assert "gpu-monitor-has-no-such-command" in answer.error
    assert SystemCommands().find("gpu-monitor-has-no-such-command") is None


@POSIX_ONLY
def test_commands_get_no_input_and_give_all_they_print() -> None:
    answer = SystemCommands().run(["/bin/sh", "-c", "read line || echo none; echo trouble >&2; exit 3"])
    assert (answer.code, answer.output, answer.error) == (3, "none\n", "trouble\n")


def test_what_nssm_prints_is_utf_16() -> None:
    assert decode("SERVICE_RUNNING\r\n".encode("utf-16-le")) == "SERVICE_RUNNING\r\n"
    assert decode("läuft °C".encode()) == "läuft °C"
    assert decode(b"\xff broken") == "� broken"


def test_what_cannot_be_written_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GpuMonitorError, match=r"cannot change .*unit"):
        done([WriteFile(tmp_path / "file" / "unit", "x")])


def test_describing_changes_nothing_and_shows_everything(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("old")
    said: list[str] = []
    steps = [
        MakeFolder(tmp_path / "folder", 0o750),
        MakeFolder(tmp_path),
        WriteFile(there, "kept", keep=True),
        WriteFile(tmp_path / "unit", "[Unit]\n\nlast\n"),
        Remove(there),
        Remove(tmp_path / "absent"),
        Run(("systemctl", "restart", "a b")),
        Note("that is all"),
    ]
    describe(steps, said.append)
    quoted = '"a b"' if sys.platform == "win32" else "'a b'"
    assert said == [
        f"would make the folder {tmp_path / 'folder'} (mode 0750)",
        f"would keep {there} as it is",
        f"would write {tmp_path / 'unit'} (mode 0644):",
        "    [Unit]",
        "",
        "    last",
        f"would remove {there}",
        f"would run: systemctl restart {quoted}",
        "that is all",
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]
    assert there.read_text() == "old"
