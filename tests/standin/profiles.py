"""The kinds of card the stand-in can be: values of real cards, from recordings; identities made up.

A metric is a number (always that), a pair (value without load, value under full load; for a counter:
growth a second), or absent (NVML_ERROR_NOT_SUPPORTED). Sources, relative to the recordings' folder:
 H100       captures/linux-x86_64__nvidia-h100-80gb-hbm3__590.48.01.txt (idle and gpu-burn), xml/k8stestinfra_qx-h100.xml
 L40S       captures/linux-x86_64__nvidia-l40s__595.80.txt, xml/k8stestinfra_qx-l40s.xml
 RTX 3080   xml/telegraf_rtx-3080-v12.xml (idle); load: its own limits and maximum clocks
 Quadro     xml/telegraf_quadro-p400.xml
 GB200      xml/k8stestinfra_qx-gb200.xml (idle); load: its own limits and maximum clocks; NUMA node made up
 GB10       no recording at hand: only the shape is meant (unified memory, so no memory information)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

MIB = 1024 * 1024
Value = float | tuple[float, float]

IDLE, NO_REASON = 0x1, 0x0  # nvmlClocksEventReasonGpuIdle


@dataclass(frozen=True)
class MigInstance:
    """One MIG instance: `slices` of seven, `memory_mib` of its own."""

    slices: int
    multiprocessors: int
    memory_mib: int
    used_mib: int
    label: str


@dataclass(frozen=True)
class Profile:
    """One kind of card."""

    name: str
    pci_device_id: int
    pci_subsystem_id: int
    metrics: Mapping[str, Value]
    has_serial: bool = False
    mig_capable: bool = False
    mig: tuple[MigInstance, ...] = ()


def _data_centre(limit_mw: int, least_mw: int) -> dict[str, Value]:
    """What every data-centre card of the last generations answers, quiet."""
    return {
        "encoder_utilization": 0,
        "decoder_utilization": 0,
        "jpeg_utilization": 0,
        "ofa_utilization": 0,
        "power_limit_mw": limit_mw,
        "enforced_power_limit_mw": limit_mw,
        "default_power_limit_mw": limit_mw,
        "min_power_limit_mw": least_mw,
        "max_power_limit_mw": limit_mw,
        "clocks_event_reasons": (IDLE, NO_REASON),
        "supported_clocks_event_reasons": 0x1FF,
        "performance_state": 0,
        "violation_power_ns": 0,
        "violation_thermal_ns": 0,
        "violation_sync_boost_ns": 0,
        "violation_board_limit_ns": 0,
        "violation_low_utilization_ns": 0,
        "violation_reliability_ns": 0,
        "sw_thermal_slowdown_ns": 0,
        "hw_thermal_slowdown_ns": 0,
        "hw_power_brake_ns": 0,
        "ecc_mode": 1,
        "ecc_corrected_volatile": 0,
        "ecc_uncorrected_volatile": 0,
        "ecc_corrected_aggregate": 0,
        "ecc_uncorrected_aggregate": 0,
        "remapped_rows_corrected": 0,
        "remapped_rows_uncorrected": 0,
        "remapped_rows_pending": 0,
        "remapped_rows_failure": 0,
        "recovery_action": 0,
        "brand": 14,  # NVML_BRAND_NVIDIA
        "minor_number": 0,
        "persistence_mode": 1,
        "event_types": 0x1F,  # ECC errors, performance state, Xid, clock
        "pcie_replays": 0,
    }


H100 = Profile(
    name="NVIDIA H100 80GB HBM3",
    pci_device_id=0x233010DE,
    pci_subsystem_id=0x16C110DE,
    has_serial=True,
    mig_capable=True,
    metrics=_data_centre(700_000, 200_000)
    | {
        "gpu_utilization": (0, 100),
        "memory_utilization": (0, 11),
        "temperature": (41, 65),
        "memory_temperature": (48, 59),
        "memory_total": 81559 * MIB,
        "memory_reserved": 479 * MIB,
        "memory_used": 19818 * MIB,
        "power_mw": (69_850, 631_950),
        "power_instant_mw": (69_620, 636_000),
        "memory_power_mw": 43_190,
        "energy_mj": (69_850, 631_950),
        "graphics_clock": (345, 1980),
        "sm_clock": (345, 1980),
        "memory_clock": 2619,
        "video_clock": (765, 1545),
        "max_graphics_clock": 1980,
        "max_sm_clock": 1980,
        "max_memory_clock": 2619,
        "max_video_clock": 1545,
        "pcie_tx_bytes": (352 * 1024, 3092 * 1024),
        "pcie_rx_bytes": (329 * 1024, 6346 * 1024),
        "nvlink_links": 18,
        "nvlink_speed_mbps": 26_562,
        # No traffic was recorded: a tenth of what 18 links of 26.562 GB/s carry, one way.
        "nvlink_tx_bytes": (0, 47_811_600_000),
        "nvlink_rx_bytes": (0, 47_811_600_000),
        # GPM was not recorded either; dram_active follows the recorded memory utilisation.
        "gpm_supported": 1,
        "graphics_active": (0, 100),
        "sm_active": (0, 98),
        "sm_occupancy": (0, 50),
        "tensor_active": (0, 60),
        "dram_active": (0, 11),
        "fp64_active": 0,
        "fp32_active": (0, 30),
        "fp16_active": (0, 10),
        "architecture": 9,
        "compute_major": 9,
        "compute_minor": 0,
        "addressing_mode": 0,
    },
)

# NVIDIA's 3g.40gb instance of this card: 3 of 7 slices, 60 of 132 multiprocessors, half the memory.
_HALF = MigInstance(slices=3, multiprocessors=60, memory_mib=40448, used_mib=1024, label="3g.40gb")
H100_MIG = replace(H100, mig=(_HALF, replace(_HALF, used_mib=2048)))

L40S = Profile(
    name="NVIDIA L40S",
    pci_device_id=0x26B910DE,
    pci_subsystem_id=0x185110DE,
    has_serial=True,
    metrics=_data_centre(350_000, 100_000)
    | {
        "gpu_utilization": (0, 100),
        "memory_utilization": (0, 23),
        "encoder_utilization": (0, 59),
        "temperature": (29, 54),
        "memory_total": 46068 * MIB,
        "memory_reserved": 609 * MIB,
        "memory_used": (0, 1235 * MIB),
        "power_mw": (65_640, 110_240),
        "power_instant_mw": (66_160, 110_010),
        "energy_mj": (65_640, 110_240),
        "graphics_clock": (2040, 2520),
        "sm_clock": (2040, 2520),
        "memory_clock": 9001,
        "video_clock": (1725, 1965),
        "max_graphics_clock": 2520,
        "max_sm_clock": 2520,
        "max_memory_clock": 9001,
        "max_video_clock": 1965,
        "violation_power_ns": (0, 50_000_000),
        "pcie_tx_bytes": (585 * 1024, 5_000_000),
        "pcie_rx_bytes": (292 * 1024, 5_000_000),
        "architecture": 8,
        "compute_major": 8,
        "compute_minor": 9,
        "addressing_mode": 1,  # HMM
    },
)

GEFORCE = Profile(
    name="NVIDIA GeForce RTX 3080",
    pci_device_id=0x221610DE,
    pci_subsystem_id=0x161219DA,
    metrics={
        "gpu_utilization": (0, 100),
        "memory_utilization": (0, 37),
        "encoder_utilization": 0,
        "decoder_utilization": 0,
        "jpeg_utilization": 0,
        "ofa_utilization": 0,
        "temperature": (31, 74),
        "memory_total": 10240 * MIB,
        "memory_reserved": 173 * MIB,
        "memory_used": (1128 * MIB, 7000 * MIB),
        "power_mw": (22_780, 320_000),
        "power_instant_mw": (22_780, 320_000),
        "power_limit_mw": 336_000,
        "enforced_power_limit_mw": 336_000,
        "default_power_limit_mw": 320_000,
        "min_power_limit_mw": 100_000,
        "max_power_limit_mw": 336_000,
        "energy_mj": (22_780, 320_000),
        "fan_speed": (0, 70),
        "fan_count": 2,
        "graphics_clock": (210, 2100),
        "sm_clock": (210, 2100),
        "memory_clock": (405, 9501),
        "video_clock": (555, 1950),
        "max_graphics_clock": 2100,
        "max_sm_clock": 2100,
        "max_memory_clock": 9501,
        "max_video_clock": 1950,
        "performance_state": (8, 2),
        "clocks_event_reasons": (IDLE, NO_REASON),
        "supported_clocks_event_reasons": 0x1FF,
        "violation_power_ns": 0,
        "violation_thermal_ns": 0,
        "sw_thermal_slowdown_ns": 0,
        "hw_thermal_slowdown_ns": 0,
        "hw_power_brake_ns": 0,
        "pcie_tx_bytes": (1000 * 1024, 20_000_000),
        "pcie_rx_bytes": (6000 * 1024, 40_000_000),
        "pcie_replays": 0,
        "brand": 5,  # NVML_BRAND_GEFORCE
        "architecture": 7,
        "compute_major": 8,
        "compute_minor": 6,
        "minor_number": 0,
        "persistence_mode": 0,
        "addressing_mode": 0,
        "event_types": 0x1C,  # performance state, Xid, clock: no ECC
        "recovery_action": 0,
    },
)

QUADRO = Profile(
    name="Quadro P400",
    pci_device_id=0x1CB310DE,
    pci_subsystem_id=0x11BE10DE,
    has_serial=True,
    metrics={
        "gpu_utilization": (0, 100),
        "memory_utilization": (3, 40),
        "encoder_utilization": 0,
        "decoder_utilization": 0,
        "temperature": (33, 60),
        "memory_total": 1998 * MIB,
        "memory_reserved": 0,
        "memory_used": (0, 800 * MIB),
        "fan_speed": (34, 60),
        "fan_count": 1,
        "graphics_clock": (139, 1252),
        "sm_clock": (139, 1252),
        "memory_clock": (405, 2005),
        "video_clock": (544, 1126),
        "max_graphics_clock": 1252,
        "max_sm_clock": 1252,
        "max_memory_clock": 2005,
        "max_video_clock": 1126,
        "performance_state": (8, 0),
        "clocks_event_reasons": (IDLE, NO_REASON),
        "supported_clocks_event_reasons": 0x1FF,
        "pcie_replays": 0,
        "brand": 1,  # NVML_BRAND_QUADRO
        "architecture": 4,
        "compute_major": 6,
        "compute_minor": 1,
        "minor_number": 0,
        "persistence_mode": 0,
        "event_types": 0x1C,
    },
)

GB10 = Profile(
    name="NVIDIA GB10",
    pci_device_id=0x2E1210DE,
    pci_subsystem_id=0,
    metrics={
        "gpu_utilization": (0, 96),
        "memory_utilization": 0,
        "encoder_utilization": 0,
        "decoder_utilization": 0,
        "temperature": (38, 70),
        "power_mw": (4_000, 60_000),
        "power_instant_mw": (4_000, 60_000),
        "graphics_clock": (208, 2418),
        "sm_clock": (208, 2418),
        "video_clock": (598, 2418),
        "max_graphics_clock": 3003,
        "max_sm_clock": 3003,
        "performance_state": (8, 0),
        "clocks_event_reasons": (IDLE, NO_REASON),
        "supported_clocks_event_reasons": 0x1FF,
        "brand": 14,
        "architecture": 10,
        "compute_major": 12,
        "compute_minor": 1,
        "minor_number": 0,
        "persistence_mode": 1,
        "addressing_mode": 2,  # ATS: the card uses the system's page tables and memory
        "event_types": 0x1C,
        "recovery_action": 0,
    },
)

GB200 = Profile(
    name="NVIDIA GB200",
    pci_device_id=0x294110DE,
    pci_subsystem_id=0x204610DE,
    has_serial=True,
    mig_capable=True,
    metrics=_data_centre(1_200_000, 200_000)
    | {
        "gpu_utilization": (0, 100),
        "memory_utilization": (0, 20),
        "temperature": (27, 70),
        "memory_temperature": (27, 65),
        "memory_total": 189471 * MIB,
        "memory_reserved": 742 * MIB,
        "memory_used": (0, 150_000 * MIB),
        "power_mw": (165_930, 1_150_000),
        "power_instant_mw": (165_930, 1_150_000),
        "memory_power_mw": 30_260,
        "module_power_mw": (467_170, 2_400_000),
        "energy_mj": (165_930, 1_150_000),
        "graphics_clock": (120, 2062),
        "sm_clock": (120, 2062),
        "memory_clock": 3996,
        "video_clock": (600, 1890),
        "max_graphics_clock": 2062,
        "max_sm_clock": 2062,
        "max_memory_clock": 3996,
        "max_video_clock": 1890,
        "pcie_tx_bytes": (0, 1_000_000),
        "pcie_rx_bytes": (0, 1_000_000),
        "nvlink_links": 18,
        "nvlink_tx_bytes": (0, 50_000_000_000),
        "nvlink_rx_bytes": (0, 50_000_000_000),
        "gpm_supported": 1,
        "graphics_active": (0, 100),
        "sm_active": (0, 98),
        "tensor_active": (0, 60),
        "dram_active": (0, 20),
        "architecture": 10,
        "compute_major": 10,
        "compute_minor": 0,
        "addressing_mode": 2,  # ATS
        "numa_node": 2,
    },
)

PROFILES = {
    "h100": H100,
    "h100-mig": H100_MIG,
    "l40s": L40S,
    "geforce": GEFORCE,
    "quadro": QUADRO,
    "gb10": GB10,
    "gb200": GB200,
}
