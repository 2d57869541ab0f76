"""The agent asked to end at the most awkward moment."""

from __future__ import annotations

import argparse
import signal
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gpu_monitor.cli.agent import _signals


@pytest.mark.timeout(30)
def test_a_stop_that_interrupts_a_wait_for_it_is_heard() -> None:
    stop, told = threading.Event(), []
    assembly: Any = SimpleNamespace(stopping=lambda: told.append("stopping"))
    nothing = cast("Any", None)
    with _signals(nothing, assembly, argparse.Namespace(), nothing, stop):
        lock = stop._cond  # type: ignore[attr-defined]
        with lock:  # as in the middle of stop.wait()
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert not stop.is_set()
        assert stop.wait(20)
    assert told == ["stopping"]
