"""Processes that tests started and that are still there: found by a mark which every child inherits, ended, told.

Works where there is a /proc; elsewhere nothing is found.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.waiting import until

MARK = "GPU_TESTS_RUN"
"""The environment variable that holds the name of a run of the tests."""
_PATIENCE = 10.0
# Ends what a run has left as soon as the run is gone, however it went: its standard input ends then.
_GUARD = """
import sys
from pathlib import Path
from tests.leftovers import end_all
sys.stdin.read()
end_all(sys.argv[1])
"""


def marked(run: str) -> dict[int, str]:
    """The command lines of the processes of a run, by process id; this process is never among them."""
    wanted = f"{MARK}={run}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if int(folder.name) != os.getpid() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = words.decode(errors="replace").strip()
    return found


def end_all(run: str) -> None:
    """SIGKILL for every process of a run, until there is none; AssertionError where that does not come to pass."""

    def are_gone() -> bool:
        left = marked(run)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return not left

    until(are_gone, "all processes are gone", _PATIENCE)


class Guard:
    """Watches over the processes of this run of the tests, from now to `close`."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(8)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _GUARD, self.run],
            cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        os.environ[MARK] = self.run  # after the start: the guard itself has no mark

    def left(self) -> dict[int, str]:
        """What is still there although all tests are over; processes that are on their way out have time for it."""
        with contextlib.suppress(AssertionError):
            until(lambda: not marked(self.run), "all processes have ended", _PATIENCE)
        return marked(self.run)

    def close(self) -> None:
        """End what is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        os.environ.pop(MARK, None)
