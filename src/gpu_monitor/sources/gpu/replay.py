"""A recorded log played back as if its GPUs were here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpu_monitor.core.catalogue import BY_NAME, SAMPLED, STATES, Kind, Reason
from gpu_monitor.core.errors import LogUnreadable, SourceUnavailable
from gpu_monitor.core.model import DeviceReading, Identity, Round, Span, Spread, Status, Value
from gpu_monitor.sources.recorded.log import RecordedLog
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions, RecordedDevice, RecordedRow
from gpu_monitor.sources.recorded.survey import Survey

SOURCE = "replay"
ENDED = "replay ended"
SILENT = "nothing recorded"
_ABSENT = {metric.name: Reason.NOT_IN_LOG for metric in SAMPLED + STATES}
# A row is what the GPU showed until the next one is due; one missing row may be a late one.
_STEPS_HELD = 2.0


def open_replay(
    path: Path, start: float, loop: bool = False, options: ReadOptions | None = None
) -> ReplaySource:
    """The log at `path`, its first reading played at `start`; LogUnreadable where it cannot be played.

    `options` say how to read a log without a header or time zone.
    """
    log = RecordedLog(path, options or ReadOptions())
    try:
        seen = log.survey()
        if seen.first is None:
            raise LogUnreadable(
                f"{path} holds no reading of a GPU", "Give a log of nvidia-smi with rows in it."
            )
    except LogUnreadable:
        log.close()
        raise
    return ReplaySource(lambda: log.rows(Findings()), seen, start, loop, log.close)


@dataclass
class _Device:
    """One recorded GPU: its newest row, those since the last round, and counters made from rates."""

    step: float
    newest: RecordedRow | None = None
    newest_at: float = 0.0
    fresh: list[RecordedRow] = field(default_factory=list)
    counted: dict[str, float] = field(default_factory=dict)


class ReplaySource:
    """Plays recorded rows (core.ports.Source): the recording's first moment is `start` of the agent's clock.

    A round holds, per GPU, the newest row at that moment, unless it is older than two of the GPU's
    usual steps (and, where rows came since the last round, than half the time since it). Gauges of
    several rows are their mean, least and most. What the rows do not hold is `not in the log`.
    Rows that go back in time are passed over. At its end the recording begins again if `loop`, else
    rounds are paused with `replay ended`. `rows` gives the recording from its beginning each time.
    """

    name = SOURCE

    def __init__(
        self,
        rows: Callable[[], Iterable[RecordedRow]],
        survey: Survey,
        start: float,
        loop: bool = False,
        close: Callable[[], None] | None = None,
    ) -> None:
        self._rows = rows
        self._survey = survey
        self._start = start
        self._loop = loop
        self._close = close
        self._first = survey.first or 0.0
        self._ahead: Iterator[RecordedRow] = iter(rows())
        self._next: RecordedRow | None = None
        self._is_over = False
        self._lap = 0.0
        self._last = self._asked = self._first
        self._devices: dict[str, _Device] = {}

    def probe(self) -> None:
        """Raise SourceUnavailable where the recording holds nothing."""
        if self._survey.first is None:
            raise SourceUnavailable(
                "the recording holds no reading of a GPU", "Give another log to --replay."
            )

    def read(self, now: float, span: Span) -> Round:
        """What the recording held at `now`."""
        at = self._first + now - self._start
        self._play(at)
        if self._is_over and at > self._last + self._survey.step:
            return Round((), paused=ENDED)
        half = (at - self._asked) / 2
        self._asked = at
        found = [_reading(key, device) for key, device in self._devices.items() if _is_held(device, at, half)]
        for device in self._devices.values():
            device.fresh.clear()
        is_silent = not found and at >= self._first
        return Round(tuple(found), paused=SILENT if is_silent else None)

    def close(self) -> None:
        """Close the log."""
        if self._close is not None:
            self._close()

    def _play(self, at: float) -> None:
        """Take the rows up to `at`."""
        while not self._is_over:
            row = self._next or self._take()
            if row is None:
                continue  # a new lap began, or the recording is over
            moment = row.time + self._lap
            if moment > at:
                self._next = row
                return
            self._next = None
            self._last = max(self._last, moment)
            self._add(row, moment)

    def _take(self) -> RecordedRow | None:
        """The next row of the file; None where it ended, after which the next lap begins if there is one."""
        try:
            return next(self._ahead)
        except (StopIteration, LogUnreadable):
            # An empty lap would never end.
            if self._loop and self._last > self._first + self._lap:
                self._lap = self._last + self._survey.step - self._first
                self._ahead = iter(self._rows())
            else:
                self._is_over = True
            return None

    def _add(self, row: RecordedRow, moment: float) -> None:
        key = row.device.key
        device = self._devices.get(key)
        if device is None:
            known = self._survey.gpus.get(key)
            device = self._devices[key] = _Device(known.step if known else self._survey.step)
        elif moment <= device.newest_at:
            return
        passed = min(moment - device.newest_at, _STEPS_HELD * device.step) if device.newest else 0.0
        for name, value in row.values.items():
            if BY_NAME[name].kind is Kind.RATE and isinstance(value, (int, float)):
                device.counted[name] = device.counted.get(name, 0.0) + value * passed
        device.newest, device.newest_at = row, moment
        device.fresh.append(row)


def _is_held(device: _Device, at: float, half: float) -> bool:
    age = at - device.newest_at
    return age <= _STEPS_HELD * device.step or (bool(device.fresh) and age <= half)


def _reading(key: str, device: _Device) -> DeviceReading:
    newest = device.newest
    assert newest is not None
    identity = _identity(key, newest.device)
    if newest.status is not Status.OK:
        cause = "GPU lost" if newest.status is Status.LOST else newest.status.value
        reasons = {**dict.fromkeys(_ABSENT, newest.status.value), **newest.reasons}
        return DeviceReading(identity, newest.status, reasons=reasons, cause=cause)
    rows = device.fresh or [newest]
    values: dict[str, Value] = {}
    reasons = dict(_ABSENT)
    for row in rows:
        reasons.update(row.reasons)
        values.update(row.values)
    for name in values:
        if name in device.counted:
            values[name] = device.counted[name]
        elif len(rows) > 1:
            values[name] = _together(name, rows)
    return DeviceReading(identity, Status.OK, values, {n: r for n, r in reasons.items() if n not in values})


def _together(name: str, rows: list[RecordedRow]) -> Value:
    """Several rows as one value: gauges spread out, flags united, the rest as it was last."""
    kind = BY_NAME[name].kind
    present = [row.values[name] for row in rows if name in row.values]
    numbers = [value for value in present if isinstance(value, (int, float))]
    if kind is Kind.GAUGE and numbers:
        return Spread(sum(numbers) / len(numbers), min(numbers), max(numbers), len(numbers))
    if kind is Kind.FLAGS:
        united = 0
        for number in numbers:
            united |= int(number)
        return united
    return present[-1]


def _identity(key: str, device: RecordedDevice) -> Identity:
    return Identity(
        uid=device.uuid or f"REPLAY-{key}",
        source=SOURCE,
        name=device.name,
        pci_bus_id=device.pci_bus_id,
        memory_total=device.memory_total,
        index=device.index,
        serial=device.serial,
        minor_number=device.minor_number,
        parent_uid=device.parent_uid,
        mig_instance=device.mig_instance,
    )
