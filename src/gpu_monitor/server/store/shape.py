"""Turns a report that was read into the typed rows that are stored: whole numbers, interned texts, one line each.

Nothing here knows the database's numbers of nodes, GPUs and facts: the writer puts them in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from operator import itemgetter
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import astuple

from gpu_monitor.core.catalogue import HOST_METRICS, IDENTITY, SAMPLED, STATES, THROTTLE_REASONS, Kind, Metric
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.server.store.digest import fact_digest, row_digest
from gpu_monitor.server.store.schema import COVER, IDLE, has_extremes, scale_of
from gpu_monitor.server.store.sense import check_figures, moment_before, moment_in
from gpu_monitor.wire.entry import ENTRY_FIELDS, HOST_FIELDS, MADE_UP
from gpu_monitor.wire.intake import DEPTH, Intake, Malformed, WrongEntry, check_depth, read_report

Row = tuple[Any, ...]
_T = TypeVar("_T")
_CACHED = 65_536
"""Identities, states and reasons that are remembered: some 300 bytes each; above it all are let go of."""
_TEXT, _LONG_TEXT = 256, 4096
_BITS = {name: bit for bit, name in THROTTLE_REASONS}
_BITS |= {f"bit_{number}": 1 << number for number in range(63)}
_REASONS = 256
"""Metrics that are null for a reason: there are not half as many metrics."""

_reasons = msgspec.json.Decoder(dict[str, str])


class Fact(msgspec.Struct, frozen=True):
    """An interned JSON object: its text and the digest it is known by.

    `has_parent`: whether it is the identity of a part of another GPU.
    """

    digest: bytes
    body: str
    has_parent: bool = False


class GpuRow(msgspec.Struct, frozen=True):
    """One GPU over the period. `values` stand in the order of the table's columns, from `samples` to the last metric."""

    uid: str
    source: str
    name: str | None
    identity: Fact
    states: Fact
    values: Sequence[int | None]
    extra: str | None


class Shaped(msgspec.Struct, frozen=True):
    """A report as rows. Those of gaps, events and processes begin after hour and agent.

    `intake` without its entries: they are many objects, and would be let go of when no cache holds them any more.
    """

    intake: Intake
    gpus: Sequence[GpuRow]
    wrong: Sequence[WrongEntry]
    host: Sequence[int | None] | None
    gaps: Sequence[Row]
    events: Sequence[Row]
    processes: Sequence[Row]
    simulated: bool
    row_digest: bytes


def text_of(text: str | None, length: int = _TEXT) -> str | None:
    """One line without control characters, cut at `length`."""
    if text is None:
        return None
    line = clean(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def make_fact(content: Any) -> Fact:
    """The fact with this JSON content."""
    body = msgspec.json.encode(content).decode()
    return Fact(fact_digest(body), body, '"parent_uid"' in body)


def _write_plan(
    metrics: Sequence[Metric], fields: Sequence[str], basis: Sequence[tuple[str, int]], *, exact: bool
) -> Callable[[Row], tuple[Row, list[str], int]]:
    """A function that turns an entry's values into scaled whole numbers, in the order of the table's columns.

    It also gives the names of flags that we do not know, and the least distance of a mean from its extremes (0 or
    less: negative where a mean lies outside of them). `exact`: metrics without decimals come whole. The
    function is written out, one line a value, as the standard library does for dataclasses: a loop over 80
    columns took half as long again, and this is the largest part of taking a report. Numbers with decimals come
    as floats; the built-in round() looks for their method each time, which takes longer than rounding.
    """
    held = {field: f"f{number}" for number, field in enumerate(fields)}
    lines = ["def whole(given):", " unknown, least = [], 0", f" {', '.join(held.values())}, = given"]
    names: list[str] = []

    def scaled(given: str, scale: float) -> str:
        return given if exact and scale == 1 else f"whole_of({given} * {float(scale)})"

    def put(given: str, scale: float) -> None:
        names.append(given)
        if scaled(given, scale) != given:
            lines.append(f" if {given} is not None: {given} = {scaled(given, scale)}")

    for field, decimals in basis:
        put(held[field], 10**decimals)
    for metric in metrics:
        mean, scale = held[metric.name], scale_of(metric)
        if metric.kind is Kind.FLAGS:
            lines.append(f" if {mean} is not None: {mean}, unknown = flags_of({mean})")
            names.append(mean)
        elif has_extremes(metric):
            low, high = held[f"{metric.name}_min"], held[f"{metric.name}_max"]
            names += [mean, low, high]
            lines += [
                f" if {mean} is None: {low} = {high} = None",
                " else:",
                f"  {mean} = {scaled(mean, scale)}",
                f"  if {low} is not None:",
                f"   {low} = {mean} - {scaled(low, scale)}",
                f"   if {low} < least: least = {low}",
                f"  if {high} is not None:",
                f"   {high} = {scaled(high, scale)} - {mean}",
                f"   if {high} < least: least = {high}",
            ]
        else:
            put(mean, scale)
    lines.append(f" return ({', '.join(names)}), unknown, least")
    place: dict[str, Any] = {"flags_of": flags_of, "whole_of": float.__round__}
    exec("\n".join(lines), place)
    return cast("Callable[[Row], tuple[Row, list[str], int]]", place["whole"])


_identity_of = itemgetter(*(ENTRY_FIELDS.index(metric.name) for metric in IDENTITY))
_states_of = itemgetter(*(ENTRY_FIELDS.index(metric.name) for metric in STATES))
_UID, _SOURCE = ENTRY_FIELDS.index("uid"), ENTRY_FIELDS.index("source")
_NAME_IN_IDENTITY = [metric.name for metric in IDENTITY].index("name")
_REASONS_AT = ENTRY_FIELDS.index("reasons")


class Shaper:
    """Shapes reports, remembering the texts that come again and again. Any thread may ask."""

    def __init__(self) -> None:
        self._identities: dict[Row, tuple[Fact, str | None]] = {}
        self._states: dict[Row, Fact] = {}

    def shape(self, intake: Intake) -> Shaped:
        """The rows of a report; Malformed where no GPU entry of it can be taken, or an item has no right time."""
        wrong = list(intake.wrong)
        gpus: list[GpuRow] = []
        seen: set[tuple[str, str]] = set()
        extras = intake.extras or (None,) * len(intake.entries)
        for entry, extra in zip(intake.entries, extras, strict=True):
            try:
                row = self._gpu(astuple(entry), extra, intake.period_seconds)
                key = (row.uid, row.source)
                if key in seen:
                    raise Malformed("uid", "another entry of this report is about the same GPU")
            except Malformed as error:
                raw = msgspec.json.encode(entry)
                wrong.append(WrongEntry(text_of(entry.uid), error.field, error.reason, raw))
            else:
                seen.add(key)
                gpus.append(row)
        if wrong and not gpus:
            raise Malformed(f"gpus[0].{wrong[0].field}", f"{wrong[0].reason}; no GPU entry can be taken")
        host = None if intake.host is None else _whole_host(astuple(intake.host))[0]
        gaps = _rows(intake, "gaps", _gap)
        events = _rows(intake, "events", _event)
        processes = _rows(intake, "processes", _process)
        return Shaped(
            intake=msgspec.structs.replace(intake, entries=(), extras=None),
            gpus=gpus,
            wrong=wrong,
            host=host,
            gaps=gaps,
            events=events,
            processes=processes,
            simulated=intake.node.simulated or any(row.source in MADE_UP for row in gpus),
            row_digest=_digest(intake, gpus, host, gaps, events, processes),
        )

    def _gpu(self, values: Row, extra: str | None, period: int) -> GpuRow:
        identity, name = self.identity(_identity_of(values))
        states = self._state((bytes(values[_REASONS_AT]), *_states_of(values)))
        whole, unknown, least = _whole_gpu(values)
        check_figures(whole, period, least)
        if unknown:
            extra = _with_unknown(extra, unknown)
        return GpuRow(values[_UID], values[_SOURCE], name, identity, states, whole, extra)

    def identity(self, given: Row) -> tuple[Fact, str | None]:
        """The fact of a GPU's identity, its values in the catalogue's order, and its name; Malformed for a bad uid."""
        found = self._identities.get(given)
        if found is None:
            if not given[0].isprintable():
                raise Malformed("uid", "control characters in the name of a GPU")
            told = {
                m.name: _stated(value) for m, value in zip(IDENTITY, given, strict=True) if value is not None
            }
            found = make_fact(told), text_of(given[_NAME_IN_IDENTITY])
            _remember(self._identities, given, found)
        return found

    def _state(self, given: Row) -> Fact:
        # 1, 1.0 and True are one key but not one text; numbers are made equal before they are told apart.
        found = self._states.get(given)
        if found is None:
            states = {m.name: _stated(v) for m, v in zip(STATES, given[1:], strict=True) if v is not None}
            found = make_fact({"states": states, "reasons": _read_reasons(given[0])})
            _remember(self._states, given, found)
        return found


def _digest(
    intake: Intake, gpus: Sequence[GpuRow], host: Any, gaps: Any, events: Any, processes: Any
) -> bytes:
    parts: list[Any] = [
        (row.uid, row.source, row.identity.digest, row.states.digest, row.extra, row.values) for row in gpus
    ]
    return row_digest(intake.node.id, intake.hour, parts, host, gaps, events, processes)


def without(shaped: Shaped, keys: AbstractSet[tuple[str, str]], reason: str) -> Shaped:
    """The report with these GPUs (uid, source) among what is wrong instead of among its rows."""
    kept = [row for row in shaped.gpus if (row.uid, row.source) not in keys]
    aside = [
        WrongEntry(text_of(entry.uid), "uid", reason, msgspec.json.encode(entry))
        for entry in read_report(shaped.intake.body, shaped.intake.body_digest).entries
        if (entry.uid, entry.source) in keys
    ]
    digest = _digest(shaped.intake, kept, shaped.host, shaped.gaps, shaped.events, shaped.processes)
    return msgspec.structs.replace(shaped, gpus=kept, wrong=[*shaped.wrong, *aside], row_digest=digest)


def _remember(held: dict[Row, _T], key: Row, found: _T) -> None:
    if len(held) >= _CACHED:
        held.clear()
    held[key] = found


def _stated(value: str | float) -> str | float | None:
    if isinstance(value, str):
        return text_of(value)
    return int(value) if value == int(value) else value


def _read_reasons(raw: bytes) -> dict[str, str]:
    try:
        found = _reasons.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Malformed("reasons", "not an object of texts by metric") from None
    if len(found) > _REASONS:
        raise Malformed("reasons", f"more than {_REASONS}")
    return {str(text_of(name, 64)): str(text_of(why, 64)) for name, why in found.items()}


def flags_of(names: Iterable[str]) -> tuple[int, list[str]]:
    """The mask of throttle reasons, and the names that we do not know."""
    mask, unknown = 0, []
    for name in names:
        if name in _BITS:
            mask |= _BITS[name]
        else:
            unknown.append(str(text_of(name, 64)))
    return mask, unknown


_whole_gpu = _write_plan(SAMPLED, ENTRY_FIELDS, (*COVER, *IDLE), exact=True)
_whole_host = _write_plan(HOST_METRICS, HOST_FIELDS, COVER, exact=False)


def _with_unknown(extra: str | None, names: list[str]) -> str:
    """Reasons for throttling that we do not know are kept beside the unknown fields."""
    held = {} if extra is None else msgspec.json.decode(extra, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**held, "throttle_reasons": names[:64]}).decode()


def _rows(intake: Intake, name: str, shape: Callable[[Any, Intake], Row]) -> list[Row]:
    rows = []
    for number, item in enumerate(getattr(intake, name)):
        try:
            rows.append(shape(item, intake))
        except Malformed as error:
            raise Malformed(f"{name}[{number}].{error.field}".rstrip("."), error.reason) from None
    return rows


def _gap(gap: Any, intake: Intake) -> Row:
    start, stop = moment_in(gap.start, "start", intake), moment_in(gap.end, "end", intake)
    if stop < start:
        raise Malformed("end", "before the start")
    return text_of(gap.uid), start, stop, text_of(gap.cause), text_of(gap.detail, _LONG_TEXT)


def _event(event: Any, intake: Intake) -> Row:
    detail = bytes(event.detail)
    if detail == b"null":
        text = None
    else:
        check_depth(detail, DEPTH - 3)
        try:
            msgspec.json.decode(detail)
            text = detail.decode()
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise Malformed("detail", "not JSON in UTF-8") from None
        if len(text) > 4 * _LONG_TEXT:
            raise Malformed("detail", f"longer than {4 * _LONG_TEXT} characters")
    return (
        moment_in(event.time, "time", intake), text_of(event.uid), text_of(event.kind), text_of(event.severity),
        text_of(event.message, _LONG_TEXT), text,
    )  # fmt: skip


def _process(process: Any, intake: Intake) -> Row:
    last = moment_in(process.last_seen, "last_seen", intake)
    return (
        text_of(process.uid), process.pid, text_of(process.kind),
        moment_before(process.first_seen, "first_seen", last), last, process.ended, process.start_ticks, text_of(process.boot_id),
        process.ns_pid, text_of(process.user), text_of(process.command), text_of(process.container),
        text_of(process.job), text_of(process.experiment_id), process.memory, process.memory_max,
    )  # fmt: skip
