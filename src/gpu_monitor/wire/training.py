# SPDX-License-Identifier: MIT
"""The segment: what one writer of an experiment says, as lines in a file (schema 1, documented in docs/segments.md).

A line is a JSON array whose first item is the record's kind and whose last is a check: eight hexadecimal digits,
the CRC-32 of all bytes of the line before the comma in front of it. A line without a right check (a torn tail,
a damaged disk) is skipped by readers, and never removed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec

from gpu_monitor.core.errors import GpuMonitorError

SCHEMA = 1
RECORD_BYTES = 1 << 20
"""The longest line, its newline included; also the most that one upload carries."""
EXPERIMENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SEGMENT = re.compile(r"seg-[a-z0-9]{8,64}")
METRIC_NAME = re.compile(r"[A-Za-z0-9_./\-: ]{1,250}")
SHA256 = re.compile(r"[0-9a-f]{64}")
NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""How values that JSON has no number for are written, and what they are."""
SERIES = 10_000
"""Metrics of a segment: their numbers are 0 to SERIES - 1."""
MEMBERS = 200_000
"""Series in all sets of a segment together."""
NAME_LETTERS = 500
"""Of an experiment, a parameter, a picture, a model, the title of an alert."""
KEY_LETTERS, TAG_LETTERS = 250, 5_000
"""Of a tag's key, a project, a host, a MIME type; of a tag's value."""
WORD_LETTERS = 100
"""Of a stream, a kind, a topic, a unit."""
RAN = "ran_seconds"
"""In `more` of a status: how long the segment's process had been at it."""
STATUSES = ("running", "completed", "failed", "stopped", "crashed")
_CHECK_BYTES = len(b',"00000000"]\n')

Value = float | int | str
"""A metric's value: a number, or one of the keys of NOT_FINITE."""


class BadRecord(GpuMonitorError):
    """A line that holds no record: torn, damaged, or of a kind this program does not know."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What all kinds have in common. Fields are never optional: the check would be taken for one."""


class Writer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The process that writes. `boot_id`, `start_ticks` and `ns_pid` (the pid in its innermost namespace) name it for good."""

    host: str
    pid: int
    user: str | None = None
    boot_id: str | None = None
    start_ticks: int | None = None
    ns_pid: int | None = None
    rank: int | None = None
    python: str | None = None
    version: str | None = None


class About(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a header says. `started`: UTC epoch seconds, from which `at` counts.

    `gpus`: the uids that the process is known to see; None: not known. `parent`: the segment of the process that
    this one was forked from. `resumed`: the experiment had segments before. `after`: of those that were found then,
    the one that reached furthest, and `after_at` its last `at`: this one began after that, whatever its clock says.
    """

    experiment_id: str
    segment: str
    name: str
    project: str
    started: float
    writer: Writer
    gpus: list[str] | None = None
    simulated: bool = False
    resumed: bool = False
    parent: str | None = None
    after: str | None = None
    after_at: int | None = None


class Header(Record, frozen=True, tag="h"):
    """The first record of a segment, and only that."""

    schema: int
    about: About


class Series(Record, frozen=True, tag="s"):
    """Gives a metric its number within the segment, from 0. `more`: `unit`, `source` ("sdk": read by the SDK itself)."""

    number: int
    name: str
    more: dict[str, Any]


class PointSet(Record, frozen=True, tag="g"):
    """Gives series that are logged together a number of their own, from 0."""

    number: int
    series: list[int]


class Points(Record, frozen=True, tag="p"):
    """One value of each series of a set. `at`: ms since the header's `started`, here as in every record."""

    at: int
    step: int
    set: int
    values: list[Value]


class Params(Record, frozen=True, tag="a"):
    """Parameters by name, any JSON; a later value of a name replaces the one before."""

    at: int
    params: dict[str, Any]


class Tag(Record, frozen=True, tag="t"):
    """A tag; None takes it away."""

    at: int
    key: str
    value: str | None


class Note(Record, frozen=True, tag="n"):
    """What somebody wrote down."""

    at: int
    text: str


class Media(Record, frozen=True, tag="m"):
    """A picture, histogram, table, graph, text, artifact, checkpoint or model version (`kind`), under a name.

    `more` holds the content itself (`data`), or `sha256`, `size` (bytes), `type` (MIME) and `file` (relative to the
    experiment's folder) of a blob, and what the kind says besides.
    """

    at: int
    step: int | None
    kind: str
    name: str
    more: dict[str, Any]


class Text(Record, frozen=True, tag="x"):
    """Output or log text. `stream`: stdout, stderr or log."""

    at: int
    stream: str
    text: str


class Alert(Record, frozen=True, tag="e"):
    """Something a person should know of. `level`: info, warning or error."""

    at: int
    level: str
    title: str
    text: str


class Capture(Record, frozen=True, tag="c"):
    """Facts about the run by topic (git, command, packages, slurm ...); a later topic replaces the one before."""

    at: int
    facts: dict[str, Any]


class Status(Record, frozen=True, tag="z"):
    """The run's status from here on (STATUSES). `more`: `exit_code`, `signal`, `reason`, as far as they are known.

    `ran_seconds` in it: since the segment began, by a clock that nobody sets.
    """

    at: int
    status: str
    more: dict[str, Any]


AnyRecord = (
    Header | Series | PointSet | Points | Params | Tag | Note | Media | Text | Alert | Capture | Status
)

_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(AnyRecord)


def encode(record: AnyRecord | list[Any]) -> bytes:
    """The record's line, with its check and newline.

    A list stands for the record with these items: the hot path has no time to build a struct. Values that are not
    finite must have their names already.
    """
    body = _encode(record)[:-1]
    return b'%b,"%08x"]\n' % (body, zlib.crc32(body))


def has_check(line: bytes) -> bool:
    """Whether a line, newline included, is whole and undamaged."""
    body = line[:-_CHECK_BYTES]
    return len(line) <= RECORD_BYTES and line[-_CHECK_BYTES:] == b',"%08x"]\n' % zlib.crc32(body)


def decode(line: bytes) -> AnyRecord:
    """The record of one line, newline included; BadRecord where it is none."""
    if not has_check(line):
        raise BadRecord("the line's check is wrong: torn or damaged")
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRecord(f"not a record of schema {SCHEMA}: {error}") from None


def whole_lines(data: bytes) -> Iterator[bytes]:
    """The lines of `data` that end, each with its newline; a torn tail is left out."""
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        yield data[start : end + 1]
        start = end + 1


def number_of(value: Value) -> float:
    """A value as the float it is; BadRecord for a text that names none."""
    if isinstance(value, str):
        if value not in NOT_FINITE:
            raise BadRecord(f"{value[:40]!r} is no value")
        return NOT_FINITE[value]
    return float(value)


def written(value: float) -> Value:
    """A float as it is written: itself, or its name where JSON has no number for it."""
    if value - value == 0:
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
