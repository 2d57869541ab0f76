"""Which GPU a row is about, from the cells that name it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gpu_monitor.core.terminal_text import clean_name
from gpu_monitor.sources.recorded.cells import Dimension, null_reason, parse_cell
from gpu_monitor.sources.recorded.rows import RecordedDevice

_HEX_UUID = re.compile(
    r"(?:[A-Z]+-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", re.I | re.A
)
_NAMED_UID = re.compile(r"(?:MIG|IMPORT|AMD|APPLE)-\S+$")
_INDEX = re.compile(r"(?:gpu|cuda)?[ :#_-]*(\d{1,4})$", re.IGNORECASE | re.ASCII)


class RowSkipped(Exception):
    """This row cannot be taken; the text says why, in words that many rows share."""


def parse_uuid(text: str) -> str | None:
    """A UUID as NVML writes it; None where the log masks it with zeros or has none.

    RowSkipped for a text that is none, and for simulated GPUs, which are never taken as real.
    """
    if null_reason(text) is not None:
        return None
    if text.startswith("SIM-"):
        raise RowSkipped("a row of a simulated GPU")
    if _HEX_UUID.match(text):
        if not text.split("-", 1)[-1].strip("0-") or not text.strip("0-"):
            return None
        return text if text[:1].isalpha() and text[:4].upper() in ("GPU-", "MIG-") else f"GPU-{text}"
    if text.isprintable() and _NAMED_UID.match(text):
        return text
    raise RowSkipped("the UUID is none")


def parse_index(text: str) -> int | None:
    """The number of `3`, `GPU 3` or `cuda:3`; None where it is none."""
    match = _INDEX.match(text)
    return int(match[1]) if match else None


def _text(cells: Mapping[str, str], part: str) -> str | None:
    text = clean_name(cells.get(part, ""))
    return text if null_reason(text) is None and text.strip("0") else None


def device_of(
    cells: Mapping[str, str], loose: str | None = None, factor: float = 1024.0**2
) -> RecordedDevice:
    """The GPU that `cells` (part of the identity to stripped text) name.

    `loose` is the cell of a column such as `gpu` or `id`, which may hold an index, a UUID or a name.
    `factor` makes bytes of a bare `memory_total`. RowSkipped where the cells contradict each other.
    """
    uuid = parse_uuid(cells["uuid"]) if "uuid" in cells else None
    name = _text(cells, "name")
    index = _index_of(cells)
    if loose is not None and null_reason(loose) is None:
        loose_index = parse_index(loose)
        if loose_index is not None:
            if index is not None and index != loose_index:
                raise RowSkipped("two columns name different GPUs in one row")
            index = loose_index
        elif _HEX_UUID.match(loose):
            uuid = uuid or parse_uuid(loose)
        else:
            name = name or clean_name(loose)
    total = parse_cell(cells.get("memory_total", ""), "memory_total", Dimension.BYTES, factor).value
    minor = cells.get("minor_number", "")
    return RecordedDevice(
        uuid=uuid,
        index=index,
        pci_bus_id=_text(cells, "pci_bus_id"),
        name=name,
        serial=_text(cells, "serial"),
        minor_number=int(minor) if minor.isdigit() else None,
        memory_total=int(total) if isinstance(total, (int, float)) and total > 0 else None,
    )


def _index_of(cells: Mapping[str, str]) -> int | None:
    text = cells.get("index", "")
    if null_reason(text) is not None:
        return None
    index = parse_index(text)
    if index is None:
        raise RowSkipped("the GPU index is no number")
    return index
