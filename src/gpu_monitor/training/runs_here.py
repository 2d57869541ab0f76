# SPDX-License-Identifier: MIT
"""The experiments of a directory of this machine, as `gpu_monitor experiments` asks for them: list, show, archive, delete."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import GpuMonitorError, NothingFound, StorageBusy, StorageError, UsageError
from gpu_monitor.core.times import format_time, parse_moment
from gpu_monitor.training.compared import Figures, from_disk
from gpu_monitor.training.conditions import Answer, Candidate, check_fields, condition, duration_of, sort_key
from gpu_monitor.training.listing import Listed, list_experiments
from gpu_monitor.training.reading import open_experiment
from gpu_monitor.training.run_terms import Listing, Point, Wanted, columns_of
from gpu_monitor.training.stored import StoredExperiment
from gpu_monitor.wire.expressions import (
    FIELDS,
    Expression,
    ExpressionError,
    Operand,
    operands_of,
    parse_expression,
    parse_operand,
    said_unknown,
)
from gpu_monitor.wire.training import written

_HELP = "For example: val_loss < 0.3 and params.lr = 0.001, min(loss) <= 0.5, not tags.stage = dev."
_TOLD = 3
"""Experiments that cannot be read, of which it is said why."""
ARCHIVED = ".archived"
"""A file of this name in an experiment's folder: it is archived."""


class RunsHere:
    """The experiments in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.where = str(directory)

    def list(self, wanted: Wanted) -> Listing:
        """Those that are wanted, the newest first where nothing else is said. UsageError for an expression that is none."""
        asked = _Asked(wanted)
        runs = [
            Candidate(self.directory, one, (self.directory / one.id / ARCHIVED).exists())
            for one in list_experiments(self.directory)
        ]
        is_descending = wanted.order != "asc"
        found = asked.rows(run for run in runs if _is_wanted(run.listed, wanted, run.is_archived))
        if asked.by is not None:
            chosen = _sorted(found, is_descending)
        elif is_descending:
            chosen = list(itertools.islice(found, wanted.limit + 1))
        else:
            chosen = list(found)[::-1]
        items = [one.row for one in chosen[: wanted.limit]]
        hint = None if items or asked.where is None else _hint(asked.where, runs)
        if asked.unread:
            hint = "; ".join(asked.unread[:_TOLD])
        return Listing(items, len(chosen) > wanted.limit, hint)

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
        models = sorted({one.record.name for one in stored.media if one.record.kind == "model"})
        if models:
            what += f"; versions of these models are among them: {', '.join(models)}"
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


@dataclass(frozen=True)
class _Found:
    """One that is wanted: what it is sorted by, and how it is answered."""

    key: tuple[int, float, str]
    age: tuple[float, str]
    row: dict[str, Any]


class _Asked:
    """What a list is picked and sorted by, understood. UsageError where it cannot be."""

    def __init__(self, wanted: Wanted) -> None:
        now = SystemClock().now()
        self.where: Expression | None = None
        self.by: Operand | None = None
        self._holds: Callable[[Candidate], Answer] | None = None
        option = "--where"
        try:
            if wanted.where is not None:
                self.where = parse_expression(wanted.where, FIELDS)
                self._holds = condition(self.where, lambda text: parse_moment(text, now).candidates[0])
            option = "--sort"
            if wanted.sort is not None:
                self.by = parse_operand(wanted.sort, FIELDS)
                check_fields([self.by])
        except ExpressionError as error:
            raise UsageError(f"{option}: {error}", _HELP) from None
        self._shown = columns_of(wanted)
        self.unread: list[str] = []
        """Why experiments could not be asked."""

    def rows(self, runs: Iterable[Candidate]) -> Iterator[_Found]:
        """Those of `runs` of which the expression is so, one by one; what is deleted meanwhile is left out."""
        for run in runs:
            try:
                if self._holds is not None and self._holds(run) is not True:
                    continue
                key = (0, 0.0, "") if self.by is None else sort_key(run, self.by)
                age = run.listed.started, run.listed.id
                found = _Found(key, age, {**_row(run.listed, run.is_archived), **self._values(run)})
            except (NothingFound, FileNotFoundError):
                continue
            except OSError as error:
                self.unread.append(f"{run.listed.id} cannot be read: {error.strerror or error}")
                continue
            finally:
                run.let_go()
            yield found

    def _values(self, run: Candidate) -> dict[str, Any]:
        """What it was picked and sorted by, as a server answers it."""
        if self.where is None and self.by is None:
            return {}
        shown = {words: run.shown(operand) for words, operand in self._shown.items()}
        return {
            "values": {words: written(one) if isinstance(one, float) else one for words, one in shown.items()}
        }


def _sorted(found: Iterable[_Found], is_descending: bool) -> list[_Found]:
    """By the keys, and by age where they are the same; what has neither number nor text last in either direction."""
    inside = sorted(found, key=lambda one: (one.key[1:], one.age), reverse=is_descending)
    return sorted(inside, key=lambda one: one.key[0])


def _hint(where: Expression, runs: Sequence[Candidate]) -> str | None:
    """A sentence about the first name that no experiment has; None where each is of one."""
    for operand in operands_of(where):
        names: set[str] = set()
        is_known = operand.kind == "field"
        for run in runs if not is_known else ():
            with contextlib.suppress(NothingFound, OSError):
                names |= {*run.listed.params} if operand.kind in ("param", "any") else set()
                names |= {*run.listed.tags} if operand.kind in ("tag", "any") else set()
                is_known = operand.name in names
                if not is_known and operand.kind in ("metric", "any"):
                    names |= run.metric_names
                    is_known = operand.name in names
            if is_known:
                break
        if not is_known:
            return said_unknown(operand, sorted(names))
    return None


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
        "duration_seconds": None if (seconds := duration_of(one)) is None else round(seconds, 3),
        "last_step": one.last_step,
        "params": one.params, "tags": one.tags,
    }  # fmt: skip


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
