"""Shell completion, tried out in the shells themselves."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_monitor.cli.main import COMMANDS
from gpu_monitor.core.catalogue import DEFAULT_FIELDS
from tests.e2e.program import ask
from tests.e2e.waiting import until

Complete = Callable[[str], list[str]]

_BASH = """source script.bash
set -- {words}
COMP_WORDS=(gpu_monitor "$@"); COMP_CWORD=$#
_gpu_monitor
printf '%s\\n' "${{COMPREPLY[@]}}"
complete -p gpu_monitor gpu-monitor >&2
"""


def write_script(folder: Path, shell: str) -> Path:
    done = ask(folder, "completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    script = folder / f"script.{shell}"
    script.write_text(done.stdout)
    return script


def bash(folder: Path) -> Complete:
    """Calls the completion function as bash does; the last of the words (`''`: an empty one) is completed."""
    write_script(folder, "bash")

    def complete(words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", _BASH.format(words=words)], cwd=folder, capture_output=True, text=True,
            timeout=30, check=True,
        )  # fmt: skip
        assert done.stderr.splitlines() == [
            "complete -F _gpu_monitor gpu_monitor", "complete -F _gpu_monitor gpu-monitor",
        ]  # fmt: skip
        return done.stdout.split()

    return complete


def fish(folder: Path) -> Complete:
    """Asks fish what it would offer for a line."""
    write_script(folder, "fish")

    def complete(words: str) -> list[str]:
        line = f"gpu_monitor {words}".replace("''", "")
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source script.fish; complete -C {line!r}"], cwd=folder,
            capture_output=True, text=True, timeout=30, check=True,
            env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        )  # fmt: skip
        return [offer.split("\t")[0] for offer in done.stdout.splitlines()]

    return complete


_ZSH = """autoload -Uz compinit
compinit -u -D
eval "$(cat script.zsh)"
compadd() {
    # Only listings are of interest, not what zsh's own functions gather into arrays.
    if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\\ * ]]; then
        local -a found
        builtin compadd -A found "$@"
        print -rl -- $found >> offers
    fi
    builtin compadd "$@"
}
finish() { : > finished }
comppostfuncs=(finish)
: > begun
"""


def zsh(folder: Path) -> Complete:
    """Types a line and TAB into a real interactive zsh, which writes down what it would offer."""
    write_script(folder, "zsh")
    (folder / "begin.zsh").write_text(_ZSH)
    offers = folder / "offers"

    def complete(words: str) -> list[str]:
        line = f"gpu_monitor {words}".replace("''", "")
        for name in ("offers", "begun", "finished"):
            (folder / name).unlink(missing_ok=True)
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(folder)
            os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb"})
        try:
            os.write(terminal, b"source begin.zsh\n")
            until(lambda: drained(terminal) and (folder / "begun").exists(), "zsh is ready")
            os.write(terminal, f"{line}\t".encode())
            until(lambda: drained(terminal) and (folder / "finished").exists(), "zsh has completed")
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(terminal)
        return offers.read_text().split() if offers.exists() else []

    return complete


def drained(terminal: int) -> bool:
    """Read what the shell shows, so that it never waits for us; always true."""
    while select.select([terminal], [], [], 0)[0]:
        os.read(terminal, 65536)
    return True


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, tmp_path: Path) -> Complete:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed here")
    return SHELLS[request.param](tmp_path)


def test_commands(complete: Complete) -> None:
    assert set(COMMANDS) <= set(complete("''"))
    assert "report" in complete("rep")
    assert "export" not in complete("rep")


def test_options(complete: Complete) -> None:
    found = complete("--o")
    assert {"--offline", "--once", "--output-format"} <= set(found)
    assert "--by" not in found
    assert {"--by", "--since", "--until", "--price"} <= set(complete("report --"))
    assert "--offline" not in complete("report --")


def test_choices(complete: Complete) -> None:
    assert {"gpu", "node", "user", "day"} <= set(complete("report --by ''"))
    assert {"csv", "json", "jsonl"} <= set(complete("export --output-format ''"))
    assert {"bash", "zsh", "fish"} <= set(complete("completion ''"))
    assert {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"} <= set(complete("--log-level ''"))


def test_commands_below_commands(complete: Complete) -> None:
    assert {"install", "status", "uninstall"} <= set(complete("service ''"))
    found = set(complete("service uninstall --"))
    assert {"--purge", "--yes", "--user"} <= found
    assert "--config" not in found


def test_a_value_is_not_taken_for_a_command(complete: Complete) -> None:
    found = complete("--node report --o")
    assert "--offline" in found
    assert "--by" not in found


def test_files(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "lab.csv").write_text("")
    (tmp_path / "lab.xml").write_text("")
    for line in ("import la", "--config la", "export -o la"):
        assert {"lab.csv", "lab.xml"} <= set(complete(line)), line
    assert not {"lab.csv", "lab.xml"} & set(complete("report --price la"))


def test_lists_of_fields(complete: Complete) -> None:
    assert {"all", *DEFAULT_FIELDS} <= set(complete("export --fields ''"))
    found = complete("export --fields uid,power_u")
    assert any(one in found for one in ("uid,power_usage", "power_usage", "power_usage_min"))
    assert not any("temperature" in one for one in found)


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_read_without_complaint(tmp_path: Path, shell: str) -> None:
    script = write_script(tmp_path, shell)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    done = subprocess.run(
        [shell, "-n", script.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_shell(tmp_path: Path) -> None:
    done = ask(tmp_path, "completion", "tcsh")
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid choice: 'tcsh'" in done.stderr
