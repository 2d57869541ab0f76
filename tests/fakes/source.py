"""A source that gives what a test put into it."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_monitor.core.catalogue import SAMPLED, STATES
from gpu_monitor.core.errors import SourceUnavailable
from gpu_monitor.core.model import DeviceReading, Event, Identity, Round, Span, Status, Value


class FakeSource:
    """Implements `core.ports.Source`. `rounds` are given out first, then one well device for ever.

    An exception among `rounds` is raised. `asked` keeps what was asked for. `unavailable`: what `probe` raises.
    """

    name = "fake"

    def __init__(
        self, rounds: Sequence[Round | Exception] = (), unavailable: SourceUnavailable | None = None
    ) -> None:
        self.rounds = list(rounds)
        self.unavailable = unavailable
        self.asked: list[tuple[float, Span]] = []
        self.is_closed = False

    def probe(self) -> None:
        """Raise what the test asked for."""
        if self.unavailable is not None:
            raise self.unavailable

    def read(self, now: float, span: Span) -> Round:
        """The next round."""
        self.asked.append((now, span))
        given = self.rounds.pop(0) if self.rounds else Round((reading(span),))
        if isinstance(given, Exception):
            raise given
        return given

    def close(self) -> None:
        """Remember it."""
        self.is_closed = True


def reading(
    span: Span = Span.FULL,
    uid: str = "GPU-fake-0",
    status: Status = Status.OK,
    cause: str | None = None,
    **values: Value,
) -> DeviceReading:
    """A device's reading: `values` (a temperature where there are none), a reason for everything else."""
    identity = Identity(uid, "fake", "Fake 1", "00000000:01:00.0", 2**30, 0, memory_kind="dedicated")
    names = {metric.name for metric in SAMPLED + STATES}
    if status is not Status.OK:
        reasons = dict.fromkeys(names, status.value)
        return DeviceReading(identity, status, {}, reasons, None, cause or status.value, 1.0)
    given = values or {"temperature": 40}
    missing = dict.fromkeys(names - given.keys(), "unsupported")
    return DeviceReading(identity, status, given, missing, () if span is Span.WIDE else None)


def event(kind: str, time: float = 1.0, uid: str | None = None) -> Event:
    """An event of this kind."""
    return Event(time, kind, kind, uid=uid)
