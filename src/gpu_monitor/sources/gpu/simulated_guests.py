"""Puts this machine's trainings on simulated GPUs, so that what joins runs and GPUs can be seen without a card.

A training takes the place of the made-up process on one GPU, for as long as both live. What the GPU does stays made up,
and the rows are labelled as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.model import DeviceReading, GpuProcess, Round, Span, Status
from gpu_monitor.core.ports import ProcessLookup, Source
from gpu_monitor.sources.host.lives import Lives
from gpu_monitor.sources.host.registrations import RegistrationFolders

_NOW_SECONDS = 5.0
"""A simulated machine whose time is further away than this has not lived to see today's trainings."""
_Guest = tuple[int, int]


class GuestSource:
    """Another source's readings (core.ports.Source), with the trainings that registered in `places` as processes.

    `processes` tells more of them. `clock`: this machine's own time, which the simulated one may still be catching up
    with.
    """

    def __init__(
        self, source: Source, processes: ProcessLookup, places: tuple[str, ...], clock: Clock
    ) -> None:
        self.name = source.name
        self._source = source
        self._processes = processes
        self._clock = clock
        self._folders = RegistrationFolders(places)
        self._lives = Lives(most_pidfds=0)
        self._hosts: dict[_Guest, str] = {}

    def probe(self) -> None:
        """As the other source."""
        self._source.probe()

    def close(self) -> None:
        """Let go of the other source."""
        self._source.close()

    def read(self, now: float, span: Span) -> Round:
        """One round; wide ones, which have processes, have the guests."""
        found = self._source.read(now, span)
        if span is not Span.WIDE:
            return found
        self._assign(found.devices, self._living() if self._is_today(now) else [])
        return replace(found, devices=tuple(map(self._hosting, found.devices)))

    def _is_today(self, now: float) -> bool:
        return abs(self._clock.now() - now) < _NOW_SECONDS

    def _living(self) -> list[_Guest]:
        """The registered processes that live now: pid here, and start in clock ticks; the oldest first."""
        self._lives.begin_look()
        lives = [self._lives.find(one) for one in self._folders.look(self._clock.now())]
        return sorted(
            {(life.pid, life.start_ticks) for life in lives if life is not None}, key=lambda g: g[1]
        )

    def _assign(self, devices: Sequence[DeviceReading], living: Sequence[_Guest]) -> None:
        """Each stays where it is; a new one goes where the fewest are, and of those where most is done."""
        able = [one for one in devices if one.status is Status.OK and one.processes]
        self._hosts = {guest: self._hosts[guest] for guest in living if guest in self._hosts}
        for guest in living:
            if guest not in self._hosts and able:
                taken = Counter(self._hosts.values())
                best = min(able, key=lambda one: (taken[one.identity.uid], -_memory(one.processes or ())))
                self._hosts[guest] = best.identity.uid

    def _hosting(self, device: DeviceReading) -> DeviceReading:
        guests = [guest for guest, uid in self._hosts.items() if uid == device.identity.uid]
        if not guests or device.processes is None:
            return device
        stay = [one for one in device.processes if one.kind != "compute"]
        memory = _memory(device.processes) // len(guests) or None
        come = [self._processes.describe(GpuProcess(pid, "compute", memory, ticks)) for pid, ticks in guests]
        return replace(device, processes=(*come, *stay))


def _memory(processes: Sequence[GpuProcess]) -> int:
    """Bytes that computing processes hold, where that is known."""
    return sum(one.memory or 0 for one in processes if one.kind == "compute")
