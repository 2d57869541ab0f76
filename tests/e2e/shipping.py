"""A process that ships one store until it is killed: run as `python shipping.py STORE URL SPEED`.

Its clock runs SPEED times as fast, so that back-off takes milliseconds; requests take the time they take.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from gpu_monitor.agent.ledger import Ledger
from gpu_monitor.agent.ship import Shipper
from gpu_monitor.core.clock import FastClock, SystemClock
from gpu_monitor.sinks.http import HttpSink, Target
from gpu_monitor.storage.database import Writer

_YEAR = 365 * 86400.0


def main(store: str, url: str, speed: str) -> None:
    """Ship for ever."""
    clock = FastClock(SystemClock().now() - _YEAR, float(speed))
    writer, stop = Writer(Path(store)), threading.Event()
    sink = HttpSink(Target(url, "1", timeout_seconds=1.0), lambda: "token", stop)
    shipper = Shipper(writer, Ledger(writer, "1", 300), lambda: sink, clock, stop)
    print("ready", flush=True)
    while True:
        clock.wait(stop, clock.monotonic() + shipper.run_once())


if __name__ == "__main__":
    main(*sys.argv[1:])
