"""What holds for every run of the tests: programs start from compiled files, and no process outlives the run."""

from __future__ import annotations

import os
import sys
import tempfile

import pytest

from tests.leftovers import MARK, Guard

# Hundreds of tests start the real program. Where the environment says to keep no compiled files, each start
# would compile all of it again, which is most of its time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

_GUARD = pytest.StashKey[Guard]()
_LEFT = pytest.StashKey[dict[int, str]]()
_HOME = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Mark all that is started from here on, and give it a home of its own; a worker has its run's already."""
    if MARK not in os.environ:
        config.stash[_GUARD] = Guard()
        config.stash[_HOME] = home = tempfile.TemporaryDirectory(
            prefix="gpu_monitor-home-", ignore_cleanup_errors=True
        )
        os.environ["HOME"] = home.name


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that leaves processes behind has failed; after the workers have ended."""
    guard = session.config.stash.get(_GUARD, None)
    if guard is not None:
        session.config.stash[_LEFT] = left = guard.left()
        if left and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was left behind."""
    for pid, command in terminalreporter.config.stash.get(_LEFT, {}).items():
        terminalreporter.write_line(
            f"LEFT BEHIND by the tests and ended: process {pid}: {command[:200]}", red=True
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what is left."""
    guard = config.stash.get(_GUARD, None)
    if guard is not None:
        guard.close()
        config.stash[_HOME].cleanup()
