"""Takes recorded logs into the store as history of named nodes.

Files are looked at first, then read in order of their time, so that the parts of a rotated log join
without a seam. What the store has already stays; hours that gained rows are aggregated anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from gpu_monitor.agent.import_bins import BinnedInterval, Binner, interval_for
from gpu_monitor.agent.import_node import SOURCE, Counts, ImportedFile, ImportedNode, Placed
from gpu_monitor.agent.rollup import Outline, Refresh, Rollup
from gpu_monitor.core.buckets import PeriodPlan
from gpu_monitor.core.errors import LogUnreadable, UsageError
from gpu_monitor.core.model import Identity, Status
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.sources.recorded.log import STDIN, RecordedLog
from gpu_monitor.sources.recorded.rows import Findings, ReadOptions, RecordedDevice, RecordedRow
from gpu_monitor.sources.recorded.survey import Survey
from gpu_monitor.storage.database import Writer

_BATCH = 500
"""Intervals a transaction stores: about 10 ms, so that an agent's sample hardly waits."""
_PROGRESS_ROWS = 5000
_ROLLUPS = 24
_DEVICES_KEPT = 10_000

Progress = Callable[[str, int, int], None]
"""Called now and then with the file's name, bytes read and bytes in all."""


@dataclass(frozen=True)
class Task:
    """One file to import (None: standard input) and the node it is history of."""

    path: Path | None
    node: str

    @property
    def name(self) -> str:
        """The file as it was named."""
        return STDIN if self.path is None else str(self.path)


@dataclass
class FileReport:
    """What came of one file. Times are UTC epochs, None without rows; `step` and `interval` in seconds."""

    name: str
    node: str
    format: str | None = None
    error: LogUnreadable | None = None
    rows: int = 0
    findings: Findings = field(default_factory=Findings)
    counts: Counts = field(default_factory=Counts)
    gpus: set[str] = field(default_factory=set)
    first: float | None = None
    last: float | None = None
    step: float | None = None
    interval: int | None = None

    def saw(self, uid: str, time: float) -> None:
        """Count a row that was taken."""
        self.rows += 1
        self.gpus.add(uid)
        self.first = time if self.first is None else min(self.first, time)
        self.last = time if self.last is None else max(self.last, time)


@dataclass(frozen=True)
class ImportReport:
    """What came of an import: every file, and the periods aggregated by node."""

    files: tuple[FileReport, ...]
    periods: dict[str, tuple[Outline, ...]]


@dataclass(frozen=True)
class Target:
    """Where imported history goes. `now` is the time of the import (UTC epoch).

    `refresh` is called for every period aggregated (see `agent.rollup`).
    """

    writer: Writer
    plan: PeriodPlan
    now: float
    refresh: Refresh = lambda connection, node, period, now: None


def plan_tasks(names: Sequence[str], node: str | None) -> list[Task]:
    """The tasks for files as named on the command line (`-` is standard input).

    Without `node` each file is a node of its own, named after the file. UsageError where that is not
    possible: for standard input, and for two files of one name in different folders.
    """
    tasks: list[Task] = []
    folders: dict[str, Path] = {}
    for name in dict.fromkeys(names):
        path = None if name == STDIN else Path(name)
        if node is None and path is None:
            raise UsageError("standard input has no name", "Say which machine it was: --node NAME.")
        own = node or (_node_name(path) if path is not None else "")
        if node is None and path is not None:
            folder = folders.setdefault(own, path.parent)
            if folder != path.parent:
                raise UsageError(
                    f"{name} and a file in {folder} would both be the node {own!r}",
                    "Give --node where they are of one machine; else import them one by one, each with its --node.",
                )
        tasks.append(Task(path, own))
    return tasks


def _node_name(path: Path) -> str:
    return re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "import"


def uid_of(device: RecordedDevice, node: str) -> str:
    """The uid of a recorded GPU: its UUID, else one made of the node and its index (or PCI address)."""
    if device.uuid is not None:
        return device.uuid
    index = device.index if device.index is not None else device.pci_bus_id
    return f"IMPORT-{node}-{0 if index is None else index}"


@dataclass
class _Prepared:
    task: Task
    report: FileReport
    survey: Survey
    log: RecordedLog | None
    """Standard input, which stays open; files are opened again when it is their turn."""


def run_import(
    tasks: Sequence[Task],
    options: ReadOptions,
    interval: int,
    target: Target | None,
    progress: Progress = lambda name, done, size: None,
    stdin: BinaryIO | None = None,
) -> ImportReport:
    """Import every file; one that cannot be read is reported and the others are done.

    `interval` is the store's collection interval in seconds. Without `target` nothing is written, and
    every interval counts as new (a dry run).
    """
    reports = [FileReport(task.name, task.node) for task in tasks]
    prepared = [
        ready
        for task, report in zip(tasks, reports, strict=True)
        if (ready := _prepare(task, report, options, stdin)) is not None
    ]
    periods: dict[str, tuple[Outline, ...]] = {}
    for node in dict.fromkeys(ready.task.node for ready in prepared):
        of_node = sorted(
            (ready for ready in prepared if ready.task.node == node),
            key=lambda ready: ready.survey.first or 0.0,
        )
        history = _History(node, interval, target)
        for ready in of_node:
            history.read(ready, options, progress)
        history.finish()
        if target is not None:
            last = max((ready.report.last or 0.0 for ready in of_node), default=0.0)
            periods[node] = tuple(_roll_up(target, history.number, last))
    return ImportReport(tuple(reports), periods)


def _prepare(
    task: Task, report: FileReport, options: ReadOptions, stdin: BinaryIO | None
) -> _Prepared | None:
    """Look at a file; None, with the error in its report, where it cannot be taken."""
    try:
        log = RecordedLog(task.path, options, stdin)
    except LogUnreadable as error:
        report.error = error
        return None
    try:
        report.format = log.format.value
        found = log.survey()
    except LogUnreadable as error:
        report.error = error
        log.close()
        return None
    if task.path is not None:
        log.close()
    return _Prepared(task, report, found, None if task.path is not None else log)


def _roll_up(target: Target, node: int | None, last: float) -> list[Outline]:
    """Aggregate every closed period of the node that gained rows; one the log has not left is open."""
    if node is None:
        return []
    rollup = Rollup(target.writer, target.refresh, lambda start: None)
    done: list[Outline] = []
    while True:
        some = rollup.run(max(target.now, last), target.now, node=node, limit=_ROLLUPS)
        done += some
        if len(some) < _ROLLUPS:
            return done


class _History:
    """One node while its files are read, oldest first."""

    def __init__(self, node: str, interval: int, target: Target | None) -> None:
        self._node = node
        self._interval = interval
        self._into = None if target is None else ImportedNode(target.writer, target.plan, node, target.now)
        self._binners: dict[str, Binner] = {}
        self._identities: dict[str, Identity] = {}
        self._devices: dict[int, tuple[RecordedDevice, str]] = {}
        self._batch: list[Placed] = []
        self._kept = interval
        self._step = float(interval)
        self._files: list[ImportedFile] = []

    @property
    def number(self) -> int | None:
        """The store's number of the node, None where nothing was written."""
        return None if self._into is None else self._into.number

    def read(self, ready: _Prepared, options: ReadOptions, progress: Progress) -> None:
        """Take one file; a fault found on the way leaves what was read before it."""
        report, step = ready.report, ready.survey.step
        kept = interval_for(step, self._interval)
        if kept != self._kept:
            self.finish()
            self._kept = kept
        report.step, report.interval = step, kept
        self._step = step
        self._files.append(ImportedFile(clean(Path(report.name).name), report.counts))
        for binner in self._binners.values():
            binner.step, binner.file = step, len(self._files) - 1
        log = ready.log
        try:
            with log if log is not None else RecordedLog(ready.task.path, options) as opened:
                for count, row in enumerate(opened.rows(report.findings)):
                    self._take(row, report)
                    if count % _PROGRESS_ROWS == 0:
                        progress(report.name, opened.position, opened.size)
                progress(report.name, opened.size, opened.size)
        except LogUnreadable as error:
            report.error = error
        self._flush()

    def _take(self, row: RecordedRow, report: FileReport) -> None:
        uid = self._uid(row.device)
        binner = self._binners.get(uid)
        if binner is None:
            binner = self._binners[uid] = Binner(self._kept, self._step, len(self._files) - 1)
        last = binner.last_time
        if last is not None and row.time <= last:
            if last - row.time < self._kept:
                report.findings.skip("not later than the row of this GPU before it", row.line)
                return
            # An older part of the log follows: it is a stretch of its own.
            self._put(uid, list(binner.finish()))
            self._flush()
        if row.status is Status.LOST:
            report.findings.note("the GPU is lost or asks for a reset: no values", row.line)
        report.saw(uid, row.time)
        self._put(uid, list(binner.add(row)))
        if len(self._batch) >= _BATCH:
            self._flush()

    def _uid(self, device: RecordedDevice) -> str:
        # A reader gives the same object for the same GPU; hashing it for every row would cost more.
        met = self._devices.get(id(device))
        if met is not None and met[0] is device:
            return met[1]
        uid = uid_of(device, self._node)
        if len(self._devices) >= _DEVICES_KEPT:
            self._devices.clear()
        self._devices[id(device)] = (device, uid)
        known = self._identities.get(uid)
        found = Identity(
            uid, SOURCE, device.name, device.pci_bus_id, device.memory_total, device.index, device.serial,
            device.minor_number, device.parent_uid, device.mig_instance,
        )  # fmt: skip
        self._identities[uid] = found if known is None else _joined(known, found)
        return uid

    def _put(self, uid: str, intervals: list[BinnedInterval]) -> None:
        self._batch += [(self._identities[uid], interval) for interval in intervals]

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        for uid, binner in self._binners.items():
            lost, binner.lost = binner.lost, []
            if self._into is not None:
                self._into.write_lost(uid, lost)
        if not batch:
            return
        if self._into is not None:
            self._into.write(self._kept, batch, self._files)
            return
        for _, interval in batch:
            first, *others = interval.files
            self._files[first].counts.stored += 1
            for file in others:
                self._files[file].counts.completed += 1

    def finish(self) -> None:
        """End the node's stretch: its last rows stand for one step each."""
        for uid, binner in self._binners.items():
            self._put(uid, list(binner.finish()))
        self._flush()
        self._binners.clear()


def _joined(known: Identity, found: Identity) -> Identity:
    """`known` with what `found` says besides; an index that changed is the newer one."""
    kept = {
        name: value
        for name in ("name", "pci_bus_id", "memory_total", "index", "serial", "minor_number")
        if (value := getattr(found, name)) is not None
    }
    return replace(known, **kept)
