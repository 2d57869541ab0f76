# SPDX-License-Identifier: MIT
"""What the program prints, taken down: the original stream writes first, lines are recorded by a thread of its own.

The stream stays the same object: only its `write` is replaced, on the instance, so that whoever holds the stream
(handlers of `logging`, progress bars) is heard, too, and everything else about it is as it was.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from gpu_monitor.training.lines import LONGEST_LINE, Lines
from gpu_monitor.training.notice import tell
from gpu_monitor.training.parts import Options
from gpu_monitor.training.recorder import Recorder
from gpu_monitor.training.topics import CONSOLE
from gpu_monitor.wire.training import Text

STREAMS = ("stdout", "stderr")
_MOST_PIECES = 20_000
_MOST_CHARACTERS = 4 << 20
"""What may wait; beyond it output is dropped, counted, and said in the log."""
_LONGEST_PIECE = 256 * LONGEST_LINE
"""Of one `write`: what is longer is cut before it waits."""
_PAUSE_SECONDS = 0.1
"""How long output gathers before it is recorded, so that a busy printer does not wake the thread each time."""
_QUIET_SECONDS = 2.0
"""A progress bar above the last line that is left alone for so long is recorded as it is."""
_MOST_AT_ONCE = 500
"""Lines recorded in a row: 5,000 a second. What is printed faster for long overflows, and is said."""


class Console:
    """Takes down stdout and stderr (parts.Part) from `start` to `close`. Safe for threads; passive in forked children."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._waiting: deque[tuple[str, str, int]] = deque()
        self._characters = 0
        self._dropped = dict.fromkeys(STREAMS, 0)
        self._lines = {stream: Lines() for stream in STREAMS}
        self._taps: list[_Tap] = []
        self._wake = threading.Event()
        self._over = threading.Event()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, name="gpu_monitor-console", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        for stream in STREAMS:
            tap = _Tap(getattr(sys, stream), functools.partial(self._hear, stream))
            if tap.place():
                self._taps.append(tap)
        self._thread.start()

    def close(self, timeout: float) -> str | None:
        """Stop listening and record what was heard; the streams are as before."""
        for tap in self._taps:
            tap.remove()
        self._over.set()
        self._wake.set()
        self._thread.join(min(timeout, 5.0))
        return None

    def _hear(self, stream: str, text: str) -> None:
        """Take one piece, in whatever thread writes it: never waits, never raises."""
        if self._over.is_set() or os.getpid() != self._process:
            return
        if len(self._waiting) >= _MOST_PIECES or self._characters > _MOST_CHARACTERS:
            self._dropped[stream] += 1
            return
        if len(text) > _LONGEST_PIECE:
            text = f"{text[:_LONGEST_PIECE]}… ({len(text) - _LONGEST_PIECE} more characters)\n"
        self._characters += len(text)
        self._waiting.append((stream, text, self._recorder.at()))
        if not self._wake.is_set():
            self._wake.set()

    def _work(self) -> None:
        while not self._over.is_set():
            is_holding = any(lines.is_holding for lines in self._lines.values())
            if not self._wake.wait(_QUIET_SECONDS if is_holding else None):
                for stream, lines in self._lines.items():
                    self._put(stream, lines.flush())
                continue
            self._over.wait(_PAUSE_SECONDS)
            self._wake.clear()
            if self._record(_MOST_AT_ONCE):
                self._wake.set()
        while self._record(_MOST_PIECES):
            continue
        for stream, lines in self._lines.items():
            self._put(stream, lines.end())

    def _put(self, stream: str, lines: Iterable[tuple[int, str]]) -> int:
        count = 0
        if self._recorder.is_over:  # the end could not wait for it
            return count
        for count, (at, line) in enumerate(lines, 1):  # noqa: B007 (the last one counts)
            self._recorder.put(Text(at, stream, line))
        return count

    def _record(self, most: int) -> bool:
        """Record what waits, `most` lines about; whether more is left."""
        count = 0
        while count < most:
            try:
                stream, text, at = self._waiting.popleft()
            except IndexError:
                self._characters = 0  # threads that write at once may have miscounted
                break
            self._characters -= len(text)
            count += self._put(stream, self._lines[stream].add(text, at))
        for stream, dropped in self._dropped.items():
            if dropped and not self._waiting:
                self._dropped[stream] -= dropped
                said = f"[gpu_monitor: {dropped} pieces of output came too fast and were not recorded]"
                self._recorder.put(Text(self._recorder.at(), stream, said))
        return bool(self._waiting)


class _Tap:
    """A stream whose `write` also tells `hear`, after it has written."""

    def __init__(self, stream: Any, hear: Callable[[str], None]) -> None:
        self._stream = stream
        self._hear: Callable[[str], None] | None = hear
        self._inside = threading.local()
        self._before: Any = None

    def place(self) -> bool:
        """Put the tap on; False where there is no stream (pythonw, a daemon), or it takes none."""
        if self._stream is None:
            return False
        original = self._before = self._stream.write
        inside = self._inside

        def write(text: Any, *rest: Any, **named: Any) -> Any:
            written = original(text, *rest, **named)
            hear = self._hear
            if hear is not None and type(text) is str and text and not getattr(inside, "is_set", False):
                inside.is_set = True  # a stream that writes through another one of ours is heard once
                try:
                    hear(text)
                finally:
                    inside.is_set = False
            return written

        self._tapped = write
        try:
            self._stream.write = write
        except AttributeError:
            return False
        return True

    def remove(self) -> None:
        """Take the tap off. Where somebody else put one over it, it stays and says nothing."""
        self._hear = None
        held = getattr(self._stream, "__dict__", {})
        if held.get("write") is not self._tapped:
            return
        try:
            del self._stream.write
            if self._stream.write != self._before:
                self._stream.write = self._before  # it was an attribute of the instance before us
        except AttributeError as error:
            tell(f"the output is still listened to, silently: {error}")


def start(recorder: Recorder, options: Options) -> Console | None:
    """Take down the output (parts.STARTS), where it is wanted."""
    if not options.wants(CONSOLE):
        return None
    console = Console(recorder)
    console.start()
    return console
