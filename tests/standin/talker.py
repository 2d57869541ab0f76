"""A process that evaluates pynvml expressions for a test, one a line, so that NVML is seen from outside.

In an expression `n` is pynvml, `h(index)` the handle of that index, `keep` a dict that lasts. An answer is
the value, with structures as dicts, or `NvmlError(code)`.
"""

import ctypes
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class NvmlError:
    """The call raised NVMLError with this code."""

    code: int


class Talker:
    """The process, seen from the test."""

    def __init__(self, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "tests.standin.talker"]
        here = {**os.environ, **env}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1, env=here, cwd=_ROOT
        )
        self.pid = self._process.pid

    def ask(self, expression: str) -> None:
        """Sends an expression without waiting for its answer."""
        assert self._process.stdin
        self._process.stdin.write(expression.replace("\n", " ") + "\n")

    def answer(self) -> Any:
        """The next answer; raises AssertionError with the process's last words if it died."""
        assert self._process.stdout and self._process.stderr
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the process ended: {self._process.stderr.read()}")
        said = json.loads(line)
        return NvmlError(said["error"]) if "error" in said else said["value"]

    def __call__(self, expression: str) -> Any:
        """Asks and waits for the answer."""
        self.ask(expression)
        return self.answer()

    def has_answered(self) -> bool:
        """Whether an answer can be read now."""
        assert self._process.stdout
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def ended(self) -> tuple[int, str]:
        """Waits for the process to end by itself: its exit status and what it said on stderr."""
        assert self._process.stdin and self._process.stderr
        self._process.stdin.close()
        words = self._process.stderr.read()
        return self._process.wait(), words

    def kill(self) -> None:
        """Ends the process, if it runs, and closes the pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe and not pipe.closed:
                pipe.close()


def plain(value: object) -> object:
    """A value as JSON can carry it."""
    if isinstance(value, ctypes.Structure):
        return {name: plain(getattr(value, name)) for name, *_ in value._fields_}
    if isinstance(value, ctypes.Union):
        return {name: getattr(value, name) for name in ("uiVal", "ullVal")}
    if isinstance(value, ctypes.Array | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, ctypes._SimpleCData):
        return value.value
    if hasattr(value, "usedGpuMemory"):
        return vars(value)
    return None if isinstance(value, ctypes._Pointer) else value


def main() -> None:
    """Answers expressions from stdin until it closes."""
    import pynvml as n  # only here: the test's own process must not load an NVML library

    keep: dict[str, Any] = {}
    names = {"n": n, "h": n.nvmlDeviceGetHandleByIndex, "keep": keep, "plain": plain}
    for line in sys.stdin:
        try:
            said: dict[str, object] = {"value": plain(eval(line, names))}
        except n.NVMLError as error:
            said = {"error": error.value}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
