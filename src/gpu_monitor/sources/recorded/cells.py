"""One cell of a log, to a value in the catalogue's unit or the reason why there is none."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from gpu_monitor.core.catalogue import BY_NAME, Reason
from gpu_monitor.core.terminal_text import clean_name
from gpu_monitor.sources.recorded.rows import RecordedValue


class Dimension(Enum):
    """What kind of quantity a column holds."""

    PERCENT = "a percentage"
    CELSIUS = "a temperature in °C"
    WATT = "a power in W"
    MEGAHERTZ = "a clock in MHz"
    BYTES = "an amount of memory"
    RATE = "a rate in bytes/s"
    SECONDS = "a duration"
    COUNT = "a count"
    STATE = "a performance state (P0 to P15)"
    MASK = "a hexadecimal mask"
    FLAG = "Active or Not Active"
    SWITCH = "Enabled or Disabled"
    ACTION = "a recovery action"
    TEXT = "a text"


class Cell(NamedTuple):
    """What a cell says: a value, or None with the reason; `readable` False where it fits no such column."""

    value: RecordedValue | None
    reason: str | None
    readable: bool


_MIB = 1024.0**2
UNITS: dict[Dimension, dict[str, float]] = {
    Dimension.PERCENT: {"%": 1.0},
    Dimension.CELSIUS: {"c": 1.0, "°c": 1.0},
    Dimension.WATT: {"w": 1.0, "mw": 1e-3, "kw": 1e3},
    Dimension.MEGAHERTZ: {"mhz": 1.0, "ghz": 1e3},
    # Scripts and old drivers write MB for what nvidia-smi counts in MiB.
    Dimension.BYTES: {
        "mib": _MIB, "mb": _MIB, "gib": _MIB * 1024, "gb": _MIB * 1024, "kib": 1024.0, "kb": 1024.0,
        "b": 1.0, "bytes": 1.0,
    },
    # nvidia-smi's PCIe throughput comes from NVML, which counts KB of 1,000 bytes.
    Dimension.RATE: {"mb/s": 1e6, "kb/s": 1e3, "gb/s": 1e9, "b/s": 1.0, "bytes/s": 1.0},
    Dimension.SECONDS: {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    Dimension.COUNT: {"errs": 1.0},
}  # fmt: skip

_NUMBER = re.compile(r"([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?)\s*([%°A-Za-z/]*)$", re.ASCII)
_STATE = re.compile(r"[Pp]?(\d{1,2})$", re.ASCII)
_MASK = re.compile(r"0[xX][0-9a-fA-F]{1,16}$|\d{1,19}$", re.ASCII)

_UNSUPPORTED = (
    "n/a",
    "not supported",
    "not available",
    "unsupported",
    "requested functionality has been deprecated",
)
_DENIED = ("insufficient permissions", "insufficient permission", "no permission", "access denied")
_LOST = (
    "gpu is lost",
    "gpu_is_lost",
    "gpu requires reset",
    "reset required",
    "gpu has fallen off the bus",
    "gpu reset required",
)
_NOTHING = ("", "-", "unknown error", "unknown", "err!", "error", "nan", "none", "null", "na")
_REASONS: dict[str, str] = {
    **dict.fromkeys(_UNSUPPORTED, Reason.UNSUPPORTED),
    **dict.fromkeys(_DENIED, Reason.DENIED),
    **dict.fromkeys(_LOST, Reason.LOST),
    **dict.fromkeys(_NOTHING, Reason.INVALID),
}

_UNREADABLE = Cell(None, Reason.INVALID, False)
_ACTIONS = (
    ("drain and reset", "drain_and_reset"),
    ("drain", "drain"),
    ("reboot", "reboot"),
    ("reset", "reset"),
    ("none", "none"),
)
_SWITCHES = {"enabled": "on", "on": "on", "disabled": "off", "off": "off"}
_FLAGS = {"active": True, "1": True, "true": True, "not active": False, "0": False, "false": False}


def null_reason(text: str) -> str | None:
    """Why a cell that says `text` has no value; None where it may have one."""
    bare = text.strip("[]").strip().lower() if text.startswith("[") else text.lower()
    reason = _REASONS.get(bare)
    if reason is None and text.startswith("[") and text.endswith("]"):
        return Reason.INVALID
    return reason


def parse_cell(text: str, metric: str, dimension: Dimension, factor: float = 1.0, bit: int = 0) -> Cell:
    """The value that stripped `text` gives `metric`.

    `factor` turns a number without a unit into the catalogue's unit (a unit in the cell wins); `bit`
    is the flag of a FLAG column. A number outside the catalogue's range is unreadable.
    """
    if dimension is Dimension.ACTION and text.lower() == "none":
        return Cell("none", None, True)
    reason = null_reason(text)
    if reason is not None:
        return Cell(None, reason, True)
    if dimension in UNITS:
        return _quantity(text, metric, dimension, factor)
    return _word(text, dimension, bit)


def _quantity(text: str, metric: str, dimension: Dimension, factor: float) -> Cell:
    match = _NUMBER.match(text)
    if match is None:
        return _UNREADABLE
    number, unit = match[1], match[2].lower()
    scale = UNITS[dimension].get(unit) if unit else factor
    if scale is None:
        return _UNREADABLE
    value: float | int = float(number) * scale
    if dimension in (Dimension.BYTES, Dimension.COUNT) or (scale == 1.0 and number.lstrip("+-").isdigit()):
        if abs(value) > 2**63:
            return _UNREADABLE
        value = round(value)
    known = BY_NAME.get(metric)
    if known is not None and not known.low <= value <= min(known.high, 2.0**53):
        return _UNREADABLE
    return Cell(value, None, True)


def _word(text: str, dimension: Dimension, bit: int) -> Cell:
    if dimension is Dimension.TEXT:
        return Cell(clean_name(text), None, True)
    if dimension is Dimension.STATE:
        match = _STATE.match(text)
        return Cell(int(match[1]), None, True) if match and int(match[1]) <= 15 else _UNREADABLE
    if dimension is Dimension.MASK:
        hexadecimal = text[:2].lower() == "0x"
        return Cell(int(text, 16 if hexadecimal else 10), None, True) if _MASK.match(text) else _UNREADABLE
    lowered = text.lower()
    if dimension is Dimension.FLAG:
        active = _FLAGS.get(lowered)
        return _UNREADABLE if active is None else Cell(bit if active else 0, None, True)
    if dimension is Dimension.SWITCH:
        switch = _SWITCHES.get(lowered)
        return _UNREADABLE if switch is None else Cell(switch, None, True)
    action = next((name for words, name in _ACTIONS if words in lowered), None)
    return _UNREADABLE if action is None else Cell(action, None, True)
