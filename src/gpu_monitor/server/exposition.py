"""Numbers as Prometheus reads them (text format 0.0.4). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from gpu_monitor.server.metrics import BOUNDS, Histogram, Labels, Snapshot

T = TypeVar("T")
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNITS = {"°C": "celsius", "bytes": "bytes", "%": "percent", "W": "watts", "MHz": "megahertz"}
"""How units of the catalogue are written in names."""
OWN = "gpu_monitor_server_"
_HELP = {
    "commit_seconds": "time that writing a group of reports took, from the begin of its transaction to its end",
    "errors_total": "requests that failed for a reason nobody foresaw",
    "experiments_commit_seconds": "time that writing a group of uploads of experiments took",
    "live_viewers": "open live sockets",
    "queue_bytes": "bytes of what waits for the writer",
    "queue_reports": "reports that wait for the writer",
    "queue_uploads": "uploads of experiments that wait for their writer",
    "refused_total": "requests that were refused for who made them",
    "rejects_total": "reports that were refused, by reason or status",
    "reports_total": "reports that were answered, by outcome",
    "turned_away_total": "reports that were told to come again, because too many waited",
    "uploads_refused_total": "uploads of experiments that were refused, by status or reason",
    "uploads_total": "uploads of experiments that were taken, repeats too",
    "uploads_turned_away_total": "uploads of experiments that were told to come again, because too many waited",
    "write_failures_total": "groups of reports or uploads that could not be written",
}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def labels(pairs: Iterable[tuple[str, str]]) -> str:
    """`{a="b",c="d"}` with the values escaped; empty without a pair."""
    inside = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in pairs)
    return f"{{{inside}}}" if inside else ""


def family(name: str, kind: str, text: str, rows: Sequence[tuple[str, float]]) -> Iterator[str]:
    """The lines of one metric, `rows` being (labels, value); none without a row."""
    if rows:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {kind}"
        for written, value in rows:
            yield f"{name}{written} {value}"


def own_lines(snapshot: Snapshot) -> Iterator[str]:
    """The server's own counters, gauges and histograms."""
    for kind, found in (("counter", snapshot.counters), ("gauge", snapshot.gauges)):
        for name, held in _by_name(found).items():
            yield from family(OWN + name, kind, _help(name), [(labels(own), value) for own, value in held])
    for name, histograms in _by_name(snapshot.histograms).items():
        yield f"# HELP {OWN}{name} {_help(name)}"
        yield f"# TYPE {OWN}{name} histogram"
        for own, histogram in histograms:
            yield from _histogram(OWN + name, own, histogram)


def _help(name: str) -> str:
    return _HELP.get(name, name.removesuffix("_total").replace("_", " "))


def _by_name(found: Mapping[tuple[str, Labels], T]) -> dict[str, list[tuple[Labels, T]]]:
    grouped: dict[str, list[tuple[Labels, T]]] = {}
    for (name, own), value in sorted(found.items(), key=lambda one: one[0]):
        grouped.setdefault(name, []).append((own, value))
    return grouped


def _histogram(name: str, own: Labels, histogram: Histogram) -> Iterator[str]:
    below = 0
    for edge, count in zip((*BOUNDS, None), histogram.counts, strict=True):
        below += count
        bound = "+Inf" if edge is None else f"{edge:g}"
        yield f"{name}_bucket{labels((*own, ('le', bound)))} {below}"
    yield f"{name}_sum{labels(own)} {histogram.total}"
    yield f"{name}_count{labels(own)} {below}"
