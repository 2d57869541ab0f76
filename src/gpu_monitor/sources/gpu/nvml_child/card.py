"""One device: what it can be asked for, and one round of answers. Runs in the child."""

from __future__ import annotations

from gpu_monitor.sources.gpu.nvml_child import codes, steps
from gpu_monitor.sources.gpu.nvml_child.fields import Fields
from gpu_monitor.sources.gpu.nvml_child.gpm import ACTIVITY, INSTANCE_ACTIVITY, Gpm, Query
from gpu_monitor.sources.gpu.nvml_child.library import Handle, Library, reason_of
from gpu_monitor.sources.gpu.nvml_child.processes import Found, Room, read
from gpu_monitor.sources.gpu.nvml_child.samples import (
    GPU_UTILIZATION,
    MEMORY_UTILIZATION,
    TOTAL_POWER,
    Buffer,
    Drain,
)
from gpu_monitor.sources.gpu.nvml_child.steps import Plan, Ready, Step, Values

_DRAINED = (
    (GPU_UTILIZATION, "gpu_utilization", 1.0),
    (MEMORY_UTILIZATION, "memory_utilization", 1.0),
    (TOTAL_POWER, "power_usage", 0.001),  # mW, as the instant value: checked against it before it is believed
)
_FACTOR = 10
"""Samples in another unit are off by 1,000; a real load moves power by less than this."""
_REPROBE_SECONDS = 600.0
"""What a device does not give is asked for again this often: permissions and drivers change."""

FAST, FULL, WIDE = 0, 1, 2


class Tools:
    """What all devices of one child share."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.buffer, self.room = Buffer(), Room()
        self.activity, self.instance_activity = Query(ACTIVITY), Query(INSTANCE_ACTIVITY)


class _Steps:
    """The steps of one tier; those that the device does not know stand aside with their reason."""

    def __init__(self, tools: Tools, handle: Handle, plans: tuple[Plan, ...]) -> None:
        self._library = tools.library
        self.active: list[Step] = []
        self._ready: list[Ready] = []
        self.dormant: dict[str, str] = {}
        for plan in plans:
            step = Step(plan, self._library, handle)
            if step.next_way():
                self.active.append(step)
            else:
                self._stand_aside(step, "unsupported")
        self._prepare()

    def _prepare(self) -> None:
        self._ready = [step.ready() for step in self.active]

    def _stand_aside(self, step: Step, reason: str) -> None:
        self.dormant.update(dict.fromkeys(step.metrics, reason))
        if step in self.active:
            self.active = [other for other in self.active if other is not step]

    def run(self, values: Values, reasons: dict[str, str]) -> bool:
        """Make every call; False where one said that its handle may be stale. Raises DriverGone, DeviceGone."""
        board, sound = self._library.board, True
        for number, function, args, out, metric, take, step in self._ready:
            board[1] = number  # AT_CALL, written out: this loop is the agent's whole cost
            code = function(*args)
            if code:
                sound = self._failed(step, code, values, reasons) and sound
            elif out is not None:
                values[metric] = out.value
            else:
                take(values, reasons)
        if self.dormant:
            reasons.update(self.dormant)
        return sound

    def _failed(self, step: Step, code: int, values: Values, reasons: dict[str, str]) -> bool:
        reason = reason_of(code)
        while reason == "unsupported" and step.next_way():
            self._library.board[codes.AT_CALL] = step.number
            code = step.function(*step.args)
            if not code:
                step.take(values, reasons)
                self._prepare()
                return True
            reason = reason_of(code)
        if reason in ("unsupported", "denied"):
            self._stand_aside(step, reason)
        else:
            reasons.update(dict.fromkeys(step.metrics, reason))
        self._prepare()
        return code != codes.INVALID_ARGUMENT


class Card:
    """One physical GPU. `since`: UTC epoch, µs; driver samples before it are not ours."""

    def __init__(self, tools: Tools, handle: Handle, uid: str, now: float, since: int) -> None:
        self._tools, self.handle, self.uid = tools, handle, uid
        self._since = since
        self._gpm: Gpm | None = None
        self._power_checked = False
        self._probe(now)

    def _probe(self, now: float) -> None:
        """Find out (again) what the device gives. Raises DriverGone, DeviceGone."""
        tools, library, handle = self._tools, self._tools.library, self.handle
        self._asked_at = now
        self._fast = _Steps(tools, handle, steps.FAST)
        self._utilization = _Steps(tools, handle, (steps.UTILIZATION,))
        self._power = _Steps(tools, handle, (steps.POWER,))
        self._slow: _Steps | None = None
        self._fields: Fields | None = None
        self._drains = [
            Drain(library, handle, tools.buffer, kind, metric, scale, self._since)
            for kind, metric, scale in _DRAINED
        ]

    def _meet(self) -> tuple[_Steps, Fields, Gpm]:
        """What only rounds beyond FAST need, found out at the first of them."""
        tools = self._tools
        if self._gpm is None:
            self._gpm = Gpm(tools.library, self.handle, tools.activity)
        if self._slow is None or self._fields is None:
            self._fields = Fields(tools.library, self.handle)
            missing = self._fields.missing
            instead = tuple(plan for plan in steps.INSTEAD_OF_FIELDS if plan[0][0] in missing)
            self._slow = _Steps(tools, self.handle, steps.SLOW + instead)
        return self._slow, self._fields, self._gpm

    def read(self, span: int, now: float) -> tuple[Values, dict[str, str], bool]:
        """Values, reasons of those missing, and whether the handle is sound. Raises DriverGone, DeviceGone."""
        if span > FAST and not 0 <= now - self._asked_at < _REPROBE_SECONDS:
            self._reprobe(now)
        values: Values = {}
        reasons: dict[str, str] = {}
        self._drain(values, reasons)
        sound = self._fast.run(values, reasons)
        if span > FAST:
            slow, fields, gpm = self._meet()
            fields.read(values, reasons)
            sound = slow.run(values, reasons) and sound
            gpm.read(values, reasons)
        if not values.keys().isdisjoint(reasons):
            for metric in values.keys() & reasons.keys():
                del reasons[metric]
        return values, reasons, sound

    def _drain(self, values: Values, reasons: dict[str, str]) -> None:
        """Utilisation and power: from the driver's samples where it keeps them, else as they are now."""
        library = self._tools.library
        for drain in self._drains:
            if drain.reason is not None:
                continue
            if drain.metric == "power_usage" and not self._power_checked:
                self._check_power(drain, values, reasons)
                continue
            library.board[1] = _SAMPLES  # AT_CALL
            spread = drain.take()
            if spread is not None and (drain.metric == "power_usage" or spread[2] <= 100):
                values[drain.metric] = spread
        if "gpu_utilization" not in values or "memory_utilization" not in values:
            self._utilization.run(values, reasons)
        if "power_usage" not in values:
            self._power.run(values, reasons)

    def _check_power(self, drain: Drain, values: Values, reasons: dict[str, str]) -> None:
        """Believe the power samples once they were seen to be in the unit of the instant value."""
        self._power.run(values, reasons)
        self._tools.library.board[codes.AT_CALL] = _SAMPLES
        spread, instant = drain.take(), values.get("power_usage")
        if spread is None or not isinstance(instant, float):
            return
        if spread[1] <= instant * _FACTOR and instant <= spread[2] * _FACTOR:
            self._power_checked = True
            values["power_usage"] = spread

    def _reprobe(self, now: float) -> None:
        floors = [drain.floor for drain in self._drains]
        self._probe(now)
        if self._gpm is not None and self._gpm.reason is not None:
            self._gpm.close()
            self._gpm = None
        for drain, floor in zip(self._drains, floors, strict=True):
            drain.floor = floor

    def processes(self) -> tuple[tuple[Found, ...] | None, str | None]:
        """Who is on the device. Raises DriverGone, DeviceGone."""
        return read(self._tools.library, self.handle, self._tools.room)

    def close(self) -> None:
        """Give back what the library holds for this device."""
        if self._gpm is not None:
            self._gpm.close()


_SAMPLES = codes.NUMBER["nvmlDeviceGetSamples"]


class Instance:
    """One MIG instance: its memory, its processes, and activity where GPM gives it."""

    def __init__(self, tools: Tools, parent: Handle, handle: Handle, uid: str, gpu_instance: int) -> None:
        self._tools, self.handle, self.uid, self.gpu_instance = tools, handle, uid, gpu_instance
        self._memory = _Steps(tools, handle, (steps.MEMORY,))
        self._gpm = Gpm(tools.library, parent, tools.instance_activity, gpu_instance)

    def read(self, span: int, now: float) -> tuple[Values, dict[str, str], bool]:
        """Values, reasons of those missing, and whether the handle is sound. Raises DriverGone, DeviceGone."""
        values: Values = {}
        reasons: dict[str, str] = {}
        sound = self._memory.run(values, reasons)
        if span > FAST:
            self._gpm.read(values, reasons)
        return values, reasons, sound

    def processes(self) -> tuple[tuple[Found, ...] | None, str | None]:
        """Who is on the instance. Raises DriverGone, DeviceGone."""
        return read(self._tools.library, self.handle, self._tools.room)

    def close(self) -> None:
        """Give back what the library holds for this instance."""
        self._gpm.close()
