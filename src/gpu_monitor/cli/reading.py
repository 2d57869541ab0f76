"""One reading now, for `--once` and for `-sc` where nothing recent is stored. Stores nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_monitor.agent.ask import Group, shown
from gpu_monitor.agent.collect import Collector, GpuRow
from gpu_monitor.core.catalogue import BY_NAME
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.model import Span
from gpu_monitor.core.ports import Source


def read_group(source: Source, fields: tuple[str, ...], now: float | None = None) -> Group | None:
    """One round of `source` as a group; None where it gives no device."""
    at = SystemClock().now() if now is None else now
    collector = Collector(longest=60.0)
    collector.add(source.read(at, Span.WIDE), at)
    rows = collector.snapshot(int(at), 1).gpus
    return Group(int(at), tuple(_record(row, fields) for row in rows)) if rows else None


def _record(row: GpuRow, fields: tuple[str, ...]) -> Mapping[str, Any]:
    identity = row.identity
    record: dict[str, Any] = {}
    for name in fields:
        base = name[:-4] if name.endswith(("_min", "_max")) and name not in BY_NAME else name
        if name in row.values:
            record[name] = shown(base, row.values[name])
        elif name in row.states:
            record[name] = row.states[name]
        elif name == "reasons":
            record[name] = dict(row.reasons)
        elif name == "seconds":
            record[name] = row.seconds
        elif name == "processes":
            record[name] = [
                {"pid": one.pid, "user": one.user, "command": one.command, "memory": one.memory}
                for one in row.processes or ()
            ]
        else:
            record[name] = getattr(identity, name, None)
    return record
