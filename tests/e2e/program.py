"""Starts the real program for end-to-end tests, and asks it and its store from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-m", "gpu_monitor")
_NEVER = (
    "GPU_MONITOR_TOKEN",
    "GPU_MONITOR_TOKEN_FILE",
    "GPU_MONITOR_SERVER",
    "GPU_MONITOR_DIR",
    "GPU_MONITOR_STRICT",
    "STATE_DIRECTORY",
    "NOTIFY_SOCKET",
    "http_proxy",
    "https_proxy",
)


def environment(home: Path, **more: str) -> dict[str, str]:
    """The test's environment with a HOME of its own and nothing that would change what is tested."""
    kept = {name: value for name, value in os.environ.items() if name not in _NEVER}
    return {
        **kept,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "NO_PROXY": "127.0.0.1,localhost",
        **more,
    }


def configure(folder: Path, **sections: Mapping[str, object]) -> Path:
    """Write a configuration with `sections` into `folder` and return its path."""
    path = folder / "config.json"
    path.write_text(json.dumps(sections))
    return path


def ask(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end in `folder`."""
    return subprocess.run(
        [*PROGRAM, *words], cwd=folder, env=environment(folder, **more), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


@contextlib.contextmanager
def running(folder: Path, *words: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """The program in the background; killed at the end if it still runs."""
    log = (folder / "console.txt").open("a")
    process = subprocess.Popen(
        [*PROGRAM, *words],
        cwd=folder,
        env=environment(folder, **more),
        stdout=subprocess.DEVNULL,
        stderr=log,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=30)
        log.close()


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and wait until it is gone."""
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)


def kill_after(trainer: subprocess.Popen[str], steps: int) -> int:
    """SIGKILL a training that prints each step whose call returned, after so many; the last one that it printed whole."""
    assert trainer.stdout is not None
    last = -1
    for said in trainer.stdout:
        last = int(said)
        if last >= steps:
            break
    trainer.kill()
    rest = trainer.stdout.read().split("\n")[:-1]
    trainer.stdout.close()
    trainer.wait()
    return int(rest[-1]) if rest else last


def query(store: Path, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
    """Rows of the store, read with SQLite alone."""
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(sql, parameters).fetchall()
