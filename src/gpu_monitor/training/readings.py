# SPDX-License-Identifier: MIT
"""Readings of this machine's GPUs for a program that asks for them: `start_monitoring`, `get_latest_metrics` and their kin.

A child process reads, so that a driver that hangs or crashes does no harm here; a thread keeps the newest reading.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

from gpu_monitor import __version__
from gpu_monitor.core.catalogue import BY_NAME, DEFAULT_FIELDS, Kind, Reason, round_value
from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.model import Span
from gpu_monitor.training.capture import cuda_facts, host_facts, python_facts
from gpu_monitor.training.notice import tell
from gpu_monitor.training.sampler import Asked, NoReadings

MODES = {"never": "real", "auto": "auto", "always": "always"}
"""What `simulate` may be, and how the child calls it."""
_SHORTEST_SECONDS = 0.1
_FIRST_SECONDS = 45.0
"""What `start_monitoring` waits for the driver, which may have to set up eight GPUs first."""
_IDENTITY = ("uid", "pci_bus_id", "name", "memory_total")
_VALUES = tuple(name for name in DEFAULT_FIELDS if BY_NAME[name].kind is not Kind.IDENTITY)
BANNER = """
  ############################################################################
  #  gpu_monitor: SIMULATED GPU READINGS.                                    #
  #  These numbers are made up: they say nothing about this machine.         #
  #  Every row has "source": "simulated".                                    #
  ############################################################################
"""


class Readings:
    """Reads every `interval` seconds until `stop`. Any thread may ask."""

    def __init__(self, interval: float = 1.0, simulate: str = "never", clock: Clock | None = None) -> None:
        if simulate not in MODES:
            raise ValueError(f"simulate is one of {', '.join(MODES)}, not {simulate!r}")
        if not interval >= _SHORTEST_SECONDS:
            raise ValueError(
                f"interval is a number of seconds, {_SHORTEST_SECONDS} or more, not {interval!r}"
            )
        self._interval = interval
        self._clock: Clock = clock or SystemClock()
        self._over = threading.Event()
        self._first = threading.Event()
        request = {"gpus": MODES[simulate], "span": int(Span.FULL), "host": "/"}
        self._asked = Asked(request, self._over)
        self._rows: list[dict[str, Any]] = []
        self._host: dict[str, Any] = {}
        self._driver: str | None = None
        self.source: str | None = None
        """Where readings come from: nvml, simulated, or None where there are none."""
        self.reason: str | None = None
        """Why there are none."""
        self._thread = threading.Thread(target=self._work, name="gpu_monitor-readings", daemon=True)

    def start(self) -> None:
        """Begin, and wait for the first reading or for the reason why there is none."""
        self._thread.start()
        self._first.wait(_FIRST_SECONDS)

    def stop(self) -> None:
        """End the readings and the process that makes them."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(3.0)

    def rows(self) -> list[dict[str, Any]]:
        """The newest reading: a row for each GPU."""
        return [dict(row) for row in self._rows]

    def about(self) -> dict[str, Any]:
        """The machine as the newest reading knows it."""
        return {
            **self._host,
            "driver_version": self._driver,
            "gpus": [{name: row[name] for name in (*_IDENTITY, "index", "source")} for row in self._rows],
            "source": self.source,
            "reason": self.reason,
        }

    def _work(self) -> None:
        try:
            opened = self._asked.open()
            self.source, self.reason = opened["source"], opened["reason"]
            if self.source == "simulated":
                _shout()
            due = self._clock.monotonic()
            while not self._over.is_set():
                now = self._clock.now()
                self._take(self._asked.read(now), now)
                self._first.set()
                due = max(due + self._interval, self._clock.monotonic())
                self._clock.wait(self._over, due)
        except NoReadings as error:
            self._rows, self.reason = [], str(error)
            if not self._over.is_set():
                tell(f"no GPU readings any more: {error}")
        finally:
            self._first.set()
            self._asked.close()

    def _take(self, found: Mapping[str, Any], now: float) -> None:
        self._host = found.get("host") or {}
        self.reason = found["reason"]
        self._rows = [row_of(device, now) for device in found["gpus"]]
        versions = [device["values"].get("driver_version") for device in found["gpus"]]
        self._driver = next((str(version) for version in versions if version is not None), self._driver)


def row_of(device: Mapping[str, Any], now: float) -> dict[str, Any]:
    """One GPU's row: the documented names in their units, null with a reason where a value is not known."""
    row: dict[str, Any] = {"timestamp": now, "index": device["index"], "source": device["source"]}
    row |= {name: device[name] for name in _IDENTITY}
    reasons: dict[str, str] = {}
    for name in _VALUES:
        row[name] = round_value(BY_NAME[name], device["values"].get(name))
        if row[name] is None:
            reasons[name] = device["reasons"].get(name, Reason.UNSUPPORTED)
    row["status"] = device["status"]
    row["reasons"] = reasons
    return row


def _shout() -> None:
    try:
        print(BANNER, file=sys.stderr, flush=True)  # noqa: T201 (a log that nobody reads would hide it)
    except (OSError, ValueError, AttributeError):  # no standard error: a window program, a closed stream
        tell("SIMULATED GPU READINGS: these numbers are made up")


_running: list[Readings] = []
_mutex = threading.Lock()


def start_monitoring(interval: float = 1.0, simulate: str = "never") -> bool:
    """Begin to read this machine's GPUs every `interval` seconds; whether there is a GPU to read.

    `simulate`: `never`, `auto` (simulated where there is no GPU) or `always`. Simulated rows say so, and so does a
    banner on the standard error. A second call replaces what runs. Raises ValueError for values that make no sense.
    """
    readings = Readings(interval, simulate)
    with _mutex:
        before, _running[:] = list(_running), [readings]
    for old in before:
        old.stop()
    readings.start()
    if readings.source is None:
        tell(f"there are no GPU readings: {readings.reason}")
    return readings.source is not None


def stop_monitoring() -> None:
    """End what `start_monitoring` began; nothing where nothing runs."""
    with _mutex:
        before, _running[:] = list(_running), []
    for readings in before:
        readings.stop()


def get_latest_metrics() -> list[dict[str, Any]]:
    """The newest reading: a row for each GPU with the documented names and units, `source` and `timestamp`.

    Empty before `start_monitoring`, and where there is no GPU (`get_system_info()["reason"]` says why). A value that is
    not known is None and has its reason in `reasons`.
    """
    with _mutex:
        running = list(_running)
    return running[0].rows() if running else []


def get_system_info() -> dict[str, Any]:
    """The machine: host, system, Python, processors, memory, driver and its GPUs, as far as they are known.

    GPUs and memory are known once `start_monitoring` was called; before that `reason` says so.
    """
    with _mutex:
        running = list(_running)
    about = (
        running[0].about()
        if running
        else {"gpus": [], "source": None, "reason": "start_monitoring was not called"}
    )
    known = {
        **host_facts(),
        "python": python_facts()["version"],
        "gpu_monitor": __version__,
        "cuda": cuda_facts(),
    }
    return {**known, **about}
