"""What an experiment's segments hold, for tests: decoded by the wire format, checked line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_monitor.wire.training import AnyRecord, Capture, Media, Points, PointSet, Series, Text, decode


def records(folder: Path) -> list[AnyRecord]:
    """All records of an experiment, segment by segment."""
    return [
        decode(line)
        for path in sorted(folder.glob("seg-*.log"))
        for line in path.read_bytes().splitlines(keepends=True)
    ]


def only(folder: Path, experiments: int = 1) -> Path:
    """The folder of the one experiment in a directory."""
    found = [path for path in folder.iterdir() if path.is_dir()]
    assert len(found) == experiments
    return found[0]


def output(folder: Path, stream: str = "stdout") -> list[str]:
    """The lines of one stream."""
    return [record.text for record in records(folder) if isinstance(record, Text) and record.stream == stream]


def facts(folder: Path) -> dict[str, Any]:
    """The facts by topic, the last of each."""
    return {
        topic: found
        for record in records(folder)
        if isinstance(record, Capture)
        for topic, found in record.facts.items()
    }


def media(folder: Path, kind: str | None = None) -> list[Media]:
    """The media records."""
    return [found for found in records(folder) if isinstance(found, Media) and kind in (None, found.kind)]


def series(folder: Path) -> dict[str, tuple[dict[str, Any], list[tuple[int, float]]]]:
    """What is said of each series of a single segment, and its points as (step, value)."""
    names: dict[int, Series] = {}
    sets: dict[int, list[int]] = {}
    found: dict[str, tuple[dict[str, Any], list[tuple[int, float]]]] = {}
    for record in records(folder):
        if isinstance(record, Series):
            names[record.number] = record
            found[record.name] = (record.more, [])
        elif isinstance(record, PointSet):
            sets[record.number] = record.series
        elif isinstance(record, Points):
            for number, value in zip(sets[record.set], record.values, strict=True):
                found[names[number].name][1].append((record.step, float(value)))
    return found
