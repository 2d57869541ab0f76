"""Reports over real HTTP to the real program: what is answered, and what is held afterwards."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.server.posts import (
    HOUR,
    NODE,
    OTHER,
    encode,
    headers_of,
    iso,
    join,
    make_entry,
    make_report,
    packed,
)
from tests.server.rig import Answer, Server, serving

ACCEPTS = {
    "watch_seconds": None,
    "encodings": ["gzip", "zstd"],
    "batch": "metrics/batch",
    "samples": "samples",
    "experiments": "experiments",
}


@pytest.fixture
def server(tmp_path: Path, database: str) -> Iterator[Server]:
    """A server on either database."""
    with serving(tmp_path, database=database) as server:
        yield server


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Server]:
    """A server on SQLite, where the database makes no difference."""
    with serving(tmp_path) as server:
        yield server


def token_of(server: Server) -> str:
    """One that may write every node of the contract."""
    return server.token("--contract", "12345")


def post(server: Server, report: dict[str, Any], token: str, **headers: str) -> Answer:
    body = encode(report)
    sent = {**headers_of(body, report_id=str(report.get("report_id", "x"))), **headers}
    return server.ask("POST", "/api/metrics", body, token, sent)


def check_clean(server: Server) -> None:
    """Every receipt's digest fits its rows."""
    checked = server.command("server", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_report_is_stored_once_and_acknowledged_every_time(server: Server) -> None:
    token, report = token_of(server), make_report()
    first = post(server, report, token)
    assert first.status == 200, first.body
    assert first.json == {
        "uid": report["report_id"],
        "sha256": hashlib.sha256(encode(report)).hexdigest(),
        "outcome": "stored",
        "revision": 1,
        "quarantined": [],
        "accepts": ACCEPTS,
    }
    assert post(server, report, token).json == {**first.json, "outcome": "repeated"}
    better = post(server, make_report(revision=2, gpus=1), token)
    assert (better.json["outcome"], better.json["revision"]) == ("stored", 2)
    assert (
        post(server, report, token).json.items()
        >= {"outcome": "superseded", "revision": 2, "sha256": first.json["sha256"]}.items()
    )
    conflict = post(server, make_report(revision=2), token)
    assert (conflict.status, conflict.json["revision"]) == (409, 2)
    check_clean(server)


def test_a_batch_is_answered_report_by_report(server: Server) -> None:
    token = token_of(server)
    reports = [make_report(hour=HOUR + number) for number in range(5)]
    reports[2] = {**reports[2], "period_seconds": 7000}
    bodies = [encode(report) for report in reports]
    bodies.append(encode(make_report(contract="777")))
    body = join(*bodies)
    answer = server.ask(
        "POST", "/api/metrics/batch", body, token, headers_of(body) | {"X-Contract-Number": "12345"}
    )
    assert answer.status == 200, answer.body
    found = answer.json["answers"]
    assert [one["status"] for one in found] == [200, 200, 422, 200, 200, 422]
    assert [one.get("sha256") for one in found[:2]] == [hashlib.sha256(one).hexdigest() for one in bodies[:2]]
    assert found[0]["report_id"] == found[0]["uid"] == reports[0]["report_id"]
    assert found[2]["field"] == "period_seconds"
    assert found[5]["field"] == "X-Contract-Number"
    assert answer.json["accepts"] == ACCEPTS
    check_clean(server)


def test_samples_are_kept_once_and_show_the_node_at_once(server: Server) -> None:
    token, now = token_of(server), int(time.time()) // 60 * 60
    gpu = {"uid": "GPU-1", "source": "nvml", "name": "NVIDIA H100", "memory_total": 85899345920}
    sample = {"uid": "GPU-1", "source": "nvml", "time": iso(now - 60), "seconds": 60.0, "power_usage": 311.4,
              "throttle_reasons": ["sw_power_cap"], "brand_new": 1}  # fmt: skip
    message = {
        "schema": 1, "contract_number": "12345", "node": make_report()["node"], "sent": iso(time.time() + 100),
        "collection_interval_seconds": 60, "gpus": [gpu, {**gpu, "uid": "GPU-2", "status": "gpu lost"}],
        "samples": [sample], "readings": [{**sample, "time": iso(now), "seconds": 2.0, "power_usage": 400}],
    }  # fmt: skip
    for _ in range(2):
        body = encode(message)
        answer = server.ask("POST", "/api/samples", body, token, headers_of(body))
        assert (answer.status, answer.json) == (200, {"accepts": ACCEPTS}), answer.body
    shown = server.ask("GET", f"/api/nodes/{NODE}").json["node"]
    assert abs(shown["skew_seconds"] - 100) < 30
    gpus = {one["uid"]: one for one in server.ask("GET", f"/api/gpus?node={NODE}").json["items"]}
    assert set(gpus) == {"GPU-1", "GPU-2"}
    assert server.ask("POST", "/api/samples", b"{}", token).status == 422
    assert server.ask("POST", "/api/samples", encode(message)).status == 401


def test_compressed_bodies_are_told_by_what_they_hold(plain: Server) -> None:
    token, report = token_of(plain), make_report()
    body = encode(report)
    sent, headers = packed(body)
    answer = plain.ask("POST", "/api/metrics", sent, token, headers)
    assert answer.json["sha256"] == hashlib.sha256(body).hexdigest()
    zipped = zstandard.ZstdCompressor().compress(body)
    again = plain.ask(
        "POST", "/api/metrics", zipped, token, {**headers_of(zipped), "Content-Encoding": "zstd"}
    )
    assert (again.json["outcome"], again.json["sha256"]) == ("repeated", hashlib.sha256(body).hexdigest())
    # zlib flushes its frame's size only where it knows it: a stream has none.
    streamed = zstandard.ZstdCompressor().compressobj()
    stream = streamed.compress(body) + streamed.flush()
    assert plain.ask("POST", "/api/metrics", stream, token, {"Content-Encoding": "zstd"}).status == 200
    assert plain.ask("POST", "/api/metrics", body, token, {"Content-Encoding": "br"}).status == 415
    assert plain.ask("POST", "/api/metrics", sent[:-9], token, {"Content-Encoding": "gzip"}).status == 422
    assert plain.ask("POST", "/api/metrics", body, token, {"Content-Encoding": "gzip"}).status == 422
    assert plain.ask("POST", "/api/metrics", body, token, {"Content-Encoding": "zstd"}).status == 422


def test_bombs_are_refused(plain: Server) -> None:
    token = token_of(plain)
    many = b'{"schema":1,"x":"' + b"a" * (9 << 20) + b'"}'
    for encoding, sent in (
        ("gzip", gzip.compress(many)),
        ("zstd", zstandard.ZstdCompressor().compress(many)),
        ("gzip", gzip.compress(b"a" * (4 << 20))),
        ("", b" " * (2 << 20) + b"{}"),
    ):
        headers = {"Content-Encoding": encoding} if encoding else {}
        answer = plain.ask("POST", "/api/metrics", sent, token, headers)
        assert answer.status == 413, (encoding, len(sent), answer.body[:200])
    assert post(plain, make_report(), token).status == 200


BACKWARDS = {"uid": None, "start": iso(HOUR * 3600 + 600), "end": iso(HOUR * 3600), "cause": "x"}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("another schema", {"schema": 2}, "schema"),
    ("no node", {"node": None}, "node"),
    ("a node without id", {"node": {"hostname": "x"}}, "node"),
    ("an id that is no UUID", {"node": {"id": "x", "simulated": False}}, "node.id"),
    ("an odd length", {"period_seconds": 7000}, "period_seconds"),
    ("not aligned", {"aggregation_time": iso(HOUR * 3600 + 1800)}, "aggregation_time"),
    ("no offset", {"aggregation_time": iso(HOUR * 3600)[:19]}, "aggregation_time"),
    ("another start than its id says", {"aggregation_time": iso(HOUR * 3600 - 3600)}, "report_id"),
    ("revision 0", {"revision": 0}, "revision"),
    ("a revision its id does not say", {"revision": 2}, "report_id"),
    ("an empty contract", {"contract_number": " "}, "contract_number"),
    ("every GPU wrong", {"gpus": [make_entry(1, power_usage=-1)]}, "gpus[0].power_usage"),
    ("a gap that ends before it starts", {"gaps": [BACKWARDS]}, "gaps[0].end"),
    ("an event without time", {"events": [{"kind": "xid", "severity": "error", "message": "x"}]}, "events[0]"),
    ("host out of bounds", {"host": {"cpu_utilization": 101}}, "host.cpu_utilization"),
]  # fmt: skip


def test_what_is_wrong_is_said_with_its_field(plain: Server) -> None:
    token = token_of(plain)
    for what, changed, field in WRONG:
        answer = post(plain, {**make_report(), **changed}, token)
        assert (answer.status, answer.json["field"]) == (422, field), (what, answer.body)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["detail"].startswith(field + ": "), what
    for what, sent in (
        ("no JSON", b"{"),
        ("a list", b"[]"),
        ("bad UTF-8", b'{"schema":1,"report_id":"\xff"}'),
        ("NaN", encode(make_report()).replace(b"300.25", b"NaN")),
        ("deep", b'{"schema":' + b"[" * 17 + b"]" * 17 + b"}"),
        ("very deep", b"[" * 100_000),
    ):
        assert plain.ask("POST", "/api/metrics", sent, token).status == 422, what
    too_many = make_report(gpus=[{"uid": f"GPU-{number}", "source": "nvml"} for number in range(4097)])
    assert post(plain, too_many, token).json["field"] == "gpus"


def test_headers_must_say_what_the_body_says(plain: Server) -> None:
    token = token_of(plain)
    for name, value in (
        ("Idempotency-Key", make_report(revision=2)["report_id"]),
        ("X-Contract-Number", "54321"),
        ("Content-Digest", headers_of(b"other")["Content-Digest"]),
        ("Content-Digest", "sha-256=:AAAA:"),  # no SHA-256 at all
    ):
        answer = post(plain, make_report(), token, **{name: value})
        assert (answer.status, answer.json["field"]) == (422, name)
    assert plain.ask("POST", "/api/metrics", encode(make_report()), token).status == 200


def test_who_may_not_is_told_before_anything_is_read(plain: Server) -> None:
    report = make_report()
    assert post(plain, report, "").status == 401
    assert post(plain, report, "gpm_" + "x" * 43).status == 401
    assert post(plain, report, plain.token("--scope", "read")).status == 403
    assert post(plain, report, plain.token("--contract", "777")).status == 403
    assert post(plain, report, plain.token("--contract", "12345", "--node", OTHER)).status == 403
    assert plain.ask("GET", "/api/metrics").status == 405
    options = plain.ask("OPTIONS", "/api/metrics")
    assert (options.status, options.json) == (200, {"accepts": ACCEPTS})


def test_a_node_is_enrolled_and_needs_its_own_token_then(plain: Server) -> None:
    enrol = plain.token("--contract", "12345", "--enrol")
    first = post(plain, make_report(), enrol)
    own = first.json["node_token"]
    assert post(plain, make_report(hour=HOUR + 1), own).json["outcome"] == "stored"
    assert post(plain, make_report(hour=HOUR + 2), enrol).status == 403
    assert post(plain, make_report(OTHER), own).status == 403
    assert "node_token" not in post(plain, make_report(hour=HOUR + 2), own).json


def test_one_wrong_gpu_is_told_and_the_report_is_safe(plain: Server) -> None:
    token = token_of(plain)
    answer = post(plain, make_report(gpus=[make_entry(1), make_entry(2, samples="many")]), token)
    assert answer.status == 200
    assert answer.json["quarantined"] == [
        {"uid": "GPU-2", "field": "samples", "reason": "Expected `float | null`, got `str`"}
    ]
    check_clean(plain)


def test_a_report_from_the_future_is_acknowledged_and_waits(server: Server) -> None:
    hour = int(time.time()) // 3600 + 1
    report, token = make_report(hour=hour), token_of(server)
    answer = post(server, report, token)
    assert answer.status == 200, answer.body
    assert answer.json["quarantined"][0]["field"] == "aggregation_time"
    assert post(server, report, token).json["outcome"] == "repeated"
    assert server.ask("GET", f"/api/gpus?node={NODE}").json["items"] == []


def test_a_kept_alive_connection_serves_on_after_a_refusal(plain: Server) -> None:
    token = token_of(plain)
    connection = http.client.HTTPConnection("127.0.0.1", plain.port, timeout=30)
    statuses = []
    for report in ({"schema": 2}, make_report()):
        connection.request("POST", "/api/metrics", json.dumps(report), {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    connection.close()
    assert statuses == [422, 200]
