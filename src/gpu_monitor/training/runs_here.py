# SPDX-License-Identifier: MIT
"""The experiments of a directory of this machine, as `gpu_monitor experiments` asks for them: list, show, archive, delete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_monitor.core.errors import GpuMonitorError, StorageBusy, StorageError, UsageError
from gpu_monitor.core.times import format_time
from gpu_monitor.training.compared import Figures, from_disk
from gpu_monitor.training.listing import Listed, list_experiments
from gpu_monitor.training.reading import open_experiment
from gpu_monitor.training.run_terms import Listing, Point, Wanted
from gpu_monitor.training.stored import StoredExperiment
from gpu_monitor.wire.training import written

ARCHIVED = ".archived"
"""A file of this name in an experiment's folder: it is archived."""


class RunsHere:
    """The experiments in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.where = str(directory)

    def list(self, wanted: Wanted) -> Listing:
        """Those that are wanted, the newest first. UsageError for what only a server can pick by."""
        if wanted.where is not None:
            raise UsageError(
                "--where asks a server", "Say --server URL, or pick by --project, --tag, --status and --text."
            )
        items: list[dict[str, Any]] = []
        more = False
        for one in list_experiments(self.directory):
            is_archived = (self.directory / one.id / ARCHIVED).exists()
            if not _is_wanted(one, wanted, is_archived):
                continue
            if len(items) >= wanted.limit:
                more = True
                break
            items.append(_row(one, is_archived))
        return Listing(items, more)

    def show(self, name: str) -> dict[str, Any]:
        """Everything but points, output and files of one experiment. NothingFound where there is none."""
        stored = open_experiment(self.directory, name)
        run = from_disk(stored, None)
        ended = stored.ended
        return {
            "id": run.id, "name": run.name, "project": run.project, "status": run.status, "simulated": run.simulated,
            "archived": (stored.folder / ARCHIVED).exists(), "started": format_time(stored.started),
            "ended": None if ended is None else format_time(ended),
            "duration_seconds": None if run.seconds is None else round(run.seconds, 3),
            "duration_reason": stored.clock_trouble,
            "last_step": run.last_step, **_writer(stored), **_ending(stored), "params": run.params, "tags": run.tags,
            "metrics": [_metric(stored, metric, one) for metric, one in run.metrics.items()],
            "notes": [{"time": format_time(one.time), "text": one.record.text} for one in stored.notes],
            "alerts": [
                {"time": format_time(one.time), "level": one.record.level, "title": one.record.title, "text": one.record.text}
                for one in stored.alerts
            ],
            "media": [
                {"time": format_time(one.time), "step": one.record.step, "kind": one.record.kind, "name": one.record.name,
                 "file": one.record.more.get("file"), "size": one.record.more.get("size"), "more": one.record.more}
                for one in stored.media
            ],
            "facts": stored.facts, "segments": [one.log.stem for one in stored.segments], "damaged": stored.damaged,
            "folder": str(stored.folder), "said": stored.said,
        }  # fmt: skip

    def points(self, name: str, metrics: tuple[str, ...]) -> Iterator[Point]:
        """Every point, metric by metric in order of logging; of the named metrics, or of all."""
        stored = open_experiment(self.directory, name)
        for metric in metrics or stored.metric_names():
            held = stored.history(metric)
            if not held.step:
                raise UsageError(
                    f"{name} has no metric {metric!r}",
                    f"It has: {', '.join(stored.metric_names()) or 'none'}.",
                )
            for step, time, value in zip(held.step, held.time, held.value, strict=True):
                yield Point(metric, step, time, value)

    def archive(self, name: str, is_archived: bool) -> str:
        """Put an experiment away, or take it back; which one it was."""
        stored = open_experiment(self.directory, name)
        mark = stored.folder / ARCHIVED
        try:
            mark.touch() if is_archived else mark.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot mark {stored.folder}: {error.strerror}", "Is it yours to write?"
            ) from error
        return stored.id

    def about(self, name: str) -> tuple[str, str, bool]:
        """The id that a name means, what would be gone with it, in words, and whether it is archived."""
        stored = open_experiment(self.directory, name)
        files = [path for path in stored.folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        count = "1 file" if len(files) == 1 else f"{len(files)} files"
        what = f"{stored.name} ({stored.id}) with {count}, {size:,} bytes, in {stored.folder}"
        return stored.id, what, (stored.folder / ARCHIVED).exists()

    def delete(self, name: str) -> str:
        """Remove an archived experiment with its files; which one it was. It is renamed first: never half there."""
        stored = open_experiment(self.directory, name)
        if stored.status == "running":
            raise StorageBusy(f"{stored.id} is running", "Wait for its end, or end it.")
        if not (stored.folder / ARCHIVED).exists():
            raise GpuMonitorError(
                f"{stored.id} is not archived", f"First: gpu_monitor experiments archive {stored.id}"
            )
        gone = stored.folder.with_name(f".deleted-{stored.id}")
        try:
            stored.folder.rename(gone)
            shutil.rmtree(gone)
        except OSError as error:
            raise StorageError(
                f"cannot delete {stored.folder}: {error}", "What is left is in " + str(gone)
            ) from error
        return stored.id

    def close(self) -> None:
        """Nothing is open."""


def _is_wanted(one: Listed, wanted: Wanted, is_archived: bool) -> bool:
    def has(tag: str) -> bool:
        key, equals, value = tag.partition("=")
        return key in one.tags and (not equals or one.tags[key] == value)

    return (
        (wanted.archived is None or wanted.archived == is_archived)
        and wanted.project in (None, one.project)
        and (not wanted.status or one.status in wanted.status)
        and (wanted.text is None or wanted.text.lower() in f"{one.name}\n{one.id}".lower())
        and all(map(has, wanted.tags))
    )


def _row(one: Listed, is_archived: bool) -> dict[str, Any]:
    return {
        "id": one.id, "name": one.name, "project": one.project, "status": one.status, "archived": is_archived,
        "simulated": one.simulated, "started": format_time(one.started),
        "ended": None if one.ended is None else format_time(one.ended),
        "duration_seconds": None if (seconds := _seconds(one)) is None else round(seconds, 3),
        "last_step": one.last_step,
        "params": one.params, "tags": one.tags,
    }  # fmt: skip


def _seconds(one: Listed) -> float | None:
    """How long it took, or how long it ran when it wrote last; None where its clocks do not tell."""
    so_far = one.changed - one.started
    return one.seconds if one.ended is not None else so_far if so_far >= 0 else None


def _writer(stored: StoredExperiment) -> dict[str, Any]:
    about = stored.last.summary.about
    if about is None:
        return {"host": None, "user": None, "pid": None, "gpus": None}
    return {"host": about.writer.host, "user": about.writer.user, "pid": about.writer.pid, "gpus": about.gpus}


def _ending(stored: StoredExperiment) -> dict[str, Any]:
    """As a server tells it: a signal is a text, whoever named it."""
    found = stored.ending
    return found if found.get("signal") is None else {**found, "signal": str(found["signal"])}


def _metric(stored: StoredExperiment, name: str, one: Figures) -> dict[str, Any]:
    figures = {
        kind: None if came is None else {"value": written(came.value), "step": came.step}
        for kind, came in (("last", one.last), ("min", one.min), ("max", one.max))
    }
    return {"name": name, "unit": one.unit, "source": one.source, "points": stored.count(name), **figures}
