# SPDX-License-Identifier: MIT
"""What everything that records goes through: one experiment's records of this process, in one segment of its own."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gpu_monitor.core.clock import SystemClock, elapsed_seconds
from gpu_monitor.training.identity import find_gpus, find_writer
from gpu_monitor.training.limits import fit, halves
from gpu_monitor.training.log import SegmentWriter
from gpu_monitor.training.names import cleaned, complaint, is_name
from gpu_monitor.training.notice import Notices
from gpu_monitor.training.place import LOG, new_segment
from gpu_monitor.training.values import Number, number_in, whole_in
from gpu_monitor.wire.training import (
    MEMBERS,
    RAN,
    RECORD_BYTES,
    SCHEMA,
    SERIES,
    About,
    Alert,
    AnyRecord,
    Header,
    Media,
    Params,
    PointSet,
    Series,
    Status,
    Tag,
    encode,
    whole_lines,
    written,
)

_encode = msgspec.json.Encoder().encode
_crc32 = zlib.crc32
MOST_AT_ONCE = 4_000
"""Metrics of one record; more in a call make several."""
_MOST_SETS = 4_096
"""Different combinations of metrics that get a number; beyond it each metric is written alone."""
_MOST_SHOWN = 500
_FITTED = frozenset((Params, Tag, Alert, Media))
"""Kinds of records that hold words of the training's."""
_EXACT = 1 << 53
"""Whole numbers up to this size are the same as floats."""
_MOST_STEP = 1 << 63
_HEADED, _NUMBERED = b'["h",', (b'["s",', b'["g",')
_LATER_SECONDS = 0.001
"""By so much a segment that takes the place of one which was cut began later, to come after it."""


@dataclass(frozen=True)
class Run:
    """What all segments of an experiment that one process writes have in common.

    Of one that is resumed: `step`, the last one before; `after`, the segment that reached furthest, and its last time
    (ms since its start). None: not known, or none.
    """

    experiment_id: str
    name: str
    project: str
    folder: Path
    is_resumed: bool = False
    simulated: bool = False
    step: int | None = None
    after: tuple[str, int] | None = None


@dataclass(frozen=True)
class Kept:
    """What became of the records at the end. `lost`: records that could not be written. `cut`: the file that another
    program made shorter, so that others are lost, too; None: none."""

    segment: Path
    lost: int
    cut: Path | None = None


class Recorder:
    """One process's records of one experiment. For any thread; raises for the trainer only where `strict` is set.

    The segment's file is made with the first record. A forked child begins one of its own, with what it logs first.
    """

    def __init__(
        self,
        run: Run,
        *,
        strict: bool = False,
        now: Callable[[], float] | None = None,
        elapsed: Callable[[], float] | None = None,
    ) -> None:
        """`now`: the wall clock; `elapsed`: one that nobody sets. With a `now` alone how long it ran is not known."""
        self.run = run
        self.experiment_id = run.experiment_id
        self.folder = run.folder
        self.strict = strict
        self.notices = Notices()
        self.is_child = False
        """Whether this process was forked from the one that made the recorder."""
        self.is_over = False
        """Whether the experiment was finished here: nothing is recorded any more."""
        self.status: str | None = None
        """The last status that was put; None before the first."""
        self.on_move: Callable[[], None] | None = None
        """Called when it goes on in another segment, with the lock held; raises nothing. None in a forked child."""
        self._elapsed = elapsed if elapsed or now else elapsed_seconds
        self._now = now or SystemClock().now
        self._step = run.step
        self._parent: str | None = None
        self._begin()

    def _begin(self) -> None:
        """Prepare a segment; its file is made with the first record."""
        self.started = self._now()
        self._began = self._elapsed() if self._elapsed else 0.0
        self.writer = SegmentWriter(self._new_path(), self.warn_once, self._begin_anew, self._moved)
        self._lock = self.writer.lock
        self._is_headed = False
        self._series: dict[str, int] = {}
        self._series_more: dict[str, dict[str, Any]] = {}
        self._sets: dict[tuple[str, ...], int] = {}
        self._members = 0
        self._not_finite: set[str] = set()
        self._last: Status | None = None

    def _new_path(self) -> Path:
        return self.folder / f"{new_segment()}{LOG}"

    @property
    def segment(self) -> str:
        """The segment that is written now."""
        return self.writer.path.stem

    def _begin_anew(self, since: bytes, waiting: bytes) -> tuple[Path, bytes]:
        """Where to go on once another program cut the segment's file, and how that begins: with all that is needed to
        read what was written since, and what waits. Under the lock."""
        path = self._new_path()
        self.started += _LATER_SECONDS
        about = msgspec.structs.replace(
            self._about(), segment=path.stem, resumed=True, after=self.segment, after_at=0
        )
        numbers = self._series
        said: list[AnyRecord] = [Header(SCHEMA, about)]
        said += [Series(number, name, self._series_more[name]) for name, number in numbers.items()]
        said += [PointSet(number, [numbers[name] for name in key]) for key, number in self._sets.items()]
        if self._last is not None:
            said.append(self._last)
        # What waits may say of some numbers itself, and each is said once.
        later = {_number_said(line) for line in whole_lines(waiting) if line.startswith(_NUMBERED)}
        head = [line for line in map(encode, said) if _number_said(line) not in later]
        kept = [line for line in whole_lines(since) if not line.startswith((_HEADED, *_NUMBERED))]
        return path, b"".join([*head, *kept, since[since.rfind(b"\n") + 1 :]])

    def _moved(self) -> None:
        if self.on_move is not None:
            self.on_move()

    def settle(self) -> None:
        """Put the segment's file in order now, if another program deleted it or cut it short. Any thread."""
        self.writer.settle()

    def at(self) -> int:
        """Milliseconds since the segment's start, by the wall clock: it may be set back."""
        return round((self._now() - self.started) * 1000)

    def step(self) -> int | None:
        """The last step of the training; None before the first."""
        return self._step

    def put(self, record: AnyRecord) -> None:
        """Append one record, made to fit. One that JSON cannot say, or that is too long, is refused under its kind."""
        if type(record) is Status:
            record = self._timed(record)
        elif type(record) in _FITTED:
            fitted = fit(record)
            if fitted.complaint is not None:
                self.refuse(f"fit:{fitted.complaint:.60}", fitted.complaint)
            if fitted.record is None:
                return
            record = fitted.record
        try:
            line = encode(record)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            self.refuse(
                f"put:{type(record).__name__}", f"cannot record {type(record).__name__.lower()}: {error}"
            )
            return
        if len(line) > RECORD_BYTES:
            if (parts := halves(record)) is not None:
                for part in parts:
                    self.put(part)
                return
            kind = type(record).__name__.lower()
            text = f"cannot record {kind}: it takes {len(line):,} bytes, {RECORD_BYTES:,} are allowed"
            self.refuse(f"long:{kind}", text)
            return
        with self._lock:
            if self._is_ready():
                self.writer.write(line, is_needed=type(record) is Status)
            if type(record) is Status:
                self.status, self._last = record.status, record

    def log_points(
        self, values: Mapping[str, object], step: int | None = None, more: Mapping[str, Any] | None = None
    ) -> None:
        """Record one value of each metric. `step` None: the last step + 1, first 0.

        `more` (unit, source) marks series that are not the training's: they do not move its step, and None means
        the last one. Values that are no numbers are left out with a warning, names are cleaned, NaN and the
        infinities are kept and raise an alert.
        """
        try:
            numbers = list(values.values())
            for value in numbers:
                kind = type(value)
                if kind is not float and (kind is not int or not -_EXACT < value < _EXACT):  # type: ignore[operator]
                    numbers = [number_in(one) for one in numbers]
                    break
            total = sum(numbers)  # type: ignore[arg-type]  # raises where one is none
        except (AttributeError, TypeError, OverflowError):
            return self._log_slowly(values, step, more)
        if total - total != 0 or more is not None:
            return self._log_slowly(values, step, more)
        if step is not None and (type(step) is not int or not -_MOST_STEP <= step < _MOST_STEP):
            return self._log_slowly(values, step, more)
        at = round((self._now() - self.started) * 1000)
        with self._lock:
            number = self._sets.get(tuple(values))
            if number is not None and not self._not_finite and not self.is_over:
                if step is None:
                    step = self._next(None)
                self._step = step
                body = _encode(["p", at, step, number, numbers])[:-1]
                self.writer.write(b'%b,"%08x"]\n' % (body, _crc32(body)))
                return None
        return self._log_slowly(values, step, more)

    def _log_slowly(self, values: object, step: object, more: Mapping[str, Any] | None) -> None:
        """Any call: names and values are looked at one by one, outside the lock, for a tensor may take its time."""
        if not isinstance(values, Mapping):
            self.refuse(
                "metrics", f"metrics are a mapping of names to numbers, not a {type(values).__name__}"
            )
            return
        chosen: dict[str, Number] = {}
        for name, value in list(values.items()):
            number = number_in(value)
            if number is None:
                self._refuse_value(name, value)
            elif (key := self._named(name)) is not None:
                chosen[key] = number
        place = None
        if step is not None and (place := whole_in(step)) is None:
            self.refuse(
                "step", f"a step is a whole number of 64 bits, not {step!r:.60}; the next one was taken"
            )
        if not chosen and values:
            return
        bad = {name for name, number in chosen.items() if number - number != 0}
        with self._lock:
            if not self._is_ready():
                return
            if place is None:
                place = self._next(more)
            if more is None:
                self._step = place
            self._write_points(chosen, place, more)
            fresh = sorted(bad - self._not_finite)
            self._not_finite = (self._not_finite - chosen.keys()) | bad
        for name in fresh:
            self._alert_of(name, written(float(chosen[name])), place)

    def _next(self, more: Mapping[str, Any] | None) -> int:
        if self._step is None:
            return 0
        return min(self._step + 1, _MOST_STEP - 1) if more is None else self._step

    def _write_points(self, chosen: Mapping[str, Number], step: int, more: Mapping[str, Any] | None) -> None:
        at = self.at()
        names = list(chosen)
        for start in range(0, len(names), MOST_AT_ONCE):
            self._write_part(
                {name: chosen[name] for name in names[start : start + MOST_AT_ONCE]}, at, step, more
            )

    def _write_part(
        self, chosen: Mapping[str, Number], at: int, step: int, more: Mapping[str, Any] | None
    ) -> None:
        key = tuple(chosen)
        number = self._sets.get(key)
        new: list[bytes] = []
        if number is None:
            fits = {name for name in key if name in self._series}
            room = SERIES - len(self._series)
            fits.update([name for name in key if name not in fits][:room])
            if len(fits) < len(key):
                self.refuse("series", f"{SERIES:,} metrics of a process are recorded; others are left out")
                if fits:
                    self._write_part({name: chosen[name] for name in key if name in fits}, at, step, more)
                return
            is_much = len(self._sets) >= _MOST_SETS or self._members + len(key) > MEMBERS - SERIES
            if is_much and len(key) > 1:
                for name in key:
                    self._write_part({name: chosen[name]}, at, step, more)
                return
            self._members += len(key)
            for name in key:
                if name not in self._series:
                    self._series[name] = len(self._series)
                    self._series_more[name] = dict(more or {})
                    new.append(encode(Series(self._series[name], name, self._series_more[name])))
            number = self._sets[key] = len(self._sets)
            new.append(encode(PointSet(number, [self._series[name] for name in key])))
            if self.writer.waiting:
                self.writer.write(b"".join(new), is_needed=True)
                new = []
        values = [written(value) if isinstance(value, float) else value for value in chosen.values()]
        new.append(encode(["p", at, step, number, values]))
        self.writer.write(b"".join(new), is_needed=len(new) > 1)

    def _named(self, name: object) -> str | None:
        if is_name(name):
            return str(name)
        taken = cleaned(name)
        self.refuse(f"name:{name!r:.300}", f"{complaint(name)}; it is recorded as {taken!r}")
        return taken

    def _refuse_value(self, name: object, value: object) -> None:
        shown = (
            repr(value) if isinstance(value, (str, int, bytes, type(None))) else f"a {type(value).__name__}"
        )
        self.refuse(
            f"value:{name!r:.300}", f"{name!s:.80} is {shown:.80}, which is no number; it is left out"
        )

    def _alert_of(self, name: str, value: object, step: int) -> None:
        self.put(
            Alert(self.at(), "error", f"{name} is {value}"[:_MOST_SHOWN], f"{name} is {value} at step {step}")
        )

    def _is_ready(self) -> bool:
        """Whether records are taken; writes the header before the first one. Under the lock."""
        if self.is_over:
            self.warn_once(
                "over", f"experiment {self.experiment_id} is finished; what is logged now is not kept"
            )
            return False
        if not self._is_headed:
            self._is_headed = True
            self.writer.write(encode(Header(SCHEMA, self._about())), is_needed=True)
        return True

    def _about(self) -> About:
        run = self.run
        after = run.after if run.after is not None and self._parent is None else (None, None)
        return About(
            experiment_id=run.experiment_id,
            segment=self.segment,
            name=run.name,
            project=run.project,
            started=self.started,
            writer=find_writer(),
            gpus=find_gpus(),
            simulated=run.simulated,
            resumed=run.is_resumed,
            parent=self._parent,
            after=after[0],
            after_at=after[1],
        )

    def warn_once(self, key: str, text: str) -> None:
        """Tell the person who runs the training, once for each key."""
        self.notices.once(key, text)

    def refuse(self, key: str, text: str) -> None:
        """Something cannot be recorded as it was given: ValueError where `strict` is set, else told once."""
        if self.strict:
            raise ValueError(text)
        self.warn_once(key, text)

    def last_words(self, status: str, more: dict[str, Any]) -> None:
        """Put the last status from a signal handler, which may have interrupted a record of this very thread."""
        if not self.is_over and self._is_headed:
            self.status = status
            self.writer.last_words(encode(self._timed(Status(self.at(), status, more))))

    def _timed(self, last: Status) -> Status:
        """An ending with how long it took: wall clocks are set, and then `at` says nothing of that."""
        if self._elapsed is None or last.status == "running":
            return last
        ran = round(self._elapsed() - self._began, 3)
        return Status(last.at, last.status, {**last.more, RAN: ran})

    def close(self, timeout: float) -> Kept:
        """Take no more records, write what waits, and let the file go. A second call changes nothing."""
        with self._lock:
            self.is_over = True
        self.writer.close(timeout)
        return Kept(self.writer.path, self.writer.lost, self.writer.cut)

    def fork(self) -> None:
        """In a forked child: the parent's segment is let go, and what is logged from here on begins another."""
        self.writer.abandon()
        self.is_child = True
        self.on_move = None
        self._parent = self.segment
        self.notices.renew_lock()
        self._begin()


def _number_said(line: bytes) -> bytes:
    """Of which series, or which set, the line of a record speaks, if it does."""
    return line[: line.find(b",", len(_HEADED))]
