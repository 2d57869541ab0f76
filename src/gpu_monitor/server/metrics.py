"""The server's own numbers, counted from any thread and read by `/metrics`."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

Labels = tuple[tuple[str, str], ...]
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper edges of the buckets of every histogram, s."""


@dataclass(frozen=True)
class Histogram:
    """Durations of one kind: how many fell into each bucket (not cumulated; the last has no edge), and their sum."""

    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True)
class Snapshot:
    """All numbers at one moment, by name and labels."""

    counters: dict[tuple[str, Labels], float]
    gauges: dict[tuple[str, Labels], float]
    histograms: dict[tuple[str, Labels], Histogram]


class OwnMetrics:
    """Counters, gauges and histograms. Names are Prometheus names without the prefix `gpu_monitor_server_`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], float] = {}
        self._gauges: dict[tuple[str, Labels], Callable[[], float]] = {}
        self._histograms: dict[tuple[str, Labels], tuple[list[int], list[float]]] = {}

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter. Labels must come from a small fixed set (a reason, a route), never from a request."""
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            self._counters[key] = self._counters.get(key, 0) + by

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Put a duration into a histogram."""
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            counts, total = self._histograms.setdefault(key, ([0] * (len(BOUNDS) + 1), [0.0]))
            counts[bisect_left(BOUNDS, seconds)] += 1
            total[0] += seconds

    def gauge(self, name: str, read: Callable[[], float], **labels: str) -> None:
        """Name a function that tells a present value (a queue's length); asked at every snapshot, any thread."""
        with self._lock:
            self._gauges[name, tuple(sorted(labels.items()))] = read

    def snapshot(self) -> Snapshot:
        """Everything as it is now."""
        with self._lock:
            counters, gauges = dict(self._counters), dict(self._gauges)
            histograms = {key: Histogram(tuple(c), t[0]) for key, (c, t) in self._histograms.items()}
        return Snapshot(counters, {key: read() for key, read in gauges.items()}, histograms)
