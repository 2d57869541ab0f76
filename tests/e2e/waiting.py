"""Waiting for what another process does, in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 60.0


def until(check: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Return as soon as `check` is true; fail with `what` never happened after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not check():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)
