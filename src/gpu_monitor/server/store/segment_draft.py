"""What an upload adds to an experiment, worked out before anything of it is written: one bad line and there is nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gpu_monitor.server.store.segment_records import (
    LEAST_INTEGER,
    MOST_INTEGER,
    BadLine,
    Column,
    PointRun,
    Records,
)
from gpu_monitor.wire.artifact_names import NameRefused, check_name
from gpu_monitor.wire.training import (
    KEY_LETTERS,
    MEMBERS,
    METRIC_NAME,
    NAME_LETTERS,
    SERIES,
    SHA256,
    STATUSES,
    TAG_LETTERS,
    WORD_LETTERS,
    Alert,
    Capture,
    Header,
    Media,
    Note,
    Params,
    PointSet,
    Series,
    Status,
    Tag,
    Text,
)

TEXT_SHOWN = 500
"""Letters of a parameter that is a text, for expressions."""
LATEST = 253_402_300_799.0
"""The end of the year 9999, UTC epoch s: later moments have no name."""
_LEVELS = ("info", "warning", "error")
_KIND = re.compile(r"[a-z][a-z_]{0,39}")
_BLOB_KEYS = ("sha256", "size", "type", "file", "data")


class Decoder(msgspec.Struct, frozen=True):
    """What a segment has said of its numbers: metrics' names, and the series of each set."""

    series: dict[int, str] = {}
    sets: dict[int, list[int]] = {}


@dataclass(frozen=True, slots=True)
class Piece:
    """Points of one metric, in the order of logging. `times`: UTC epoch s."""

    steps: Sequence[int]
    times: Sequence[float]
    column: Column


@dataclass(frozen=True, slots=True)
class ParamRow:
    """A parameter as it is stored: its JSON, and what expressions compare."""

    value: str
    number: float | None
    text: str | None
    time: float


@dataclass(frozen=True, slots=True)
class MediaRow:
    """A picture, an artifact, a model and so on as it is stored."""

    time: float
    step: int | None
    kind: str
    name: str
    sha256: bytes | None
    size: int | None
    type: str | None
    file: str | None
    data: str | None
    more: str


@dataclass(slots=True)
class Draft:
    """What an upload adds. Times are UTC epoch s; later values of a name have replaced earlier ones."""

    decoder: Decoder
    has_new_numbers: bool = False
    series: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    points: dict[str, list[Piece]] = field(default_factory=dict)
    params: dict[str, ParamRow] = field(default_factory=dict)
    tags: dict[str, tuple[str | None, float]] = field(default_factory=dict)
    notes: list[tuple[float, str]] = field(default_factory=list)
    media: list[MediaRow] = field(default_factory=list)
    texts: list[tuple[float, str, str]] = field(default_factory=list)
    alerts: list[tuple[float, str, str, str]] = field(default_factory=list)
    captures: dict[str, tuple[str, float]] = field(default_factory=dict)
    status: tuple[str, float, dict[str, Any]] | None = None
    last_time: float | None = None
    last_step: int | None = None
    damaged: int = 0
    unknown: int = 0
    """Of kinds that are not known here, and what there is no room for: it stands in the segment, and is not shown."""


def clean(text: str) -> str:
    """A text as every database takes it: NUL, which PostgreSQL has no place for, becomes U+FFFD."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def written_json(value: Any) -> str:
    """The JSON of what was read from JSON, whole numbers of any length included; ValueError where it cannot be."""
    try:
        return msgspec.json.encode(value).decode()
    except OverflowError:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    except RecursionError:
        raise ValueError("nested too deep") from None


def draft_of(records: Records, decoder: Decoder, started: float, *, is_torn: bool, begins: bool) -> Draft:
    """What the records say; BadLine where one cannot be. `decoder`: of the lines before; it is not changed.

    `is_torn`: lines were damaged before or are among these, so that what they said of numbers may be missing.
    `begins`: the first one is the header, which was looked at.
    """
    draft = Draft(decoder, damaged=records.damaged, unknown=records.unknown)
    work = _Work(draft, started, is_torn or records.damaged > 0)
    for number, (place, item) in enumerate(records.items):
        if begins and number == 0:
            continue
        work.take(place, item)
    if draft.has_new_numbers:
        draft.decoder = Decoder(work.series, work.sets)
    return draft


class _Work:
    """One draft while it grows."""

    def __init__(self, draft: Draft, started: float, is_torn: bool) -> None:
        self.draft, self.started, self.is_torn = draft, started, is_torn
        self.series, self.sets = dict(draft.decoder.series), dict(draft.decoder.sets)
        self.members = sum(map(len, self.sets.values()))
        self.place = 0

    def take(self, place: int, item: Any) -> None:
        """Add one item."""
        self.place = place
        add = _ADD.get(type(item))
        if add is None:
            raise self.bad("a header stands at the beginning of its segment, and only there")
        add(self, item)

    def bad(self, reason: str) -> BadLine:
        """The refusal of the line under way."""
        return BadLine(self.place, reason)

    def word(self, what: str, text: str, letters: int, least: int = 1) -> str:
        """A text of a bounded length."""
        if not least <= len(text) <= letters:
            raise self.bad(f"{what} has {len(text)} letters; {least} to {letters} are taken")
        return clean(text)

    def time(self, at: int) -> float:
        """The moment of a record."""
        moment = self.started + at / 1000 if -(2**53) < at < 2**53 else -1.0
        if not 0.0 <= moment <= LATEST:
            raise self.bad(f"{str(at)[:30]} ms after the beginning is no moment of the years 1970 to 9999")
        if self.draft.last_time is None or moment > self.draft.last_time:
            self.draft.last_time = moment
        return moment

    def json(self, what: str, value: Any) -> str:
        """A value's JSON."""
        try:
            return written_json(value)
        except ValueError as error:
            raise self.bad(f"{what}: {error}") from None

    # --- metrics ------------------------------------------------------------------------------------------

    def add_series(self, item: Series) -> None:
        if not METRIC_NAME.fullmatch(item.name):
            raise self.bad(f"{item.name[:40]!r} is no name of a metric")
        if not 0 <= item.number < SERIES:
            raise self.bad(f"series have numbers from 0 to {SERIES - 1}: a segment takes {SERIES} metrics")
        if self.series.setdefault(item.number, item.name) != item.name:
            raise self.bad(f"series {item.number} is {self.series[item.number]!r} already")
        unit, source = (self.optional(key, item.more.get(key), WORD_LETTERS) for key in ("unit", "source"))
        self.draft.series[item.name] = (unit, source)
        self.draft.has_new_numbers = True

    def add_set(self, item: PointSet) -> None:
        if not 0 <= item.number < MEMBERS:
            raise self.bad(f"sets have numbers from 0 to {MEMBERS - 1}")
        if not self.is_torn and not set(item.series) <= self.series.keys():
            raise self.bad("a set names a series that was not named before")
        if any(not 0 <= number < SERIES for number in item.series):
            raise self.bad(f"series have numbers from 0 to {SERIES - 1}")
        if self.sets.setdefault(item.number, item.series) != item.series:
            raise self.bad(f"set {item.number} has other series already")
        self.members += len(item.series)
        if self.members > MEMBERS:
            raise self.bad(f"the sets of a segment have {MEMBERS} series at most")
        self.draft.has_new_numbers = True

    def add_points(self, run: PointRun) -> None:
        members = self.sets.get(run.set)
        if members is None:
            if not self.is_torn:
                raise self.bad(f"set {str(run.set)[:20]} was not described before")
            self.draft.damaged += len(run.at)  # the line that described it is
            return
        if len(members) != len(run.columns):
            raise self.bad(f"{len(run.columns)} values of a set of {len(members)} series")
        self.time(min(run.at))
        self.time(max(run.at))
        times = [self.started + at / 1000 for at in run.at]
        self.draft.last_step = run.steps[-1]
        for number, column in zip(members, run.columns, strict=True):
            name = self.series.get(number)
            if name is not None:  # else the line that named it is damaged
                self.draft.points.setdefault(name, []).append(Piece(run.steps, times, column))

    # --- what is said beside them --------------------------------------------------------------------------

    def add_params(self, item: Params) -> None:
        time = self.time(item.at)
        for name, value in item.params.items():
            text = clean(value[:TEXT_SHOWN]) if isinstance(value, str) else None
            shown = self.json("a parameter", value)
            key = self.word("the name of a parameter", name, NAME_LETTERS)
            self.draft.params[key] = ParamRow(shown, _number(value), text, time)

    def add_tag(self, item: Tag) -> None:
        value = None if item.value is None else self.word("a tag", item.value, TAG_LETTERS, 0)
        key = self.word("the key of a tag", item.key, KEY_LETTERS)
        self.draft.tags[key] = (value, self.time(item.at))

    def add_note(self, item: Note) -> None:
        self.draft.notes.append((self.time(item.at), clean(item.text)))

    def add_media(self, item: Media) -> None:
        more = dict(item.more)
        sha256, size, kind, file, data = (more.pop(key, None) for key in _BLOB_KEYS)
        if not _KIND.fullmatch(item.kind):
            raise self.bad(f"{item.kind[:40]!r} is no kind of media")
        if item.kind == "artifact":
            try:
                check_name(item.name)
            except NameRefused as error:
                raise self.bad(error.message) from None
        if sha256 is not None and not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
            raise self.bad("sha256 has 64 hexadecimal digits in small letters")
        if size is not None and not (type(size) is int and 0 <= size <= MOST_INTEGER):
            raise self.bad("size is a number of bytes")
        row = MediaRow(
            time=self.time(item.at),
            step=None if item.step is None else self.integer("a step", item.step),
            kind=item.kind,
            name=self.word("a name", item.name, NAME_LETTERS),
            sha256=None if sha256 is None else bytes.fromhex(sha256),
            size=size,
            type=self.optional("type", kind, KEY_LETTERS),
            file=self.optional("file", file, 2 * NAME_LETTERS),
            data=None if data is None else self.json("data", data),
            more=self.json("more", more),
        )
        self.draft.media.append(row)

    def integer(self, what: str, value: int) -> int:
        """A whole number that a column holds."""
        if not LEAST_INTEGER <= value <= MOST_INTEGER:
            raise self.bad(f"{what} is no whole number of 64 bits")
        return value

    def optional(self, what: str, value: Any, letters: int) -> str | None:
        """A text of a bounded length, or nothing."""
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.bad(f"{what} is a text")
        return self.word(what, value, letters, 0)

    def add_text(self, item: Text) -> None:
        stream = self.word("the name of a stream", item.stream, WORD_LETTERS)
        self.draft.texts.append((self.time(item.at), stream, clean(item.text)))

    def add_alert(self, item: Alert) -> None:
        if item.level not in _LEVELS:
            raise self.bad(f"the level of an alert is one of {', '.join(_LEVELS)}")
        title = self.word("the title of an alert", item.title, NAME_LETTERS, 0)
        self.draft.alerts.append((self.time(item.at), item.level, title, clean(item.text)))

    def add_capture(self, item: Capture) -> None:
        time = self.time(item.at)
        for topic, facts in item.facts.items():
            name = self.word("a topic", topic, WORD_LETTERS)
            self.draft.captures[name] = (self.json("facts", facts), time)

    def add_status(self, item: Status) -> None:
        if item.status not in STATUSES:
            raise self.bad(f"a status is one of {', '.join(STATUSES)}")
        self.json("more", item.more)
        self.draft.status = (item.status, self.time(item.at), item.more)


_ADD: dict[type[Any], Any] = {
    Series: _Work.add_series,
    PointSet: _Work.add_set,
    PointRun: _Work.add_points,
    Params: _Work.add_params,
    Tag: _Work.add_tag,
    Note: _Work.add_note,
    Media: _Work.add_media,
    Text: _Work.add_text,
    Alert: _Work.add_alert,
    Capture: _Work.add_capture,
    Status: _Work.add_status,
}


def header_of(records: Records, experiment: str, segment: str) -> Header:
    """The header that a segment begins with; BadLine where it is none, or one of something else."""
    if not records.items or records.items[0][0] != 0 or not isinstance(records.items[0][1], Header):
        raise BadLine(0, "a segment begins with its header")
    header = records.items[0][1]
    about, writer = header.about, header.about.writer
    work = _Work(Draft(Decoder()), 0.0, is_torn=False)
    if header.schema != 1:
        raise BadLine(0, f"schema {str(header.schema)[:20]} is not known here; 1 is")
    if (about.experiment_id, about.segment) != (experiment, segment):
        raise BadLine(0, "the header is of another experiment or segment than the address")
    if not 0.0 <= about.started <= LATEST:
        raise BadLine(0, "started is no moment of the years 1970 to 9999")
    work.word("the name of an experiment", about.name, NAME_LETTERS)
    work.word("the name of a project", about.project, KEY_LETTERS)
    work.word("host", writer.host, KEY_LETTERS, 0)
    for name in ("user", "boot_id", "python", "version"):
        work.optional(name, getattr(writer, name), KEY_LETTERS)
    work.optional("parent", about.parent, WORD_LETTERS)
    for name in ("pid", "start_ticks", "ns_pid", "rank"):
        value = getattr(writer, name)
        if value is not None:
            work.integer(name, value)
    if about.gpus is not None and len(about.gpus) > 1024:
        raise BadLine(0, "a process sees 1,024 GPUs at most")
    for uid in about.gpus or ():
        work.word("the uid of a GPU", uid, KEY_LETTERS)
    return header


def _number(value: Any) -> float | None:
    if isinstance(value, (bool, int, float)):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return None
