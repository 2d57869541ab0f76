"""The cards that can be simulated: limits and abilities as the real ones report them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

from gpu_monitor.core.errors import UsageError

MIB = 1024 * 1024


@dataclass(frozen=True)
class Instance:
    """One MIG instance: profile, GPU instance / compute instance, memory, share of the SMs."""

    profile: str
    place: str
    memory_mib: int
    share: float


@dataclass(frozen=True)
class GpuModel:
    """One card. Power in W, clocks in MHz, temperatures in °C, rates in bytes/s.

    `full_temperature`: what a well cooled card settles at under its power limit. `work_memory_mib` is
    what jobs size themselves by; `is_unified` cards report no memory at all. `rows` says how faulty
    memory is mended: remapped, retired, or None where the card does not tell. Rates are those of a
    busy link.
    """

    name: str
    work_memory_mib: int
    reserved_mib: int
    power_limit: float
    idle_power: float
    graphics_clock: int
    idle_clock: int
    memory_clock: int | None
    idle_memory_clock: int | None
    video_clock: int
    idle_video_clock: int
    full_temperature: float
    slowdown_temperature: float
    pcie: float
    nvlink: float = 0.0
    idle_state: int = 0
    has_fan: bool = False
    has_memory_temperature: bool = False
    has_gpm: bool = False
    has_ecc: bool = True
    has_energy: bool = True
    has_power_limit: bool = True
    has_recovery_action: bool = False
    has_serial: bool = True
    is_unified: bool = False
    rows: str | None = None
    desktop_mib: int = 0
    instances: tuple[Instance, ...] = ()


# Memory sizes, clocks and limits: nvidia-smi -q of the real cards (H100, L40S, T4, A100 recordings of
# other projects) and NVIDIA's data sheets; GB10 as its owners report it (no memory, no power limit).
_H100 = GpuModel(
    name="NVIDIA H100 80GB HBM3",
    work_memory_mib=81559,
    reserved_mib=480,
    power_limit=700.0,
    idle_power=70.0,
    graphics_clock=1980,
    idle_clock=345,
    memory_clock=2619,
    idle_memory_clock=2619,
    video_clock=1545,
    idle_video_clock=765,
    full_temperature=63.0,
    slowdown_temperature=87.0,
    pcie=5e9,
    nvlink=100e9,
    has_memory_temperature=True,
    has_gpm=True,
    has_recovery_action=True,
    rows="remapped",
)

MODELS: dict[str, GpuModel] = {
    "h100": _H100,
    "h200": GpuModel(
        name="NVIDIA H200",
        work_memory_mib=143771,
        reserved_mib=632,
        power_limit=700.0,
        idle_power=76.0,
        graphics_clock=1980,
        idle_clock=345,
        memory_clock=3201,
        idle_memory_clock=3201,
        video_clock=1545,
        idle_video_clock=765,
        full_temperature=65.0,
        slowdown_temperature=87.0,
        pcie=5e9,
        nvlink=100e9,
        has_memory_temperature=True,
        has_gpm=True,
        has_recovery_action=True,
        rows="remapped",
    ),
    "a100": GpuModel(
        name="NVIDIA A100-SXM4-80GB",
        work_memory_mib=81920,
        reserved_mib=869,
        power_limit=400.0,
        idle_power=55.0,
        graphics_clock=1410,
        idle_clock=210,
        memory_clock=1593,
        idle_memory_clock=1593,
        video_clock=1290,
        idle_video_clock=585,
        full_temperature=66.0,
        slowdown_temperature=89.0,
        pcie=3e9,
        nvlink=60e9,
        has_memory_temperature=True,
        has_recovery_action=True,
        rows="remapped",
    ),
    "l40s": GpuModel(
        name="NVIDIA L40S",
        work_memory_mib=46068,
        reserved_mib=609,
        power_limit=350.0,
        idle_power=34.0,
        graphics_clock=2520,
        idle_clock=210,
        memory_clock=9001,
        idle_memory_clock=405,
        video_clock=1965,
        idle_video_clock=1185,
        full_temperature=74.0,
        slowdown_temperature=92.0,
        pcie=3e9,
        idle_state=8,
        has_recovery_action=True,
        rows="remapped",
    ),
    "rtx4090": GpuModel(
        name="NVIDIA GeForce RTX 4090",
        work_memory_mib=24564,
        reserved_mib=346,
        power_limit=450.0,
        idle_power=18.0,
        graphics_clock=2745,
        idle_clock=210,
        memory_clock=10501,
        idle_memory_clock=405,
        video_clock=2160,
        idle_video_clock=1185,
        full_temperature=71.0,
        slowdown_temperature=90.0,
        pcie=3e9,
        idle_state=8,
        has_fan=True,
        has_ecc=False,
        has_serial=False,
        desktop_mib=18,
    ),
    "t4": GpuModel(
        name="Tesla T4",
        work_memory_mib=15360,
        reserved_mib=388,
        power_limit=70.0,
        idle_power=10.0,
        graphics_clock=1590,
        idle_clock=300,
        memory_clock=5001,
        idle_memory_clock=405,
        video_clock=1470,
        idle_video_clock=540,
        full_temperature=77.0,
        slowdown_temperature=93.0,
        pcie=1.5e9,
        idle_state=8,
        rows="retired",
    ),
    "v100": GpuModel(
        name="Tesla V100-SXM2-32GB",
        work_memory_mib=32768,
        reserved_mib=268,
        power_limit=300.0,
        idle_power=42.0,
        graphics_clock=1530,
        idle_clock=135,
        memory_clock=877,
        idle_memory_clock=877,
        video_clock=1372,
        idle_video_clock=555,
        full_temperature=64.0,
        slowdown_temperature=87.0,
        pcie=1.5e9,
        nvlink=30e9,
        has_memory_temperature=True,
        rows="retired",
    ),
    "gb10": GpuModel(
        name="NVIDIA GB10",
        work_memory_mib=98304,
        reserved_mib=0,
        power_limit=90.0,
        idle_power=4.0,
        graphics_clock=2411,
        idle_clock=208,
        memory_clock=None,
        idle_memory_clock=None,
        video_clock=2411,
        idle_video_clock=598,
        full_temperature=76.0,
        slowdown_temperature=95.0,
        pcie=2e9,
        idle_state=8,
        has_ecc=False,
        has_energy=False,
        has_power_limit=False,
        has_recovery_action=True,
        is_unified=True,
    ),
    "mig-h100": replace(
        _H100,
        # Sizes as nvidia-smi lists these profiles on an 80 GB H100.
        instances=(
            Instance("3g.40gb", "1/0", 40320, 3 / 7),
            Instance("2g.20gb", "3/0", 20096, 2 / 7),
            Instance("1g.10gb", "9/0", 9984, 1 / 7),
        ),
    ),
}

# More than any machine holds, and little enough that a slip of the finger does not stop the machine.
MOST_GPUS = 1024


def parse_simulate(text: str) -> tuple[int, str]:
    """Count and model of `--simulate N[:model]`; the model is h100 unless named. UsageError otherwise."""
    number, _, model = text.strip().partition(":")
    if not number.strip().isdigit() or not 1 <= int(number) <= MOST_GPUS:
        raise UsageError(
            f"cannot simulate {text!r}", f"Write --simulate N or N:model, N from 1 to {MOST_GPUS}."
        )
    return int(number), check_model(model or "h100")


def check_model(model: str) -> str:
    """The known name for `model`, whatever its case; UsageError with the nearest one otherwise."""
    wanted = model.strip().lower()
    if wanted in MODELS:
        return wanted
    near = get_close_matches(wanted, MODELS, n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise UsageError(f"no simulated card is called {model!r}", f"{meant}There are: {', '.join(MODELS)}.")
