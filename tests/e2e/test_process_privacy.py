"""What `collection.processes` says is what is recorded of the processes on a GPU, and nothing more."""

from __future__ import annotations

import getpass
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.program import configure, query, running
from tests.e2e.waiting import until
from tests.standin.control import Proc, Standin

pytest_plugins = ("tests.standin.fixtures",)

SECRET = "--password=sesame"


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a command line that nobody meant to be kept."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", SECRET], stdin=subprocess.PIPE
    )
    yield process
    process.communicate()


def recorded(store: Path) -> list[tuple[object, ...]]:
    return query(store, "SELECT pid, user, command FROM processes")


def rows(store: Path) -> int:
    """How many intervals are stored; 0 also while the store is being made."""
    try:
        return int(query(store, "SELECT count(*) FROM samples_raw")[0][0])
    except sqlite3.OperationalError:
        return 0


def newest(store: Path) -> int:
    return int(query(store, "SELECT max(id) >> 20 FROM samples_raw")[0][0])


def test_off_keeps_no_trace(tmp_path: Path, standin: Standin, worker: subprocess.Popen[bytes]) -> None:
    standin.processes(0, [Proc(worker.pid)])
    configure(tmp_path, collection={"interval_seconds": 1, "processes": "off"})
    store = tmp_path / "gpu_metrics.db"
    with running(tmp_path, **standin.env()):
        until(lambda: rows(store) >= 3, "three intervals")
    assert recorded(store) == []


@pytest.mark.parametrize("mode", ["names", "full"])
def test_arguments_are_kept_only_where_asked_for(
    tmp_path: Path, standin: Standin, worker: subprocess.Popen[bytes], mode: str
) -> None:
    standin.processes(0, [Proc(worker.pid)])
    configure(tmp_path, collection={"interval_seconds": 1, "processes": mode})
    store = tmp_path / "gpu_metrics.db"
    with running(tmp_path, **standin.env()):
        until(lambda: rows(store) and recorded(store), "the process on record")
    ((pid, user, command),) = recorded(store)
    assert (pid, user) == (worker.pid, getpass.getuser())
    assert (SECRET in str(command)) == (mode == "full")
    assert "python" in str(command)


@pytest.mark.slow
def test_off_counts_from_the_next_reload(
    tmp_path: Path, standin: Standin, worker: subprocess.Popen[bytes]
) -> None:
    standin.processes(0, [Proc(worker.pid)])
    configure(tmp_path, collection={"interval_seconds": 1})
    store = tmp_path / "gpu_metrics.db"
    with running(tmp_path, **standin.env()) as agent:
        until(lambda: rows(store) and recorded(store), "the process on record")
        configure(tmp_path, collection={"interval_seconds": 1, "processes": "off"})
        agent.send_signal(signal.SIGHUP)
        log = tmp_path / "gpu_monitor.log"
        until(lambda: "configuration read again" in log.read_text(), "the reload")
        standin.processes(0, [Proc(worker.pid), Proc(agent.pid)])
        # Process lists are read when a multiple of 30 s is passed.
        before = newest(store) // 30
        until(lambda: newest(store) // 30 > before, "the next list of processes")
    assert [pid for pid, _, _ in recorded(store)] == [worker.pid]
