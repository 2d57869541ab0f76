"""Answers are read without trust: nothing a server sends raises, and nothing but proof is proof."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.core.outcome import Verdict
from gpu_monitor.sinks.exchange import Reply
from gpu_monitor.sinks.judge import judge, retry_after, shown
from gpu_monitor.wire.answer import Accepts, one_line, prove, read_accepts, read_answers, read_object

BODY = b'{"schema":1,"report_id":"r","value":1.5,"count":3,"flag":true,"none":null,"list":[1,2]}'
DIGEST = hashlib.sha256(BODY).hexdigest()
ECHO = json.loads(BODY)
URL = "https://example.com/api/metrics?key=secret"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"uid": "u", "sha256": DIGEST}, "digest"),
        ({"uid": "u", "params": ECHO}, "echo"),
        ({"uid": "u", "sha256": DIGEST, "params": ECHO}, "digest"),
        ({"uid": "u"}, "unverified"),
        ({"uid": 17}, "unverified"),
        ({"uid": "u", "sha256": None, "params": None}, "unverified"),
        ({"uid": "u", "params": {**ECHO, "count": 3.0}}, "echo"),
        ({"uid": "u", "sha256": "0" * 64}, None),
        ({"uid": "u", "sha256": DIGEST.upper()}, None),
        ({"uid": "u", "sha256": 0}, None),
        ({"uid": "u", "sha256": ""}, None),
        ({"uid": "u", "sha256": DIGEST, "params": {}}, None),
        ({"uid": "u", "params": {**ECHO, "count": 4}}, None),
        ({"uid": "u", "params": {**ECHO, "flag": 1}}, None),
        ({"uid": "u", "params": {**ECHO, "more": 1}}, None),
        ({"uid": "u", "params": {**ECHO, "list": [2, 1]}}, None),
        ({"uid": "u", "params": [ECHO]}, None),
        ({"uid": "u", "params": "x"}, None),
        ({"uid": ""}, None),
        ({"uid": None, "sha256": DIGEST}, None),
        ({"uid": True, "sha256": DIGEST}, None),
        ({"uid": ["u"], "sha256": DIGEST}, None),
        ({"sha256": DIGEST}, None),
        ({}, None),
    ],
)
def test_what_proves_that_the_server_holds_our_bytes(answer: dict[str, object], kind: str | None) -> None:
    proof = prove(answer, BODY)
    assert proof.kind == kind
    assert (proof.problem is None) == (kind is not None)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b'"x"', b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b'{"a": "\xff"}', b'{"a":1e999}', b"\x00"],
)  # fmt: skip
def test_what_is_no_object_is_none(data: bytes) -> None:
    assert read_object(data) is None


@pytest.mark.parametrize(
    ("accepts", "expected"),
    [
        ({"encodings": ["gzip", "zstd"], "batch": "/b"}, Accepts(frozenset({"gzip", "zstd"}), "/b")),
        ({}, Accepts()),
        ({"encodings": "gzip", "batch": 7}, Accepts()),
        ({"encodings": [1, None, "gzip"], "batch": ""}, Accepts(frozenset({"gzip"}))),
        (None, None),
        ([], None),
        ("gzip", None),
    ],
)
def test_accepts_of_a_wrong_type_counts_as_absent(accepts: object, expected: Accepts | None) -> None:
    assert read_accepts({"accepts": accepts}) == expected


def test_answers_of_a_batch() -> None:
    assert read_answers({"answers": [{"a": 1}, 2, None]}) == [{"a": 1}, None, None]
    assert read_answers({"answers": {}}) is None
    assert read_answers({}) is None


def test_one_line_is_one_printable_line() -> None:
    assert one_line("a\r\n\x1b[31mb\tc\x00 d\u2028e") == "a [31mb c d e"
    assert len(one_line("x" * 10_000)) == 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
interesting = st.dictionaries(
    st.sampled_from(
        ["uid", "sha256", "params", "outcome", "revision", "quarantined", "accepts", "error", "detail", "reasons", "answers"]
    ),
    json_values | st.just(DIGEST) | st.just("u") | st.just(ECHO),
    max_size=6,
)  # fmt: skip


@given(
    status=st.integers(100, 999),
    data=st.binary(max_size=300) | interesting.map(lambda found: json.dumps(found).encode()),
    headers=st.dictionaries(st.sampled_from(["retry-after", "location", "date"]), st.text(max_size=40)),
    is_compressed=st.booleans(),
)
def test_no_answer_raises_and_only_a_proven_one_is_an_acknowledgement(
    status: int, data: bytes, headers: dict[str, str], is_compressed: bool
) -> None:
    outcome = judge(Reply(status, headers, data), BODY, URL, 1_700_000_000.0, is_compressed=is_compressed)
    assert outcome.verdict is not Verdict.SPLIT
    if outcome.verdict is Verdict.ACKNOWLEDGED:
        found = json.loads(data)
        assert 200 <= status < 300
        assert found["uid"]
        assert found.get("sha256") in (None, DIGEST)
        assert found.get("params") in (None, ECHO)
    else:
        assert outcome.error
        assert "secret" not in outcome.error
        assert "\n" not in outcome.error
    assert outcome.after is None or 1 <= outcome.after <= 21600


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "120"}, 120),
        ({"retry-after": " 120 "}, 120),
        ({"retry-after": "0"}, 1),
        ({"retry-after": "999999999999999999999999"}, 21600),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
        # 2023-11-14 22:13:20 is 1,700,000,000.
        ({"retry-after": "Tue, 14 Nov 2023 22:15:00 GMT"}, 100),
        ({"retry-after": "Tue, 14 Nov 2023 20:00:00 GMT"}, 1),
        # The server's own clock is an hour ahead of ours: it means a minute, not an hour and a minute.
        ({"retry-after": "Tue, 14 Nov 2023 23:14:20 GMT", "date": "Tue, 14 Nov 2023 23:13:20 GMT"}, 60),
        ({"retry-after": "Tue, 14 Nov 2023 22:15:00 GMT", "date": "yesterday"}, 100),
        ({"retry-after": "Tue, 99 Nov 2023 22:15:00 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, 1_700_000_000.0) == seconds


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    assert shown("https://user:pass@example.com:8443/a/b?key=1#x") == "https://example.com:8443/a/b"
