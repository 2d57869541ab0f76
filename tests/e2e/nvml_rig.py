"""An NVML source on the stand-in library, with a real child process and a clock that a test can push on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.model import DeviceReading, Event, Round, Span, Status
from gpu_monitor.sources.child import Launcher
from gpu_monitor.sources.gpu.nvml import NvmlSettings, NvmlSource
from tests.standin.control import Standin

QUICK = NvmlSettings(deadline_seconds=1.0, init_seconds=3.0, grace_seconds=8.0)
"""A hang is found after a second; a replacement may take as long as a busy machine needs.

With a child that cannot be killed the whole grace is waited out: such tests set it lower.
"""


class PushedClock(SystemClock):
    """The machine's clock, plus what a test pushed it on by."""

    def __init__(self) -> None:
        self.pushed = 0.0

    def now(self) -> float:
        return super().now() + self.pushed

    def monotonic(self) -> float:
        return super().monotonic() + self.pushed

    def push(self, seconds: float) -> None:
        """Let this much time have passed."""
        self.pushed += seconds


class Rig:
    """The source and what a test wants to know of it."""

    def __init__(self, standin: Standin, settings: NvmlSettings, launcher: Launcher | None) -> None:
        self.standin = standin
        self.clock = PushedClock()
        settings = replace(settings, environment={**settings.environment, **standin.env()})
        self.source = NvmlSource(settings, launcher, self.clock)
        self.events: list[Event] = []
        self.last = Round(())

    def read(self, span: Span = Span.FAST) -> Round:
        """One round; its events are kept."""
        self.last = self.source.read(self.clock.now(), span)
        self.events += self.last.events
        return self.last

    def __getitem__(self, gpu: int) -> DeviceReading:
        """The last round's reading of the stand-in's card."""
        return self.device(self.standin.uuid(gpu))

    def device(self, uid: str) -> DeviceReading:
        """The last round's reading of a device."""
        (found,) = [device for device in self.last.devices if device.identity.uid == uid]
        return found

    @property
    def statuses(self) -> list[Status]:
        """By card of the stand-in; a card that is not there is left out."""
        by_uid = {device.identity.uid: device.status for device in self.last.devices}
        return [by_uid[uid] for gpu in range(8) if (uid := self._uuid(gpu)) in by_uid]

    def _uuid(self, gpu: int) -> str | None:
        try:
            return self.standin.uuid(gpu)
        except ValueError:
            return None

    @property
    def kinds(self) -> list[str]:
        """Kinds of all events so far."""
        return [event.kind for event in self.events]

    def event(self, kind: str) -> Event:
        """The one event of this kind so far."""
        (found,) = [event for event in self.events if event.kind == kind]
        return found

    def until(self, statuses: list[Status], span: Span = Span.FAST, seconds: float = 60) -> None:
        """Read until it is so, with a pause for the children between rounds, as the agent has one."""
        deadline = time.monotonic() + seconds
        while True:
            self.read(span)
            if self.statuses == statuses:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.statuses}, paused: {self.last.paused}")
            time.sleep(0.05)

    def children(self) -> list[int]:
        """Pids of living children of this process that talk to the stand-in."""
        return living_children(self.standin)


def living_children(standin: Standin, parent: int | None = None) -> list[int]:
    """Pids of the children of `parent` (this process) that run on `standin` and have not ended."""
    wanted, found = str(standin.path).encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if int(of) == (parent or os.getpid()) and state not in "ZX" and wanted in environment:
            found.append(int(entry.name))
    return found


@contextmanager
def rig_on(
    standin: Standin,
    settings: NvmlSettings = QUICK,
    launcher: Launcher | None = None,
    changes: Mapping[str, object] | None = None,
) -> Iterator[Rig]:
    """A rig that is closed at the end, hangs released first so that nothing outlives the test."""
    rig = Rig(standin, replace(settings, **(changes or {})), launcher)  # type: ignore[arg-type]
    try:
        yield rig
    finally:
        rig.source.close()
        standin.heal()


def number(reading: DeviceReading, name: str) -> float:
    """A plain numeric value of a reading."""
    value = reading.values[name]
    assert isinstance(value, (int, float)), f"{name} is {value!r}"
    return value
