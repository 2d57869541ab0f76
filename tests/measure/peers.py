"""Other programs that watch eight GPUs each second, on the same stand-in library, in the same run."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.measure.bed import configure, environment, make_standin
from tests.measure.tree import ProcessTree

Say = Callable[[str, float], None]
_SETTLE = 5.0
"""Seconds after a start that are not counted: imports belong to no second of watching."""
PACKAGES = ("gpustat", "nvitop-exporter")


@dataclass(frozen=True)
class Peer:
    """What a program cost. `cpu`: seconds of CPU in `seconds`; `peak`: largest resident set, MB; None: why in `note`."""

    name: str
    cpu: float | None
    peak: float | None
    seconds: float
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def cells(self) -> tuple[str, str, str, str]:
        """Name, CPU seconds per 120 s, peak, note."""
        cpu = "" if self.cpu is None else f"{self.cpu * 120 / self.seconds:.3f} s"
        peak = "" if self.peak is None else f"{self.peak:.1f} MB"
        return self.name, cpu, peak, self.note


_HEAD = ("8 GPUs at 1 s", "CPU per 120 s", "peak RSS of the tree", "note")


def as_text(peers: Sequence[Peer]) -> str:
    """The table for a terminal."""
    rows = [_HEAD, *(peer.cells() for peer in peers)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def as_markdown(peers: Sequence[Peer]) -> str:
    """The table for a page."""
    lines = [f"| {' | '.join(_HEAD)} |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(peer.cells())} |" for peer in peers)])


def measure(folder: Path, seconds: float, say: Say) -> list[Peer]:
    """Ours, a bare loop, and what of the packages can be installed and runs on the library."""
    folder.mkdir(parents=True)
    nvml = make_standin(folder / "nvml").env()
    config = configure(folder / "agent", collection={"interval_seconds": 1})
    found = [
        _watch("gpu_monitor", [sys.executable, "-m", "gpu_monitor", "-c", str(config)], folder, nvml, seconds, say),
        _watch("bare loop over pynvml into SQLite", [sys.executable, str(Path(__file__).with_name("loop.py")),
               str(folder / "loop.db")], folder, nvml, seconds, say),
    ]  # fmt: skip
    for package in PACKAGES:
        place = folder / f"venv-{package}"
        failure = _install(place, package)
        if failure is not None:
            found.append(Peer(package, None, None, seconds, f"not run: {failure}"))
            continue
        found.append(_watch(package, _command(place, package), folder, nvml, seconds, say))
    return found


def _install(place: Path, package: str) -> str | None:
    """An environment of its own with the package in it; the reason where that fails."""
    venv.create(place, with_pip=True)
    pip = [
        str(place / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        package,
    ]
    done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=300)
    return (
        None
        if done.returncode == 0
        else f"pip could not install it: {done.stderr.strip().splitlines()[-1][:120]}"
    )


def _command(place: Path, package: str) -> list[str]:
    program = str(place / "bin" / package)
    if package == "gpustat":
        return [program, "--interval", "1", "--no-color"]
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        program,
        "--hostname",
        "bench",
        "--bind-address",
        "127.0.0.1",
        "--port",
        str(port),
        "--interval",
        "1",
    ]


def _watch(
    name: str, command: Sequence[str], folder: Path, nvml: Mapping[str, str], seconds: float, say: Say
) -> Peer:
    """Run a program on a terminal of its own for `seconds` after it has settled."""
    ours, theirs = pty.openpty()
    log = bytearray()
    reader = threading.Thread(target=_drain, args=(ours, log), daemon=True)
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder, {**nvml, "TERM": "xterm"}), stdin=theirs, stdout=theirs,
        stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    reader.start()
    try:
        time.sleep(_SETTLE)
        if process.poll() is not None:
            return Peer(
                name, None, None, seconds, f"not run: it ended with {process.returncode}: {_last(log)}"
            )
        return _measure(name, process, seconds, log, say)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(timeout=5)
        os.close(ours)


def _measure(name: str, process: subprocess.Popen[bytes], seconds: float, log: bytearray, say: Say) -> Peer:
    tree = ProcessTree(process.pid)
    before, began, peak = tree.cpu_seconds(), time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        time.sleep(min(1.0, seconds - passed))
        tree.cpu_seconds()
        peak = max(peak, tree.resident())
        say(name, min(1.0, passed / seconds))
        if process.poll() is not None:
            return Peer(name, None, None, seconds, f"it ended with {process.returncode}: {_last(log)}")
    return Peer(name, tree.cpu_seconds() - before, peak / 1e6, time.monotonic() - began)


def _drain(descriptor: int, log: bytearray) -> None:
    """Read what the program shows, so that it never waits; the last of it is kept."""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:
            return
        if not piece:
            return
        log += piece
        del log[:-4000]


def _last(log: bytearray) -> str:
    lines = [line.strip() for line in log.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:120] if lines else "it said nothing"
