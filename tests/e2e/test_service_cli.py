"""`gpu_monitor service` as a user runs it, with a systemctl of the test's own on PATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="there is no pseudo-terminal on this system")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these commands are systemd's, so Linux only")

# Writes down what it was asked, and answers `show` as systemd does for a unit that it does not know.
SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$HOME/asked"
case "$*" in *show*) echo "LoadState=${LOAD_STATE:-not-found}"; echo ActiveState=inactive;; esac
"""


class Account:
    """A home of its own, in which the program is run."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.unit = home / ".config/systemd/user/gpu-monitor.service"
        self.store = home / ".local/state/gpu_monitor/gpu_metrics.db"
        tools = home / "bin"
        tools.mkdir()
        (tools / "systemctl").write_text(SYSTEMCTL)
        (tools / "systemctl").chmod(0o755)
        self.environment = {
            "HOME": str(home),
            "PATH": f"{tools}:{os.defpath}",
            "USER": "ann",
            "LANG": "C.UTF-8",
        }

    def argv(self, *words: str) -> list[str]:
        """The command line of `gpu_monitor service`."""
        return [sys.executable, "-m", "gpu_monitor", "service", *words]

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run it without a terminal."""
        return subprocess.run(
            self.argv(*words),
            env={**self.environment, **more},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def answer(self, answer: str, *words: str) -> tuple[int, str]:
        """Run it on a terminal on which somebody types `answer`; exit code and all that was shown."""
        try:
            keyboard, terminal = pty.openpty()
        except OSError as error:
            pytest.skip(f"no pseudo-terminal can be had here: {error}")
        with subprocess.Popen(
            self.argv(*words),
            env=self.environment,
            cwd=self.home,
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            os.close(terminal)
            os.write(keyboard, answer.encode() + b"\n")
            assert process.stdout is not None
            shown = process.stdout.read()
            code = process.wait()
        os.close(keyboard)
        return code, shown

    def settle(self) -> None:
        """Leave what an installed service leaves: a unit, a configuration, a store."""
        for path in (self.unit, self.store, self.home / ".config/gpu_monitor/config.json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")

    def files(self) -> set[str]:
        """Every file in the home but the test's own."""
        found = {str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file()}
        return found - {"bin/systemctl", "asked"}


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path)


def test_a_dry_run_shows_everything_and_changes_nothing(account: Account) -> None:
    shown = account.run("install", "--user", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert f"would write {account.unit} (mode 0644):" in shown.stdout
    assert "    Type=notify" in shown.stdout
    assert "would run: systemctl --user restart gpu-monitor.service" in shown.stdout
    assert account.files() == set()
    assert not (account.home / "asked").exists()
    whole = account.run("install", "--dry-run")
    assert whole.returncode == 0
    assert "    User=gpu-monitor" in whole.stdout


def test_the_configuration_counts_wherever_it_is_named(account: Account) -> None:
    config = account.home / "mine.json"
    config.write_text(json.dumps({"database": {"file": "mine.db"}}))
    after = account.run("install", "--user", "--dry-run", "--config", str(config))
    before = subprocess.run(
        [sys.executable, "-m", "gpu_monitor", "-c", str(config), "service", "install", "--user", "--dry-run"],
        env=account.environment,
        cwd=account.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"--config {config}" in after.stdout
    assert before.stdout == after.stdout


def test_a_configuration_that_is_not_there_is_exit_code_78(account: Account) -> None:
    refused = account.run("install", "--user", "--config", "absent.json")
    assert refused.returncode == 78
    assert "absent.json" in refused.stderr


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs this machine")
def test_without_systemd_nothing_is_changed_and_it_says_what_to_do(account: Account) -> None:
    refused = account.run("install", "--user")
    assert refused.returncode == 1
    assert "systemd does not run this machine" in refused.stderr
    assert "In a container" in refused.stderr
    assert account.files() == set()


def test_status_tells_by_its_exit_code(account: Account) -> None:
    absent = account.run("status", "--user")
    assert absent.returncode == 3
    assert absent.stdout == "gpu-monitor.service is not installed\n"
    down = account.run("status", "--user", LOAD_STATE="loaded")
    assert down.returncode == 1
    assert "gpu-monitor.service: inactive" in down.stdout


def test_removing_what_is_not_there_is_exit_code_3(account: Account) -> None:
    assert account.run("uninstall", "--user").returncode == 3


def test_removing_keeps_the_store_and_purging_asks(account: Account) -> None:
    account.settle()
    removed = account.run("uninstall", "--user", LOAD_STATE="loaded")
    assert removed.returncode == 0, removed.stderr
    assert not account.unit.exists()
    assert account.store.exists()
    assert "--user disable --now gpu-monitor.service" in (account.home / "asked").read_text()

    account.settle()
    before = account.files()
    unasked = account.run("uninstall", "--user", "--purge")
    assert unasked.returncode == 2
    assert "--yes" in unasked.stderr
    assert account.files() == before

    code, shown = account.answer("no", "uninstall", "--user", "--purge")
    assert code == 1
    assert str(account.store.parent) in shown
    assert "nothing was changed" in shown
    assert account.files() == before

    code, shown = account.answer("yes", "uninstall", "--user", "--purge")
    assert code == 0, shown
    assert account.files() == set()


def test_purging_without_a_terminal_needs_yes(account: Account) -> None:
    account.settle()
    done = account.run("uninstall", "--user", "--purge", "--yes")
    assert done.returncode == 0, done.stderr
    assert account.files() == set()


def test_help_has_examples(account: Account) -> None:
    shown = account.run("--help")
    assert shown.returncode == 0
    assert "gpu_monitor service install --dry-run" in shown.stdout
    assert account.run().returncode == 2
