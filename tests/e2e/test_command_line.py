"""What a mistyped command line is told, and help where a command's packages are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.program import ask


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--simulte", "2"), "unrecognized arguments: --simulte (did you mean --simulate?)"),
        (("--simulte=2",), "unrecognized arguments: --simulte=2 (did you mean --simulate?)"),
        (("reprot",), "there is no command 'reprot' (did you mean report?); --help lists them"),
        (("report", "--sinc", "-7d"), "(did you mean --since?)"),
        (("qqqqqq",), "there is no command 'qqqqqq'; --help lists them"),
        (("serve", "--port", "99999"), "argument --port: '99999' is no port: give a number from 0 to 65535"),
        (("demo", "--port", "-1"), "is no port: give a number from 0 to 65535"),
        (("demo", "--port", "http"), "argument --port: 'http' is no port"),
    ],
)
def test_what_is_mistyped_is_named_with_the_nearest_name(
    tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    done = ask(tmp_path, *words)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_help_of_a_command_of_the_server_where_only_the_agent_is_installed(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "fastapi.py").write_text("raise ModuleNotFoundError('no', name='fastapi')\n")
    (shadow / "sqlalchemy.py").write_text("raise ModuleNotFoundError('no', name='sqlalchemy')\n")
    done = ask(tmp_path, "user", "--help", PYTHONPATH=str(shadow))
    assert (done.returncode, done.stderr) == (0, "")
    assert "the people who may log in to the server" in done.stdout
    assert "pip install 'gpu-monitor[server]'" in done.stdout
    refused = ask(tmp_path, "user", "list", PYTHONPATH=str(shadow))
    assert refused.returncode == 1
    assert "which is not installed" in refused.stderr
