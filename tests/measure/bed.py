"""Where a measurement runs: a folder of its own, the real program on the stand-in library or on simulated GPUs."""

from __future__ import annotations

import compileall
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import gpu_monitor
from tests.standin.build import build
from tests.standin.control import Proc, Standin
from tests.standin.profiles import H100

GPUS = 8
PROGRAM = (sys.executable, "-m", "gpu_monitor")
_NEVER = (
    "GPU_MONITOR_TOKEN", "GPU_MONITOR_TOKEN_FILE", "STATE_DIRECTORY", "NOTIFY_SOCKET",
    # An installed program has its bytecode; one that compiles itself at each start is slower and larger.
    "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPATH",
)  # fmt: skip


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without what would change the program's ways, with a HOME of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in _NEVER}
    own = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "NO_PROXY": "127.0.0.1,localhost"}
    return {**kept, **own, **(more or {})}


def compile_program() -> None:
    """Write the program's bytecode, as installing it does."""
    compileall.compile_dir(str(Path(gpu_monitor.__file__).parent), quiet=1)


def configure(folder: Path, **sections: Mapping[str, object]) -> Path:
    """Write a configuration into `folder`; the log goes there too."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    told = {"database": {"file": "gpu_metrics.db"}, "logging": {"file": "gpu_monitor.log"}, **sections}
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


@contextmanager
def running(
    folder: Path, words: Sequence[str], more: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The program in `folder`; stopped at the end, killed where it does not stop within 10 s."""
    with (folder / "console.txt").open("ab") as console:
        process = subprocess.Popen(
            [*PROGRAM, *words], cwd=folder, env=environment(folder, more),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=console,
        )  # fmt: skip
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and after 10 s SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def query(store: Path, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
    """Rows of a store, read with SQLite alone; none while it has no such table yet."""
    if not store.exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql, parameters).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error) or "unable to open" in str(error):
            return []
        raise


class Ended(Exception):
    """The program ended while it was measured."""


def wait_for(
    process: subprocess.Popen[bytes], store: Path, sql: str, seconds: float, step: float = 0.02
) -> float:
    """Wait until `sql` gives a row with something true in it; returns the seconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        found = query(store, sql)
        if found and found[0][0]:
            return time.monotonic() - began
        if process.poll() is not None:
            words = (store.parent / "console.txt").read_text(errors="replace")[-1500:]
            raise Ended(f"the agent ended with {process.returncode}: {words}")
        time.sleep(step)
    raise TimeoutError(f"not within {seconds:.0f} s: {sql}")


def make_standin(folder: Path) -> Standin:
    """Eight H100s that work to a daily grind, each with a process on it."""
    folder.mkdir(parents=True, exist_ok=True)
    standin = Standin(folder / "standin.control", build(folder))
    standin.gpus([H100] * GPUS)
    for gpu in range(GPUS):
        standin.load(gpu, 0.6 + 0.03 * gpu, 0.15, 47.0 + gpu)
        standin.processes(gpu, [Proc(os.getpid(), 40_000_000_000)])
    return standin
