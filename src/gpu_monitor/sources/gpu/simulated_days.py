"""What a simulated GPU does on one day: jobs, and the stages each goes through. Pure.

A day is one of seven plans of a GPU (five weekdays, two days of the weekend), whose order changes from
week to week. So a week always holds the same work, and sums since any moment need no walk through the
past.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

DAY = 86400
# Jobs begin and end on this grid, seconds; so do stages on theirs, which is the agent's usual time
# between readings, so that the mean of such readings loses and gains nothing at a stage's ends.
GRID = 30.0
_STAGE_GRID = 10.0
_HOUR = 3600.0


def draw(*key: object) -> float:
    """A number in [0, 1) that only depends on `key`, on every machine and in every Python."""
    digest = blake2b("|".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True, slots=True)
class Job:
    """One process of one user. `memory`: share of the device's memory once it has warmed up.

    `gang`: it runs on four GPUs at once. `is_lasting`: it lives the whole week, not only this day.
    """

    start: float
    kind: str
    user: str
    memory: float
    gang: bool = False
    is_lasting: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of a day, [start, end) in seconds of the day, in which the work is of one kind.

    `load`: power between idle (0) and the limit (1); over 1 the card caps it. `swing`: by how much
    power moves about its mean, as a share. `memory` to `memory_end`: share of the device's memory.
    Rates are shares of the link's. `job` indexes the plan's jobs; None is an idle GPU.
    """

    start: float
    end: float
    job: int | None = None
    utilization: float = 0.0
    jitter: float = 0.0
    memory_utilization: float = 0.0
    load: float = 0.0
    swing: float = 0.0
    memory: float = 0.0
    memory_end: float = 0.0
    pcie_rx: float = 0.0001
    pcie_tx: float = 0.0001
    nvlink: float = 0.0
    tensor: float = 0.0


@dataclass(frozen=True, slots=True)
class Day:
    """The stages of one day, without gaps from 0 to 86400, and its jobs."""

    stages: tuple[Stage, ...]
    jobs: tuple[Job, ...]


# How a GPU is used. A gang is four GPUs that train together.
ROLES = ("mixed", "training", "serving", "notebook")


def role_of(seed: object, number: int) -> tuple[str, str]:
    """The role of GPU `number` and the name its work is drawn by (that of the gang, where it is in one).

    Of each four GPUs either all are one gang, but never the first four, or each has another role.
    """
    four = number // 4
    if four > 0 and draw(seed, "gang", four) < 0.5:
        return "gang", f"gang{four}"
    return ROLES[(int(draw(seed, "role", four) * 4) + number) % 4], f"gpu{number}"


def plan_day(seed: object, role: str, name: str, template: int) -> Day:
    """The plan `template` (0 to 4 weekdays, 5 and 6 the weekend) of the GPU or gang `name`."""
    planner = _Planner((seed, name, template), is_weekend=template >= 5)
    if role == "serving":
        planner.serve(0.0, DAY, is_lasting=True)
    elif role == "notebook":
        planner.notebook_day()
    elif role == "mixed":
        planner.mixed_day()
    else:
        planner.training_day(gang=role == "gang")
    return planner.day()


class _Planner:
    """Fills one day from midnight to midnight."""

    def __init__(self, key: tuple[object, ...], is_weekend: bool) -> None:
        self._key = key
        self._draws = 0
        self._is_weekend = is_weekend
        self._stages: list[Stage] = []
        self._jobs: list[Job] = []
        self._at = 0.0

    def _chance(self) -> float:
        self._draws += 1
        return draw(*self._key, self._draws)

    def _between(self, low: float, high: float) -> float:
        return low + (high - low) * self._chance()

    def _moment(self, low_hour: float, high_hour: float) -> float:
        """A moment of the day on the grid, not before what is planned already."""
        moment = round(self._between(low_hour, high_hour) * _HOUR / GRID) * GRID
        return min(float(DAY), max(self._at, moment))

    def day(self) -> Day:
        """The finished day."""
        self._idle_until(DAY)
        return Day(tuple(self._stages), tuple(self._jobs))

    def _idle_until(self, end: float) -> None:
        if end > self._at:
            self._stages.append(Stage(self._at, end))
            self._at = end

    def _job(self, kind: str, memory: float, gang: bool = False, is_lasting: bool = False) -> int:
        user = f"user{1 + int(self._chance() * 6)}"
        self._jobs.append(Job(self._at, kind, user, memory, gang, is_lasting))
        return len(self._jobs) - 1

    def _stage(self, end: float, **what: float | int | None) -> None:
        end = round(end / _STAGE_GRID) * _STAGE_GRID
        if end > self._at:
            self._stages.append(Stage(self._at, end, **what))  # type: ignore[arg-type]
            self._at = end

    # The days of the roles.

    def training_day(self, gang: bool) -> None:
        """Two or three long runs with pauses; one on a day of the weekend."""
        self._idle_until(self._moment(0.1, 2.5))
        runs = 1 if self._is_weekend else 2 + int(self._chance() * 2)
        for run in range(runs):
            left = (DAY - self._at) / _HOUR - 0.2
            length = left / (runs - run) * self._between(0.75, 0.95)
            self.train(self._moment_in(length), gang)
            self._idle_until(self._moment_in(self._between(0.2, 0.8)))

    def mixed_day(self) -> None:
        """A notebook in the morning, a run in the afternoon, serving in the evening."""
        if not self._is_weekend:
            self._idle_until(self._moment(7.0, 8.5))
            self.hold(self._moment(11.0, 12.0))
            self._idle_until(self._moment(12.2, 12.8))
        else:
            self._idle_until(self._moment(9.0, 13.0))
        self.train(self._moment(17.0, 19.0), gang=False)
        self._idle_until(self._moment(19.2, 19.6))
        self.serve(self._moment(22.5, 23.8), DAY, is_lasting=False)

    def notebook_day(self) -> None:
        """Memory held all day, little computed; on most days of the weekend nothing."""
        if self._is_weekend and self._chance() < 0.7:
            return
        self._idle_until(self._moment(8.0, 10.0))
        self.hold(self._moment(16.0, 20.0))

    def _moment_in(self, hours: float) -> float:
        return min(float(DAY), round((self._at + hours * _HOUR) / GRID) * GRID)

    # What jobs go through.

    def train(self, end: float, gang: bool) -> None:
        """Warm-up, then epochs of training, a checkpoint and a validation each, until `end`."""
        memory = self._between(0.55, 0.92)
        job = self._job("training", memory, gang)
        heavy = self._between(0.78, 1.03)
        link = self._between(0.3, 0.7) if gang else 0.0
        epoch = self._between(0.2, 0.75) * _HOUR
        warm = min(end, self._at + self._between(60.0, 180.0))
        self._stage(warm, job=job, utilization=7, jitter=7, memory_utilization=2, load=0.13, swing=0.05,
                    memory=0.01, memory_end=memory, pcie_rx=0.8, pcie_tx=0.02)  # fmt: skip
        while self._at < end:
            self._epoch(min(end, self._at + epoch), job, memory, heavy, link)

    def _epoch(self, end: float, job: int, memory: float, heavy: float, link: float) -> None:
        begin, length = self._at, end - self._at
        if self._chance() < 0.1:
            # The input pipeline falls behind for a while.
            self._training(begin + 0.4 * length, job, memory, heavy, link)
            self._stage(min(end, self._at + self._between(90.0, 300.0)), job=job, utilization=35, jitter=20,
                        memory_utilization=15, load=0.35, swing=0.1, memory=memory, memory_end=memory,
                        pcie_rx=0.05, pcie_tx=0.005, nvlink=link * 0.3, tensor=14)  # fmt: skip
        self._training(begin + 0.9 * length, job, memory, heavy, link)
        self._stage(min(end, self._at + self._between(15.0, 45.0)), job=job, utilization=3, jitter=3,
                    memory_utilization=3, load=0.1, swing=0.03, memory=memory, memory_end=memory,
                    pcie_rx=0.01, pcie_tx=0.6)  # fmt: skip
        self._stage(end, job=job, utilization=72, jitter=12, memory_utilization=38, load=0.6, swing=0.05,
                    memory=memory * 0.96, memory_end=memory * 0.96, pcie_rx=0.2, pcie_tx=0.02,
                    nvlink=link * 0.2, tensor=30)  # fmt: skip

    def _training(self, end: float, job: int, memory: float, heavy: float, link: float) -> None:
        self._stage(end, job=job, utilization=98, jitter=2, memory_utilization=55, load=heavy, swing=0.04,
                    memory=memory, memory_end=memory, pcie_rx=0.15, pcie_tx=0.03, nvlink=link, tensor=48)  # fmt: skip

    def serve(self, start: float, end: float, is_lasting: bool) -> None:
        """Requests by the hour of the day with bursts; the memory is taken whole at the start."""
        self._idle_until(start)
        memory = self._between(0.86, 0.93)
        if is_lasting:
            # One process all week: its size must not change from one plan to the next.
            memory = 0.86 + 0.07 * draw(self._key[0], self._key[1], "serving")
        job = self._job("serving", memory, is_lasting=is_lasting)
        if not is_lasting:
            self._stage(min(end, self._at + 90.0), job=job, utilization=2, jitter=2, memory_utilization=1,
                        load=0.1, memory=0.01, memory_end=memory, pcie_rx=1.0)  # fmt: skip
        for until in _steps(self._at, end, 600.0):
            busy = self._busy((self._at + until) / 2 / _HOUR)
            self._stage(until, job=job, utilization=6 + 78 * busy, jitter=12, memory_utilization=4 + 50 * busy,
                        load=0.1 + 0.62 * busy, swing=0.08, memory=memory, memory_end=memory,
                        pcie_rx=0.005 + 0.05 * busy, pcie_tx=0.004 + 0.04 * busy, tensor=3 + 22 * busy)  # fmt: skip

    def _busy(self, hour: float) -> float:
        """Requests as a share of the most: few at 4 UTC, most at 16, less on the weekend, now and then a burst."""
        wave = 0.5 - 0.5 * math.cos((hour - 4.0) / 24.0 * 2 * math.pi)
        level = (0.08 + 0.72 * wave) * (0.6 if self._is_weekend else 1.0) * self._between(0.85, 1.15)
        return min(1.0, level + (self._between(0.15, 0.4) if self._chance() < 0.06 else 0.0))

    def hold(self, end: float) -> None:
        """An interactive session: memory held, short bursts of work."""
        memory = self._between(0.12, 0.5)
        job = self._job("notebook", memory)
        for until in _steps(self._at, end, 600.0):
            if self._chance() < 0.15:
                burst = min(until, self._at + self._between(60.0, 240.0))
                self._stage(burst, job=job, utilization=80, jitter=18, memory_utilization=35, load=0.55, swing=0.06,
                            memory=memory, memory_end=memory, pcie_rx=0.1, pcie_tx=0.02, tensor=20)  # fmt: skip
            self._stage(until, job=job, utilization=0, load=0.06, memory=memory, memory_end=memory)


def _steps(start: float, end: float, length: float) -> Iterator[float]:
    """The ends of steps on multiples of `length`, and `end`."""
    at = start
    while at < end:
        at = min(end, (at // length + 1) * length)
        yield at
