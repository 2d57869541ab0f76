"""`nvidia-smi -q -x`: one document, or the many that its loop writes one after the other.

The parser is expat, fed line by line: the document type is read past and never fetched, a document
that declares an entity is refused, and no tree is built, so a log of any length takes little memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.parsers import expat

from gpu_monitor.core.errors import LogUnreadable
from gpu_monitor.sources.recorded.columns import columns_of
from gpu_monitor.sources.recorded.devices import RowSkipped
from gpu_monitor.sources.recorded.layout import Clockwork, Layout
from gpu_monitor.sources.recorded.lines import Line
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions, RecordedRow
from gpu_monitor.sources.recorded.stamps import StampReader

_ROOT = "nvidia_smi_log"
_LONGEST_TEXT = 400
_DEEPEST = 32  # nvidia-smi nests eight deep

_HEADINGS: dict[str, str] = {
    "uuid": "uuid",
    "product_name": "name",
    "serial": "serial",
    "minor_number": "minor_number",
    "pci/pci_bus_id": "pci.bus_id",
    "pci/rx_util": "rx_util [KB/s]",
    "pci/tx_util": "tx_util [KB/s]",
    "fan_speed": "fan.speed",
    "performance_state": "pstate",
    "fb_memory_usage/total": "memory.total",
    "fb_memory_usage/reserved": "memory.reserved",
    "fb_memory_usage/used": "memory.used",
    "fb_memory_usage/free": "memory.free",
    "utilization/gpu_util": "utilization.gpu",
    "utilization/memory_util": "utilization.memory",
    "utilization/encoder_util": "utilization.encoder",
    "utilization/decoder_util": "utilization.decoder",
    "temperature/gpu_temp": "temperature.gpu",
    "temperature/memory_temp": "temperature.memory",
    "power_readings/power_draw": "power.draw",
    "power_readings/power_limit": "power.limit",
    "power_readings/enforced_power_limit": "enforced.power.limit",
    "gpu_power_readings/power_draw": "power.draw",
    "gpu_power_readings/average_power_draw": "power.draw.average",
    "gpu_power_readings/instant_power_draw": "power.draw.instant",
    "gpu_power_readings/current_power_limit": "enforced.power.limit",
    "gpu_power_readings/requested_power_limit": "power.limit",
    "clocks/graphics_clock": "clocks.current.graphics",
    "clocks/sm_clock": "clocks.current.sm",
    "clocks/mem_clock": "clocks.current.memory",
    "clocks/video_clock": "clocks.current.video",
    "ecc_errors/aggregate/single_bit/total": "ecc.errors.corrected.aggregate.total",
    "ecc_errors/aggregate/double_bit/total": "ecc.errors.uncorrected.aggregate.total",
    "retired_pages/multiple_single_bit_retirement/retired_count": "retired_pages.sbe",
    "retired_pages/double_bit_retirement/retired_count": "retired_pages.dbe",
    "remapped_rows/remapped_row_corr": "remapped_rows.correctable",
    "remapped_rows/remapped_row_unc": "remapped_rows.uncorrectable",
    **{
        f"clocks_event_reasons_counters/clocks_event_reasons_counters_{short}": (
            f"clocks_event_reasons_counters.{long} [us]"
        )
        for short, long in (
            ("sw_power_cap", "sw_power_cap"),
            ("sw_therm_slowdown", "sw_thermal_slowdown"),
            ("hw_therm_slowdown", "hw_thermal_slowdown"),
            ("hw_power_brake", "hw_power_brake_slowdown"),
        )
    },
    "gpu_recovery_action": "gpu_recovery_action",
    "mig_mode/current_mig": "mig.mode.current",
}
_REASON_PREFIXES = (
    "clocks_event_reasons/clocks_event_reason_",
    "clocks_throttle_reasons/clocks_throttle_reason_",
)
_ECC = "ecc_errors/aggregate/"
_SUMS = (
    ("ecc.errors.corrected.aggregate.total", ("sram_correctable", "dram_correctable")),
    (
        "ecc.errors.uncorrected.aggregate.total",
        (
            "sram_uncorrectable",
            "sram_uncorrectable_parity",
            "sram_uncorrectable_secded",
            "dram_uncorrectable",
        ),
    ),
)
"""Since driver 440 the totals are not printed, only their parts."""


class _Document:
    """One document while it is parsed: its time, its driver, and the GPUs that are complete."""

    def __init__(self, name: str, line: int) -> None:
        self.line = line
        self.time = ""
        self.driver = ""
        self.gpus: list[tuple[int, dict[str, str]]] = []
        self.mig_instances = 0
        self.is_done = False
        self._name = name
        self._path: list[str] = []
        self._text: list[str] = []
        self._gpu: dict[str, str] | None = None
        self._gpu_line = line
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.EntityDeclHandler = self._refuse_entity

    def feed(self, text: str, line: int) -> None:
        """Parse one more line; ExpatError where it is not well formed."""
        self._gpu_line = line if self._gpu is None else self._gpu_line
        self._parser.Parse(text + "\n", False)

    def _refuse_entity(self, entity: str, *_: object) -> None:
        raise LogUnreadable(
            f"{self._name} declares the XML entity {entity!r}, which nvidia-smi never does",
            "It is refused unread: such files are made to exhaust memory.",
        )

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self._path) >= _DEEPEST or (not self._path and tag != _ROOT):
            raise LogUnreadable(f"{self._name} is XML, but not of `nvidia-smi -q -x` (found <{tag}>)")
        self._path.append(tag)
        self._text.clear()
        if len(self._path) == 2 and tag == "gpu":
            self._gpu = {"@id": attributes.get("id", "")}

    def _characters(self, data: str) -> None:
        if len(self._text) < _LONGEST_TEXT:
            self._text.append(data[:_LONGEST_TEXT])

    def _end(self, tag: str) -> None:
        text = "".join(self._text).strip()
        self._text.clear()
        path = "/".join(self._path[2:])
        self._path.pop()
        if not self._path:
            self.is_done = True
        elif self._gpu is None:
            if tag == "timestamp":
                self.time = text
            elif tag == "driver_version":
                self.driver = text
        elif not path:
            self.gpus.append((self._gpu_line, self._gpu))
            self._gpu = None
        elif path == "mig_devices/mig_device":
            self.mig_instances += 1
        elif path and text and (path in _HEADINGS or path.startswith((_ECC, *_REASON_PREFIXES))):
            self._gpu[path] = text


class XmlReader:
    """Reads one XML log; `layouts` are those met, for checks after reading.

    `written_at` is the file's time of change, the time of a single document that holds none.
    """

    def __init__(
        self, name: str, options: ReadOptions, findings: Findings, written_at: float | None = None
    ) -> None:
        self._by_headings: dict[tuple[str, ...], Layout] = {}
        self._name = name
        self._options = options
        self._findings = findings
        self._written_at = written_at
        self._clockwork = Clockwork(StampReader(options.timezone, options.start))
        self._timeless = 0

    @property
    def layouts(self) -> list[Layout]:
        """The layouts of the GPUs met, one for each set of elements."""
        return list(self._by_headings.values())

    def rows(self, lines: Iterable[Line]) -> Iterator[RecordedRow]:
        """Every GPU of every document; a cut or broken document gives its complete GPUs only."""
        document: _Document | None = None
        is_broken = False
        for number, line, _ in lines:
            text = line.strip("\ufeff\0\r")
            starts = text.lstrip().startswith(("<?xml", f"<{_ROOT}"))
            if starts and (document is None or document.is_done or is_broken or "<?xml" in text):
                if document is not None and not document.is_done and not is_broken:
                    self._findings.skip("an XML document that is cut short", number)
                document, is_broken, text = _Document(self._name, number), False, text.lstrip()
            if document is None or is_broken or (document.is_done and not text.strip()):
                continue
            if document.is_done:
                self._findings.skip(f"after a document: {text.strip()[:60]!r}", number)
                continue
            try:
                document.feed(text, number)
            except expat.ExpatError as error:
                is_broken = True
                self._findings.skip(f"XML that is not well formed ({expat.ErrorString(error.code)})", number)
            yield from self._finished(document)
        if document is None:
            raise LogUnreadable(f"{self._name}: no <{_ROOT}> was found")
        if not document.is_done and not is_broken:
            self._findings.skip("an XML document that is cut short at the end of the file", document.line)

    def _finished(self, document: _Document) -> Iterator[RecordedRow]:
        """The rows of the GPUs that have become complete."""
        if document.is_done and document.mig_instances:
            self._findings.note("MIG instances were left out (the XML gives them no UUID)", document.line)
        if not document.gpus:
            return
        gpus, document.gpus = document.gpus, []
        time = document.time or self._stand_in(document)
        document.time = time
        for line, gpu in gpus:
            try:
                yield self._row(time, document.driver, gpu, line)
            except RowSkipped as error:
                self._findings.skip(str(error), line)

    def _stand_in(self, document: _Document) -> str:
        """The time of a document that holds none: --start and --step, else the file's own time."""
        self._timeless += 1
        if self._options.start is not None:
            self._findings.note("no time in the document: counted from --start", document.line)
            return f"{self._options.start + (self._timeless - 1) * self._options.step:.3f}"
        if self._written_at is None or self._timeless > 1:
            raise LogUnreadable(
                f"{self._name}: its documents hold no <timestamp>",
                "Say when the first one was read: --start TIME, and --step SECONDS between them.",
            )
        self._findings.note("no time in the document: the file's time of change was taken", document.line)
        return f"{self._written_at:.3f}"

    def _row(self, time: str, driver: str, gpu: dict[str, str], line: int) -> RecordedRow:
        named = {"timestamp": time}
        if driver:
            named["driver_version"] = driver
        for path, text in gpu.items():
            heading = _heading_of(path)
            if heading is not None:
                named[heading] = text
        if "pci.bus_id" not in named and gpu["@id"]:
            named["pci.bus_id"] = gpu["@id"]
        for heading, parts in _SUMS:
            total = _total([gpu[_ECC + part] for part in parts if _ECC + part in gpu])
            if total is not None:
                named.setdefault(heading, total)
        headings = tuple(named)
        layout = self._by_headings.get(headings)
        if layout is None:
            layout = self._by_headings[headings] = Layout(columns_of(list(headings)), self._clockwork)
        return layout.row(list(named.values()), line, self._findings)


def _heading_of(path: str) -> str | None:
    heading = _HEADINGS.get(path)
    if heading is None and path.startswith(_REASON_PREFIXES):
        prefix = next(prefix for prefix in _REASON_PREFIXES if path.startswith(prefix))
        return f"clocks_event_reasons.{path[len(prefix) :]}"
    return heading


def _total(parts: list[str]) -> str | None:
    """The sum of counts as text, the first part that is no number where there is one, None without parts."""
    if not parts:
        return None
    odd = next((part for part in parts if not part.isdigit()), None)
    return str(sum(int(part) for part in parts)) if odd is None else odd
