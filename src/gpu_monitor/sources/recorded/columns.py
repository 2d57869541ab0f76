"""The headings of logs: nvidia-smi's own field names and what other tools and scripts call them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpu_monitor.core.catalogue import BY_NAME, THROTTLE_REASONS
from gpu_monitor.sources.recorded.cells import UNITS, Dimension


@dataclass(frozen=True)
class Place:
    """Where a column's cells go: a metric, a part of the identity, a time, or nowhere (`name` empty).

    `rank` orders columns that say the same (0 is preferred). `parts`: the metric is the sum of that many
    columns, `rank` numbering them, and all are needed; 0 where it is not. `bit` is the flag of a FLAG column.
    """

    name: str
    dimension: Dimension = Dimension.TEXT
    rank: int = 0
    parts: int = 0
    bit: int = 0


@dataclass(frozen=True)
class Column:
    """One column of a log: its heading as written, where it goes, and what a bare number is worth."""

    heading: str
    place: Place
    factor: float = 1.0

    @property
    def is_known(self) -> bool:
        """Whether the heading was recognised."""
        return bool(self.place.name)


TIME, UTC_TIME, DATE, CLOCK, HOST = "time", "utc_time", "date", "clock", "host"
DEVICE_PARTS = ("uuid", "index", "pci_bus_id", "name", "serial", "minor_number", "memory_total")
NOWHERE = Place("")

_TABLE: tuple[tuple[str, Dimension, int, str], ...] = (
    (TIME, Dimension.TEXT, 0,
     "timestamp time datetime date_time ts epoch unix_time unixtime unix_timestamp epoch_s epoch_ms "
     "timestamp_ms timestamp_s local_time wall_time recorded_at"),
    (UTC_TIME, Dimension.TEXT, 0, "timestamp_utc time_utc utc_time utc datetime_utc"),
    (DATE, Dimension.TEXT, 0, "date"),
    (HOST, Dimension.TEXT, 0, "hostname host node node_name machine"),
    ("uuid", Dimension.TEXT, 0, "uuid gpu_uuid uid device_uuid"),
    ("index", Dimension.TEXT, 0, "index gpu_index gpu_idx idx device_index gpu_num gpu_number gpu_no"),
    ("index", Dimension.TEXT, 1, "gpu gpu_id gpuid device device_id id card"),
    ("pci_bus_id", Dimension.TEXT, 0, "pci_bus_id gpu_bus_id bus_id busid pci_busid"),
    ("name", Dimension.TEXT, 0, "name gpu_name product_name device_name model gpu_model gpu_type"),
    ("serial", Dimension.TEXT, 0, "serial gpu_serial serial_number"),
    ("minor_number", Dimension.TEXT, 0, "minor_number"),
    ("memory_total", Dimension.BYTES, 0,
     "memory_total mem_total total_memory gpu_memory_total fb_total vram_total total_mem memorytotal"),
    ("driver_version", Dimension.TEXT, 0, "driver_version driver"),
    ("temperature", Dimension.CELSIUS, 0,
     "temperature_gpu temperature temp gpu_temp gpu_temperature temp_gpu core_temp gtemp "
     "temperature_core gpu_core_temp"),
    ("memory_temperature", Dimension.CELSIUS, 0,
     "temperature_memory memory_temp mem_temp mtemp memory_temperature temp_memory hbm_temp temp_mem"),
    ("memory_used", Dimension.BYTES, 0,
     "memory_used mem_used used_memory gpu_memory_used fb_used vram_used used_mem memory_usage "
     "mem_usage used_gpu_memory gpu_mem_used gpu_memory fb memoryused"),
    ("memory_free", Dimension.BYTES, 0, "memory_free mem_free free_memory gpu_memory_free fb_free vram_free"),
    ("memory_reserved", Dimension.BYTES, 0, "memory_reserved mem_reserved"),
    ("gpu_utilization", Dimension.PERCENT, 0,
     "utilization_gpu gpu_utilization gpu_util util_gpu utilization util gpu_usage gpu_load "
     "gpu_utilisation utilisation gpuutil sm"),
    ("memory_utilization", Dimension.PERCENT, 0,
     "utilization_memory memory_utilization mem_util util_mem memory_util util_memory mem_utilization "
     "utilization_mem gpu_mem_util"),
    ("power_usage", Dimension.WATT, 0, "power_draw_average gpu_power_draw_average average_power_draw"),
    ("power_usage", Dimension.WATT, 1,
     "power_draw power power_usage gpu_power pwr board_power gpu_power_draw power_watt"),
    ("power_instant", Dimension.WATT, 0,
     "power_draw_instant gpu_power_draw_instant instant_power_draw power_instant"),
    ("power_limit", Dimension.WATT, 0, "enforced_power_limit gpu_power_current_limit"),
    ("power_limit", Dimension.WATT, 1, "power_limit gpu_power_requested_limit power_cap"),
    ("fan_speed", Dimension.PERCENT, 0, "fan_speed fan gpu_fan fan_speed_gpu"),
    ("graphics_clock", Dimension.MEGAHERTZ, 0,
     "clocks_current_graphics clocks_gr graphics_clock gpu_clock clock_graphics gr_clock core_clock "
     "clocks_graphics clock_gr pclk"),
    ("sm_clock", Dimension.MEGAHERTZ, 0, "clocks_current_sm clocks_sm sm_clock clock_sm"),
    ("memory_clock", Dimension.MEGAHERTZ, 0,
     "clocks_current_memory clocks_mem memory_clock mem_clock clock_memory clock_mem clocks_memory mclk"),
    ("video_clock", Dimension.MEGAHERTZ, 0, "clocks_current_video clocks_video video_clock clock_video"),
    ("performance_state", Dimension.STATE, 0, "pstate performance_state p_state perf_state"),
    ("encoder_utilization", Dimension.PERCENT, 0,
     "utilization_encoder encoder_util encoder_utilization util_encoder enc"),
    ("decoder_utilization", Dimension.PERCENT, 0,
     "utilization_decoder decoder_util decoder_utilization util_decoder dec"),
    ("pcie_rx", Dimension.RATE, 0, "rxpci pcie_rx rx_util pci_rx"),
    ("pcie_tx", Dimension.RATE, 0, "txpci pcie_tx tx_util pci_tx"),
    ("throttle_reasons", Dimension.MASK, 0,
     "clocks_event_reasons_active clocks_throttle_reasons_active throttle_reasons"),
    ("ecc_corrected", Dimension.COUNT, 0, "ecc_errors_corrected_aggregate_total ecc_corrected"),
    ("ecc_corrected", Dimension.COUNT, 1, "ecc_errors_corrected_volatile_total"),
    ("ecc_uncorrected", Dimension.COUNT, 0, "ecc_errors_uncorrected_aggregate_total ecc_uncorrected"),
    ("ecc_uncorrected", Dimension.COUNT, 1, "ecc_errors_uncorrected_volatile_total"),
    ("recovery_action", Dimension.ACTION, 0, "gpu_recovery_action recovery_action"),
    ("mig_mode", Dimension.SWITCH, 0, "mig_mode_current mig_mode"),
)  # fmt: skip

_PARTS: tuple[tuple[str, Dimension, str], ...] = (
    ("remapped_rows", Dimension.COUNT, "remapped_rows_correctable remapped_rows_uncorrectable"),
    (
        "retired_pages",
        Dimension.COUNT,
        "retired_pages_single_bit_ecc_count retired_pages_double_bit_count",
    ),
    (
        "throttle_time",
        Dimension.SECONDS,
        "clocks_event_reasons_counters_sw_power_cap clocks_event_reasons_counters_sw_thermal_slowdown"
        " clocks_event_reasons_counters_hw_thermal_slowdown clocks_event_reasons_counters_hw_power_brake_slowdown",
    ),
)
_PART_ALIASES = {
    "remapped_rows_sbe": "remapped_rows_correctable",
    "remapped_rows_dbe": "remapped_rows_uncorrectable",
    "retired_pages_sbe": "retired_pages_single_bit_ecc_count",
    "retired_pages_dbe": "retired_pages_double_bit_count",
}

_DEFAULT_UNITS = {Dimension.BYTES: "mib", Dimension.SECONDS: "us"}
"""What nvidia-smi means with `nounits`, where it is not the catalogue's own unit."""

_BRACKETED = re.compile(r"\s*[\[(]\s*([^\])]*?)\s*[\])]\s*$")
_SUFFIXES = {
    "c": "c", "celsius": "c", "degc": "c", "deg_c": "c", "w": "w", "watt": "w", "watts": "w", "mw": "mw",
    "milliwatts": "mw", "mib": "mib", "mb": "mb", "gib": "gib", "gb": "gb", "kib": "kib", "bytes": "bytes",
    "percent": "%", "pct": "%", "perc": "%", "mhz": "mhz", "ghz": "ghz", "mb_s": "mb/s", "kb_s": "kb/s",
    "bytes_s": "bytes/s", "bytes_per_second": "bytes/s", "mbps": "mb/s",
}  # fmt: skip


def _places() -> dict[str, Place]:
    places = {
        alias: Place(name, dimension, rank)
        for name, dimension, rank, aliases in _TABLE
        for alias in aliases.split()
    }
    for bit, reason in THROTTLE_REASONS:
        flag = Place("throttle_reasons", Dimension.FLAG, bit=bit)
        for prefix in ("clocks_event_reasons", "clocks_throttle_reasons"):
            places[f"{prefix}_{reason}"] = flag
    display = next(bit for bit, reason in THROTTLE_REASONS if reason == "display_clock_setting")
    places["clocks_event_reasons_display_clocks_setting"] = Place(
        "throttle_reasons", Dimension.FLAG, bit=display
    )
    for metric, dimension, text in _PARTS:
        parts = text.split()
        places.update(
            (part, Place(metric, dimension, rank, parts=len(parts))) for rank, part in enumerate(parts)
        )
    places.update((alias, places[name]) for alias, name in _PART_ALIASES.items())
    return places


PLACES = _places()


def _normal(text: str) -> str:
    return re.sub(r"[^a-z0-9%]+", "_", text.lower()).strip("_")


def _split_unit(heading: str) -> tuple[str, str | None]:
    """The name and the unit of a heading: `memory.used [MiB]`, `power_W`, `temp (C)`."""
    bracketed = _BRACKETED.search(heading)
    if bracketed:
        return _normal(heading[: bracketed.start()]), bracketed[1].lower()
    name = _normal(heading)
    if name in PLACES:
        return name, None
    for size in (3, 2, 1):
        parts = name.rsplit("_", size)
        unit = _SUFFIXES.get("_".join(parts[1:])) if len(parts) == size + 1 else None
        if unit is not None and parts[0] in PLACES:
            return parts[0], unit
    return name, None


def column_of(heading: str, catalogue_units: bool = False) -> Column:
    """What `heading` means; its place has no name where it is not known.

    A bare number counts in the heading's unit, else as nvidia-smi's `nounits` does (memory in MiB), or
    with `catalogue_units` in the catalogue's (our own exports: memory in bytes).
    """
    name, unit = _split_unit(heading)
    place = PLACES.get(name, NOWHERE)
    if unit == "%" and name in ("gpu", "gpu_util", "sm"):
        place = PLACES["utilization_gpu"]
    units = UNITS.get(place.dimension)
    if units is None:
        return Column(heading, place)
    if unit is None:
        unit = None if catalogue_units else _DEFAULT_UNITS.get(place.dimension)
        if unit is None:
            # A throughput without a unit may be anything; only our own exports are sure.
            is_sure = catalogue_units or place.dimension is not Dimension.RATE
            return Column(heading, place if is_sure else NOWHERE)
    factor = units.get(unit)
    return Column(heading, NOWHERE) if factor is None else Column(heading, place, factor)


def columns_of(headings: list[str]) -> tuple[Column, ...]:
    """The columns of a header line. A header with `uid` is one of our own exports: catalogue units."""
    ours = any(_normal(heading) == "uid" for heading in headings)
    columns = tuple(column_of(heading, ours) for heading in headings)
    if any(column.place.name == DATE for column in columns):
        return tuple(_as_clock(column) for column in columns)
    return columns


def _as_clock(column: Column) -> Column:
    """Beside a `date` column, `time` is the time of day."""
    is_time = column.place.name == TIME and _normal(column.heading) == "time"
    return Column(column.heading, Place(CLOCK)) if is_time else column


def is_metric(name: str) -> bool:
    """Whether cells of a place of this name go into a row's values."""
    return name in BY_NAME and name not in DEVICE_PARTS
