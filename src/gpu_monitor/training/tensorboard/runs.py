# SPDX-License-Identifier: MIT
"""TensorBoard's folders as experiments: a folder with event files is one run, each file of it a segment.

A run's id comes of its first file (that file's name and first record), a segment's name of its own file. So importing
again changes nothing, what was added to a file is appended, and where the folder lies does not matter.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from gpu_monitor.core.errors import NothingFound
from gpu_monitor.training.drafts import drafting, place
from gpu_monitor.training.place import LOG
from gpu_monitor.training.tensorboard.events import Event, EventReader, Picture
from gpu_monitor.training.tensorboard.frames import Frame, Stop, read_frames
from gpu_monitor.training.tensorboard.messages import BadMessage
from gpu_monitor.training.tensorboard.segment import Segment, is_time
from gpu_monitor.wire.training import SERIES, About, BadRecord, Writer

PROJECT = "tensorboard"
_MARK = "tfevents"
_NAMED = re.compile(r"tfevents\.(\d{9,11})\.(.+?)(?:\.(\d+)\.\d+)?(?:\.v2)?$")
"""Time, host, and in newer versions process and a counter."""
_ENDINGS = {"image/png": ".png", "image/jpeg": ".jpg"}
_LONGEST = 250
NEW, GROWN, UNCHANGED, EMPTY, FAILED = "new", "grown", "unchanged", "empty", "failed"


@dataclass
class FileReport:
    """What came of one event file. `values`, `metrics`, `texts`, `pictures`: what was taken now.

    `without_time`: events of these whose time cannot be one, and which have that of the event before. `torn`: bytes at
    the file's end that are no whole record (yet).
    """

    path: Path
    outcome: str = EMPTY
    segment: str | None = None
    values: int = 0
    metrics: set[str] = field(default_factory=set)
    texts: int = 0
    pictures: int = 0
    params: int = 0
    without_time: int = 0
    torn: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass
class RunReport:
    """What came of one run. `experiment_id` None: there was nothing in it."""

    name: str
    experiment_id: str | None
    files: list[FileReport]


@dataclass(frozen=True)
class _Source:
    """An event file with what names it: `key` of its name and first record, and when that was written."""

    path: Path
    key: str
    started: float


def import_runs(
    source: Path, directory: Path, project: str = PROJECT, *, is_dry: bool = False,
    tell: Callable[[RunReport], None] = lambda run: None,
) -> list[RunReport]:  # fmt: skip
    """Make the runs under `source` (a folder, or one event file) experiments in `directory`; `tell` hears of each.

    `is_dry`: read only. NothingFound where there is no event file; OSError where `directory` cannot be written.
    """
    reports = []
    for name, files in _runs(source):
        report = _import_run(name, files, directory, project, is_dry)
        reports.append(report)
        tell(report)
    if not reports:
        raise NothingFound(
            f"no event file is in {source}", "TensorBoard's files have tfevents in their names."
        )
    return reports


def _runs(source: Path) -> Iterator[tuple[str, list[Path]]]:
    """The folders that hold event files, named as TensorBoard names runs, but the top one after itself."""
    if source.is_file():
        yield source.resolve().parent.name, [source]
        return
    top = source.resolve().name or PROJECT
    for folder, inside, names in os.walk(source):
        inside.sort()
        files = sorted(Path(folder) / name for name in names if _MARK in name)
        files = [file for file in files if file.is_file()]
        if files:
            relative = Path(folder).relative_to(source).as_posix()
            yield top if relative == "." else relative, files


def _import_run(name: str, files: list[Path], directory: Path, project: str, is_dry: bool) -> RunReport:
    reports: dict[Path, FileReport] = {path: FileReport(path) for path in files}
    sources = []
    for path in files:
        try:
            sources += _source_of(path, reports[path])
        except OSError as error:
            _fail(reports[path], f"cannot be read: {error.strerror}")
    sources.sort(key=lambda source: (source.started, source.path.name))
    report = RunReport(name, None, list(reports.values()))
    if sources:
        stamp = datetime.fromtimestamp(sources[0].started, timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        report.experiment_id = f"{stamp}-tb{sources[0].key[:8]}"
    for source in sources:
        run = _Run(directory / str(report.experiment_id), _clean(name), _clean(project), is_dry)
        try:
            _import_file(source, run, reports[source.path])
        except OSError as error:
            _fail(reports[source.path], f"cannot be read or imported: {error.strerror or error}")
    if all(file.outcome in (EMPTY, FAILED) for file in report.files):
        report.experiment_id = None
    return report


@dataclass(frozen=True)
class _Run:
    folder: Path
    name: str
    project: str
    is_dry: bool


def _source_of(path: Path, report: FileReport) -> list[_Source]:
    """The file with its key; nothing for one without a whole record."""
    for found in read_frames(path):
        if isinstance(found, Stop):
            if not found.is_torn:
                _fail(report, "is no event file, or damaged at its very begin")
            return []
        if found.content is None:
            _fail(report, "is damaged in its first record")
            return []
        try:
            event = EventReader().read(found.content)
        except BadMessage as error:
            _fail(report, f"holds no events: {error.message}")
            return []
        key = hashlib.sha256(path.name.encode("utf-8", "replace") + b"\0" + found.content).hexdigest()
        return [_Source(path, key, event.time if is_time(event.time) else _named_time(path))]
    return []


def _named_time(path: Path) -> float:
    """When a file was begun by its name; 0.0 where that does not say so either."""
    named = _NAMED.search(path.name)
    return float(named[1]) if named else 0.0


def _import_file(source: _Source, run: _Run, report: FileReport) -> None:
    report.segment = f"seg-{source.key[:16]}"
    target = run.folder / f"{report.segment}{LOG}"
    segment, before = _segment_of(source, run, report, target)
    reader, last = EventReader(), segment.offset
    for found in read_frames(source.path):
        if isinstance(found, Stop):
            if found.is_torn:
                report.torn = max(0, source.path.stat().st_size - found.offset)
            else:
                report.problems.append(f"is damaged at byte {found.offset:,}; what follows cannot be found")
            break
        # What is there already is read all the same: tags are explained with their first value only.
        event = _event(reader, found)
        if found.end <= segment.offset:
            continue
        last = found.end
        if event is None:
            report.left_out["damaged record"] += 1
        else:
            _take(event, segment, run, report)
    report.left_out.update({"record of over 1 MiB": segment.too_long} if segment.too_long else {})
    if not (report.values or report.texts or report.pictures or report.params):
        report.outcome = UNCHANGED if before else EMPTY
        return
    segment.end(last)
    report.outcome = GROWN if before else NEW
    if not run.is_dry:
        with drafting(run.folder) as draft:
            file = draft / target.name
            file.write_bytes(b"".join(segment.lines))
            place(file, target)


def _segment_of(source: _Source, run: _Run, report: FileReport, target: Path) -> tuple[Segment, bool]:
    """The segment to go on with, and whether it was there before."""
    try:
        return Segment.read(target.read_bytes()), True
    except FileNotFoundError:
        about = _about(source, run, str(report.segment))
        return Segment.begin(about, {"file": _clean(source.path.name), "run": run.name}), False
    except BadRecord as error:
        raise OSError(
            0, f"{target} is damaged ({error.message}); remove it to import the file anew"
        ) from error


def _about(source: _Source, run: _Run, segment: str) -> About:
    named = _NAMED.search(source.path.name)
    return About(
        experiment_id=run.folder.name, segment=segment, name=run.name, project=run.project, started=source.started,
        writer=Writer(host=_clean(named[2]) if named else "unknown", pid=int(named[3] or 0) if named else 0),
    )  # fmt: skip


def _event(reader: EventReader, frame: Frame) -> Event | None:
    """The event in a frame; None where it is damaged."""
    try:
        return reader.read(frame.content) if frame.content is not None else None
    except BadMessage:
        return None


def _take(event: Event, segment: Segment, run: _Run, report: FileReport) -> None:
    count = len(event.scalars)
    event.scalars = segment.with_room(event.scalars)
    if count > len(event.scalars):
        report.left_out[f"value of a metric beyond the first {SERIES:,}"] += count - len(event.scalars)
    if not is_time(event.time) and (event.scalars or event.texts or event.pictures or event.params):
        report.without_time += 1
    report.values += len(event.scalars)
    report.metrics |= {tag for tag, _ in event.scalars}
    report.texts += len(event.texts)
    report.pictures += len(event.pictures)
    report.params += len(event.params)
    report.left_out.update(event.left_out)
    segment.take(event, [_stored(picture, run) for picture in event.pictures])


def _stored(picture: Picture, run: _Run) -> dict[str, object]:
    """Store a picture by its content; what its record holds."""
    sha256 = hashlib.sha256(picture.content).hexdigest()
    file = f"media/{sha256}{_ENDINGS[picture.type]}"
    target = run.folder / file
    if not run.is_dry and not target.exists():
        with drafting(target.parent) as draft:
            (draft / "picture").write_bytes(picture.content)
            place(draft / "picture", target)
    return {"sha256": sha256, "size": len(picture.content), "type": picture.type, "file": file}


def _clean(name: str) -> str:
    """A name that is UTF-8, whatever the filesystem holds, and not too long."""
    return name[:_LONGEST].encode("utf-8", "replace").decode("utf-8")


def _fail(report: FileReport, why: str) -> None:
    report.outcome = FAILED
    report.problems.append(why)
