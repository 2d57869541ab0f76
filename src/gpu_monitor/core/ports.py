# SPDX-License-Identifier: MIT
"""The small interfaces between layers; each docstring is the guarantee its contract tests check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gpu_monitor.core.model import DeviceReading, GpuProcess, HostReading, Round, Span
from gpu_monitor.core.outcome import LiveTerms, Outcome, Parcel, Room


class Source(Protocol):
    """GPU readings.

    Never called in parallel. `read` returns in bounded time whatever the driver does and never
    raises for one bad device: a missing metric has a reason, a bad device a status. Values are in
    catalogue units.
    """

    name: str

    def probe(self) -> None:
        """Raise SourceUnavailable(reason, hint) where no reading can be had at all."""
        ...

    def read(self, now: float, span: Span) -> Round:
        """One round of readings for the moment `now` (UTC epoch)."""
        ...

    def close(self) -> None:
        """Let go of children and files; further calls are not allowed."""
        ...


class HostSource(Protocol):
    """Readings of the machine itself."""

    def read(self) -> HostReading:
        """One reading; what the system does not give is None."""
        ...


class ProcessLookup(Protocol):
    """Who a process is."""

    def describe(self, found: GpuProcess) -> GpuProcess:
        """`found` with everything filled in that may be read without privileges."""
        ...


class Sink(Protocol):
    """Where reports go. One thread at a time; nothing is sent before the first call."""

    def room(self) -> Room:
        """How much one `send` may carry now; a plain server takes one report."""
        ...

    def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        """Try once to deliver these exact bytes; one outcome per parcel, in order.

        Returns in bounded time and never raises for what the other side does.
        """
        ...

    def close(self) -> None:
        """Let go of connections; a later `send` opens new ones."""
        ...


class LiveSink(Protocol):
    """Where live samples go, best effort. One thread at a time, but for `cut`."""

    def terms(self) -> LiveTerms | None:
        """What the other side takes; it may be asked first, in bounded time. None: it could not be asked."""
        ...

    def send(self, body: bytes) -> Outcome:
        """Try once to deliver a message; never raises for what the other side does."""
        ...

    def cut(self) -> None:
        """Have a `send` that another thread has under way end now."""
        ...

    def close(self) -> None:
        """Let go of connections; a later `send` opens new ones."""
        ...


__all__ = ["DeviceReading", "HostSource", "LiveSink", "ProcessLookup", "Sink", "Source"]
