# SPDX-License-Identifier: MIT
"""What every child does first: end with its parent, and keep its answers apart from what libraries print."""

from __future__ import annotations

import os
import sys


def die_with(lifeline: int) -> None:
    """End this process when its parent ends, even within a call that never returns (Linux).

    The parent holds the other end of a pipe that nobody writes to. When it closes, however the parent
    ended, the kernel sends SIGIO, whose default is to end the process. (PR_SET_PDEATHSIG would do the
    same when the thread that started us ends, while the parent lives on.)
    """
    if sys.platform == "linux" and lifeline >= 0:
        import fcntl  # not on Windows

        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(
            lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK
        )
        try:
            is_cut = not os.read(lifeline, 1)
        except BlockingIOError:
            return
        if is_cut:
            os._exit(0)  # the parent ended before we listened


def private_output() -> int:
    """A descriptor for frames that no library knows: what it prints goes where errors go."""
    private = os.dup(1)
    os.dup2(2, 1)
    return private


def write_frame(output: int, frame: bytes) -> None:
    """Hand a whole frame to the parent; ends this process where that is gone."""
    try:
        while frame:
            frame = frame[os.write(output, frame) :]
    except BrokenPipeError:
        os._exit(0)
