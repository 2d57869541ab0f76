"""Runs the program on a pseudo-terminal of a given width, as a person sees it."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from tests.e2e.program import PROGRAM, environment

_BYTES = 65536


def on_terminal(folder: Path, columns: int, *words: str) -> list[str]:
    """What the program writes to stdout on a terminal of `columns`, line by line; stderr goes nowhere."""
    import fcntl  # neither module is there on Windows
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    told = environment(folder)
    told.pop("COLUMNS", None)  # it would be believed before the terminal
    process = subprocess.Popen(
        [*PROGRAM, *words],
        cwd=folder,
        env=told,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    try:
        text = _drained(ours)
    finally:
        os.close(ours)
        process.kill()
        process.wait(timeout=30)
    return text.splitlines()


def answered(folder: Path, answer: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end with `answer` typed on a terminal before it asks."""
    ours, theirs = os.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        return subprocess.run(
            [*PROGRAM, *words], cwd=folder, env=environment(folder, **more), stdin=theirs, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)


def _drained(terminal: int) -> str:
    """Everything until the other side is closed, which Linux reports as an error and others as an end."""
    parts = []
    while True:
        try:
            part = os.read(terminal, _BYTES)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()
