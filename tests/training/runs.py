"""Trainings in processes of their own, and what they left on disk, read line by line without the SDK's reader."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BEGIN = """
import os, signal, sys, threading, time
from gpu_monitor import TrainingMonitor
"""
QUIET = 'directory="experiments", server="", capture=False'
"""A monitor that writes its log and does nothing else."""


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what a launcher or a user may have set for trainings."""
    ours = ("GPU_MONITOR_", "SLURM_", "RANK", "WORLD_SIZE", "OMPI_", "PMI")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def start(code: str, folder: Path, *words: str, **more: Any) -> subprocess.Popen[str]:
    """Start a training in `folder`; `code` follows the imports, `{quiet}` in it are a quiet monitor's arguments."""
    script = folder / "train.py"
    text = BEGIN + textwrap.dedent(code).replace("{quiet}", QUIET)
    if not script.exists() or script.read_text() != text:
        script.write_text(text)
    environ: Mapping[str, str] = more.pop("env", environment())
    return subprocess.Popen(
        [sys.executable, str(script), *words],
        cwd=folder, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # fmt: skip


@contextlib.contextmanager
def running(code: str, folder: Path, *words: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A training that is at work; whatever the test does, its processes are gone at the end."""
    with start(code, folder, *words, start_new_session=True, **more) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(code: str, folder: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """A training from begin to end."""
    with start(code, folder, *words, **more) as process:
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def logs(folder: Path) -> list[Path]:
    """All segments under a folder, the first that was begun first."""
    return sorted(folder.glob("**/seg-*.log"), key=lambda path: records(path)[0][2]["started"])


def records(log: Path) -> list[list[Any]]:
    """The records of whole, undamaged lines, without their checks, by nothing but the page docs/segments.md."""
    found = []
    for line in log.read_bytes().split(b"\n")[:-1]:
        body, comma, check = line.rpartition(b",")
        if comma and check == b'"%08x"]' % zlib.crc32(body):
            found.append(json.loads(body + b"]"))
    return found


def of_kind(log: Path, kind: str) -> list[list[Any]]:
    """The records of one kind."""
    return [record for record in records(log) if record[0] == kind]


def last_status(log: Path) -> list[Any]:
    """Status and what is known besides, of the last word on it; how long it ran is looked at and left out."""
    _, _, status, more = of_kind(log, "z")[-1]
    assert status == "running" or 0 <= more["ran_seconds"] < 600
    return [status, {name: known for name, known in more.items() if name != "ran_seconds"}]


def points(log: Path) -> list[tuple[int, dict[str, Any]]]:
    """Step and values by name of each record of points."""
    names: dict[int, str] = {}
    sets: dict[int, list[int]] = {}
    found = []
    for record in records(log):
        if record[0] == "s":
            names[record[1]] = record[2]
        elif record[0] == "g":
            sets[record[1]] = record[2]
        elif record[0] == "p":
            values = zip(sets[record[3]], record[4], strict=True)
            found.append((record[2], {names[series]: value for series, value in values}))
    return found
