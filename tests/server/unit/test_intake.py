"""A server's reading of reports: any bytes give a report or a Malformed, and the ids are those of the agent."""

from __future__ import annotations

import json
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_monitor.core.catalogue import METRICS, SAMPLED, Kind
from gpu_monitor.server.store.shape import Shaper
from gpu_monitor.wire.entry import ENTRY_FIELDS, Entry
from gpu_monitor.wire.intake import (
    DEPTH,
    Malformed,
    check_depth,
    name_report,
    read_batch,
    read_report,
)
from gpu_monitor.wire.live_intake import read_live
from gpu_monitor.wire.telemetry import join, report_id
from tests.server.posts import encode, iso, make_entry, make_report

EASY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
REPORT = make_report(
    gpus=2,
    gaps=[{"uid": None, "start": iso(1.7e9), "end": iso(1.7e9), "seconds": 0, "cause": "x", "detail": None}],
    events=[{"time": iso(1.7e9), "uid": None, "kind": "x", "severity": "info", "message": "x", "detail": {"a": 1}}],
    processes=[{"uid": "GPU-1", "pid": 1, "kind": "compute", "first_seen": iso(1.7e9), "last_seen": iso(1.7e9), "ended": True}],
)  # fmt: skip


def taken(read: Any, body: bytes) -> Any:
    """What reading gives; None where it was refused, with a field and a reason that can be answered."""
    try:
        return read(body)
    except Malformed as error:
        msgspec.json.encode([error.field, error.reason])
        assert error.reason
        return None


@EASY
@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (read_report, read_batch, read_live):
        taken(read, body)


@EASY
@given(JSON)
def test_any_json_is_read_or_refused(value: Any) -> None:
    body = json.dumps(value).encode("utf-8", "surrogatepass")
    for read in (read_report, read_batch, read_live):
        taken(read, body)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [at] if at else []
    if isinstance(value, dict):
        return found + [place for key, inner in value.items() for place in places(inner, (*at, key))]
    if isinstance(value, list):
        return found + [place for key, inner in enumerate(value) for place in places(inner, (*at, key))]
    return found


@EASY
@given(st.sampled_from(places(REPORT)), JSON, st.booleans())
def test_a_report_with_anything_anywhere_is_read_or_refused(
    place: tuple[Any, ...], value: Any, drops: bool
) -> None:
    report = json.loads(json.dumps(REPORT))
    target = report
    for key in place[:-1]:
        target = target[key]
    if drops:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    body = json.dumps(report).encode("utf-8", "surrogatepass")
    shaped = taken(lambda body: Shaper().shape(read_report(body)), body)
    if shaped is not None:
        # What was taken is whole: each entry is a row or set aside.
        assert len(shaped.gpus) + len(shaped.wrong) == len(report.get("gpus", []))


@EASY
@given(st.binary(max_size=30), st.integers(0, 5000), st.integers(0, 30))
def test_a_damaged_report_is_read_or_refused(noise: bytes, at: int, length: int) -> None:
    body = encode(REPORT)
    taken(read_report, body[:at] + noise + body[at + length :])


@given(st.uuids(), st.integers(0, 2_000_000), st.sampled_from([3600, 7200, 86400]), st.integers(1, 2**31 - 1))
def test_ids_are_those_of_the_agent(node: uuid.UUID, hour: int, seconds: int, revision: int) -> None:
    assert name_report(str(node), hour * 3600, seconds, revision) == report_id(
        str(node), hour * 3600, seconds, revision
    )


def test_every_metric_has_its_fields_with_its_bounds() -> None:
    names = {metric.name for metric in METRICS}
    for metric in SAMPLED:
        if metric.kind in (Kind.GAUGE, Kind.RATE):
            names |= {f"{metric.name}_min", f"{metric.name}_max"}
    assert names < set(ENTRY_FIELDS)
    for metric in SAMPLED:
        if metric.kind is Kind.FLAGS or metric.high > 2**53:
            continue
        for value, is_right in (
            (metric.low, True),
            (metric.high, True),
            (metric.low - 1, False),
            (metric.high + 1, False),
        ):
            intake = read_report(
                encode(make_report(gpus=[make_entry(1), make_entry(2, **{metric.name: value})]))
            )
            assert (len(intake.wrong) == 0) is is_right, (metric.name, value)


def test_decimals_where_whole_numbers_are_usual_are_rounded() -> None:
    intake = read_report(
        encode(make_report(gpus=[make_entry(1, memory_used=1000.6, samples=60.0, index=0.0)]))
    )
    (entry,) = intake.entries
    assert isinstance(entry, Entry)
    assert (entry.memory_used, entry.samples, entry.index) == (1001, 60, 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "body", [b'{"a":"' + b"[" * 50 + b'"}', b"[" * DEPTH + b"]" * DEPTH, b'["\\"[[[[[[[[[[[[[[[[[["]']
)
def test_depth_counts_brackets_outside_of_texts(body: bytes) -> None:
    check_depth(body, DEPTH)


@EASY
@given(JSON)
def test_depth_is_that_of_the_value(value: Any) -> None:
    def depth(one: Any) -> int:
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    body = json.dumps(value).encode("utf-8", "surrogatepass")
    for limit in range(1, 6):
        is_refused = False
        try:
            check_depth(body, limit)
        except Malformed:
            is_refused = True
        assert is_refused is (depth(value) > limit)


def outside_of_texts(text: bytes) -> bytes:
    """The brackets of `text` that stand in no string, byte by byte."""
    found, at, is_inside = bytearray(), 0, False
    while at < len(text):
        one = text[at : at + 1]
        if one == b"\\":
            at += text[at + 1 : at + 2] in (b'"', b"\\")
        elif one == b'"':
            is_inside = not is_inside
        elif not is_inside and one in b"[]{}":
            found += one
        at += 1
    return bytes(found)


def deepest(text: bytes) -> int:
    """How deep the brackets of `text` go; -1 where they do not match (kinds of brackets are not told apart)."""
    level = highest = 0
    for one in outside_of_texts(text):
        level += 1 if one in b"[{" else -1
        if level < 0:
            return -1
        highest = max(highest, level)
    return highest if level == 0 else -1


PIECES = st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b'"', b"\\", b"a", b"[]", b'"]"']), max_size=30)


@settings(deadline=None, max_examples=400)
@given(PIECES)
def test_depth_counts_as_a_reading_byte_by_byte_does(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    for limit in (1, 2, 3):
        is_over = text.count(b"[") + text.count(b"{") > limit and not 0 <= deepest(text) <= limit
        is_refused = False
        try:
            check_depth(text, limit)
        except Malformed:
            is_refused = True
        assert is_refused is is_over


@settings(deadline=None, max_examples=400)
@given(PIECES, st.integers(1, 5))
def test_depth_is_the_same_by_stretches(pieces: list[bytes], stretch: int) -> None:
    """A text, an escape or a nest may reach over the end of any stretch."""
    text = b"".join(pieces) + b" " * (stretch + 1)  # longer than one of them
    for limit in (1, 2, 3):
        is_refused = False
        try:
            check_depth(text, limit, stretch)
        except Malformed:
            is_refused = True
        assert is_refused is not (0 <= deepest(text) <= limit)


@pytest.mark.parametrize(
    "unit", [b'\\"', b"\\\\", b'"[', b'""', b'"a,\\', b"[", b"[{"], ids=lambda unit: unit.decode()
)
@pytest.mark.parametrize("head", [b"[" * 17 + b'"', b"[" * 17])
def test_8_mib_of_anything_are_read_in_one_go(head: bytes, unit: bytes) -> None:
    """Where each place of an endless string is looked at anew, this takes days."""
    body = head + unit * ((8 << 20) // len(unit))
    with pytest.raises(Malformed):
        check_depth(body, DEPTH)
    with pytest.raises(Malformed):
        read_report(body)


@pytest.mark.parametrize("name", ["n", "n" * 60])  # as short as can be, and where the whole is long
def test_more_gpus_than_a_report_holds_are_counted_and_refused(name: str) -> None:
    gpus = [{"uid": f"{name}{number}", "source": "nvml"} for number in range(4097)]
    with pytest.raises(Malformed, match="gpus: 4097 entries; a report holds at most 4096"):
        read_report(encode(make_report(gpus=gpus)))
    assert len(read_report(encode(make_report(gpus=gpus[:4096]))).entries) == 4096


def test_a_batch_gives_the_exact_bytes_of_each_report() -> None:
    bodies = [b'{ "a" : 1}', b'{"b":[1, 2 ]}']
    assert [bytes(part) for part in read_batch(join(bodies))] == bodies
    with pytest.raises(Malformed):
        read_batch(join([b"{}"] * 65))


@pytest.mark.parametrize("extra", [{}, {"unknown": 1}], ids=["as known", "with an unknown field"])
def test_gaps_events_and_processes_are_bounded_together(extra: dict[str, Any]) -> None:
    process = REPORT["processes"][0]
    gap = REPORT["gaps"][0]

    def read(gaps: int, processes: int) -> Any:
        return read_report(
            encode({**make_report(gaps=[gap] * gaps, processes=[process] * processes), **extra})
        )

    taken = read(6384, 10_000)
    assert (len(taken.gaps), len(taken.processes)) == (6384, 10_000)
    for gaps, processes, field in ((6385, 10_000, "processes"), (10_000, 6385, "gaps"), (16_385, 0, "gaps")):
        with pytest.raises(Malformed) as refused:
            read(gaps, processes)
        assert refused.value.field == field
