"""A disk that is nearly full: the one of a node's store, or the server's own."""

from __future__ import annotations

from typing import Literal

from gpu_monitor.core.times import format_duration
from gpu_monitor.server.alerts.runs import find_runs
from gpu_monitor.server.alerts.screen import Screen, Share
from gpu_monitor.server.alerts.window import (
    NO_DATA,
    Episode,
    Judgement,
    NodeWindow,
    Percent,
    Reading,
    Seconds,
    ServerWindow,
    Spec,
)

_GIB = 1 << 30


class Disk(Spec, frozen=True, tag="disk", tag_field="kind", kw_only=True):
    """More than `percent` of the disk is used; `of` node: by the reports' means, for `for_seconds`."""

    percent: Percent = 90
    of: Literal["node", "server"] = "node"
    for_seconds: Seconds = 0


def metrics(_spec: Disk) -> tuple[str, ...]:
    """What the rule reads of machines."""
    return ("disk_used", "disk_total")


def screen(spec: Disk) -> Screen:
    """Periods in which the disk was that full."""
    return Screen(hosts=(Share("disk_used", "disk_total", spec.percent / 100),))


def judge(spec: Disk, window: NodeWindow | ServerWindow) -> Judgement:
    """Whether it is, or was, too full."""
    if isinstance(window, ServerWindow):
        return _server(spec, window)

    def measure(reading: Reading) -> float | None:
        used, total = reading.values.get("disk_used"), reading.values.get("disk_total")
        return None if used is None or total is None or total.mean <= 0 else 100 * used.mean / total.mean

    def say(value: float, lasted: float, _reading: Reading) -> str:
        return f"the disk of the agent's store is {value:.0f} % full, over {spec.percent:g} % for {format_duration(lasted)}"

    return find_runs(window.readings, measure, lambda share: share > spec.percent, spec.for_seconds, say)


def _server(spec: Disk, window: ServerWindow) -> Judgement:
    shares = [(100 * disk.used / disk.total, disk) for disk in window.disks if disk.total > 0]
    if not shares:
        return NO_DATA
    share, disk = max(shares, key=lambda pair: pair[0])
    if share <= spec.percent:
        return Judgement((), window.now)
    left = (disk.total - disk.used) / _GIB
    text = f"the server's disk with {disk.name} is {share:.0f} % full ({left:.1f} GiB left)"
    return Judgement((Episode(window.now, window.now, None, True, share, text),), window.now)
