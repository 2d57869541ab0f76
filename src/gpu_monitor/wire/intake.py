"""A report as a server takes it: typed, bounded and checked field by field, from bytes nobody vouches for.

`read_report` raises `Malformed` for what is wrong with the whole, and nothing else; what is wrong with one
GPU entry is told beside the others. Unknown fields are kept as JSON text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any, cast

import msgspec

from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.wire.entry import WHOLE_FIELDS, Entry, EntryBase, HostEntry, LenientEntry, LenientHostEntry
from gpu_monitor.wire.telemetry import BATCH_REPORTS, REPORT_NAMES, SCHEMA

REPORT_GPUS = 4096
DEPTH = 16
PERIODS = frozenset(3600 * hours for hours in (1, 2, 3, 4, 6, 8, 12, 24))
EXTRA_BYTES = 64 << 10
"""Of unknown fields, for one GPU entry and for one envelope: room for what is to come, not for a store."""
REPORT_ITEMS = 16_384
"""Gaps, events and processes of one report together: a day of 8 GPUs with a new process on each every minute has
11,520. Beyond, one sender's writing is everybody's waiting."""
_LIST_ITEMS = 65_536
_HASHED_AT_ONCE, _HASHED_ASIDE = 2047, 256 << 10
_EARLIEST, _LATEST = 946_684_800, 7_258_118_400
"""2000 and 2200: outside, a clock is broken."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Long = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Stamp = Annotated[datetime, msgspec.Meta(tz=True)]
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_NODE_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AT = re.compile(r"(?s)(.*?)(?: - at `\$\.?(.*)`)?")
_STRETCH = 64 << 10
"""Bytes whose depth is told at once: a hostile body is cut into as many pieces as it has quotes."""
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")


class Malformed(GpuMonitorError):
    """A report cannot be taken: `field` is where (empty: the whole), `reason` why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class NodeIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine, as it was in the period."""

    id: str
    hostname: str | None = None
    simulated: bool = False
    os: str | None = None
    agent_version: str | None = None
    driver_version: str | None = None


class GapIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stretch without data."""

    uid: str | None = None
    start: _Stamp
    end: _Stamp
    seconds: float | None = None
    cause: _Word
    detail: str | None = None


class EventIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that happened; `detail` is any JSON."""

    time: _Stamp
    uid: str | None = None
    kind: _Word
    severity: _Word
    message: str
    detail: msgspec.Raw = msgspec.Raw(b"null")


class ProcessIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process on one GPU."""

    uid: str
    pid: _Count
    kind: _Word
    first_seen: _Stamp
    last_seen: _Stamp
    ended: bool
    start_ticks: _Long | None = None
    boot_id: str | None = None
    ns_pid: _Count | None = None
    user: str | None = None
    command: str | None = None
    container: str | None = None
    job: str | None = None
    experiment_id: str | None = None
    memory: _Long | None = None
    memory_max: _Long | None = None


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both ways of reading have in common, in the order an agent writes it."""

    schema: int
    report_id: Annotated[str, msgspec.Meta(max_length=64)]
    revision: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    contract_number: Annotated[str, msgspec.Meta(max_length=128)]
    node: NodeIn
    aggregation_time: Annotated[str, msgspec.Meta(max_length=40)]
    period_seconds: _Count
    collection_interval_seconds: Annotated[int, msgspec.Meta(ge=1, le=86_400)]


class _Exact(_Head, frozen=True, kw_only=True, forbid_unknown_fields=True):
    gpus: Annotated[list[Entry], msgspec.Meta(max_length=REPORT_GPUS)]  # type: ignore[valid-type]
    host: HostEntry | None = None  # type: ignore[valid-type]
    gaps: Annotated[list[GapIn], msgspec.Meta(max_length=_LIST_ITEMS)] = []
    events: Annotated[list[EventIn], msgspec.Meta(max_length=_LIST_ITEMS)] = []
    processes: Annotated[list[ProcessIn], msgspec.Meta(max_length=_LIST_ITEMS)] = []


class WrongEntry(msgspec.Struct, frozen=True):
    """A GPU entry that cannot be taken, as it came."""

    uid: str | None
    field: str
    reason: str
    raw: bytes


class Intake(msgspec.Struct, frozen=True, kw_only=True):
    """A report that can be taken. `start` in UTC epoch seconds; `extras` go with `entries`, JSON text or None.

    `body`: the bytes it was read from.
    """

    report_id: str
    revision: int
    contract_number: str
    node: NodeIn
    start: int
    period_seconds: int
    interval_seconds: int
    entries: Sequence[EntryBase]
    extras: Sequence[str | None] | None
    wrong: tuple[WrongEntry, ...]
    host: Any
    gaps: Sequence[GapIn]
    events: Sequence[EventIn]
    processes: Sequence[ProcessIn]
    extra: str | None
    body: bytes | memoryview
    body_digest: bytes
    body_bytes: int

    @property
    def hour(self) -> int:
        """Start of the period in hours since 1970 UTC."""
        return self.start // 3600

    @property
    def end(self) -> int:
        """End of the period, UTC epoch seconds."""
        return self.start + self.period_seconds


class _Batch(msgspec.Struct):
    """Reports, still as they came; other fields pass."""

    reports: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=_LIST_ITEMS)] | None = None


_exact = msgspec.json.Decoder(_Exact)
_batch = msgspec.json.Decoder(_Batch)
_any = msgspec.json.Decoder()
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=_LIST_ITEMS)])
_strict_entry = msgspec.json.Decoder(Entry)
_lenient_entry = msgspec.json.Decoder(LenientEntry)


def read_report(body: bytes | memoryview, digest: bytes | None = None) -> Intake:
    """The report in `body`; `digest` is its SHA-256 where the caller has it. Malformed where it is none."""
    if len(body) > _HASHED_ASIDE:
        _refuse_many(body)
    try:
        exact = _exact.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError):
        intake = _read_slowly(bytes(body), digest)
    else:
        for event in exact.events:
            check_depth(event.detail, DEPTH - 3)
        intake = _intake(exact, exact.gpus, None, (), exact, None, body, digest)
    return intake


def _refuse_many(body: bytes | memoryview) -> None:
    """Malformed where there are too many GPUs: counted in a thirtieth of the time that reading them takes."""
    try:
        items = _items.decode(_fields.decode(body).get("gpus", b"[]"))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return  # what is wrong is told by reading it
    _check_gpus(len(items))


def _check_gpus(count: int) -> None:
    if count > REPORT_GPUS:
        raise Malformed("gpus", f"{count} entries; a report holds at most {REPORT_GPUS}")


def read_batch(body: bytes) -> list[memoryview]:
    """The exact bytes of each report of a batch; Malformed where it is no batch."""
    try:
        reports = _batch.decode(body).reports
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise told(error) from None
    if reports is None:
        raise Malformed("reports", "a batch is an object with a list of reports")
    if not 1 <= len(reports) <= BATCH_REPORTS:
        raise Malformed("reports", f"a batch holds 1 to {BATCH_REPORTS} reports, not {len(reports)}")
    return [memoryview(raw) for raw in reports]


def sha256(data: bytes | memoryview) -> bytes:
    """The digest of a body, made in the thread that asks.

    From 2,048 bytes on hashlib lets go of the interpreter's lock, and getting it back costs a busy server far
    more than the 10 us that 20 KB take; only what is large is worth that.
    """
    if len(data) > _HASHED_ASIDE:
        return hashlib.sha256(data).digest()
    hasher, view = hashlib.sha256(), memoryview(data)
    for start in range(0, len(view), _HASHED_AT_ONCE):
        hasher.update(view[start : start + _HASHED_AT_ONCE])
    return hasher.digest()


def check_depth(text: bytes | msgspec.Raw, depth: int, stretch: int = _STRETCH) -> None:
    """Malformed where JSON nests deeper than `depth`, or the brackets of a long one do not match.

    It goes by stretches of so many bytes and ends at the first that is too deep. The time it takes grows with the
    length alone, and no stretch keeps other threads from the interpreter for long.
    """
    plain = bytes(text)
    if len(plain) <= stretch and plain.count(b"[") + plain.count(b"{") <= depth:
        return
    level = start = 0
    is_inside = False
    while start < len(plain):
        piece = plain[start : start + stretch]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # what the last one escapes belongs to it
            piece = plain[start : start + stretch + 1]
        start += len(piece)
        brackets, is_inside = _outside_of_texts(piece, is_inside)
        level = _level_after(brackets, level, depth)
    if level:
        raise _too_deep(depth)


def _level_after(brackets: bytes, level: int, depth: int) -> int:
    """How deep it is after these brackets, `level` deep before them; Malformed where that was ever too much."""
    after = level + 2 * brackets.count(b"[") - len(brackets)
    if not 0 <= after <= depth:
        raise _too_deep(depth)
    # Opened and closed at its ends, it vanishes in as many rounds as it is deep.
    rest = b"[" * level + brackets + b"]" * after
    for _ in range(depth):
        if not rest:
            break
        rest = rest.replace(b"[]", b"")
    if rest:
        raise _too_deep(depth)
    return after


def _too_deep(depth: int) -> Malformed:
    return Malformed("", f"the JSON nests deeper than {depth}, or its brackets do not match")


def _outside_of_texts(piece: bytes, is_inside: bool) -> tuple[bytes, bool]:
    """The brackets, as square ones, that do not stand between quotes, and whether it ends inside of a text."""
    # Escaped quotes go first: of a row of backslashes each pair, then the one that is left and escapes a quote.
    plain = piece.replace(rb"\\", b"").replace(rb"\"", b"").translate(_AS_SQUARE, _NO_BRACKETS)
    pieces = plain.split(b'"')
    return b"".join(pieces[is_inside::2]), (is_inside + len(pieces) - 1) % 2 == 1


def epoch(stamp: datetime, field: str) -> float:
    """UTC epoch seconds; Malformed outside the years 2000 to 2200."""
    seconds = stamp.timestamp()
    if not _EARLIEST <= seconds < _LATEST:
        raise Malformed(field, f"the time {stamp.isoformat()} is not between 2000 and 2200")
    return seconds


def _intake(
    head: _Head,
    entries: Sequence[EntryBase],
    extras: Sequence[str | None] | None,
    wrong: tuple[WrongEntry, ...],
    rest: Any,
    extra: str | None,
    body: bytes | memoryview,
    digest: bytes | None,
) -> Intake:
    start = _start(head)
    _check_items(rest)
    return Intake(
        report_id=head.report_id,
        revision=head.revision,
        contract_number=head.contract_number,
        node=head.node,
        start=start,
        period_seconds=head.period_seconds,
        interval_seconds=head.collection_interval_seconds,
        entries=entries,
        extras=extras,
        wrong=wrong,
        host=rest.host,
        gaps=rest.gaps,
        events=rest.events,
        processes=rest.processes,
        extra=extra,
        body=body,
        body_digest=digest or sha256(body),
        body_bytes=len(body),
    )


def _check_items(rest: Any) -> None:
    counts = {name: len(getattr(rest, name)) for name in ("gaps", "events", "processes")}
    count = sum(counts.values())
    if count > REPORT_ITEMS:
        most = max(counts, key=counts.__getitem__)
        raise Malformed(
            most,
            f"{counts[most]} of {count} gaps, events and processes; a report holds at most {REPORT_ITEMS}",
        )


def _start(head: _Head) -> int:
    """The period's start, after everything that can be said about the envelope has been checked."""
    if head.schema != SCHEMA:
        raise Malformed("schema", f"schema {head.schema} is not one this server reads ({SCHEMA})")
    check_names(head.node.id, head.contract_number)
    if head.period_seconds not in PERIODS:
        raise Malformed("period_seconds", "allowed are 1, 2, 3, 4, 6, 8, 12 and 24 hours")
    start = _moment(head.aggregation_time)
    if start % head.period_seconds:
        raise Malformed(
            "aggregation_time",
            f"{head.aggregation_time} is not a start of a period of {head.period_seconds} s counted from 00:00 UTC",
        )
    if head.report_id != name_report(head.node.id, start, head.period_seconds, head.revision):
        raise Malformed("report_id", "not the UUIDv5 of node, start, period_seconds and revision")
    return start


def check_names(node_id: str, contract_number: str) -> None:
    """Malformed where the node's id or the contract's number is none."""
    if not _NODE_ID.fullmatch(node_id):
        raise Malformed("node.id", "not a UUID in its usual form (lower case, with dashes)")
    if not contract_number.isprintable() or not contract_number.strip():
        raise Malformed("contract_number", "empty, or with control characters")


def name_report(node_id: str, start: int, seconds: int, revision: int) -> str:
    """The same id as `telemetry.report_id`, without building a UUID object."""
    name = f"{node_id}/{start}/{seconds}/{revision}".encode()
    found = bytearray(hashlib.sha1(REPORT_NAMES.bytes + name, usedforsecurity=False).digest()[:16])
    found[6] = found[6] & 0x0F | 0x50  # version 5 (RFC 9562, section 5.5)
    found[8] = found[8] & 0x3F | 0x80
    text = found.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _moment(text: str) -> int:
    try:
        stamp = msgspec.convert(text, _Stamp)
        seconds = epoch(stamp, "aggregation_time")
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise Malformed("aggregation_time", "not a time in ISO 8601 with an offset") from None
    if seconds != int(seconds):
        raise Malformed("aggregation_time", "not a whole second")
    return int(seconds)


# --- the slow way: something is unknown or wrong, and it is told what ------------------------------------


class _Split(msgspec.Struct):
    """The parts of an envelope that are looked at one by one."""

    host: Any = None
    gaps: list[Any] = []
    events: list[Any] = []
    processes: list[Any] = []


def _read_slowly(body: bytes, digest: bytes | None) -> Intake:
    check_depth(body, DEPTH)
    try:
        given = _fields.decode(body)
        items = _items.decode(given.pop("gpus", b"[]"))
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise told(error) from None
    _check_gpus(len(items))
    kept: dict[str, msgspec.Raw] = {}
    head = _take_head(given, kept)
    rest = _Split()
    if bytes(given.get("host", b"null")) != b"null":
        rest.host = _take(given["host"], LenientHostEntry, "host", kept, lenient=True)
    for name, kind in (("gaps", GapIn), ("events", EventIn), ("processes", ProcessIn)):
        setattr(rest, name, list(_take_list(given.get(name), kind, name, kept)))
    for name in ("host", "gaps", "events", "processes"):
        given.pop(name, None)
    kept.update(given)
    entries, extras, wrong = _take_entries(items)
    return _intake(head, entries, extras, wrong, rest, _kept_text(kept, ""), body, digest)


def _take_head(given: dict[str, msgspec.Raw], kept: dict[str, msgspec.Raw]) -> _Head:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(_Head):
        raw = given.pop(field.name, None)
        if raw is None:
            raise Malformed(field.name, "missing")
        if field.name == "node":
            values["node"] = _take(raw, NodeIn, "node", kept)
        else:
            values[field.name] = _decode(raw, field.type, field.name)
    return _Head(**values)


def _take_list(raw: msgspec.Raw | None, kind: type, name: str, kept: dict[str, msgspec.Raw]) -> Iterator[Any]:
    if raw is None:
        return
    items = _decode(raw, list[msgspec.Raw], name)
    if len(items) > REPORT_ITEMS:
        raise Malformed(name, f"{len(items)} of them; a report holds at most {REPORT_ITEMS}")
    for number, item in enumerate(items):
        yield _take(item, kind, f"{name}[{number}]", kept)


def _take(
    raw: msgspec.Raw, kind: Any, at: str, kept: dict[str, msgspec.Raw], *, lenient: bool = False
) -> Any:
    """`raw` as a `kind`; what it holds beside the known fields goes to `kept` under its path."""
    given = _decode(raw, dict[str, msgspec.Raw], at)
    unknown = given.keys() - set(kind.__struct_fields__)
    for name in unknown:
        kept[f"{at}.{name}"] = given.pop(name)
    known = raw if lenient else msgspec.Raw(msgspec.json.encode(given))
    return _decode(known, kind, at)


def _take_entries(
    items: Sequence[msgspec.Raw],
) -> tuple[list[EntryBase], list[str | None], tuple[WrongEntry, ...]]:
    entries: list[EntryBase] = []
    extras: list[str | None] = []
    wrong: list[WrongEntry] = []
    for item in items:
        try:
            try:
                entry, extra = _strict_entry.decode(item), None
            except (msgspec.MsgspecError, ValueError):
                entry, extra = _lenient(item)
        except Malformed as error:
            wrong.append(WrongEntry(_uid_of(item), error.field, error.reason, bytes(item)))
        else:
            entries.append(entry)
            extras.append(extra)
    return entries, extras, tuple(wrong)


def _lenient(item: msgspec.Raw) -> tuple[EntryBase, str | None]:
    try:
        entry = _lenient_entry.decode(item)
        given = _fields.decode(item)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise told(error) from None
    for name in LenientEntry.__struct_fields__:
        given.pop(name, None)
    values = {
        name: round(value) if name in WHOLE_FIELDS and value is not None else value
        for name, value in msgspec.structs.asdict(entry).items()
    }
    return Entry(**values), _kept_text(given, "")


def _uid_of(item: msgspec.Raw) -> str | None:
    try:
        found = _fields.decode(item).get("uid")
        uid = None if found is None else _any.decode(found)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return uid[:96] if isinstance(uid, str) else None


def _kept_text(kept: dict[str, msgspec.Raw], at: str) -> str | None:
    """The unknown fields as one JSON object, each value exactly as it came."""
    if not kept:
        return None
    if sum(len(name) + len(bytes(raw)) for name, raw in kept.items()) > EXTRA_BYTES:
        raise Malformed(at, f"unknown fields hold more than {EXTRA_BYTES >> 10} KiB")
    for name, raw in kept.items():
        _decode(raw, Any, name)
    return msgspec.json.encode(kept).decode()


def _decode(raw: bytes | msgspec.Raw, kind: Any, at: str) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise told(error, at) from None


def told(error: Exception, at: str = "") -> Malformed:
    """What a decoder says of bytes that do not fit, with its path (below `at`) as the field."""
    if isinstance(error, UnicodeDecodeError):
        return Malformed(at, "not UTF-8")
    if isinstance(error, RecursionError):
        return Malformed(at, "the JSON nests too deep")
    match = _AT.fullmatch(str(error))
    reason, path = (match[1], match[2]) if match else (str(error), None)
    joint = "" if not at or not path or path.startswith("[") else "."
    return Malformed(f"{at}{joint}{path or ''}", cast("str", reason)[:300])
