"""Servers as a training may meet them: none, dead, slow, answering 500, or the real one.

python -m tests.measure.training_servers slow     serves on a free port, prints its address, until its stdin ends
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.fakes.experiments import Fault, Shelf
from tests.measure.training_bed import ROOT, training_environment
from tests.server.rig import Server, serving

_FAULTS = {"slow": Fault("hang"), "500": Fault("status", status=500)}


@contextmanager
def behaving(kind: str, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a server of this kind ("" of none), and the environment that a training needs for it."""
    if kind == "no server":
        yield "", {}
    elif kind == "dead":
        yield f"http://127.0.0.1:{free_port()}", {}
    elif kind == "real":
        with serving(folder) as server:
            _give_way(server.process.pid)
            yield server.url, token_of(server, folder)
    else:
        with _elsewhere(kind, folder) as url:
            yield url, {}


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def token_of(server: Server, folder: Path) -> dict[str, str]:
    """A token that may write experiments and read them, as the environment that names it."""
    file = folder / "token"
    file.write_text(server.token("--contract", "300", "--scope", "experiment:write", "--scope", "read"))
    file.chmod(0o600)
    return {"GPU_MONITOR_TOKEN_FILE": str(file)}


@contextmanager
def _elsewhere(kind: str, folder: Path) -> Iterator[str]:
    """In a process of its own: its work is not the training's."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.measure.training_servers", kind], cwd=ROOT, env=training_environment(folder),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


def _give_way(pid: int) -> None:
    """It stands for a server on another machine, and must not take the training's core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


def main() -> None:
    """Serve until there is nobody who wants it."""
    os.nice(19)
    with Shelf() as shelf:
        shelf.behave(then=_FAULTS[sys.argv[1]])
        print(shelf.url, flush=True)
        sys.stdin.read()
        shelf.release.set()


if __name__ == "__main__":
    main()
