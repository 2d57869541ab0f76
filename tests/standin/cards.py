"""Fills a card of the control file from a profile, and does the arithmetic of its counters."""

import ctypes
import math
from collections.abc import Sequence
from uuid import NAMESPACE_OID, UUID, uuid5

from tests.standin.layout import HERE, METRICS, Gpu, Load, Reading
from tests.standin.profiles import MIB, MigInstance, Profile

NOT_SUPPORTED = 3
NO_INSTANCE = 2**32 - 1

_TABLE = (HERE / "metrics.def").read_text(encoding="utf-8")
COUNTERS = frozenset(name for name in METRICS if f"METRIC({name}, COUNTER" in _TABLE)
SURVIVE_RESET = frozenset(
    {
        "ecc_corrected_aggregate",
        "ecc_uncorrected_aggregate",
        "remapped_rows_corrected",
        "remapped_rows_uncorrected",
        "retired_pages_sbe",
        "retired_pages_dbe",
    }
)


def made_up(seed: int, kind: str, *parts: int) -> UUID:
    """A UUID that no real card has, the same for the same seed."""
    return uuid5(NAMESPACE_OID, f"stand-in {seed} {kind} {parts}")


def fill(card: Gpu, profile: Profile, slot: int, seed: int, now: float) -> None:
    """Makes `card` a new card of this kind, not yet present."""
    ctypes.memset(ctypes.byref(card), 0, ctypes.sizeof(Gpu))
    card.name = profile.name.encode()
    card.uuid = f"GPU-{made_up(seed, 'card', slot)}".encode()
    card.serial = f"99{seed % 10**4:04d}{slot:07d}".encode() if profile.has_serial else b""
    card.pci_bus, card.pci_device_id = 0x0A + 0x0F * slot, profile.pci_device_id
    card.pci_subsystem_id = profile.pci_subsystem_id
    card.mig_capable = int(profile.mig_capable)
    for metric, reading in zip(METRICS, card.readings, strict=True):
        _describe(reading, profile, metric)
    minor = card.readings[METRICS.index("minor_number")]
    minor.low = minor.high = slot
    # An hour of counting lies behind a new card, so that no counter is 0 by chance. The load stays between
    # 0.15 and 0.95 for every slot, so that a card is never taken for idle unless a test asks for that.
    born = now - 3600
    card.loads[0] = Load(0.4 + 0.02 * slot, 0.25, 60.0, float(slot + seed), born, born, 0.0)
    set_instances(card, profile.mig, slot, seed)


def _describe(reading: Reading, profile: Profile, metric: str) -> None:
    value = profile.metrics.get(metric)
    if value is None:
        reading.error = NOT_SUPPORTED
    elif isinstance(value, tuple):
        reading.low, reading.high = value
    elif metric in COUNTERS:
        reading.base = value
    else:
        reading.low = reading.high = value


def set_instances(card: Gpu, instances: Sequence[MigInstance], slot: int, seed: int) -> None:
    """Gives the card these MIG instances and turns MIG on, or off where there are none."""
    if instances and not card.mig_capable:
        raise ValueError(f"{card.name.decode()} has no MIG")
    card.mig_current = card.mig_pending = card.instance_count = 0
    for place, instance in enumerate(instances):
        inside = card.instances[place]
        inside.uuid = f"MIG-{made_up(seed, 'instance', slot, place)}".encode()
        inside.name = card.name + b" MIG " + instance.label.encode()
        inside.gpu_instance, inside.compute_instance = place + 1, 0
        inside.slices, inside.multiprocessors = instance.slices, instance.multiprocessors
        inside.memory_total = instance.memory_mib * MIB
        inside.memory_used = instance.used_mib * MIB
    card.instance_count = len(instances)
    card.mig_current = card.mig_pending = int(bool(instances))


def load_seconds(load: Load, at: float) -> float:
    """The load integrated from the card's birth to `at`; the closed form of model.c."""
    turn = 2 * math.pi / load.period
    wave = math.cos(turn * load.since + load.phase) - math.cos(turn * at + load.phase)
    return load.integral + load.mean * (at - load.since) + load.amplitude / turn * wave


def counted(card: Gpu, metric: str, at: float) -> float:
    """What a counter shows at `at`, held or not."""
    reading, load = card.readings[METRICS.index(metric)], card.loads[card.active_load]
    grown = reading.low * (at - load.born) + (reading.high - reading.low) * load_seconds(load, at)
    return float(reading.base + grown)


def change_load(card: Gpu, mean: float, amplitude: float, period: float, now: float) -> None:
    """Another load from `now` on. The reader sees the old one or the new one, never a mixture."""
    old = card.loads[card.active_load]
    new = Load(mean, amplitude, period, old.phase, old.born, now, load_seconds(old, now))
    card.loads[1 - card.active_load] = new
    card.active_load = 1 - card.active_load


def shift(card: Gpu, seconds: float) -> None:
    """Moves the card's history by this much, so that its values go on when the clock is set."""
    for load in card.loads:
        if load.period:
            load.born += seconds
            load.since += seconds
            load.phase -= 2 * math.pi * seconds / load.period
