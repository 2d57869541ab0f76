"""Which kind of log a file is, from its first lines."""

from __future__ import annotations

import re
from enum import Enum

from gpu_monitor.core.errors import LogUnreadable

SUPPORTED = "`nvidia-smi --query-gpu=… --format=csv`, `nvidia-smi -q -x` and `nvidia-smi dmon -o DT`"
RECORD_AGAIN = (
    f"What can be imported: {SUPPORTED}.\n  Record for example with: nvidia-smi "
    "--query-gpu=timestamp,uuid,index,name,utilization.gpu,memory.used,power.draw,temperature.gpu "
    "--format=csv -l 10"
)
_DMON_COLUMNS = {"pwr", "gtemp", "temp", "sm", "mem", "fb", "mclk", "pclk", "rxpci", "txpci"}
_TABLE = re.compile(r"^\+-{20,}|^\|\s+NVIDIA-SMI ", re.MULTILINE)
_PROMETHEUS = re.compile(r"^# (?:HELP|TYPE) \w+ ", re.MULTILINE)
_CONTROLS = frozenset(chr(n) for n in range(32) if chr(n) not in "\t\r\n\x1b") | {"\ufffd"}
_WORD = re.compile(r"[a-z_]+")


class Format(Enum):
    """A kind of log that can be read."""

    CSV = "nvidia-smi CSV"
    XML = "nvidia-smi XML"
    DMON = "nvidia-smi dmon"


def sniff(name: str, head: bytes, text: str) -> Format:
    """The format of a file that begins with the bytes `head`, decoded as `text`.

    LogUnreadable where it is none that can be imported: the message says what it seems to be.
    """
    _refuse_binary(name, head)
    first = text.lstrip("\ufeff\0 \t\r\n")
    # A power cut leaves blocks of zero bytes in a log: they say nothing about its kind.
    sample = first[:4000].replace("\0", "")
    if sum(char in _CONTROLS for char in sample) > len(sample) // 20:
        raise LogUnreadable(f"{name} is no text", RECORD_AGAIN)
    if not first:
        raise LogUnreadable(f"{name} is empty")
    if first.startswith("<"):
        return Format.XML
    dmon = _dmon_header(name, text)
    if dmon:
        return Format.DMON
    _refuse_other_text(name, first)
    return Format.CSV


def _refuse_binary(name: str, head: bytes) -> None:
    if head[:2] == b"\x1f\x8b":
        raise LogUnreadable(
            f"{name} is compressed (gzip)", f"Try: zcat {name} | gpu_monitor import - --node NAME"
        )
    if head[:4] == b"\x28\xb5\x2f\xfd":
        raise LogUnreadable(
            f"{name} is compressed (zstd)", f"Try: zstdcat {name} | gpu_monitor import - --node NAME"
        )
    if head[:15] == b"SQLite format 3":
        raise LogUnreadable(f"{name} is an SQLite database, not a log", RECORD_AGAIN)


def _dmon_header(name: str, text: str) -> bool:
    for line in text.splitlines()[:200]:
        if not line.lstrip("\ufeff ").startswith("#"):
            continue
        words = set(_WORD.findall(line.lower()))
        if {"gpu", "pid"} <= words:
            raise LogUnreadable(f"{name} is `nvidia-smi pmon`: processes, not GPUs", RECORD_AGAIN)
        if "gpu" in words and words & _DMON_COLUMNS:
            return True
    return False


def _refuse_other_text(name: str, first: str) -> None:
    if _TABLE.search(first[:4000]):
        raise LogUnreadable(f"{name} is the table nvidia-smi prints for people", RECORD_AGAIN)
    if "NVSMI LOG" in first[:400]:
        raise LogUnreadable(f"{name} is `nvidia-smi -q` as text", f"{RECORD_AGAIN}\n  Or add -x for XML.")
    if _PROMETHEUS.search(first[:4000]):
        raise LogUnreadable(f"{name} is Prometheus text", RECORD_AGAIN)
    if first[0] in "{[" and '"' in first[:200]:
        raise LogUnreadable(f"{name} is JSON", RECORD_AGAIN)
    lines = [line for line in first.splitlines()[:50] if line.strip()]
    if not any(mark in line for line in lines for mark in ",;\t"):
        raise LogUnreadable(f"{name} is no log that is known; it begins:\n    {lines[0][:200]}", RECORD_AGAIN)
