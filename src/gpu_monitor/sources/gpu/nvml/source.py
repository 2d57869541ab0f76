"""The NVML source: looks after the child that calls the driver, so that no driver can hurt the agent."""

from __future__ import annotations

import logging

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.model import DeviceReading, Event, Round, Span, Status
from gpu_monitor.sources.child import Child, Launcher, SystemLauncher, module_paths
from gpu_monitor.sources.gpu.nvml import pci
from gpu_monitor.sources.gpu.nvml.backoff import Backoff
from gpu_monitor.sources.gpu.nvml.diagnosis import crash_event, hang_event, locate
from gpu_monitor.sources.gpu.nvml.hangs import Hangs, LeftOut
from gpu_monitor.sources.gpu.nvml.readings import Shaper
from gpu_monitor.sources.gpu.nvml.refusals import no_gpu, refusal, unavailable
from gpu_monitor.sources.gpu.nvml.rest import Rest
from gpu_monitor.sources.gpu.nvml.roster import Roster, Trouble
from gpu_monitor.sources.gpu.nvml.settings import NvmlSettings
from gpu_monitor.sources.gpu.nvml.worker import Answered, Fault, Opened, Worker, WorkerFault
from gpu_monitor.sources.gpu.nvml_child import codes

_LOG = logging.getLogger("nvml")

STARTING = "driver starting"
RESTARTING = "restarting after a hang"
HUNG = "driver hung"
CRASHED = "driver crashed"
FAILED = "NVML child failed"
"""It ended with an error of its own: its last words are in the event."""
ASLEEP = "asleep"
_UNREAD_SAMPLES_SECONDS = 30.0
"""The driver's buffers hold about 20 s: what is older than this was never there to be read."""
_LAST_BREATH_SECONDS = 0.5


class _Paused(Exception):
    """There are no readings in this round; `cause` is why."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class NvmlSource:
    """NVIDIA GPUs (a core.ports.Source). One thread.

    `read` takes at most the round's deadline and the grace for a replacement. The process that calls
    this never loads the driver's library.
    """

    name = "nvml"

    def __init__(
        self, settings: NvmlSettings, launcher: Launcher | None = None, clock: Clock | None = None
    ) -> None:
        self._settings = settings
        self._launcher: Launcher = launcher or SystemLauncher()
        self._clock: Clock = clock or SystemClock()
        self._paths = module_paths("pynvml")
        self._roster = Roster(settings.known)
        self._rest = Rest(settings)
        self._hangs = Hangs(settings, self._new_child)
        self._backoff = Backoff(settings)
        self._shaper = Shaper()
        self._worker: Worker | None = None
        self._events: list[Event] = []
        self._bound = pci.bound_addresses(settings.sys_root, settings.proc_root)
        self._resting: dict[str, str] = {}
        self._good_at: float | None = None
        self._relooked_at = float("-inf")
        self._crashes: dict[str, int] = {}
        self._strikes = 0
        self._hung_in: str | None = None

    # ---------------------------------------------------------------- the port

    def probe(self) -> None:
        """Open the driver. Raises SourceUnavailable with what to do; sleeping GPUs are left asleep."""
        now, moment = self._clock.now(), self._clock.monotonic()
        self._rested(now, moment)
        if self._untouchable() or (self._worker is not None and self._worker.opened is not None):
            return
        try:
            worker = self._worker or self._start(now, moment)
            self._take(worker.answer(self._settings.init_seconds), now, moment)
        except _Paused as paused:
            raise unavailable(paused.cause) from None
        except WorkerFault as fault:
            if fault.fault is Fault.REFUSED:
                self._refused(fault.code, moment)
                raise refusal(fault.code).error() from None
            try:
                self._recover(fault, now, moment, True)
            except _Paused as paused:
                raise unavailable(paused.cause) from None

    def read(self, now: float, span: Span) -> Round:
        """One round; in bounded time, whatever the driver does."""
        moment = self._clock.monotonic()
        self._events = []
        readings: dict[str, DeviceReading] = {}
        cause: str | None = None
        try:
            self._tend(now, moment)
            readings = self._readings(now, span, moment)
        except _Paused as paused:
            cause = paused.cause
        self._hangs.settle(self._clock.monotonic())
        devices = []
        for uid in self._roster.uids:
            reading = readings.get(uid) or self._roster.absent_reading(uid)
            if reading is not None:
                devices.append(reading)
        return Round(tuple(devices), tuple(self._events), cause)

    def close(self) -> None:
        """End the children. One that is stuck in the driver is left to end when the driver lets it."""
        worker, self._worker = self._worker, None
        if worker is not None:
            self._hangs.kill(worker.child, None, self._clock.monotonic())
        self._hangs.close(self._settings.grace_seconds)

    # ---------------------------------------------------------------- one round

    def _tend(self, now: float, moment: float) -> None:
        """What happened since the last round: hangs that ended, GPUs that fell asleep or woke."""
        recovered, is_freed = self._hangs.tend(moment, now)
        for address in recovered:
            uid = self._roster.uid_at(address)
            if uid is not None:
                self._events += self._roster.heal(uid, now)
        if is_freed:
            self._backoff.worked()
        self._rested(now, moment)

    def _rested(self, now: float, moment: float) -> None:
        resting = self._rest.look(moment)
        if resting == self._resting:
            return
        self._resting = resting
        self._roster.wake(resting)
        for address, why in resting.items():
            self._roster.remember(address)
            uid = self._roster.uid_at(address)
            if uid is not None:
                self._roster.fail(uid, Trouble(Status.ASLEEP, why, now))

    def _skipped(self) -> frozenset[str]:
        return self._hangs.addresses.union(self._resting)

    def _everything(self) -> set[str]:
        """The addresses of all GPUs: those we know, and those the kernel shows."""
        return self._roster.addresses().union(self._bound or self._rest.all)

    def _untouchable(self) -> str | None:
        """Why no GPU at all may be touched; None where one may."""
        skipped = self._skipped()
        if not skipped:
            return None
        if not self._everything() <= skipped:
            return None
        return HUNG if self._hangs.addresses else ASLEEP

    def _readings(self, now: float, span: Span, moment: float) -> dict[str, DeviceReading]:
        """The readings of all devices that answer. Raises _Paused."""
        cause = self._untouchable()
        if cause is None and self._hangs.is_driver_stuck():
            cause = HUNG
        if cause is None and self._worker is None and not self._backoff.may_try(moment):
            cause = self._backoff.cause
        if cause is not None:
            self._dismiss()
            raise _Paused(cause)
        limit = moment + self._settings.deadline_seconds
        try:
            return self._round(now, span, limit)
        except WorkerFault as fault:
            limit = self._recover(fault, now, limit, False)
        try:
            return self._round(now, span, limit)
        except WorkerFault as fault:
            self._recover(fault, now, limit, True)
            raise _Paused(RESTARTING) from None

    def _round(self, now: float, span: Span, limit: float) -> dict[str, DeviceReading]:
        moment = self._clock.monotonic()
        worker = self._worker or self._start(now, moment)
        if (
            worker.pending == "read"
        ):  # of the round before: too old to be of this one, but it says where it is
            self._take(worker.answer(0.0), now, moment, is_current=False)
        if worker.pending is None and self._wants_look(worker, span, moment):
            worker.ask_open(moment, now, self._since(now), again=True)
        if worker.pending == "open":
            self._take(worker.answer(max(0.0, limit - moment)), now, moment)
        moment = self._clock.monotonic()
        worker.ask_read(moment, now, span)
        readings = self._take(worker.answer(max(0.0, limit - moment)), now, moment, span)
        self._worked(now, worker)
        if span is Span.WIDE:
            worker.child.forget_noise()
        return readings

    def _worked(self, now: float, worker: Worker) -> None:
        self._good_at = now
        self._strikes = 0
        self._crashes.clear()
        self._backoff.worked()
        if self._hung_in is not None:
            text = f"the driver answers again; it had hung in {self._hung_in}"
            self._events.append(Event(now, "driver_recovered", text, "info", None, {"call": self._hung_in}))
            self._hung_in = None

    def _since(self, now: float) -> float:
        oldest = now - _UNREAD_SAMPLES_SECONDS
        return now if self._good_at is None else min(now, max(self._good_at, oldest))

    def _start(self, now: float, moment: float) -> Worker:
        """A fresh child, asked to open the driver. Raises _Paused where there may be none."""
        if self._hangs.alive > 1:
            self._hangs.drop_probe(moment)
            self._hangs.settle(moment)
        if self._hangs.alive > 1:
            raise _Paused(HUNG)
        self._bound = pci.bound_addresses(self._settings.sys_root, self._settings.proc_root)
        try:
            child = self._new_child()
        except OSError as error:
            cause = f"no child process: {error.strerror}"
            self._backoff.refused(moment, cause)
            _LOG.error("the NVML child cannot be started: %s", error)
            raise _Paused(cause) from None
        worker = self._worker = Worker(child, self._wanted())
        worker.ask_open(moment, now, self._since(now))
        return worker

    def _new_child(self) -> Child:
        return Child(
            "gpu_monitor.sources.gpu.nvml_child.serve",
            self._paths,
            self._launcher,
            codes.BOARD_BYTES,
            self._settings.environment,
        )

    def _wanted(self) -> tuple[str, ...] | None:
        """The addresses that a child may touch; None: whatever the driver shows."""
        skipped = self._skipped()
        if not skipped:
            return None
        return tuple(sorted(self._everything() - skipped))

    def _wants_look(self, worker: Worker, span: Span, moment: float) -> bool:
        """Whether the driver must be opened anew to see the devices as they are now."""
        if span is Span.WIDE:
            bound = pci.bound_addresses(self._settings.sys_root, self._settings.proc_root)
            is_due = moment - self._relooked_at >= self._settings.relook_seconds
            is_lost = is_due and self._roster.is_any_lost(self._hangs.addresses)
            if bound != self._bound or is_lost:
                self._bound, self._relooked_at = bound, moment
                worker.addresses = self._wanted()
                return True
        wanted = self._wanted()
        if wanted == worker.addresses:
            return False
        worker.addresses = wanted
        return True

    def _take(
        self,
        answer: Opened | Answered,
        now: float,
        moment: float,
        span: Span = Span.FAST,
        is_current: bool = True,
    ) -> dict[str, DeviceReading]:
        """Take in what the child says: devices, Xids and, of the current round, readings. Raises _Paused."""
        opened = answer if isinstance(answer, Opened) else answer.opened
        if opened is not None:
            self._events += self._roster.take(opened, now, self._skipped(), self._bound)
            if not opened.identities and not any(True for _ in self._roster.uids):
                self._dismiss()
                self._backoff.refused(moment, no_gpu().cause)
                raise _Paused(no_gpu().cause)
        if isinstance(answer, Opened):
            return {}
        for uid, number in answer.xids:
            self._events.append(Event(now, "xid", f"Xid {number}", "error", uid, {"xid": number}))
        return self._shape(answer, now, span, moment) if is_current else {}

    def _shape(self, answered: Answered, now: float, span: Span, moment: float) -> dict[str, DeviceReading]:
        readings: dict[str, DeviceReading] = {}
        roster = self._roster
        watches_sleep, is_any_troubled = self._rest.is_watching, roster.is_any_troubled
        for uid, code, values, reasons, processes in answered.answers:
            identity = roster.identity(uid)
            if identity is None:
                continue
            if code:
                if identity.parent_uid is None:
                    self._events += roster.fail(uid, Trouble(Status.LOST, codes.words(code), now))
                continue
            if is_any_troubled:
                self._events += roster.heal(uid, now)
            reading = self._shaper.reading(identity, (values, reasons, processes), span, moment)
            readings[uid] = reading
            address = roster.address_of(uid) if watches_sleep else None
            if address is not None and identity.parent_uid is None:
                self._rest.note(address, reading, moment)
        return readings

    def _dismiss(self) -> None:
        """Let go of the driver: the child is asked to end, and is ended where it does not."""
        worker, self._worker = self._worker, None
        if worker is not None:
            self._hangs.kill(worker.child, None, self._clock.monotonic())

    # ---------------------------------------------------------------- when it goes wrong

    def _recover(self, fault: WorkerFault, now: float, limit: float, is_second: bool) -> float:
        """The deadline of one more try in this round. Raises _Paused where there is none."""
        moment = self._clock.monotonic()
        worker = self._worker
        assert worker is not None
        if fault.fault is Fault.LATE:
            opening = worker.pending == "open"
            allowed = self._settings.init_seconds if opening else self._settings.deadline_seconds
            if moment - worker.asked_at < allowed - 0.001:
                raise _Paused(RESTARTING if self._hangs.addresses or not opening else STARTING)
            return self._hung(worker, opening, now, is_second)
        if fault.fault is Fault.ENDED:
            return self._crashed(worker, now, limit, is_second)
        self._dismiss()
        if fault.fault is Fault.REFUSED:
            raise _Paused(self._refused(fault.code, moment))
        # The driver went away under the child: a fresh one sees what is there now.
        cause = codes.words(fault.code)
        _LOG.warning("%s: opening it anew", cause)
        if is_second:
            self._backoff.failed(moment, cause)
            raise _Paused(cause)
        return limit

    def _refused(self, code: int, moment: float) -> str:
        self._dismiss()
        why = refusal(code)
        if self._backoff.refused(moment, why.cause):
            _LOG.warning("%s. %s", why.message, why.hint)
        return why.cause

    def _hung(self, worker: Worker, opening: bool, now: float, is_second: bool) -> float:
        """Leave the GPU out that the child hangs on; the others go on with another child."""
        moment = self._clock.monotonic()
        spot = worker.spot()
        address = locate(spot, worker, self._bound, self._roster)
        self._worker = None
        self._hangs.kill(worker.child, address, moment)
        if address is None:
            return self._driver_hung(spot.call, opening, now, is_second)
        cause = f"hung in {spot.call}"
        probe_at = moment + self._settings.probe_seconds
        self._leave_out(LeftOut(address, Status.HUNG, cause, worker.asked_time, probe_at))
        if self._hangs.alive > 1:
            self._hangs.drop_probe(moment)
            self._hangs.settle(moment)
        if is_second:
            raise _Paused(RESTARTING)
        if self._hangs.alive > 1 or self._untouchable():
            raise _Paused(HUNG)
        return moment + self._settings.grace_seconds

    def _driver_hung(self, call: str, opening: bool, now: float, is_second: bool) -> float:
        """A call that is about no GPU in particular hangs: once, another child may get through."""
        self._strikes += 1
        if self._hung_in is None:
            self._hung_in = call
            self._events.append(
                Event(now, "driver_hung", f"the driver hung in {call}", "error", None, {"call": call})
            )
            _LOG.error("the driver hung in %s", call)
        moment = self._clock.monotonic()
        if not (opening or is_second or self._strikes > 1):
            return moment + self._settings.grace_seconds
        self._hangs.settle(moment)
        self._backoff.hold(moment, HUNG, self._settings.probe_seconds)
        raise _Paused(HUNG)

    def _leave_out(self, left_out: LeftOut) -> None:
        """Touch this GPU no more, and say so."""
        self._hangs.leave_out(left_out)
        self._roster.remember(left_out.address)
        uid = self._roster.uid_at(left_out.address)
        _LOG.error("GPU at %s: %s", left_out.address, left_out.cause)
        if uid is not None:
            self._events += self._roster.fail(uid, Trouble(left_out.status, left_out.cause, left_out.since))
            return
        self._events.append(hang_event(left_out))

    def _crashed(self, worker: Worker, now: float, limit: float, is_second: bool) -> float:
        """The child ended by itself: another one, at once the first time."""
        child, spot = worker.child, worker.spot()
        child.has_ended(_LAST_BREATH_SECONDS)
        moment = self._clock.monotonic()
        last_words = child.last_words()
        self._worker = None
        self._hangs.kill(child, None, moment)
        address = locate(spot, worker, self._bound, self._roster)
        uid = self._roster.uid_at(address) if address is not None else None
        crash = crash_event(now, child.status, spot.call, last_words, uid)
        self._events.append(crash)
        _LOG.error("%s%s", crash.message, f": {last_words}" if last_words else "")
        if address is not None:
            self._crashes[address] = self._crashes.get(address, 0) + 1
            if self._crashes[address] >= self._settings.crashes_to_skip:
                cause = f"the driver library crashes in {spot.call}"
                probe_at = moment + self._settings.probe_seconds
                self._leave_out(LeftOut(address, Status.LOST, cause, now, probe_at))
        cause = CRASHED if child.status is None or child.status < 0 else FAILED
        if self._backoff.failed(moment, cause) and not is_second:
            return max(limit, moment + self._settings.grace_seconds)
        raise _Paused(cause)


def open_nvml(settings: NvmlSettings) -> NvmlSource:
    """The source for this machine's NVIDIA GPUs."""
    return NvmlSource(settings)
