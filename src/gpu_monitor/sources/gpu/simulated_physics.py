"""Power, heat and counters of a simulated GPU, in closed form. Pure.

Power moves about the mean of its stage as a sine of the time of day, so its integral is exact; heat
follows power as a first-order lag, solved stage by stage; counters are the integrals.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from gpu_monitor.core.catalogue import HARMLESS_REASONS
from gpu_monitor.sources.gpu.simulated_days import DAY, Day, Stage, draw, plan_day, role_of
from gpu_monitor.sources.gpu.simulated_models import GpuModel

# A Monday, 2024-01-01 00:00 UTC: weeks and counters begin here.
ORIGIN = 1704067200
_WEEK = 7 * DAY
# A large heat sink follows a change of power within a few minutes.
_LAG = 110.0
_LAGS_REMEMBERED = 15 * _LAG
_AMBIENT_SWING = 1.5
_SW_POWER_CAP = 0x004
_SW_THERMAL = 0x020
_GPU_IDLE = 0x001


@dataclass(frozen=True, slots=True)
class Body:
    """What is particular to one card: its cooling, and the rhythm of its power."""

    model: GpuModel
    ambient: float
    resistance: float
    omega: float
    phase: float
    salt: int

    @classmethod
    def of(cls, model: GpuModel, seed: object, number: int) -> Body:
        """The card that `seed` gives at place `number`. About one in eight is badly cooled."""
        ambient = 24.0 + 6.0 * draw(seed, "ambient", number)
        settled = model.full_temperature * (0.95 + 0.1 * draw(seed, "cooling", number))
        if draw(seed, "hot", number) < 0.125:
            settled = model.slowdown_temperature + 4.0
        period = 23.0 + 24.0 * draw(seed, "period", number)
        return cls(
            model,
            ambient,
            (settled - ambient) / model.power_limit,
            2 * math.pi / period,
            2 * math.pi * draw(seed, "phase", number),
            int(draw(seed, "salt", number) * 2**32),
        )


@dataclass(frozen=True, slots=True)
class Counters:
    """Growing sums: energy in J, seconds throttled, bytes over PCIe and NVLink (one direction)."""

    energy: float = 0.0
    throttled: float = 0.0
    pcie_rx: float = 0.0
    pcie_tx: float = 0.0
    nvlink: float = 0.0

    def plus(self, other: Counters, times: float = 1.0) -> Counters:
        """The sum of this and `times` the other."""
        return Counters(
            self.energy + times * other.energy,
            self.throttled + times * other.throttled,
            self.pcie_rx + times * other.pcie_rx,
            self.pcie_tx + times * other.pcie_tx,
            self.nvlink + times * other.nvlink,
        )


class Phase:
    """One stage as the card lives through it: power after caps, heat, and the sums at its beginning."""

    __slots__ = (
        "before",
        "clock",
        "end",
        "flags",
        "heat_start",
        "heat_target",
        "power",
        "rates",
        "stage",
        "start",
        "swing",
        "wave_start",
    )

    def __init__(
        self, stage: Stage, body: Body, start: float, power: float, flags: int, clock: float
    ) -> None:
        model = body.model
        self.stage = stage
        self.start = start
        self.end = stage.end
        self.power = power
        # Power stays under the limit also at the top of its swing.
        self.swing = max(0.0, min(stage.swing, model.power_limit / power - 1.0))
        self.flags = flags
        self.clock = clock
        self.rates = (
            1.0 if flags & ~HARMLESS_REASONS else 0.0,
            stage.pcie_rx * model.pcie,
            stage.pcie_tx * model.pcie,
            stage.nvlink * model.nvlink,
        )
        self.wave_start = math.cos(body.omega * start + body.phase)
        self.heat_target = body.ambient + body.resistance * power
        self.heat_start = self.heat_target
        self.before = Counters()

    def counters(self, body: Body, second: float) -> Counters:
        """The day's sums at `second` of the day, which lies in this phase."""
        passed = second - self.start
        throttled, pcie_rx, pcie_tx, nvlink = self.rates
        before = self.before
        return Counters(
            before.energy + self.energy(body, second),
            before.throttled + throttled * passed,
            before.pcie_rx + pcie_rx * passed,
            before.pcie_tx + pcie_tx * passed,
            before.nvlink + nvlink * passed,
        )

    def energy(self, body: Body, second: float) -> float:
        """J since the phase began: the integral of power * (1 + swing * sin(omega * t + phase))."""
        wave = (self.wave_start - math.cos(body.omega * second + body.phase)) / body.omega
        return self.power * (second - self.start + self.swing * wave)

    def heat(self, second: float) -> float:
        """°C at `second` of the day, not counting what is left of the day before."""
        return self.heat_target + (self.heat_start - self.heat_target) * math.exp(
            (self.start - second) / _LAG
        )


class LivedDay:
    """A day's plan as one card lives through it."""

    def __init__(self, day: Day, body: Body) -> None:
        self.jobs = day.jobs
        self.body = body
        self.heat_begin = body.ambient + body.resistance * body.model.idle_power
        self.phases: list[Phase] = []
        heat = self.heat_begin
        for stage in day.stages:
            for phase in _live(stage, body, heat):
                phase.heat_start = heat
                if self.phases:
                    phase.before = self.phases[-1].counters(body, phase.start)
                self.phases.append(phase)
                heat = phase.heat(phase.end)
        self.heat_end = heat
        self.starts = [phase.start for phase in self.phases]
        self.total = self.phases[-1].counters(body, DAY)

    def phase_at(self, second: float) -> Phase:
        """The phase that holds `second` of the day."""
        return self.phases[bisect_right(self.starts, second) - 1]


def _live(stage: Stage, body: Body, heat: float) -> list[Phase]:
    """The stage as one phase, or as two where the card becomes too hot on the way and slows down."""
    model = body.model
    wanted = model.idle_power + stage.load * (model.power_limit - model.idle_power)
    if stage.job is None:
        return [Phase(stage, body, stage.start, model.idle_power, _GPU_IDLE, model.idle_clock)]
    power = min(wanted, 0.995 * model.power_limit)
    flags = _SW_POWER_CAP if wanted > power else 0
    slow = 0.9 + 0.1 * min(1.0, power / wanted)
    clock = (
        model.graphics_clock * slow * (1.0 - 0.06 * min(1.0, stage.load))
        if stage.load > 0.08
        else model.idle_clock
    )
    phase = Phase(stage, body, stage.start, power, flags, round(clock / 15) * 15)
    limit = model.slowdown_temperature - 0.5
    if phase.heat_target <= limit:
        return [phase]
    # Until it is too hot, and from then on with as much power as keeps it there.
    crossing = stage.start
    if heat < limit:
        crossing += _LAG * math.log((phase.heat_target - heat) / (phase.heat_target - limit))
    if crossing >= stage.end:
        return [phase]
    kept = (limit - body.ambient) / body.resistance
    hot = Phase(
        stage, body, crossing, kept, flags | _SW_THERMAL, round(clock * (kept / power) ** 0.5 / 15) * 15
    )
    if crossing <= stage.start:
        return [hot]
    phase.end = crossing
    return [phase, hot]


class Moment:
    """A card at one moment: its phase, the second of the day, and what came before today."""

    __slots__ = ("body", "day", "heat_left", "number", "phase", "second", "since")

    def __init__(
        self, body: Body, number: int, day: LivedDay, second: float, since: Counters, heat_left: float
    ) -> None:
        self.body = body
        self.number = number
        self.day = day
        self.second = second
        self.since = since
        self.heat_left = heat_left
        self.phase = day.phase_at(second)

    def power(self) -> float:
        """W now."""
        body, phase = self.body, self.phase
        return phase.power * (1.0 + phase.swing * math.sin(body.omega * self.second + body.phase))

    def energy(self) -> float:
        """J since the origin."""
        return self.since.energy + self.phase.before.energy + self.phase.energy(self.body, self.second)

    def throttled(self) -> float:
        """Seconds throttled since the origin."""
        phase = self.phase
        return self.since.throttled + phase.before.throttled + phase.rates[0] * (self.second - phase.start)

    def counters(self) -> Counters:
        """All sums since the origin."""
        return self.since.plus(self.phase.counters(self.body, self.second))

    def temperature(self) -> float:
        """°C now: the phase's lag, what is left of yesterday, and the room over the day."""
        second = self.second
        heat = self.phase.heat(second)
        if second < _LAGS_REMEMBERED:
            heat += self.heat_left * math.exp(-second / _LAG)
        # Warmest at 16 UTC.
        return heat + _AMBIENT_SWING * math.sin((second / DAY - 5 / 12) * 2 * math.pi)

    def noise(self, channel: int) -> float:
        """A number in [0, 1) that changes every second and depends on nothing but the second and the card."""
        mixed = (
            int(self.second) * 0x9E3779B1 + self.number * 0x85EBCA6B + channel * 0xC2B2AE35 + self.body.salt
        )
        mixed &= 0xFFFFFFFF
        mixed = ((mixed ^ mixed >> 16) * 0x7FEB352D) & 0xFFFFFFFF
        mixed = ((mixed ^ mixed >> 15) * 0x846CA68B) & 0xFFFFFFFF
        return (mixed ^ mixed >> 16) / 4294967296.0


# Today, and the days that scripted faults look back to. A lived day takes about 100 KB.
_DAYS_KEPT = 3


class Life:
    """All days of one card. What was planned is kept for speed; answers do not depend on that."""

    def __init__(self, model: GpuModel, seed: object, number: int) -> None:
        self.body = Body.of(model, seed, number)
        self.role, self.name = role_of(seed, number)
        self._seed = seed
        self._days: dict[int, LivedDay] = {}
        self._ends: dict[int, tuple[Counters, float]] = {}
        self._today: tuple[int, LivedDay, Counters, float] | None = None

    def at(self, now: float) -> Moment:
        """The card at `now` (UTC epoch)."""
        number, second = divmod(now - ORIGIN, DAY)
        today = self._today
        if today is None or today[0] != number:
            today = self._today = self._begin(int(number))
        return Moment(self.body, today[0], today[1], second, today[2], today[3])

    def _begin(self, number: int) -> tuple[int, LivedDay, Counters, float]:
        """The day's plan, the sums up to its midnight, and what is left of yesterday's heat."""
        week, weekday = divmod(number, 7)
        order = _order(self._seed, self.name, week)
        whole = Counters()
        for template in range(7):
            whole = whole.plus(self._end(template)[0])
        since = Counters().plus(whole, week)
        for template in order[:weekday]:
            since = since.plus(self._end(template)[0])
        yesterday = order[weekday - 1] if weekday else _order(self._seed, self.name, week - 1)[6]
        today = self._day(order[weekday])
        return number, today, since, self._end(yesterday)[1] - today.heat_begin

    def _day(self, template: int) -> LivedDay:
        """One of the seven plans as this card lives it."""
        lived = self._days.get(template)
        if lived is None:
            lived = LivedDay(plan_day(self._seed, self.role, self.name, template), self.body)
            while len(self._days) >= _DAYS_KEPT:
                del self._days[next(iter(self._days))]
            self._days[template] = lived
        return lived

    def _end(self, template: int) -> tuple[Counters, float]:
        """A plan's sums and its heat at midnight."""
        end = self._ends.get(template)
        if end is None:
            lived = self._day(template)
            end = self._ends[template] = lived.total, lived.heat_end
        return end


def _order(seed: object, name: str, week: int) -> tuple[int, ...]:
    """The plans of a week's days, Monday first: weekdays and weekend are shuffled, each among themselves."""
    weekdays = sorted(range(5), key=lambda template: draw(seed, name, "week", week, template))
    weekend = sorted((5, 6), key=lambda template: draw(seed, name, "week", week, template))
    return (*weekdays, *weekend)
