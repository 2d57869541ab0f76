"""Asks before something is gone for good."""

from __future__ import annotations

import sys

from gpu_monitor.core.errors import UsageError


def agrees(what: str) -> bool:
    """Whether the person at the terminal types yes to `what` (a sentence); UsageError where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise UsageError(f"{what} Nobody is here to be asked.", "Say --yes if you mean it.")
    print(f"{what} Type yes to go on: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() == "yes"
