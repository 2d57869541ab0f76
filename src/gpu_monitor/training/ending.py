# SPDX-License-Identifier: MIT
"""How a process ends, seen from within: its exit, an uncaught exception, SIGTERM, and forks. Nothing of it is changed.

SIGINT needs no handler: Python's own raises KeyboardInterrupt, which arrives here as an exception. A process that is
killed, or ends by `os._exit`, says nothing: whoever reads its log sees that it vanished.
"""

from __future__ import annotations

import atexit
import builtins
import opcode
import os
import signal
import sys
import threading
import traceback
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any, Protocol

from gpu_monitor.training.border import ForeignError, call_foreign

LONGEST_REASON = 2_000
_MOST_LINES = 200
"""Of a traceback: a recursion without end has thousands."""
_FORK_SECONDS = 1.0
"""What a fork waits for a record that another thread is writing."""
Ended = tuple[str, dict[str, Any]]
"""A status and what is known besides: `exit_code`, `signal`, `reason`."""


class Ending(Protocol):
    """What wants to know of the end of its process."""

    def lock_for_fork(self, timeout: float) -> bool:
        """Hold still until `unlock_after_fork`; whether that worked in time."""
        ...

    def unlock_after_fork(self) -> None:
        """The fork is done, in the parent."""
        ...

    def fork(self) -> None:
        """This is the forked child."""
        ...

    def end(self, status: str, more: dict[str, Any]) -> None:
        """The process exits."""
        ...

    def last_words(self, status: str, more: dict[str, Any]) -> None:
        """The process dies of a signal at once."""
        ...


def of_exception(error: BaseException) -> Ended:
    """The status of a run that an exception ended."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped", {"signal": int(signal.SIGINT), "reason": "KeyboardInterrupt"}
    if isinstance(error, SystemExit):
        return of_exit(error.code)
    try:
        words = str(call_foreign(str, error))
    except ForeignError:
        words = "(its text cannot be had)"
    return "failed", {"reason": f"{type(error).__name__}: {words}"[:LONGEST_REASON]}


def traceback_lines(error: Exception) -> list[str]:
    """What Python would print of an exception, at most its first and last lines, each cut to what a record takes."""
    lines = [
        line[:LONGEST_REASON] for text in traceback.format_exception(error) for line in text.splitlines()
    ]
    if len(lines) > _MOST_LINES:
        left_out = len(lines) - _MOST_LINES
        lines[_MOST_LINES // 2 : -_MOST_LINES // 2] = [f"  [gpu_monitor: {left_out} more lines]"]
    return lines


def of_exit(code: object) -> Ended:
    """The status of a run that ended by `sys.exit(code)`: a text is printed, and is exit code 1."""
    if code is None or isinstance(code, int):
        number = 0 if code is None else int(code) & 0xFF
        return ("failed" if number else "completed"), {"exit_code": number}
    return "failed", {"exit_code": 1, "reason": str(code)[:LONGEST_REASON]}


class ProcessEnd:
    """The hooks of this process, in place while anything is watched."""

    def __init__(self) -> None:
        self._watched: list[Ending] = []
        self._held: list[Ending] = []
        self._ended: Ended | None = None
        self._exit: tuple[object] | None = None
        self._outermost: FrameType | None = None
        self._child_frame: FrameType | None = None
        self._is_installed = False
        self._is_registered = False
        self._before: dict[str, Any] = {}
        """What each hook of ours, in place or chained to by others, was put on top of."""
        self._quitters = {name: _Quitter(name, self) for name in ("exit", "quit")}

    def watch(self, ending: Ending) -> None:
        """Tell `ending` how the process ends, until `forget`."""
        self._watched.append(ending)
        if not self._is_registered:
            self._is_registered = True
            atexit.register(self._at_exit)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(
                    before=self._before_fork,
                    after_in_parent=self._after_fork,
                    after_in_child=self._in_child,
                )
        if not self._is_installed:
            self._install()
        self._watch_as_child(ending)

    def forget(self, ending: Ending) -> None:
        """It has ended by itself; with the last one the hooks are taken away where they are still on top."""
        if ending in self._watched:
            self._watched.remove(ending)
        if not self._watched and self._is_installed:
            self._uninstall()

    def _install(self) -> None:
        """Put the hooks on top of what is there; one that others have chained to meanwhile is in place already."""
        self._is_installed = True
        self._ended = self._exit = None
        if threading.current_thread() is threading.main_thread():
            self._outermost = _outermost_frame()
        for place, name, ours in self._places():
            key = f"{place.__name__}.{name}"
            if key not in self._before and (given := getattr(place, name, None)) is not None:
                self._before[key] = given
                setattr(place, name, ours)
        if "SIGTERM" not in self._before and threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGTERM)
            if handler is not None and handler is not signal.SIG_IGN:
                self._before["SIGTERM"] = handler
                signal.signal(signal.SIGTERM, self._on_term)

    def _uninstall(self) -> None:
        """Take away the hooks that are on top; others stay, and pass on what they hear."""
        self._is_installed = False
        self._outermost = None
        for place, name, ours in self._places():
            key = f"{place.__name__}.{name}"
            if key in self._before and getattr(place, name, None) == ours:
                setattr(place, name, self._before.pop(key))
        is_main = threading.current_thread() is threading.main_thread()
        if "SIGTERM" in self._before and is_main and signal.getsignal(signal.SIGTERM) == self._on_term:
            signal.signal(signal.SIGTERM, self._before.pop("SIGTERM"))

    def _places(self) -> list[tuple[ModuleType, str, Any]]:
        """Where the hooks of the interpreter are, and ours for each."""
        return [
            (sys, "excepthook", self._on_exception),
            (sys, "exit", self._on_exit),
            (builtins, "exit", self._quitters["exit"]),
            (builtins, "quit", self._quitters["quit"]),
        ]

    def _on_exception(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if self._watched:
            self._ended = of_exception(error)
        self._before["sys.excepthook"](kind, error, trace)

    def _on_exit(self, code: object = None, /) -> None:
        self.note_exit(code)
        self._before["sys.exit"](code)

    def before(self, key: str) -> Any:
        """What one of our hooks was put on top of."""
        return self._before[key]

    def note_exit(self, code: object) -> None:
        """Somebody asked for the end of the program; that counts where nobody catches it."""
        if threading.current_thread() is threading.main_thread():
            self._exit = (code,)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get("SIGTERM", signal.SIG_DFL)
        if callable(before):
            if self._watched:
                self._ended = ("stopped", {"signal": number})
            before(number, frame)
            return
        for ending in self._watched:
            ending.last_words("stopped", {"signal": number})
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _at_exit(self) -> None:
        status, more = self._ended or self._by_exit()
        for ending in list(self._watched):
            ending.end(status, more)

    def _by_exit(self) -> Ended:
        """An exit code counts where its exception left the outermost frame: one that was caught ended nothing."""
        if self._child_frame is not None:
            return _of_child(self._child_frame)
        if _has_returned(self._outermost):
            return of_exit(0)
        # `raise SystemExit(…)` of the program's own leaves no trace of its code.
        return of_exit(self._exit[0]) if self._exit is not None else ("completed", {})

    def _watch_as_child(self, ending: Ending) -> None:
        """A process of `multiprocessing` ends without `atexit` in most versions, but runs its own finalizers."""
        process, util = sys.modules.get("multiprocessing.process"), sys.modules.get("multiprocessing.util")
        if process is None or util is None or process.parent_process() is None:
            return
        self._child_frame = self._child_frame or _frame_of(process.BaseProcess._bootstrap.__code__)

        def finish() -> None:
            if ending in self._watched:
                ending.end(*(self._ended or self._by_exit()))

        util.Finalize(None, finish, exitpriority=100)

    def _before_fork(self) -> None:
        self._held = [ending for ending in self._watched if ending.lock_for_fork(_FORK_SECONDS)]

    def _after_fork(self) -> None:
        held, self._held = self._held, []
        for ending in held:
            ending.unlock_after_fork()

    def _in_child(self) -> None:
        self._held = []
        self._ended = self._exit = None
        self._outermost = self._child_frame = None
        for ending in self._watched:
            ending.fork()


class _Quitter:
    """`exit` and `quit` as they were, with the code taken down first."""

    def __init__(self, name: str, end: ProcessEnd) -> None:
        self._name, self._end = name, end

    def __repr__(self) -> str:
        return repr(self._end.before(f"builtins.{self._name}"))

    def __call__(self, code: object = None) -> None:
        self._end.note_exit(code)
        self._end.before(f"builtins.{self._name}")(code)


def _outermost_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _frame_of(code: CodeType) -> FrameType | None:
    """The frame in this thread's stack that runs some code."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


def _of_child(frame: FrameType) -> Ended:
    """How a process of `multiprocessing` ends: its frame knows the exit code, or the exception is still on its way."""
    code = frame.f_locals.get("exitcode")
    error = sys.exc_info()[1]
    return of_exception(error) if code is None and error is not None else of_exit(code)


def _has_returned(frame: FrameType | None) -> bool:
    """Whether a frame that is over came to its end, and was not left by an exception. False where nobody knows."""
    if frame is None or frame.f_lasti < 0:
        return False
    return frame.f_code.co_code[frame.f_lasti] in _RETURNS


_RETURNS = frozenset(opcode.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in opcode.opmap)
PROCESS_END = ProcessEnd()
"""The one of this process: hooks of the interpreter are one of a kind."""
