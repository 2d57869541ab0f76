"""The child: answers the supervisor's requests until its input closes. Nothing else is ever started in it."""

from __future__ import annotations

import gc
import mmap
import os
import sys

from gpu_monitor.sources.frames import Inbox, pack
from gpu_monitor.sources.gpu.nvml_child import codes
from gpu_monitor.sources.gpu.nvml_child.library import DriverGone
from gpu_monitor.sources.gpu.nvml_child.reader import Reader, Refused
from gpu_monitor.sources.lifeline import die_with, private_output, write_frame


def _board(name: str) -> mmap.mmap:
    """The progress board: an inherited descriptor, or on Windows the name of shared memory."""
    if sys.platform == "win32":
        return mmap.mmap(-1, codes.BOARD_BYTES, tagname=name)
    else:  # noqa: RET505 (mypy reads only one of the two)
        return mmap.mmap(int(name), codes.BOARD_BYTES)


def _answer(reader: Reader, request: tuple[object, ...]) -> tuple[object, ...]:
    kind, *rest = request
    try:
        if kind == "open":
            return ("opened", *reader.open(*rest))  # type: ignore[arg-type]
        return ("round", *reader.read(*rest))  # type: ignore[arg-type]
    except (Refused, DriverGone) as error:
        return ("refused" if isinstance(error, Refused) else "gone", error.code)


def main(board: str, lifeline: str) -> None:
    """Serve requests (`open`, `read`) until the input closes, then end at once."""
    output = private_output()
    die_with(int(lifeline))
    reader = Reader(_board(board))
    gc.collect()
    gc.freeze()
    # A round's objects are gone with its answer; what is looked over each round is not worth it.
    gc.set_threshold(10_000, 10, 10)
    inbox = Inbox()
    while True:
        piece = os.read(0, 65536)
        if not piece:
            os._exit(0)  # the agent is gone; the library's own way out may hang
        inbox.add(piece)
        while (request := inbox.take()) is not None:
            write_frame(output, pack(_answer(reader, request[0])))  # type: ignore[arg-type]
