"""What killed trainings said has returned, held against what lies on disk, and that against what a server holds.

Logs are read line by line by nothing but the page docs/segments.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.measure.training_trainee import value_of
from tests.training.runs import records

SERIES = ("loss", "child")
_OWN = ("image", "histogram", "text")
_NAME = re.compile(r"[0-9]-[0-9]+")
"""What trainees call theirs; what is recorded by itself (a diff) has other names."""
_KEPT = 2
"""Checkpoints that the trainees' policy keeps at least."""


@dataclass
class Told:
    """What one writer wrote down, call by call. `segment` is empty where it was killed before it had one."""

    experiment: str = ""
    segment: str = ""
    steps: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    media: list[tuple[str, str, int]] = field(default_factory=list)
    files: list[tuple[str, str, int, str]] = field(default_factory=list)
    has_ended: bool = False


def read_told(path: Path) -> Told:
    """The diary of one writer; a line that the kill cut in two is none."""
    told = Told()
    for line in path.read_bytes().split(b"\n")[:-1]:
        kind, *words = json.loads(line)
        if kind == "run":
            told.experiment, told.segment = words
        elif kind in SERIES:
            told.steps.append(words[0])
        elif kind == "note":
            told.notes.append(words[0])
        elif kind == "media":
            told.media.append((words[0], words[1], words[2]))
        elif kind == "file":
            told.files.append((words[0], words[1], words[2], words[3]))
        else:
            told.has_ended = True
    return told


@dataclass
class Segment:
    """One log, as its whole lines say. `points`: (step, value) of each of SERIES, in order."""

    path: Path
    lines: list[list[Any]]
    damaged: int
    points: dict[str, list[tuple[int, float]]]

    @property
    def media(self) -> list[list[Any]]:
        """Records of pictures, files and the like: at, step, kind, name, more."""
        return [line[1:] for line in self.lines if line[0] == "m"]

    @property
    def notes(self) -> list[str]:
        """Notes, in order."""
        return [line[2] for line in self.lines if line[0] == "n"]

    @property
    def last_status(self) -> str | None:
        """The last word on the run's status."""
        said = [line[2] for line in self.lines if line[0] == "z"]
        return said[-1] if said else None


def read_segment(path: Path) -> Segment:
    """A log; a torn end is no line, a line in the middle without its check is damaged."""
    lines = records(path)
    names: dict[int, str] = {}
    sets: dict[int, list[int]] = {}
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in SERIES}
    for line in lines:
        if line[0] == "s":
            names[line[1]] = line[2]
        elif line[0] == "g":
            sets[line[1]] = line[2]
        elif line[0] == "p":
            for series, value in zip(sets[line[3]], line[4], strict=True):
                if names[series] in points:
                    points[names[series]].append((line[2], value))
    return Segment(path, lines, path.read_bytes().count(b"\n") - len(lines), points)


def check_calls(told: Told, segment: Segment | None) -> Iterator[str]:
    """What is wrong with what one writer left: a call that returned and is not there, or more than one that did not."""
    where = f"{told.experiment}/{told.segment}"
    if segment is None:
        yield f"{where}: there is no such log"
        return
    if segment.damaged:
        yield f"{where}: {segment.damaged} damaged lines"
    held = segment.points["loss"] or segment.points["child"]
    # The call that was under way may be there, too.
    if [step for step, _ in held[: len(told.steps)]] != told.steps or len(held) - len(told.steps) not in (
        0,
        1,
    ):
        yield f"{where}: {len(told.steps)} calls of metrics returned up to {told.steps[-1:]}, {len(held)} are there"
    wrong = [step for step, value in held if value != value_of(step)]
    if wrong:
        yield f"{where}: other values at the steps {wrong[:5]}"
    yield from _beyond(where, "notes", told.notes, segment.notes)
    media = [(one[2], one[3], one[1]) for one in segment.media if one[2] in _OWN and _NAME.fullmatch(one[3])]
    yield from _beyond(where, "media", told.media, media)
    held_files = {
        (one[2], one[4]["sha256"], one[4].get("epoch")) for one in segment.media if "sha256" in one[4]
    }
    for kind, name, step, sha256 in told.files:
        if (kind, sha256, step if kind == "checkpoint" else None) not in held_files:
            yield f"{where}: {kind} {name} of step {step} returned and is not on record"
    if told.has_ended and segment.last_status != "completed":
        yield f"{where}: it finished, and its last status is {segment.last_status}"


def _beyond(where: str, what: str, told: list[Any], held: list[Any]) -> Iterator[str]:
    if held[: len(told)] != told or len(held) - len(told) not in (0, 1):
        yield f"{where}: {len(told)} {what} returned, {len(held)} are there"


def check_files(folder: Path, segments: list[Segment], told: list[Told]) -> Iterator[str]:
    """What is wrong with the files of one experiment: one that is named and not there, or not what its digest says."""
    gone = {one[4]["file"] for segment in segments for one in segment.media if one[4].get("removed")}
    epochs = _epochs(folder, segments)
    for segment in segments:
        for _, _, kind, name, more in segment.media:
            file = more.get("file")
            if file is None or "sha256" not in more or file in gone:
                continue
            path = folder / file
            if path.exists():
                if hashlib.sha256(path.read_bytes()).hexdigest() != more["sha256"]:
                    yield f"{path}: it is not what its record says"
            elif kind != "checkpoint":
                yield f"{path}: it is named ({kind} {name}) and not there"
    for one in told:
        for kind, _, epoch, _ in one.files:
            # A policy removes what is no longer among the newest; the kill may come before it says so.
            newer = sum(other >= epoch for other in epochs)
            if kind == "checkpoint" and epoch not in epochs and newer < _KEPT:
                yield f"{folder.name}: the checkpoint of epoch {epoch} is gone, with {newer} newer ones"


def _epochs(folder: Path, segments: list[Segment]) -> list[int]:
    """Epochs of the checkpoints that are there."""
    return [
        one[4]["epoch"]
        for segment in segments
        for one in segment.media
        if one[2] == "checkpoint" and "epoch" in one[4] and (folder / one[4]["file"]).exists()
    ]


def check_server(
    folder: Path, segments: list[Segment], get: Callable[[str], Any], fetch: Callable[[str], bytes | None]
) -> Iterator[str]:
    """What is wrong with what a server holds of an experiment: each point exactly once, each file whole.

    `get`: the JSON of a path, None where there is nothing. `fetch`: a blob by its digest.
    """
    name = folder.name
    said = get(f"/api/experiments/{name}")
    if said is None:
        yield f"{name}: the server does not know it"
        return
    for series in SERIES:
        here = Counter(point for segment in segments for point in segment.points[series])
        furthest = max((step for step, _ in here), default=0)
        there = Counter(_points_there(name, series, furthest, get))
        if here != there:
            missing, extra = here - there, there - here
            yield (
                f"{name}: of {series} {missing.total()} points are missing and {extra.total()} too many: "
                f"{sorted((missing + extra).elements())[:3]}"
            )
    gone = {one[4]["file"] for segment in segments for one in segment.media if one[4].get("removed")}
    wanted = {
        one[4]["sha256"]
        for segment in segments
        for one in segment.media
        if "sha256" in one[4] and one[4]["file"] not in gone and (folder / one[4]["file"]).exists()
    }
    for sha256 in sorted(wanted):
        data = fetch(sha256)
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            yield f"{name}: the file {sha256[:12]} is {'not there' if data is None else 'another one'}"


def _points_there(
    name: str, series: str, furthest: int, get: Callable[[str], Any]
) -> Iterator[tuple[int, float]]:
    """Every point that a server has of a series, by pages; `furthest`: the last step that is expected.

    `to` is the first step that is not meant any more.
    """
    edges = [*range(0, furthest + 1, _PAGE), furthest + 1]
    for first, last in zip([None, *edges], [*edges, None], strict=True):
        borders = f"{'' if first is None else f'&from={first}'}{'' if last is None else f'&to={last}'}"
        asked = f"/api/metrics/{name}?names={series}{borders}&max_points=20000"
        answer = get(asked)
        if answer is None:
            return  # no such metric
        (one,) = answer["series"]
        if answer["thinned"]:
            raise RuntimeError(f"{asked} was thinned: {len(one['x'])} items")
        yield from zip(one["x"], one["value"], strict=True)


_PAGE = 5_000
