"""The operating system's own commands, behind the one place that starts them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# Longer than a start may take (TimeoutStartSec in the unit), so that the service manager decides.
LONGEST_SECONDS = 330.0
# What a shell answers for a command it does not find, and for one that took too long (timeout(1)).
NOT_FOUND, TOO_LONG = 127, 124


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it printed."""

    code: int
    output: str = ""
    error: str = ""


class Commands(Protocol):
    """Runs commands of the operating system; neither call raises."""

    def run(self, argv: Sequence[str]) -> Answer:
        """Run a command to its end, without input; one that cannot be started answers 127."""
        ...

    def find(self, name: str) -> str | None:
        """Where a command is; None where it is not on the search path."""
        ...


class SystemCommands:
    """The commands of this machine."""

    def run(self, argv: Sequence[str]) -> Answer:
        """Run a command to its end, without input."""
        try:
            done = subprocess.run(
                list(argv),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LONGEST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Answer(TOO_LONG, error=f"no answer within {LONGEST_SECONDS:.0f} s")
        except OSError as error:
            return Answer(NOT_FOUND, error=f"{argv[0]}: {error.strerror or error}")
        return Answer(done.returncode, decode(done.stdout), decode(done.stderr))

    def find(self, name: str) -> str | None:
        """Where a command is."""
        return shutil.which(name)


def decode(printed: bytes) -> str:
    """The text a command printed. NSSM prints UTF-16 without a mark; everything else here UTF-8."""
    if b"\0" in printed:
        return printed.decode("utf-16-le", errors="replace").removeprefix("\ufeff")
    return printed.decode("utf-8", errors="replace")


def shell_text(argv: Sequence[str]) -> str:
    """The command as it can be typed."""
    return subprocess.list2cmdline(argv) if sys.platform == "win32" else shlex.join(argv)
