"""Steers the stand-in NVML library from Python while other processes use it.

A `Standin` owns one control file. The library maps the same file and looks at it in every call, so
what is set here holds at the next call of any process. `gpu` everywhere is the card's number, given
when it was plugged in: it stays with the card, whatever index NVML shows it under. Where `gpu` may be
None, None means "whatever the card", which also covers calls that have no card (init, count, events).
`function` is a name of functions.def, "nvmlInit" for both ways to init, or "*" for every function.
"""

import ctypes
import math
import mmap
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.standin import cards, layout
from tests.standin.layout import FUNCTIONS, METRICS, SLOTS, Control, Fault, Gpu, Process, Reading
from tests.standin.profiles import H100, MIB, MigInstance, Profile

ALWAYS = -1
DRIVER_NOT_LOADED, GPU_IS_LOST, UNINITIALIZED = 9, 15, 1
XID = 0x8  # nvmlEventTypeXidCriticalError
NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE

_INIT = ("nvmlInit_v2", "nvmlInitWithFlags")
_FUTEX_CALL = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
_FUTEX_WAKE = 1


@dataclass(frozen=True)
class Proc:
    """A process on a card; `memory` in bytes, None where the driver does not say."""

    pid: int
    memory: int | None = 512 * MIB
    graphics: bool = False
    instance: int | None = None  # position of its MIG instance
    sm: int = 0
    mem: int = 0


class Standin:
    """The control file at `path` for the library built at `library`.

    A file that is not there is made, with one H100; one that is there is steered as it is.
    """

    def __init__(self, path: Path, library: Path, seed: int = 1) -> None:
        self.path, self.library, self.seed = path, library, seed
        is_new = not path.exists()
        if is_new:
            path.write_bytes(bytes(ctypes.sizeof(Control)))
        with path.open("r+b") as file:
            self._control = Control.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(Control)))
        if is_new:
            self._prepare()

    def _prepare(self) -> None:
        control = self._control
        control.magic, control.version, control.size = layout.MAGIC, layout.VERSION, ctypes.sizeof(Control)
        control.driver_epoch, control.stale_error = 1, UNINITIALIZED
        # The versions of the H100 recording.
        control.driver, control.nvml, control.cuda_version = b"590.48.01", b"13.590.48.01", 13010
        control.sample_period_us = 1_000_000 // 6  # the period NVML gives with the encoder's utilisation
        self.gpus([H100])

    def env(self) -> dict[str, str]:
        """The environment in which a process finds the stand-in instead of a driver."""
        folders = [str(self.library.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "LD_LIBRARY_PATH": ":".join(folder for folder in folders if folder),
            "GPU_MONITOR_STANDIN": str(self.path),
        }

    # ---------------------------------------------------------------- cards

    def gpus(self, profiles: Sequence[Profile]) -> None:
        """The machine has these cards and no others, new, numbered and indexed from 0."""
        self._control.count = 0
        for slot in range(SLOTS):
            ctypes.memset(ctypes.byref(self._control.gpus[slot]), 0, ctypes.sizeof(Gpu))
        for profile in profiles:
            self.plug(profile)

    def plug(self, profile: Profile) -> int:
        """One more card, behind the others; returns its number. Seen as `follow` says."""
        free = [slot for slot in range(SLOTS) if not self._control.gpus[slot].name]
        if not free:
            raise ValueError(f"{SLOTS} cards were plugged in already")
        slot = free[0]
        cards.fill(self._control.gpus[slot], profile, slot, self.seed, self.now())
        self._control.gpus[slot].present = 1
        self.order([*self._control.order[: self._control.count], slot])
        return slot

    def unplug(self, gpu: int) -> None:
        """The card is gone: processes that had it get GPU_IS_LOST, later ones do not see it."""
        self._gpu(gpu).present = 0
        self._wake(Control, self._control, "event_head")

    def replug(self, gpu: int) -> None:
        """The same card, with its UUID, is there again."""
        self._gpu(gpu).present = 1

    def order(self, gpus: Iterable[int]) -> None:
        """NVML's index 0, 1, … are these cards."""
        slots = list(gpus)
        for index, slot in enumerate(slots):
            self._control.order[index] = slot
        self._control.count = len(slots)

    def follow(self, live: bool) -> None:
        """Whether plugging and order are seen at once, or, as it begins, by the next init."""
        self._control.live = int(live)

    def uuid(self, gpu: int) -> str:
        """The card's UUID."""
        return str(self._gpu(gpu).uuid.decode())

    def mig_uuid(self, gpu: int, instance: int) -> str:
        """The UUID of one MIG instance of the card."""
        return str(self._gpu(gpu).instances[instance].uuid.decode())

    def bus_id(self, gpu: int) -> str:
        """The card's PCI bus id as NVML prints it."""
        card = self._gpu(gpu)
        return f"{card.pci_domain:08X}:{card.pci_bus:02X}:{card.pci_device:02X}.0"

    def mig(self, gpu: int, instances: Sequence[MigInstance]) -> None:
        """MIG is on with these instances; none: MIG is off."""
        cards.set_instances(self._gpu(gpu), instances, gpu, self.seed)

    def mig_pending(self, gpu: int, on: bool) -> None:
        """MIG will be on, or off, after the card's next reset."""
        self._gpu(gpu).mig_pending = int(on)

    # ---------------------------------------------------------------- load and time

    def now(self) -> float:
        """The time the library uses, in seconds since the epoch."""
        return float(self._control.clock_us) / 1e6 or time.time()

    def clock(self, at: float | None) -> None:
        """The library's time stands still at `at` (seconds since the epoch); None: it runs again.

        The cards' values go on from where they were. To be called while no process reads.
        """
        before = self.now()
        self._control.clock_us = 0 if at is None else round(at * 1e6)
        for slot in range(SLOTS):
            cards.shift(self._control.gpus[slot], self.now() - before)

    def advance(self, seconds: float) -> None:
        """Moves a standing clock on."""
        if not self._control.clock_us:
            raise ValueError("the clock runs; stop it with clock(at) first")
        self._control.clock_us += round(seconds * 1e6)

    def load(self, gpu: int, mean: float, amplitude: float = 0.0, period: float = 60.0) -> None:
        """How busy the card is from now on: mean + amplitude * sin, within 0 and 1. Counters go on."""
        if not 0 <= mean - abs(amplitude) <= mean + abs(amplitude) <= 1 or period <= 0:
            raise ValueError(f"a load outside 0 to 1: {mean} ± {amplitude} every {period} s")
        cards.change_load(self._gpu(gpu), mean, amplitude, period, self.now())

    # ---------------------------------------------------------------- values

    def hold(self, gpu: int, metric: str, value: float) -> None:
        """The metric reads exactly this: a number as the driver gives it, blank or impossible too.

        A metric that the card does not have, or that fails, is there while it is held.
        """
        reading = self._reading(gpu, metric)
        reading.held = 0
        reading.hold_real = float(value)
        reading.hold = int(value) & (2**64 - 1) if math.isfinite(value) else 0
        reading.held = 1

    def unhold(self, gpu: int, metric: str) -> None:
        """The metric is again what it was before `hold`."""
        self._reading(gpu, metric).held = 0

    def jump(self, gpu: int, metric: str, by: float) -> None:
        """A counter leaps by this much (it never shows less than 0)."""
        if metric not in cards.COUNTERS:
            raise ValueError(f"{metric} is not a counter")
        self._reading(gpu, metric).base += by

    def reset(self, gpu: int) -> None:
        """The card was reset: same UUID, counters from 0 again; what the card's memory keeps stays."""
        card = self._gpu(gpu)
        for name in cards.COUNTERS - cards.SURVIVE_RESET:
            self._reading(gpu, name).base -= cards.counted(card, name, self.now())

    def samples(self, gpu: int, kind: int, samples: Sequence[tuple[float, float]] | None) -> None:
        """The driver's buffer of one NVML sampling type holds exactly these (time in seconds, value).

        None: one sample a period again, as the load goes.
        """
        series = self._gpu(gpu).series[kind]
        series.given = 0
        if samples is None:
            return
        for place, (at, value) in enumerate(samples):
            series.samples[place].time_us, series.samples[place].value = round(at * 1e6), int(value)
        series.count, series.given = len(samples), 1

    def processes(self, gpu: int, processes: Sequence[Proc]) -> None:
        """These processes are on the card, and no others."""
        card = self._gpu(gpu)
        card.process_count = 0
        for place, proc in enumerate(processes):
            memory = NOT_AVAILABLE if proc.memory is None else proc.memory
            ids = (cards.NO_INSTANCE, cards.NO_INSTANCE)
            if proc.instance is not None:
                inside = card.instances[proc.instance]
                ids = (inside.gpu_instance, inside.compute_instance)
            card.processes[place] = Process(
                proc.pid, int(proc.graphics), memory, *ids, proc.sm, proc.mem, 0, 0
            )
        card.process_count = len(processes)

    # ---------------------------------------------------------------- hurting

    def fail(self, gpu: int | None, what: str, code: int, times: int = ALWAYS) -> None:
        """A function, or every way to one metric of a card, answers with this NVML error; 0: no more.

        `times` counts calls of a function; a metric fails until it is told otherwise.
        """
        if what in METRICS:
            if gpu is None:
                raise ValueError("a metric fails on one card")
            self._reading(gpu, what).error = code
            self._reading(gpu, what).held = 0
            return
        for fault in self._faults(gpu, what):
            fault.errors = 0
            fault.error = code
            fault.errors = times

    def hang(self, gpu: int | None, function: str) -> None:
        """The function does not return before `release`, or its process is killed."""
        for fault in self._faults(gpu, function):
            fault.hang = 1

    def release(self, gpu: int | None, function: str = "*") -> None:
        """Ends a hang: every waiting call goes on at once."""
        for fault in self._faults(gpu, function):
            if fault.hang:
                fault.hang = 0
                self._wake(Fault, fault, "hang")

    def crash(self, gpu: int | None, function: str, times: int = ALWAYS) -> None:
        """The function ends its process with SIGSEGV, the next `times` times; 0: no more."""
        for fault in self._faults(gpu, function):
            fault.crashes = times

    def slow(self, gpu: int | None, function: str, seconds: float) -> None:
        """The function sleeps this long before it answers; 0: no more."""
        for fault in self._faults(gpu, function):
            fault.slow_ms = round(seconds * 1000)

    def lose(self, gpu: int, code: int = GPU_IS_LOST) -> None:
        """Every call on the card answers with this error, as if it fell off the bus."""
        self._gpu(gpu).lost = code
        self._wake(Control, self._control, "event_head")

    def back(self, gpu: int) -> None:
        """The lost card answers again."""
        self._gpu(gpu).lost = 0

    def heal(self) -> None:
        """No function fails, hangs, crashes or is slow any more, on any card."""
        for gpu in [None, *(slot for slot in range(SLOTS) if self._control.gpus[slot].name)]:
            self.release(gpu)
            for fault in self._faults(gpu, "*"):
                fault.errors = fault.error = fault.crashes = fault.slow_ms = 0

    def unload(self, code: int = DRIVER_NOT_LOADED, stale: int = UNINITIALIZED) -> None:
        """The driver is away: init answers `code`, processes that have it open get `stale`."""
        self._control.stale_error = stale
        self._control.driver_error = code

    def reload(self, driver: str | None = None, stale: int = UNINITIALIZED) -> None:
        """The driver was unloaded and loaded, of another version if given.

        Processes that were using it get `stale` from every call until they init again, and GPU_NOT_FOUND
        for handles taken before. Counters begin anew: NVML counts energy since the driver was loaded.
        """
        control = self._control
        if driver is not None:
            control.driver, control.nvml = driver.encode(), f"13.{driver}".encode()
        for slot in range(SLOTS):
            if control.gpus[slot].name:
                self.reset(slot)
        control.stale_error = stale
        control.driver_epoch += 1
        control.driver_error = 0

    # ---------------------------------------------------------------- events

    def xid(self, gpu: int, code: int) -> None:
        """The driver reports this Xid on the card to every event set that asked for it."""
        self.event(gpu, XID, code)

    def event(self, gpu: int, kind: int, data: int = 0) -> None:
        """Queues an NVML event of this type."""
        control = self._control
        event = control.events[control.event_head % layout.EVENTS]
        event.slot, event.type, event.data = gpu, kind, data
        event.gpu_instance = event.compute_instance = cards.NO_INSTANCE
        control.event_head += 1
        self._wake(Control, control, "event_head")

    # ---------------------------------------------------------------- looking

    def calls(self, function: str, gpu: int | None = None) -> int:
        """How often the function was called, by any process: on one card, or at all."""
        return sum(int(fault.calls) for fault in self._faults(gpu, function))

    def until_called(
        self, function: str, gpu: int | None = None, times: int = 1, seconds: float = 10
    ) -> None:
        """Returns once the function was called so often, counted from the beginning.

        A call that hangs has been counted. Raises TimeoutError after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while self.calls(function, gpu) < times:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{function} was called {self.calls(function, gpu)} times, not {times}")
            time.sleep(0.002)

    def last_call(self) -> tuple[str, int | None, int]:
        """The last call by any process: function, card (None where it has none), pid."""
        control = self._control
        slot = int(control.last_slot)
        return FUNCTIONS[control.last_function], slot if slot < SLOTS else None, int(control.last_pid)

    # ---------------------------------------------------------------- inside

    def _gpu(self, gpu: int) -> Gpu:
        card: Gpu = self._control.gpus[gpu]
        if not card.name:
            raise ValueError(f"no card {gpu} was ever plugged in")
        return card

    def _reading(self, gpu: int, metric: str) -> Reading:
        reading: Reading = self._gpu(gpu).readings[METRICS.index(metric)]
        return reading

    def _faults(self, gpu: int | None, function: str) -> list[Fault]:
        faults = self._control.faults if gpu is None else self._gpu(gpu).faults
        if function == "*":
            return list(faults)
        names = _INIT if function == "nvmlInit" else (function,)
        return [faults[FUNCTIONS.index(name)] for name in names]

    @staticmethod
    def _wake(kind: type[ctypes.Structure], where: ctypes.Structure, field: str) -> None:
        # Where the call's number is not known the library looks again by itself, a quarter of a second later.
        if _FUTEX_CALL is None:
            return
        word = ctypes.addressof(where) + getattr(kind, field).offset
        number, wake, everyone = (
            ctypes.c_long(_FUTEX_CALL),
            ctypes.c_int(_FUTEX_WAKE),
            ctypes.c_int(2**31 - 1),
        )
        ctypes.CDLL(None).syscall(number, ctypes.c_void_p(word), wake, everyone, None, None, ctypes.c_int(0))
