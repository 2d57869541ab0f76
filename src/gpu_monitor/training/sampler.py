# SPDX-License-Identifier: MIT
"""Readings of the machine, the training's processes and its GPUs, every few seconds, from a small child process.

The child only answers; the thread here records, so that the segment has one writer. A child that does not answer in
time is ended and another is started, a few times.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_monitor.config.load import load, read_file, system_file
from gpu_monitor.core.catalogue import BY_NAME, HOST_METRICS
from gpu_monitor.core.clock import Clock, SystemClock, process_seconds
from gpu_monitor.core.errors import ConfigError
from gpu_monitor.sources.child import Child, Ended, SystemLauncher, module_paths
from gpu_monitor.training.identity import find_gpus, find_local_rank
from gpu_monitor.training.parts import Options
from gpu_monitor.training.recorder import Recorder
from gpu_monitor.training.topics import GPU, SYSTEM
from gpu_monitor.wire.training import Capture

CHILD = "gpu_monitor.sources.sampling"
PACKAGES = ("pynvml", "psutil")
"""What the child may need besides our own package."""
INTERVAL_SECONDS = 5.0
ANSWER_SECONDS = 15.0
"""A reading takes milliseconds; a driver that hangs costs at most six seconds of it."""
OPEN_SECONDS = 40.0
"""Eight GPUs without persistence mode take 20 s to be set up."""
_LOOK_SECONDS = 0.2
"""How often a wait looks whether it is still wanted."""
_MOST_STARTS = 3
_STATE_FOLDER = "/var/lib/gpu_monitor"
_REGISTRY = "/run/gpu_monitor/experiments"
_HOST = ("cpu_utilization", "memory_used", "memory_total")
_GPUS = ("gpu_utilization", "memory_utilization", "memory_used", "temperature", "power_usage")
_HOST_UNITS = {metric.name: metric.unit for metric in HOST_METRICS}
_PROCESS_UNITS = {"cores": "cores", "memory": "bytes", "processes": ""}
_PROCESS_NAMES = {"cores": "cpu_cores", "memory": "memory_used", "processes": "processes"}


class NoReadings(Exception):
    """The child gives none any more; the text says why."""


class Asked:
    """A child and what it was asked to open; started again where it fails. One thread; `over` ends its waiting."""

    def __init__(self, request: Mapping[str, Any], over: threading.Event | None = None) -> None:
        self._request = {"do": "open", "parent": os.getpid(), **request}
        self._over = over or threading.Event()
        self._child: Child | None = None
        self._starts = 0
        self.opened: dict[str, Any] = {}
        """What it said to `open`: `source` of GPU readings and `reason`."""

    def open(self) -> dict[str, Any]:
        """Start the child. Raises NoReadings."""
        self._starts += 1
        try:
            self._child = Child(CHILD, module_paths(*PACKAGES), SystemLauncher(), 1)
        except OSError as error:
            raise NoReadings(f"no process can be started: {error.strerror}") from None
        self.opened = self._ask(self._request, OPEN_SECONDS)
        return self.opened

    def read(self, now: float) -> dict[str, Any]:
        """A reading at `now` (UTC epoch). Raises NoReadings once several children have failed."""
        while True:
            try:
                if self._child is None:
                    self.open()
                return self._ask({"do": "read", "now": now}, ANSWER_SECONDS)
            except NoReadings:
                if self._starts >= _MOST_STARTS or self._over.is_set():
                    raise

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        child = self._child
        assert child is not None
        why = f"the process that reads does not answer within {seconds:.0f} s"
        try:
            child.send(dict(request))
            answer = self._receive(child, seconds)
        except Ended:
            answer = None
            child.has_ended(1.0)
            why = f"the process that reads ended: {child.last_words()[-200:] or child.status}"
        if answer is None:
            self.close()
            raise NoReadings(why)
        return answer

    def _receive(self, child: Child, seconds: float) -> dict[str, Any] | None:
        """The next answer; None where none comes in time, or nobody waits for it any more. Raises Ended."""
        deadline = process_seconds() + seconds
        while not self._over.is_set() and (left := deadline - process_seconds()) > 0:
            answer: dict[str, Any] | None = child.receive(min(left, _LOOK_SECONDS))
            if answer is not None:
                return answer
        return None

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.has_ended(1.0)
            child.close()


class Sampler:
    """Records readings until `close` (parts.Part)."""

    def __init__(
        self,
        recorder: Recorder,
        request: Mapping[str, Any],
        interval: float = INTERVAL_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        self._recorder = recorder
        self._over = threading.Event()
        self._asked = Asked(request, self._over)
        self._interval = interval
        self._clock: Clock = clock or SystemClock()
        self._series: set[str] = set()
        self._energy: dict[str, float] = {}
        self._visible = None if (uids := find_gpus()) is None else frozenset(uids)
        self._thread = threading.Thread(target=self._work, name="gpu_monitor-sampler", daemon=True)
        self._reason: str | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self, timeout: float) -> str | None:
        """End the readings and the process that makes them."""
        self._over.set()
        self._thread.join(min(timeout, 3.0))
        return None

    def _work(self) -> None:
        due = self._clock.monotonic()
        try:
            self._asked.open()
            while not self._over.is_set():
                found = self._asked.read(self._clock.now())
                self._record(found)
                due = max(due + self._interval, self._clock.monotonic())
                self._clock.wait(self._over, due)
        except NoReadings as error:
            if not self._over.is_set():
                self._say(str(error))
        finally:
            self._asked.close()

    def _record(self, found: Mapping[str, Any]) -> None:
        host: dict[str, float] = found.get("host") or {}
        process: dict[str, float | None] = found.get("process") or {}
        values: dict[str, tuple[float, dict[str, Any]]] = {}
        for name in _HOST:
            if name in host:
                values[f"system/{name}"] = host[name], _more(_HOST_UNITS[name])
        for key, name in _PROCESS_NAMES.items():
            if (used := process.get(key)) is not None:
                values[f"process/{name}"] = used, _more(_PROCESS_UNITS[key])
        indices = {device["uid"]: device["index"] for device in found["gpus"]}
        for number, device in enumerate(found["gpus"]):
            index = indices.get(device["parent_uid"] or device["uid"])
            self._add_device(values, number if index is None else index, device)
        self._say(found["reason"])
        if not values or self._over.is_set() or self._recorder.is_over:
            return
        for name in sorted(
            values.keys() - self._series
        ):  # a series is described where it is first named: alone
            value, more = values.pop(name)
            self._series.add(name)
            self._recorder.log_points({name: value}, None, more)
        if values:
            self._recorder.log_points({name: value for name, (value, _) in values.items()}, None, _more(""))

    def _add_device(
        self, values: dict[str, tuple[float, dict[str, Any]]], index: int, device: Mapping[str, Any]
    ) -> None:
        """The values of one GPU that the training sees. MIG instances have names of their own."""
        uid = device["uid"]
        if (
            self._visible is not None
            and uid not in self._visible
            and device["parent_uid"] not in self._visible
        ):
            return
        instance = (device["mig_instance"] or "").replace("/", "-")
        place = f"gpu/{index}/{instance}" if instance else f"gpu/{index}"
        read = dict(device["values"])
        energy = read.get("energy")
        if energy is not None:
            before, self._energy[uid] = self._energy.get(uid), energy
            if before is not None and energy >= before:
                values[f"{place}/energy"] = energy - before, {**_more("J"), "uid": uid}
        for name in _GPUS:
            if read.get(name) is not None:
                values[f"{place}/{name}"] = read[name], {**_more(BY_NAME[name].unit), "uid": uid}

    def _say(self, reason: str | None) -> None:
        """Record why there are no readings of GPUs, when that changes."""
        if reason is not None and reason != self._reason and not self._recorder.is_over:
            self._recorder.put(Capture(self._recorder.at(), {"gpu": {"reason": reason}}))
        self._reason = reason


def _more(unit: str) -> dict[str, Any]:
    return {"unit": unit, "source": "sdk"} if unit else {"source": "sdk"}


def agent_stores() -> list[str]:
    """The stores of agents that may run here: of this user's configuration, and of the system service."""
    stores: list[str] = []
    try:
        stores.append(str(load().store))
    except (ConfigError, OSError):
        pass  # another program's config.json, or no working directory: no agent of ours was started with it
    try:
        settings = read_file(system_file())
    except ConfigError:
        return stores
    return [*stores, str(Path(_STATE_FOLDER, settings.database.file))]


def start(recorder: Recorder, options: Options) -> Sampler | None:
    """Record readings (parts.STARTS), by the first process of a training on each machine."""
    if (find_local_rank() or 0) > 0 or not (options.wants(SYSTEM) or options.wants(GPU)):
        return None
    request: dict[str, Any] = {"gpus": "never"}
    if options.wants(SYSTEM):
        request |= {"host": str(Path(recorder.folder).absolute()), "pid": os.getpid()}
    if options.wants(GPU):
        request |= {"gpus": "real", "stores": agent_stores(), "registry": _REGISTRY}
    sampler = Sampler(recorder, request)
    sampler.start()
    return sampler
