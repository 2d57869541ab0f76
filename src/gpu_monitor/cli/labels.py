"""What GPUs are called in tables, how wide a table may be, and from when to when there is data."""

from __future__ import annotations

import re
import shutil
from typing import TextIO

from gpu_monitor.agent.ask import Asked
from gpu_monitor.agent.chronicle import recorded
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.core.times import format_time

PIPED_WIDTH = 80
"""Columns of a table where nobody's terminal says how many there are."""
_LONGEST = 12
_MAKERS = re.compile(r"^((NVIDIA|GeForce|Tesla|Graphics Device)\s+)+", re.IGNORECASE)


def short_name(name: str | None) -> str:
    """`H100 80GB` of `NVIDIA H100 80GB HBM3`: the words after the maker's that fit into 12 columns."""
    rest: str = _MAKERS.sub("", clean(name or "").strip())
    if len(rest) <= _LONGEST:
        return rest
    words: list[str] = re.findall(r"[ -]?[^ -]+", rest) or [rest]
    kept = words[0]
    for word in words[1:]:
        if len(kept + word) > _LONGEST:
            break
        kept += word
    return kept[:_LONGEST].strip()


def gpu_label(index: int | None, name: str | None) -> str:
    """`1 H100 80GB`; what is not known is left out."""
    return " ".join(filter(None, ("" if index is None else str(index), short_name(name))))


def table_width(stream: TextIO) -> int:
    """Columns of the terminal that `stream` is; 80 where it is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else PIPED_WIDTH


def recorded_text(store: Asked, node: int) -> str:
    """From when to when the store has data of a node, in words."""
    found = recorded(store, node)
    if found is None:
        return "the store has no data of this node"
    return f"the store has data from {format_time(round(found[0]))} to {format_time(round(found[1]))}"
