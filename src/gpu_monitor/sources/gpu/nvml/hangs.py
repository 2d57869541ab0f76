"""GPUs that are left alone because a call on them hung or crashed, the children stuck on them, and probes.

At most two children exist: one stuck or probing, one working. A probe is a short-lived child that touches
one left-out GPU and nothing else; it runs beside the rounds and is looked at between them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gpu_monitor.core.model import Span, Status
from gpu_monitor.sources.child import Child
from gpu_monitor.sources.gpu.nvml.settings import NvmlSettings
from gpu_monitor.sources.gpu.nvml.worker import Answered, Fault, NewChild, Worker, WorkerFault

_LOG = logging.getLogger("nvml")


@dataclass
class LeftOut:
    """One GPU that is not touched. `probe_at` None: not before the child that is stuck on it has ended."""

    address: str
    status: Status
    cause: str
    since: float
    probe_at: float | None


@dataclass
class _Killed:
    child: Child
    at: float
    address: str | None
    is_stuck: bool = False


class Hangs:
    """All of that for one machine. Times are of the monotonic clock unless said otherwise."""

    def __init__(self, settings: NvmlSettings, new_child: NewChild) -> None:
        self._settings = settings
        self._new_child = new_child
        self._left_out: dict[str, LeftOut] = {}
        self._killed: list[_Killed] = []
        self._probe: Worker | None = None
        self._probed = ""

    # ---------------------------------------------------------------- looking

    @property
    def addresses(self) -> frozenset[str]:
        """What must not be touched."""
        return frozenset(self._left_out)

    @property
    def alive(self) -> int:
        """Children that still run: killed ones that have not ended, and a probe."""
        return len(self._killed) + (self._probe is not None)

    def is_driver_stuck(self) -> bool:
        """Whether a child is stuck in the driver as a whole, on no GPU in particular."""
        return any(killed.is_stuck and killed.address is None for killed in self._killed)

    # ---------------------------------------------------------------- hangs

    def leave_out(self, left_out: LeftOut) -> None:
        """Touch this GPU no more."""
        self._left_out[left_out.address] = left_out

    def kill(self, child: Child, address: str | None, moment: float) -> None:
        """End a child that hangs on the GPU at `address` (None: on no GPU in particular)."""
        child.kill()
        if child.has_ended():
            child.close()
        else:
            self._killed.append(_Killed(child, moment, address))

    def settle(self, moment: float) -> None:
        """Give children that were just killed their time to end; those that do not are stuck."""
        for killed in self._killed:
            left = max(0.0, killed.at + self._settings.grace_seconds - moment)
            if not killed.is_stuck and not killed.child.has_ended(left):
                killed.is_stuck = True
                _LOG.warning("child %d does not obey being killed: stuck in the driver", killed.child.pid)
                self._hold(killed.address)
        # One that had been stuck is left to `tend`, which has its GPU probed.
        self._killed = [killed for killed in self._killed if killed.is_stuck or not _is_over(killed)]

    def _hold(self, address: str | None) -> None:
        left_out = self._left_out.get(address) if address is not None else None
        if left_out is not None:
            left_out.probe_at = None

    def _bury(self) -> list[_Killed]:
        """Forget the killed children that have ended; returns those that had been stuck."""
        ended = [killed for killed in self._killed if _is_over(killed)]
        self._killed = [killed for killed in self._killed if killed not in ended]
        return [killed for killed in ended if killed.is_stuck]

    # ---------------------------------------------------------------- ends of hangs

    def tend(self, moment: float, now: float) -> tuple[list[str], bool]:
        """Look after stuck children and probes, without waiting.

        Returns the GPUs that answer again, and whether a stuck child has ended.
        """
        freed = self._bury()
        for killed in freed:
            _LOG.info("child %d, which was stuck in the driver, has ended", killed.child.pid)
            for left_out in self._left_out.values():
                if killed.address in (left_out.address, None):
                    left_out.probe_at = moment
        recovered = self._look_at_probe(moment)
        if freed and self._killed:
            # No room for a probe beside another stuck child: what ended this hang is taken for its cure.
            cured = [killed.address for killed in freed if killed.address in self._left_out]
            recovered += [address for address in cured if address is not None]
            for address in recovered:
                self._left_out.pop(address, None)
        if self._probe is None and self.alive == 0:
            self._start_probe(moment, now)
        return recovered, bool(freed)

    def _start_probe(self, moment: float, now: float) -> None:
        due = [
            left for left in self._left_out.values() if left.probe_at is not None and left.probe_at <= moment
        ]
        if not due:
            return
        first = min(due, key=lambda left: left.probe_at or 0.0)
        first.probe_at = moment + self._settings.probe_seconds
        try:
            probe = Worker(self._new_child(), (first.address,))
        except OSError as error:
            _LOG.warning("no probe of the GPU at %s could be started: %s", first.address, error)
            return
        try:
            # Both requests at once: the answers lie ready at the next look.
            probe.ask_open(moment, now, now)
            probe.ask_read(moment, now, Span.FULL)
        except WorkerFault:
            self.kill(probe.child, None, moment)
            return
        self._probe, self._probed = probe, first.address

    def _look_at_probe(self, moment: float) -> list[str]:
        probe = self._probe
        if probe is None:
            return []
        try:
            while True:
                answer = probe.answer(0.0)
                if isinstance(answer, Answered):
                    break
        except WorkerFault as fault:
            limit = self._settings.init_seconds + self._settings.deadline_seconds
            if fault.fault is Fault.LATE and moment - probe.asked_at < limit:
                return []
            self._end_probe(moment)
            return []
        self._end_probe(moment)
        # Lost or well: it answers, and that is what was asked.
        del self._left_out[self._probed]
        return [self._probed]

    def _end_probe(self, moment: float) -> None:
        if self._probe is not None:
            child, self._probe = self._probe.child, None
            self.kill(child, self._probed, moment)

    def drop_probe(self, moment: float) -> None:
        """A working child needs the place."""
        left_out = self._left_out.get(self._probed)
        if self._probe is not None and left_out is not None:
            left_out.probe_at = moment
        self._end_probe(moment)

    def close(self, seconds: float) -> None:
        """End every child; waits up to `seconds` for them."""
        if self._probe is not None:
            self._probe.child.kill()
            self._killed.append(_Killed(self._probe.child, 0.0, None))
            self._probe = None
        for killed in self._killed:
            killed.child.has_ended(0.0 if killed.is_stuck else seconds)
            killed.child.close()
        self._killed = []


def _is_over(killed: _Killed) -> bool:
    """Whether it has ended; then it is let go of."""
    is_over = killed.child.has_ended()
    if is_over:
        killed.child.close()
    return is_over
