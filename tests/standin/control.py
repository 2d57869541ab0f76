"""Steers the stand-in NVML library from Python while other processes use it.

A `Standin` owns one control file. The library maps the same file and looks at it in every call, so
what is set here holds at the next call of any process. `gpu` everywhere is the card's number, given
when it was plugged in: it stays with the card, whatever index NVML shows it under. Where `gpu` may be
None, None means "whatever the card", which also covers calls that have no card (init, count, events).
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
from uuid import NAMESPACE_OID, UUID, uuid5

from tests.standin import layout
from tests.standin.layout import FUNCTIONS, METRICS, SLOTS, Control, Fault, Gpu, Load, Process, Reading
from tests.standin.profiles import H100, MIB, MigInstance, Profile

ALWAYS = -1
NOT_SUPPORTED, DRIVER_NOT_LOADED, GPU_IS_LOST, UNINITIALIZED = 3, 9, 15, 1
LIB_RM_VERSION_MISMATCH = 18
XID = 0x8  # nvmlEventTypeXidCriticalError
NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE
NO_INSTANCE = 2**32 - 1
SAMPLE_PERIOD_SECONDS = 1 / 6  # the sampling period that NVML reports for the encoder

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
    """The control file at `path` (made if it is not there) for the library built at `library`."""

    def __init__(self, path: Path, library: Path, seed: int = 1) -> None:
        self.path, self.library, self.seed = path, library, seed
        is_new = not path.exists()
        if is_new:
            path.write_bytes(bytes(ctypes.sizeof(Control)))
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), ctypes.sizeof(Control))
        self._control = Control.from_buffer(self._map)
        if is_new:
            self._prepare()

    def _prepare(self) -> None:
        control = self._control
        control.magic, control.version, control.size = layout.MAGIC, layout.VERSION, ctypes.sizeof(Control)
        control.driver_epoch, control.stale_error = 1, UNINITIALIZED
        control.driver, control.nvml, control.cuda_version = b"590.48.01", b"13.590.48.01", 13010
        control.sample_period_us = round(SAMPLE_PERIOD_SECONDS * 1e6)
        for fault in control.faults:
            fault.times = ALWAYS
        self.gpus([H100])

    def close(self) -> None:
        """Lets go of the file; the library goes on with it as it is."""
        del self._control
        self._map.close()
        self._file.close()

    def __enter__(self) -> "Standin":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def env(self) -> dict[str, str]:
        """The environment in which a process finds the stand-in instead of a driver."""
        folders = [str(self.library.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "LD_LIBRARY_PATH": ":".join(f for f in folders if f),
            "GPU_MONITOR_STANDIN": str(self.path),
        }

    # ---------------------------------------------------------------- cards

    def gpus(self, profiles: Sequence[Profile]) -> None:
        """The machine has these cards and no others, numbered and indexed from 0."""
        self._control.count = 0
        for slot in range(SLOTS):
            ctypes.memset(ctypes.byref(self._control.gpus[slot]), 0, ctypes.sizeof(Gpu))
        for slot, profile in enumerate(profiles):
            self._fill(slot, profile)
        self.order(range(len(profiles)))

    def plug(self, profile: Profile) -> int:
        """One more card, behind the others; returns its number. Seen as `follow` says."""
        slot = next(s for s in range(SLOTS) if not self._control.gpus[s].name)
        order = list(self._control.order[: self._control.count])
        self._fill(slot, profile)
        self.order([*order, slot])
        return slot

    def unplug(self, gpu: int) -> None:
        """The card is gone: processes that had it get GPU_IS_LOST, later ones do not see it."""
        self._gpu(gpu).present = 0

    def replug(self, gpu: int) -> None:
        """The same card, with its UUID, is there again."""
        self._gpu(gpu).present = 1

    def order(self, gpus: Iterable[int]) -> None:
        """NVML's index 0, 1, … are these cards."""
        cards = list(gpus)
        for index, slot in enumerate(cards):
            self._control.order[index] = slot
        self._control.count = len(cards)

    def follow(self, live: bool) -> None:
        """Whether plugging and order are seen at once (True), or by the next init (False, as a driver does)."""
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

    def _fill(self, slot: int, profile: Profile) -> None:
        card: Gpu = self._control.gpus[slot]
        ctypes.memset(ctypes.byref(card), 0, ctypes.sizeof(Gpu))
        card.name = profile.name.encode()
        card.uuid = f"GPU-{self._made_up('card', slot)}".encode()
        card.serial = f"99{self.seed % 10**4:04d}{slot:07d}".encode() if profile.has_serial else b""
        card.pci_bus, card.pci_device_id = 0x1A + 0x10 * slot, profile.pci_device_id
        card.pci_subsystem_id = profile.pci_subsystem_id
        card.mig_capable = int(profile.mig_capable)
        for fault in card.faults:
            fault.times = ALWAYS
        for metric, reading in zip(METRICS, card.readings, strict=True):
            self._read_as(reading, profile, metric)
        card.readings[METRICS.index("minor_number")].low = slot
        card.readings[METRICS.index("minor_number")].high = slot
        self._begin_load(card, mean=0.5 + 0.02 * slot, amplitude=0.3, phase=slot + self.seed)
        for function, code in profile.functions.items():
            self.fail(slot, function, code)
        self.mig(slot, profile.mig)
        card.present = 1

    def _made_up(self, kind: str, *parts: int) -> UUID:
        return uuid5(NAMESPACE_OID, f"stand-in {self.seed} {kind} {parts}")

    @staticmethod
    def _read_as(reading: Reading, profile: Profile, metric: str) -> None:
        value = profile.metrics.get(metric)
        if value is None:
            reading.error = NOT_SUPPORTED
            return
        reading.low, reading.high = value if isinstance(value, tuple) else (value, value)
        if not isinstance(value, tuple) and metric in _COUNTERS:
            reading.base, reading.low, reading.high = value, 0, 0

    def _gpu(self, gpu: int) -> Gpu:
        card: Gpu = self._control.gpus[gpu]
        if not card.name:
            raise ValueError(f"no card {gpu} was ever plugged in")
        return card

    # ---------------------------------------------------------------- load and time

    def now(self) -> float:
        """The time the library uses, in seconds since the epoch."""
        return float(self._control.clock_us) / 1e6 or time.time()

    def clock(self, at: float | None) -> None:
        """The library's time stands still at `at` (seconds since the epoch); None: runs again."""
        self._control.clock_us = 0 if at is None else round(at * 1e6)

    def advance(self, seconds: float) -> None:
        """Moves a standing clock on."""
        if not self._control.clock_us:
            raise ValueError("the clock runs; stop it with clock(at) first")
        self._control.clock_us += round(seconds * 1e6)

    def load(self, gpu: int, mean: float, amplitude: float = 0.0, period: float = 60.0) -> None:
        """How busy the card is from now on: mean + amplitude * sin, within 0 and 1. Counters go on."""
        if not 0 <= mean - abs(amplitude) <= mean + abs(amplitude) <= 1 or period <= 0:
            raise ValueError(f"a load outside 0 to 1: {mean} ± {amplitude}")
        card = self._gpu(gpu)
        old = card.loads[card.active_load]
        now = self.now()
        new = Load(mean, amplitude, period, old.phase, old.born, now, _integral(old, now))
        card.loads[1 - card.active_load] = new
        card.active_load = 1 - card.active_load

    def _begin_load(self, card: Gpu, mean: float, amplitude: float, phase: float) -> None:
        # An hour of counting lies behind a new card, so that no counter begins at 0 by chance.
        born = self.now() - 3600
        card.loads[0] = Load(mean, amplitude, 60.0, phase, born, born, 0.0)
        card.active_load = 0

    # ---------------------------------------------------------------- values

    def hold(self, gpu: int, metric: str, value: float) -> None:
        """The metric reads exactly this: a number as the driver gives it, blank or impossible too."""
        reading = self._reading(gpu, metric)
        reading.held = 0
        reading.hold_real = float(value)
        reading.hold = 0 if isinstance(value, float) and math.isnan(value) else int(value) & (2**64 - 1)
        reading.held = 1

    def unhold(self, gpu: int, metric: str) -> None:
        """The metric follows the load again."""
        self._reading(gpu, metric).held = 0

    def jump(self, gpu: int, metric: str, by: float) -> None:
        """A counter leaps by this much (it never shows less than 0)."""
        if metric not in _COUNTERS:
            raise ValueError(f"{metric} is not a counter")
        self._reading(gpu, metric).base += by

    def reset(self, gpu: int) -> None:
        """The card was reset: same UUID, counters from 0 again, volatile errors too; aggregates stay."""
        card = self._gpu(gpu)
        now, old = self.now(), card.loads[card.active_load]
        for name in _COUNTERS - _SURVIVE_RESET:
            self._reading(gpu, name).base = 0
        card.loads[1 - card.active_load] = Load(old.mean, old.amplitude, old.period, old.phase, now, now, 0.0)
        card.active_load = 1 - card.active_load

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
            ids = (NO_INSTANCE, NO_INSTANCE)
            if proc.instance is not None:
                inside = card.instances[proc.instance]
                ids = (inside.gpu_instance, inside.compute_instance)
            card.processes[place] = Process(
                proc.pid, int(proc.graphics), memory, *ids, proc.sm, proc.mem, 0, 0
            )
        card.process_count = len(processes)

    def mig(self, gpu: int, instances: Sequence[MigInstance]) -> None:
        """MIG is on with these instances; none: MIG is off."""
        card = self._gpu(gpu)
        if instances and not card.mig_capable:
            raise ValueError(f"{card.name.decode()} has no MIG")
        card.mig_current = card.mig_pending = card.instance_count = 0
        for place, instance in enumerate(instances):
            inside = card.instances[place]
            inside.uuid = f"MIG-{self._made_up('instance', gpu, place)}".encode()
            inside.name = card.name + b" MIG " + instance.label.encode()
            inside.gpu_instance, inside.compute_instance = place + 1, 0
            inside.slices, inside.multiprocessors = instance.slices, instance.multiprocessors
            inside.memory_total = instance.memory_mib * MIB
            inside.memory_used = instance.used_mib * MIB
        card.instance_count = len(instances)
        card.mig_current = card.mig_pending = int(bool(instances))

    def mig_pending(self, gpu: int, on: bool) -> None:
        """MIG will be on, or off, after the card's next reset."""
        self._gpu(gpu).mig_pending = int(on)

    # ---------------------------------------------------------------- hurting

    def fail(self, gpu: int | None, what: str, code: int, times: int = ALWAYS) -> None:
        """A function, or every way to one metric of a card, answers with this NVML error; 0: no more.

        `what` is "nvmlInit" for both ways to init, "*" for every function. `times` counts only for functions.
        """
        if what in METRICS:
            if gpu is None:
                raise ValueError("a metric fails on one card")
            self._reading(gpu, what).error = code
            return
        for fault in self._faults(gpu, what):
            fault.error, fault.times = 0, times
            fault.error = code

    def hang(self, gpu: int | None, function: str) -> None:
        """The function does not return before `release`, or its process is killed."""
        for fault in self._faults(gpu, function):
            fault.hang = 1

    def release(self, gpu: int | None, function: str = "*") -> None:
        """Ends a hang: every waiting call goes on at once."""
        for fault in self._faults(gpu, function):
            fault.hang = 0
            self._wake(Fault, fault, "hang")

    def crash(self, gpu: int | None, function: str, times: int = ALWAYS) -> None:
        """The function ends its process with SIGSEGV, the next `times` times; 0: no more."""
        for fault in self._faults(gpu, function):
            fault.crash, fault.times = 0, times
            fault.crash = int(times != 0)

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

    def heal(self, gpu: int | None = None) -> None:
        """No function fails, hangs, crashes or is slow any more: of one card, or of all and the library."""
        for number in range(SLOTS) if gpu is None else [gpu]:
            if self._control.gpus[number].name:
                self.release(number)
                for fault in self._control.gpus[number].faults:
                    fault.error = fault.crash = fault.slow_ms = 0
        if gpu is None:
            self.release(None)
            for fault in self._control.faults:
                fault.error = fault.crash = fault.slow_ms = 0

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
        for gpu in range(SLOTS):
            if control.gpus[gpu].name:
                self.reset(gpu)
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
        event.gpu_instance = event.compute_instance = NO_INSTANCE
        control.event_head += 1
        self._wake(Control, control, "event_head")

    # ---------------------------------------------------------------- looking

    def calls(self, function: str, gpu: int | None = None) -> int:
        """How often the function was called, by any process: on one card, or at all."""
        return sum(int(fault.calls) for fault in self._faults(gpu, function))

    def last_call(self) -> tuple[str, int | None, int]:
        """The last call by any process: function, card (None where it has none), pid."""
        control = self._control
        slot = int(control.last_slot)
        return FUNCTIONS[control.last_function], slot if slot < SLOTS else None, int(control.last_pid)

    # ---------------------------------------------------------------- inside

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
        # Without this the library looks again by itself, a quarter of a second later at most.
        if _FUTEX_CALL is None:
            return
        word = ctypes.addressof(where) + getattr(kind, field).offset
        everyone = ctypes.c_int(2**31 - 1)
        ctypes.CDLL(None).syscall(
            ctypes.c_long(_FUTEX_CALL),
            ctypes.c_void_p(word),
            ctypes.c_int(_FUTEX_WAKE),
            everyone,
            None,
            None,
            0,
        )


def _integral(load: Load, at: float) -> float:
    """Load seconds until `at`; the same closed form as in model.c."""
    turn = 2 * math.pi / load.period
    wave = math.cos(turn * load.since + load.phase) - math.cos(turn * at + load.phase)
    return load.integral + load.mean * (at - load.since) + load.amplitude / turn * wave


def _counters() -> frozenset[str]:
    text = (layout.HERE / "metrics.def").read_text(encoding="utf-8")
    return frozenset(name for name in METRICS if f"METRIC({name}, COUNTER" in text)


_COUNTERS = _counters()
_SURVIVE_RESET = frozenset(
    {
        "ecc_corrected_aggregate",
        "ecc_uncorrected_aggregate",
        "remapped_rows_corrected",
        "remapped_rows_uncorrected",
        "retired_pages_sbe",
        "retired_pages_dbe",
    }
)
