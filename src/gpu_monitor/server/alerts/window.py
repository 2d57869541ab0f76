"""What a rule looks at and what it concludes: frozen records, made by the engine, judged by pure functions.

Times are UTC epoch seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

LIVE, HOURLY = "live minutes", "hourly means"
"""The words for where a reading is from."""
Seconds = Annotated[int, Meta(ge=0, le=7 * 86400)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Pattern = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every kind of rule may be told: `only` these nodes (id, host name), GPUs (uid) or models, with * and ?."""

    only: Annotated[tuple[Pattern, ...], Meta(max_length=100)] = ()


class Values(NamedTuple):
    """One metric over one reading: the mean, and the extremes where they are known (else the mean)."""

    mean: float
    low: float
    high: float


class Basis(NamedTuple):
    """What a report says of a GPU's period besides the metrics; None where it is unknown. Seconds; coverage 0 to 1."""

    seconds: float | None
    coverage: float | None
    held_idle: float | None


class Reading(NamedTuple):
    """One GPU (or machine) over one live minute or one period of a report.

    `values` holds what is known. `is_shadowed`: live minutes tell of most of this period, in more detail.
    `basis` belongs to periods.
    """

    start: float
    end: float
    is_live: bool
    values: Mapping[str, Values]
    basis: Basis | None = None
    is_shadowed: bool = False

    @property
    def told_by(self) -> str:
        """Where it is from, in words."""
        return LIVE if self.is_live else HOURLY


class Hole(NamedTuple):
    """A gap, as a report tells it. `uid` None: of the whole node."""

    start: float
    stop: float
    cause: str
    uid: str | None


class Happening(NamedTuple):
    """An event of a GPU. `text` is what the driver said, where the event holds it; `xid` the number of one."""

    time: float
    kind: str
    message: str
    xid: int | None = None
    text: str = ""


@dataclass(frozen=True)
class GpuWindow:
    """One GPU. `readings` ascend by time. `status` is ok or a gap's cause, as of `status_time`.

    A window of the past ends at `now` and has no status: nothing is said of what came after.
    """

    now: float
    readings: Sequence[Reading] = ()
    holes: Sequence[Hole] = ()
    happenings: Sequence[Happening] = ()
    status: str | None = None
    status_time: float | None = None


@dataclass(frozen=True)
class NodeWindow:
    """One node: when it was heard of, and what its machine reported. What was never measured is None."""

    now: float
    first_seen: float
    last_report: float | None = None
    last_live: float | None = None
    last_hour: int | None = None
    period_seconds: int | None = None
    interval_seconds: int | None = None
    skew_seconds: float | None = None
    skew_measured: float | None = None
    readings: Sequence[Reading] = ()


class RunValue(NamedTuple):
    """A metric of a run as it was logged last. `value` None: it is not finite (`is_special`), or nothing is known.

    `special_step`: of the first value that was not finite.
    """

    value: float | None
    is_special: bool
    step: int | None
    time: float | None
    special_step: int | None = None


class RunSaid(NamedTuple):
    """An alert that a run raised by itself. `time`: UTC epoch s."""

    time: float
    level: str
    title: str
    text: str


@dataclass(frozen=True)
class RunWindow:
    """A training run, called `title`. `lease`: until when its last word counts; `metrics`: those that rules look at;
    `said`: alerts it raised lately, in order of time."""

    now: float
    title: str
    status: str
    ended: float | None
    last_heard: float
    lease: float
    reason: str | None = None
    last_step: int | None = None
    metrics: Mapping[str, RunValue] = field(default_factory=dict)
    said: Sequence[RunSaid] = ()


class DiskUse(NamedTuple):
    """A disk of the server. Bytes."""

    name: str
    used: float
    total: float


@dataclass(frozen=True)
class ServerWindow:
    """The server itself."""

    now: float
    disks: Sequence[DiskUse] = ()


@dataclass(frozen=True)
class Episode:
    """A stretch in which a rule's condition held: from `since`, as far as data shows up to `seen`.

    `until`: when it ended; None where it goes on at the window's end. `is_firing`: it lasted as long as the
    rule asks. `value` in the unit of what the rule looks at.
    """

    since: float
    seen: float
    until: float | None
    is_firing: bool
    value: float | None
    message: str


@dataclass(frozen=True)
class Judgement:
    """What a window shows: the episodes in it, ascending; only the last may go on.

    `known`: up to when the window tells whether the condition holds; None where it tells nothing (then
    nothing changes: unknown is not well). `recheck`: when to look again, though nothing new may have come. `ending`: why an
    alert is over by this; None: its condition does not hold any more.
    """

    episodes: tuple[Episode, ...] = ()
    known: float | None = None
    recheck: float | None = field(default=None)
    ending: str | None = None


RUN_OVER = "the run has ended"
"""The ending of an alert about a metric that was wrong to the last."""
NO_DATA = Judgement()
"""The judgement of a window that tells nothing."""
