"""Simulated GPUs: a plausible life as a function of seed, GPU number and time, and scripted faults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

from gpu_monitor.core.catalogue import BY_NAME, IDENTITY, METRICS, Reason, Tier
from gpu_monitor.core.model import DeviceReading, GpuProcess, Identity, Round, Span, Status
from gpu_monitor.sources.gpu.simulated_days import DAY, draw
from gpu_monitor.sources.gpu.simulated_faults import (
    Fault,
    FaultKind,
    GpuFaults,
    check_faults,
    events_between,
)
from gpu_monitor.sources.gpu.simulated_models import (
    MIB,
    MODELS,
    GpuModel,
    Instance,
    check_model,
    parse_simulate,
)
from gpu_monitor.sources.gpu.simulated_physics import ORIGIN, Counters, Life, Moment

__all__ = ["Fault", "FaultKind", "SimulatedSource", "parse_simulate"]

SOURCE = "simulated"
DRIVER = "580.105.08"
_IDENTITY_NAMES = frozenset(metric.name for metric in IDENTITY)
_ALL_NAMES = tuple(m.name for m in METRICS if m.name not in _IDENTITY_NAMES)
_FAST_NAMES = tuple(name for name in _ALL_NAMES if BY_NAME[name].tier is Tier.FAST)
_UNIFIED_LACKS = frozenset(("memory_used", "memory_free", "memory_reserved", "memory_utilization"))
_MIG_LACKS = frozenset(
    ("gpu_utilization", "memory_utilization", "encoder_utilization", "decoder_utilization")
)
_HW_SLOWDOWN = 0x008 | 0x040
# The driver hands out device memory in pages of 2 MiB.
_PAGE = 2 * MIB
_Plain = float | int | str
_STATUSES = {FaultKind.LOST: Status.LOST, FaultKind.HUNG: Status.HUNG, FaultKind.ASLEEP: Status.ASLEEP}
_REASONS = {FaultKind.LOST: Reason.LOST, FaultKind.HUNG: Reason.HUNG, FaultKind.ASLEEP: Reason.ASLEEP}


def _uuid(*key: object) -> str:
    """A name shaped like a UUID, marked SIM-, that only depends on `key`."""
    digits = blake2b("|".join(map(str, key)).encode(), digest_size=16).hexdigest()
    return f"SIM-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class SimulatedSource:
    """`count` cards of one model (core.ports.Source). Nothing real is touched.

    What a GPU reads at a time depends on `seed`, its number and that time alone: not on earlier calls
    and not on how many GPUs there are. Only events are told once, each in the first round after it.
    """

    name = SOURCE

    def __init__(
        self, count: int, model: str = "h100", seed: int | str = 0, faults: Sequence[Fault] = ()
    ) -> None:
        card = MODELS[check_model(model)]
        check_faults(faults, count)
        self._faults = tuple(faults)
        self._driver = tuple(fault for fault in faults if fault.kind is FaultKind.DRIVER)
        self._gpus = tuple(_Gpu(card, seed, number, GpuFaults(faults, number)) for number in range(count))
        self._addresses = tuple((gpu.identity.uid, gpu.identity.pci_bus_id) for gpu in self._gpus)
        self._told: float | None = None

    def probe(self) -> None:
        """Never raises: simulated GPUs are always there."""

    def read(self, now: float, span: Span) -> Round:
        """One round for the moment `now`."""
        after = math.nextafter(now, -math.inf) if self._told is None else self._told
        events = events_between(self._faults, after, now, self._addresses) if self._faults else ()
        self._told = max(after, now)
        if any(fault.is_on(now) for fault in self._driver):
            return Round((), events, paused="driver hung")
        devices: list[DeviceReading] = []
        for gpu in self._gpus:
            devices += gpu.read(now, span)
        return Round(tuple(devices), events)

    def close(self) -> None:
        """Nothing to let go of."""


class _Gpu:
    """One card and, where it is split, its MIG instances."""

    def __init__(self, model: GpuModel, seed: object, number: int, faults: GpuFaults) -> None:
        self._model = model
        self._seed = seed
        self._number = number
        self._faults = faults
        self._life = Life(model, seed, number)
        self.identity = _identity(model, seed, number)
        self._instances = tuple(_instance_identity(self.identity, i, seed, number) for i in model.instances)
        missing = _missing(model)
        fast = dict.fromkeys((name for name in missing if name in _FAST_NAMES), Reason.UNSUPPORTED)
        full = dict.fromkeys(missing, Reason.UNSUPPORTED)
        self._reasons = {Span.FAST: fast, Span.FULL: full, Span.WIDE: full}
        usable = (model.work_memory_mib - model.reserved_mib - model.desktop_mib) * MIB
        self._usable = usable // _PAGE * _PAGE
        self._states = _states(model, seed, number)
        # A card that corrects a memory error now and then: one in five, every four to thirty days.
        careless = draw(seed, "ecc", number) < 0.2
        self._ecc_days = 4 + 26 * draw(seed, "ecc days", number) if careless and model.has_ecc else 0.0
        self._who: tuple[tuple[int, int], GpuProcess] | None = None

    def read(self, now: float, span: Span) -> list[DeviceReading]:
        """The card and its instances at `now`."""
        if self._faults.all and (fault := self._faults.silence(now)):
            return self._silent(fault, span)
        moment = self._life.at(now)
        held = self._held(moment)
        values = self._fast(now, moment, held)
        if span is not Span.FAST:
            self._slow(now, moment, held, values)
        if self._instances:
            return self._split(moment, span, values, held)
        processes = self._processes(moment, held) if span is Span.WIDE else None
        return [DeviceReading(self.identity, Status.OK, values, self._reasons[span], processes)]

    def _held(self, moment: Moment) -> int:
        """Bytes that jobs hold now; grows evenly through a stage that loads."""
        phase = moment.phase
        stage = phase.stage
        share = stage.memory
        if stage.memory_end != share:
            share += (stage.memory_end - share) * (moment.second - stage.start) / (stage.end - stage.start)
        return int(self._usable * share) // _PAGE * _PAGE

    def _fast(self, now: float, moment: Moment, held: int) -> dict[str, _Plain]:
        model, phase = self._model, moment.phase
        stage = phase.stage
        power, clock, flags, heat = moment.power(), phase.clock, phase.flags, moment.temperature()
        energy, throttled = moment.energy(), moment.throttled()
        if self._faults.all:
            counters = self._counters(now)
            energy, throttled = counters.energy, counters.throttled
            if self._faults.is_throttled(now):
                power, clock, flags = power * 0.5, clock * 0.5, flags | _HW_SLOWDOWN
                heat = model.slowdown_temperature + 2.0
        values: dict[str, _Plain] = {
            "temperature": round(heat),
            "power_usage": round(power, 2),
            "graphics_clock": round(clock),
            "throttle_reasons": flags,
            "throttle_time": round(throttled, 6),
        }
        if model.has_energy:
            values["energy"] = round(energy, 3)
        if not model.is_unified:
            values["memory_used"] = held + model.desktop_mib * MIB
        if not model.instances:
            values["gpu_utilization"] = _percent(stage.utilization, stage.jitter, moment.noise(1))
            if not model.is_unified:
                values["memory_utilization"] = _percent(
                    stage.memory_utilization, stage.jitter / 2, moment.noise(2)
                )
        return values

    def _slow(self, now: float, moment: Moment, held: int, values: dict[str, _Plain]) -> None:
        """Add to `values` what is read once per interval."""
        model, phase = self._model, moment.phase
        stage = phase.stage
        is_busy = stage.load > 0.08
        counters = self._counters(now) if self._faults.all else moment.counters()
        values |= self._states
        values["sm_clock"] = values["graphics_clock"]
        values["video_clock"] = model.video_clock if is_busy else model.idle_video_clock
        values["performance_state"] = 0 if is_busy else model.idle_state
        values["pcie_rx"], values["pcie_tx"] = int(counters.pcie_rx), int(counters.pcie_tx)
        values["power_instant"] = round(float(values["power_usage"]) * (0.97 + 0.06 * moment.noise(3)), 2)
        if model.memory_clock is not None and model.idle_memory_clock is not None:
            values["memory_clock"] = model.memory_clock if is_busy else model.idle_memory_clock
        if not model.is_unified:
            free = (model.work_memory_mib - model.reserved_mib - model.desktop_mib) * MIB - held
            values["memory_free"] = free
        if not model.instances:
            values["encoder_utilization"] = values["decoder_utilization"] = 0
        temperature = int(values["temperature"])
        if model.has_memory_temperature:
            values["memory_temperature"] = temperature + 4 + round(stage.memory_utilization / 10)
        if model.has_fan:
            values["fan_speed"] = max(0, min(100, round((temperature - 45) * 2.6)))
        if model.nvlink:
            values["nvlink_rx"] = values["nvlink_tx"] = int(counters.nvlink)
        if model.has_gpm:
            values["sm_active"] = round(stage.utilization * (0.84 + 0.04 * moment.noise(4)), 1)
            values["tensor_active"] = round(stage.tensor * (0.97 + 0.06 * moment.noise(5)), 1)
            values["dram_active"] = round(stage.memory_utilization * (0.9 + 0.06 * moment.noise(6)), 1)
        if model.has_ecc:
            values["ecc_corrected"] = int((now - ORIGIN) / DAY / self._ecc_days) if self._ecc_days else 0

    def _counters(self, now: float) -> Counters:
        return self._faults.counters(now, lambda moment: self._life.at(moment).counters())

    def _processes(self, moment: Moment, held: int) -> tuple[GpuProcess, ...]:
        model, stage = self._model, moment.phase.stage
        found = []
        if stage.job is not None:
            found.append(self._process(moment, stage.job, held))
        if model.desktop_mib:
            desktop = GpuProcess(
                1201, "graphics", model.desktop_mib * MIB, 1900, _uuid(self._seed, "boot")[4:]
            )
            found.append(_named(desktop, "root", "Xorg"))
        return tuple(found)

    def _process(self, moment: Moment, number: int, memory: int) -> GpuProcess:
        """The process of today's job `number`. Ranks of a gang have neighbouring pids and one job id."""
        job = moment.day.jobs[number]
        # A lasting job began with the week.
        day = moment.number - moment.number % 7 if job.is_lasting else moment.number
        if self._who is None or self._who[0] != (day, number):
            key = (self._seed, self._life.name, day, number)
            rank = self._number % 4 if job.gang else 0
            pid = 2000 + int(draw(*key, "pid") * 1_000_000) * 4 + rank
            begun = day * DAY + (0.0 if job.is_lasting else job.start) + 0.37 + rank * 0.05
            is_serving = job.kind == "serving"
            container = f"docker:{int(draw(*key, 'container') * 16**12):012x}" if is_serving else None
            is_batch = job.kind == "training"
            self._who = (
                (day, number),
                GpuProcess(
                    pid=pid,
                    start_ticks=int(begun * 100),
                    boot_id=_uuid(self._seed, "boot")[4:],
                    ns_pid=1 if is_serving else pid,
                    # A lasting job is one process of one user, whichever of the week's days is asked first.
                    user=f"user{1 + int(draw(*key, 'user') * 6)}" if job.is_lasting else job.user,
                    command="python3",
                    container=container,
                    job=str(100_000 + int(draw(*key, "slurm") * 800_000)) if is_batch else None,
                ),
            )
        known = self._who[1]
        return GpuProcess(
            known.pid, known.kind, memory, known.start_ticks, known.boot_id, known.ns_pid, known.user,
            known.command, known.container, known.job,
        )  # fmt: skip

    def _split(self, moment: Moment, span: Span, values: dict[str, _Plain], held: int) -> list[DeviceReading]:
        """The parent, with the sum of what its instances hold, and the instances."""
        readings = []
        total = 0
        for instance, identity in zip(self._model.instances, self._instances, strict=True):
            size = instance.memory_mib * MIB
            used = int(size * (held / self._usable)) // _PAGE * _PAGE
            total += used
            part: dict[str, _Plain] = {"memory_used": used}
            if span is not Span.FAST:
                part["memory_free"] = size - used
                for name in ("sm_active", "tensor_active", "dram_active"):
                    part[name] = values[name]
                part["driver_version"] = DRIVER
            names = _FAST_NAMES if span is Span.FAST else _ALL_NAMES
            reasons = dict.fromkeys((name for name in names if name not in part), Reason.UNSUPPORTED)
            processes = self._processes(moment, used) if span is Span.WIDE else None
            readings.append(DeviceReading(identity, Status.OK, part, reasons, processes))
        values["memory_used"] = total
        if "memory_free" in values:
            values["memory_free"] = (self._model.work_memory_mib - self._model.reserved_mib) * MIB - total
        nobody = () if span is Span.WIDE else None  # processes belong to the instances
        parent = DeviceReading(self.identity, Status.OK, values, self._reasons[span], nobody)
        return [parent, *readings]

    def _silent(self, fault: Fault, span: Span) -> list[DeviceReading]:
        """A card that does not answer, and its instances with it."""
        names = _FAST_NAMES if span is Span.FAST else _ALL_NAMES
        reasons = dict.fromkeys(names, _REASONS[fault.kind])
        return [
            DeviceReading(identity, _STATUSES[fault.kind], reasons=reasons, cause=fault.cause, since=fault.at)
            for identity in (self.identity, *self._instances)
        ]


def _percent(level: float, jitter: float, noise: float) -> int:
    return max(0, min(100, round(level + jitter * (2.0 * noise - 1.0))))


def _named(process: GpuProcess, user: str, command: str) -> GpuProcess:
    return GpuProcess(
        process.pid,
        process.kind,
        process.memory,
        process.start_ticks,
        process.boot_id,
        process.pid,
        user,
        command,
    )


def _identity(model: GpuModel, seed: object, number: int) -> Identity:
    # 32 GPUs to a PCI domain, on buses 07, 0E ... E0.
    address = f"{number // 32:08X}:{7 * (number % 32 + 1):02X}:00.0"
    return Identity(
        uid=_uuid(seed, number),
        source=SOURCE,
        name=model.name,
        pci_bus_id=address,
        memory_total=None if model.is_unified else model.work_memory_mib * MIB,
        index=number,
        serial=f"SIM{int(draw(seed, 'serial', number) * 10**10):010d}" if model.has_serial else None,
        minor_number=number,
        memory_kind="unified" if model.is_unified else "dedicated",
    )


def _instance_identity(parent: Identity, instance: Instance, seed: object, number: int) -> Identity:
    return Identity(
        uid=_uuid(seed, number, instance.place),
        source=SOURCE,
        name=f"{parent.name} MIG {instance.profile}",
        pci_bus_id=parent.pci_bus_id,
        memory_total=instance.memory_mib * MIB,
        index=parent.index,
        minor_number=parent.minor_number,
        parent_uid=parent.uid,
        mig_instance=instance.place,
        memory_kind=parent.memory_kind,
    )


def _states(model: GpuModel, seed: object, number: int) -> dict[str, _Plain]:
    """What never changes in a simulated card's life."""
    states: dict[str, _Plain] = {"driver_version": DRIVER}
    if not model.is_unified:
        states["memory_reserved"] = model.reserved_mib * MIB
    if model.has_power_limit:
        states["power_limit"] = model.power_limit
    if model.has_ecc:
        states["ecc_uncorrected"] = 0
    if model.rows == "remapped":
        states["remapped_rows"] = 1 if draw(seed, "rows", number) < 0.05 else 0
    if model.rows == "retired":
        states["retired_pages"] = 0
    if model.has_recovery_action:
        states["recovery_action"] = "none"
    if model.has_gpm or model.instances:
        states["mig_mode"] = "on" if model.instances else "off"
    return states


def _missing(model: GpuModel) -> tuple[str, ...]:
    """The metrics that a card of this model does not give, in catalogue order."""
    missing: set[str] = set()
    if model.is_unified:
        missing |= _UNIFIED_LACKS
    if model.instances:
        missing |= _MIG_LACKS
    for has, names in (
        (model.memory_clock is not None, ("memory_clock",)),
        (model.has_power_limit, ("power_limit",)),
        (model.has_energy, ("energy",)),
        (model.has_fan, ("fan_speed",)),
        (model.has_memory_temperature, ("memory_temperature",)),
        (model.nvlink > 0, ("nvlink_rx", "nvlink_tx")),
        (model.has_gpm, ("sm_active", "tensor_active", "dram_active")),
        (model.has_ecc, ("ecc_corrected", "ecc_uncorrected")),
        (model.rows == "remapped", ("remapped_rows",)),
        (model.rows == "retired", ("retired_pages",)),
        (model.has_recovery_action, ("recovery_action",)),
        (model.has_gpm or bool(model.instances), ("mig_mode",)),
    ):
        if not has:
            missing.update(names)
    return tuple(name for name in _ALL_NAMES if name in missing)
