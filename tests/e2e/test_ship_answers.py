"""Every row of the table of answers, from outside: a real server in another process, real HTTP."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from gpu_monitor.agent.ledger import Ledger
from gpu_monitor.agent.ship import Shipper
from gpu_monitor.core.buckets import Period
from gpu_monitor.sinks.http import HttpSink, Target
from gpu_monitor.storage.database import Row, Writer
from tests.fakes.clock import FakeClock
from tests.fakes.hours import FIRST, HOUR, add_event, add_hour, make_store
from tests.fakes.server import ServerProcess, Step, make_authority

CONTRACT, TOKEN = "contract-4711", "secret-token-0815"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Bench:
    """A store, a shipper on a fake clock, and what the ledger says."""

    writer: Writer
    shipper: Shipper
    clock: FakeClock
    sink: HttpSink

    def reports(self) -> list[tuple[int, int, str]]:
        """(hour number, revision, state)."""
        rows = self.writer.rows("SELECT period, revision, state FROM reports ORDER BY period, revision")
        return [((period - FIRST) // HOUR, revision, state) for period, revision, state in rows]

    def attempts(self) -> list[Row]:
        return self.writer.rows("SELECT status, verdict FROM attempts ORDER BY id")

    def errors(self) -> list[str]:
        return [str(row[0]) for row in self.writer.rows("SELECT error FROM attempts ORDER BY id")]

    def waits(self) -> list[float]:
        """Seconds from now to the next try of each pending report."""
        now = self.clock.now()
        return [
            row[0] - now
            for row in self.writer.rows(
                "SELECT next_try FROM reports WHERE state = 'pending' ORDER BY period"
            )
        ]

    def drain(self, seconds: float) -> None:
        """Let `seconds` pass, doing what is due whenever it is."""
        end = self.clock.monotonic() + seconds
        while True:
            wait = self.shipper.run_once()
            if self.clock.monotonic() + wait >= end:
                self.clock.advance(max(0.0, end - self.clock.monotonic()))
                return
            self.clock.advance(max(wait, 0.001))


def bench(
    folder: Path,
    url: str,
    *,
    hours: int = 1,
    token: str | None = TOKEN,
    timeout: float = 2.0,
    ca_file: Path | None = None,
    stop: threading.Event | None = None,
) -> Bench:
    writer = make_store(folder)
    for number in range(hours):
        add_hour(writer, number)
    clock = FakeClock(FIRST + hours * HOUR + 600)
    stop = stop or threading.Event()
    sink = HttpSink(Target(url, CONTRACT, ca_file, timeout), lambda: token, stop)
    shipper = Shipper(writer, Ledger(writer, CONTRACT, 300), lambda: sink, clock, stop)
    return Bench(writer, shipper, clock, sink)


@pytest.mark.parametrize(
    ("kind", "proof"), [("good", "digest"), ("echo", "echo"), ("unverified", "unverified")]
)
def test_a_proven_answer_is_an_acknowledgement(
    tmp_path: Path, server: ServerProcess, kind: str, proof: str
) -> None:
    server.behave(then=kind)
    on = bench(tmp_path, server.url)
    on.shipper.run_once()
    assert on.reports() == [(0, 1, "sent")]
    uid, body, sha, kept_proof = on.writer.rows("SELECT uid, body, sha256, proof FROM reports")[0]
    (held,) = server.held().values()
    # What the fake server calls a report: the UUIDv5 of its id among OIDs.
    expected = str(uuid.uuid5(uuid.NAMESPACE_OID, json.loads(held)["report_id"]))
    assert (uid, body, kept_proof) == (expected, None, proof)
    assert sha == hashlib.sha256(held).hexdigest()
    assert on.attempts() == [(200, "acknowledged")]


def test_what_goes_over_the_wire(tmp_path: Path, server: ServerProcess) -> None:
    on = bench(tmp_path, server.url)
    on.shipper.run_once()
    (got,) = server.received()
    assert got.faults == ()
    report = json.loads(got.body)
    assert got.headers["Authorization"] == f"Bearer {TOKEN}"
    assert got.headers["X-Contract-Number"] == CONTRACT
    assert got.headers["Content-Type"] == "application/json"
    assert got.headers["Idempotency-Key"] == report["report_id"]
    assert "Content-Encoding" not in got.headers
    assert (report["schema"], report["revision"], report["contract_number"]) == (1, 1, CONTRACT)
    assert report["aggregation_time"] == "2023-11-14T23:00:00+00:00"
    assert (report["period_seconds"], report["collection_interval_seconds"]) == (3600, 60)
    (gpu,) = report["gpus"]
    assert (gpu["uid"], gpu["source"], gpu["temperature"], gpu["energy"]) == ("GPU-1", "nvml", 50, 720000.5)


FAILURES = {
    # name: (step, status, verdict, state, (least, most) wait, a word of the error)
    "400": (Step("status", status=400, body='{"error": "no such field"}'), 400, "rejected", "rejected", None, "no such field"),
    "422": (Step("status", status=422), 422, "rejected", "rejected", None, "422"),
    "413": (Step("status", status=413), 413, "too_large", "rejected", None, "bytes"),
    "401": (Step("status", status=401), 401, "refused", "pending", (600, 600), "/api/metrics"),
    "403": (Step("status", status=403), 403, "refused", "pending", (600, 600), "403"),
    "404": (Step("status", status=404), 404, "refused", "pending", (600, 600), "/api/metrics"),
    "405": (Step("status", status=405), 405, "refused", "pending", (600, 600), "405"),
    "410": (Step("status", status=410), 410, "refused", "pending", (600, 600), "410"),
    "415 to a plain body": (Step("status", status=415), 415, "refused", "pending", (600, 600), "415"),
    "418": (Step("status", status=418), 418, "refused", "pending", (600, 600), "418"),
    "451": (Step("status", status=451), 451, "refused", "pending", (600, 600), "451"),
    "408": (Step("status", status=408), 408, "retry", "pending", (5, 10), "408"),
    "425": (Step("status", status=425), 425, "retry", "pending", (5, 10), "425"),
    "429": (Step("status", status=429), 429, "retry", "pending", (5, 10), "429"),
    "429 told": (Step("status", status=429, headers={"Retry-After": "123"}), 429, "wait", "pending", (123, 123), "wait 123 s"),
    "503": (Step("status", status=503), 503, "retry", "pending", (5, 10), "503"),
    "503 told": (Step("status", status=503, headers={"Retry-After": "90"}), 503, "wait", "pending", (90, 90), "wait 90 s"),
    "503 told nonsense": (Step("status", status=503, headers={"Retry-After": "soon"}), 503, "retry", "pending", (5, 10), "503"),
    "500": (Step("status", status=500), 500, "retry", "pending", (5, 10), "500"),
    "502 told": (Step("status", status=502, headers={"Retry-After": "99"}), 502, "retry", "pending", (5, 10), "502"),
    "504": (Step("status", status=504), 504, "retry", "pending", (5, 10), "504"),
    "507": (Step("status", status=507), 507, "retry", "pending", (5, 10), "507"),
    "wrong digest": (Step("wrong_digest"), 200, "retry", "pending", (5, 10), "sha256"),
    "wrong echo": (Step("wrong_echo"), 200, "retry", "pending", (5, 10), "echo"),
    "no uid": (Step("no_uid"), 200, "retry", "pending", (5, 10), "uid"),
    "garbage": (Step("garbage"), 200, "retry", "pending", (5, 10), "JSON"),
    "a list": (Step("list"), 200, "retry", "pending", (5, 10), "JSON"),
    "204": (Step("status", status=204, body=""), 204, "retry", "pending", (5, 10), "JSON"),
    "huge": (Step("huge"), 200, "retry", "pending", (5, 10), "too much"),
    "reset": (Step("reset"), None, "retry", "pending", (5, 10), "broke"),
    "cut": (Step("cut"), None, "retry", "pending", (5, 10), "broke"),
    "close": (Step("close"), None, "retry", "pending", (5, 10), "broke"),
    "not HTTP": (Step("binary"), None, "retry", "pending", (5, 10), "broke"),
    "hang": (Step("hang", seconds=60), None, "retry", "pending", (5, 10), "answer from 127.0.0.1"),
    "slow drip": (Step("drip", seconds=0.2), None, "retry", "pending", (5, 10), "within 1 s"),
    "slow header": (Step("slow_head", seconds=0.2), None, "retry", "pending", (5, 10), "within 1 s"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_the_table_of_answers(tmp_path: Path, server: ServerProcess, name: str) -> None:
    step, status, verdict, state, wait, word = FAILURES[name]
    before = threading.enumerate()  # other tests of this process may have left some
    server.behave(step)
    on = bench(tmp_path, server.url, timeout=1.0)
    on.shipper.run_once()
    assert on.attempts() == [(status, verdict)]
    assert on.reports() == [(0, 1, state)]
    (error,) = on.errors()
    assert word in error
    if wait is None:
        assert on.writer.value("SELECT reason FROM reports") == error
        on.drain(86_400)
        assert len(server.received()) == 1, "a rejected report is not tried again by itself"
        return
    (waited,) = on.waits()
    assert wait[0] - 1e-6 <= waited <= wait[1] + 1e-6
    on.drain(max(600.0, wait[1]) + 61)
    assert on.reports() == [(0, 1, "sent")]
    first, second = server.received()
    assert first.body == second.body, "the bytes of a report are made once"
    assert [one for one in threading.enumerate() if one not in before and one.daemon] == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(tmp_path: Path, server: ServerProcess, status: int) -> None:
    with ServerProcess(tmp_path / "other") as other:
        location = other.url.replace("127.0.0.1", "localhost")
        server.behave(Step("status", status=status, headers={"Location": location}))
        on = bench(tmp_path, server.url)
        on.shipper.run_once()
        assert on.attempts() == [(status, "retry")]
        assert "localhost" in on.errors()[0]
        assert other.received(None) == []


def test_a_redirect_without_a_readable_address(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(Step("status", status=302, headers={"Location": "http://[half/"}))
    on = bench(tmp_path, server.url)
    on.shipper.run_once()
    assert on.attempts() == [(302, "retry")]


def test_retry_after_as_a_date_and_one_from_far_ahead(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(
        Step("status", status=503, headers={"Retry-After": "99999999"}),
        Step("status", status=429, headers={"Retry-After": formatdate(4_102_444_800, usegmt=True)}),
    )
    on = bench(tmp_path, server.url)
    on.shipper.run_once()
    on.clock.advance(6 * HOUR - 1)
    on.shipper.run_once()
    assert len(server.received()) == 1, "cut to six hours, and those are kept"
    on.clock.advance(2)
    on.shipper.run_once()
    assert len(server.received()) == 2
    on.drain(6 * HOUR + 61)
    assert on.reports() == [(0, 1, "sent")]


def test_a_server_wide_wait_holds_for_all_reports_and_over_a_restart(
    tmp_path: Path, server: ServerProcess
) -> None:
    server.behave(Step("status", status=429, headers={"Retry-After": "1800"}))
    on = bench(tmp_path, server.url, hours=3)
    on.shipper.run_once()
    assert len(server.received()) == 1
    again = Shipper(on.writer, Ledger(on.writer, CONTRACT, 300), lambda: on.sink, on.clock, threading.Event())
    on.clock.advance(1799)
    again.run_once()
    assert len(server.received()) == 1
    on.clock.advance(2)
    again.run_once()
    assert on.reports() == [(0, 1, "sent"), (1, 1, "sent"), (2, 1, "sent")]


def test_a_conflict_makes_one_new_revision(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(Step("status", status=409, body='{"error": "other content", "revision": 6}'))
    on = bench(tmp_path, server.url)
    on.shipper.run_once()
    assert on.reports() == [(0, 1, "replaced"), (0, 7, "sent")]
    first, second = (json.loads(one.body) for one in server.received())
    assert first["report_id"] != second["report_id"]
    assert {**first, "report_id": "", "revision": 0} == {**second, "report_id": "", "revision": 0}


def test_a_second_conflict_is_a_rejection(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(then=Step("status", status=409))
    on = bench(tmp_path, server.url)
    on.drain(86_400)
    assert on.reports() == [(0, 1, "replaced"), (0, 2, "rejected")]
    assert len(server.received()) == 2


def test_gzip_only_once_the_server_lists_it(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(encodings=("gzip", "zstd"), options=Step("status", status=404))
    on = bench(tmp_path, server.url, hours=3)
    on.shipper.run_once()
    encodings = [one.headers.get("Content-Encoding") for one in server.received()]
    assert encodings == [None, "gzip", "gzip"]
    assert all(one.faults == () for one in server.received())
    assert len(server.held()) == 3
    second = server.received()[1]
    assert gzip.decompress(second.wire) == second.body
    assert len(second.wire) < len(second.body) / 2


def test_415_to_gzip_is_tried_again_plain_at_once(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(Step("good"), Step("status", status=415), encodings=("gzip",))
    on = bench(tmp_path, server.url, hours=3)
    on.shipper.run_once()
    assert [one.headers.get("Content-Encoding") for one in server.received()] == ["gzip", "gzip", None, None]
    assert [state for _, _, state in on.reports()] == ["sent"] * 3
    assert on.attempts()[1] == (415, "uncompressed")
    assert on.writer.rows("SELECT attempts, spent FROM reports ORDER BY period")[1] == (2, 1)


def test_options_is_asked_once(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(encodings=("gzip",))
    on = bench(tmp_path, server.url, hours=2)
    on.shipper.run_once()
    add_hour(on.writer, 2)
    on.clock.advance(HOUR)
    on.shipper.run_once()
    methods = [one.method for one in server.received(None)]
    assert methods == ["OPTIONS", "POST", "POST", "POST"]
    assert server.received()[0].headers["Content-Encoding"] == "gzip"


@pytest.mark.parametrize(
    "step",
    [
        Step("status", status=404),
        Step("status", status=405),
        Step("status", status=500),
        Step("status", status=302, headers={"Location": "http://example.invalid/"}),
        Step("status", status=200, body='{"accepts": {"encodings": "gzip", "batch": 7}}'),
        Step("status", status=200, body='{"accepts": []}'),
        Step("garbage"),
        Step("list"),
        Step("huge"),
        Step("reset"),
        Step("close"),
        Step("binary"),
    ],
    ids=lambda step: f"{step.kind}-{step.status}-{step.body}",
)
def test_whatever_options_gives_reports_still_go(tmp_path: Path, server: ServerProcess, step: Step) -> None:
    server.behave(options=step)
    on = bench(tmp_path, server.url)
    on.shipper.run_once()
    assert on.reports() == [(0, 1, "sent")]
    assert "Content-Encoding" not in server.received()[0].headers


def test_batches_where_the_server_takes_them(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(batch="/api/batch", encodings=("gzip",))
    on = bench(tmp_path, server.url, hours=70)
    on.shipper.run_once()
    # The first send learns what the server takes before it is made, so it is one report.
    assert [len(one.ids) for one in server.received()] == [1, 64, 5]
    assert [one.path for one in server.received()] == ["/api/metrics", "/api/batch", "/api/batch"]
    assert {state for _, _, state in on.reports()} == {"sent"}
    held = {row[0]: row[1] for row in on.writer.rows("SELECT report_id, sha256 FROM reports")}
    assert held == {key: hashlib.sha256(body).hexdigest() for key, body in server.held().items()}
    assert on.writer.rows("SELECT DISTINCT proof FROM reports") == [("digest",)]


def test_each_report_of_a_batch_is_judged_by_itself(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(
        "good", Step("good", each=("good", "400", "wrong_digest", "echo", "503", "no_uid")), batch="/batch"
    )
    on = bench(tmp_path, server.url, hours=8)
    on.drain(120)
    verdicts = [row[0] for row in on.writer.rows("SELECT verdict FROM attempts WHERE number = 1 ORDER BY id")]
    assert verdicts == [
        "acknowledged", "acknowledged", "rejected", "retry", "acknowledged", "retry", "retry", "acknowledged",
    ]  # fmt: skip
    states = [state for _, _, state in on.reports()]
    assert states == ["sent", "sent", "rejected", "sent", "sent", "sent", "sent", "sent"]


@pytest.mark.parametrize("kind", ["misordered", "short", "garbage", "huge"])
def test_a_batch_that_is_answered_wrong_goes_singly_afterwards(
    tmp_path: Path, server: ServerProcess, kind: str
) -> None:
    server.behave("good", kind, batch="/batch")
    on = bench(tmp_path, server.url, hours=6)
    on.drain(300)
    assert {state for _, _, state in on.reports()} == {"sent"}
    sizes = [len(one.ids) for one in server.received()]
    assert sizes[:2] == [1, 5]
    assert set(sizes[2:]) <= {1}


def test_413_halves_a_batch_and_rejects_a_single_report(tmp_path: Path, server: ServerProcess) -> None:
    on = bench(tmp_path, server.url, hours=9)
    with on.writer.transaction() as connection:
        # Hour 5 tells of a thousand events: about 150 kB.
        connection.executemany(
            "INSERT INTO events (time, node, kind, severity, message) VALUES (?, 1, 'xid', 'info', ?)",
            [(FIRST + 5 * HOUR + n, "x" * 60) for n in range(1000)],
        )
    server.behave(batch="/batch", max_bytes=20_000)
    on.drain(60)
    assert [state for _, _, state in on.reports()] == ["sent"] * 5 + ["rejected"] + ["sent"] * 3
    refused = [len(one.ids) for one in server.received() if one.status == 413]
    assert refused[:2] == [8, 4], refused
    assert refused[-1] == 1
    (reason,) = (row[0] for row in on.writer.rows("SELECT reason FROM reports WHERE state = 'rejected'"))
    assert "bytes" in reason
    spent = on.writer.rows("SELECT max(spent) FROM reports")
    assert spent == [(1,)], "being in a batch that was too large is not held against a report"


@pytest.mark.parametrize("status", [400, 404, 405, 409, 415, 422, 501])
def test_a_batch_refused_as_a_whole_says_nothing_about_its_reports(
    tmp_path: Path, server: ServerProcess, status: int
) -> None:
    server.behave("good", Step("status", status=status), batch="/batch")
    on = bench(tmp_path, server.url, hours=5)
    on.shipper.run_once()
    assert {state for _, _, state in on.reports()} == {"sent"}
    assert [len(one.ids) for one in server.received()] == [1, 4, 1, 1, 1, 1]


def test_a_batch_address_elsewhere_never_gets_the_token(tmp_path: Path, server: ServerProcess) -> None:
    with ServerProcess(tmp_path / "other") as other:
        server.behave(batch=other.url)
        on = bench(tmp_path, server.url, hours=3)
        on.shipper.run_once()
        assert {state for _, _, state in on.reports()} == {"sent"}
        assert other.received(None) == []


def test_a_late_fact_makes_a_new_revision_and_the_server_keeps_the_highest(
    tmp_path: Path, server: ServerProcess
) -> None:
    on = bench(tmp_path, server.url, hours=2)
    on.shipper.run_once()
    add_event(on.writer, Period(FIRST, HOUR))
    on.shipper.run_once()
    assert on.reports() == [(0, 1, "sent"), (0, 2, "sent"), (1, 1, "sent")]
    newest = [json.loads(body) for body in server.newest().values()]
    assert sorted((len(report["events"]), report["revision"]) for report in newest) == [(0, 1), (1, 2)]


def test_tls_is_verified_and_the_ca_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    good, bad = make_authority(tmp_path / "good"), make_authority(tmp_path / "bad")
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(bad.ca_file.read_bytes())
    with ServerProcess(tmp_path, authority=good) as server:
        on = bench(tmp_path, server.url, ca_file=ca_file)
        on.shipper.run_once()
        assert on.attempts() == [(None, "unreachable")]
        assert "not trusted" in on.errors()[0]
        assert server.received(None) == []
        ca_file.write_bytes(good.ca_file.read_bytes() + b"\n")
        on.drain(30)
        assert on.reports() == [(0, 1, "sent")]
        add_hour(on.writer, 1)
        on.clock.advance(HOUR)
        ca_file.write_bytes(bad.ca_file.read_bytes() + b"\n\n")
        on.shipper.run_once()
        assert on.reports()[1] == (1, 1, "pending")
        ca_file.unlink()
        on.drain(15)
        assert "ca_file" in on.errors()[-1]


def test_the_system_authorities_do_not_know_a_throw_away_one(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, authority=make_authority(tmp_path / "ca")) as server:
        on = bench(tmp_path, server.url)
        on.shipper.run_once()
        assert on.attempts() == [(None, "unreachable")]
        assert server.received(None) == []


def test_neither_token_nor_contract_is_said_or_kept(
    tmp_path: Path, server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = json.dumps({"error": f"token {TOKEN} of {CONTRACT} is unknown\x1b[31m\n| 1"})
    server.behave(Step("status", status=401, body=told), Step("status", status=400, body=told))
    on = bench(tmp_path, server.url + "?key=query-secret", hours=1)
    on.drain(700)
    said = (
        caplog.text
        + repr(on.writer.rows("SELECT * FROM attempts"))
        + repr(on.writer.rows("SELECT reason FROM reports"))
    )
    for secret in (TOKEN, CONTRACT, "query-secret", "\x1b"):
        assert secret not in said
    assert "is unknown" in said


def test_a_password_in_netrc_does_not_take_the_place_of_the_token(
    tmp_path: Path, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    on = bench(tmp_path, server.url)
    on.shipper.run_once()
    assert server.received()[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_a_changed_token_counts_at_the_next_try(tmp_path: Path, server: ServerProcess) -> None:
    server.behave(token="new-token")
    on = bench(tmp_path, server.url)
    tokens = ["old-token"]
    sink = HttpSink(Target(server.url, CONTRACT), lambda: tokens[0], threading.Event())
    shipper = Shipper(on.writer, Ledger(on.writer, CONTRACT, 300), lambda: sink, on.clock, threading.Event())
    shipper.run_once()
    assert on.attempts() == [(401, "refused")]
    tokens[0] = "new-token"
    on.clock.advance(601)
    shipper.run_once()
    assert on.reports() == [(0, 1, "sent")]


def test_a_proxy_of_the_environment_is_used(
    tmp_path: Path, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy gets the whole address in the request line; our server stands in for one.
    monkeypatch.setenv("http_proxy", server.url.rsplit("/api", 1)[0])
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    on = bench(tmp_path, "http://central.invalid/api/metrics")
    on.shipper.run_once()
    assert on.reports() == [(0, 1, "sent")]
    assert server.received()[0].path == "http://central.invalid/api/metrics"


def test_no_proxy_is_respected(
    tmp_path: Path, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    on = bench(tmp_path, server.url)
    on.shipper.run_once()
    assert on.reports() == [(0, 1, "sent")]


def test_a_closed_port_is_unreachable(tmp_path: Path, server: ServerProcess) -> None:
    on = bench(tmp_path, server.url, hours=3)
    server.stop()
    on.drain(30)
    assert set(on.attempts()) == {(None, "unreachable")}
    assert "refused" in on.errors()[0]
    assert on.writer.rows("SELECT attempts > 0 FROM reports ORDER BY period") == [(1,), (0,), (0,)]
    server.start()
    on.drain(700)
    assert {state for _, _, state in on.reports()} == {"sent"}


def test_tls_to_a_plain_server_is_unreachable(tmp_path: Path, server: ServerProcess) -> None:
    on = bench(tmp_path, server.url.replace("http:", "https:"))
    on.shipper.run_once()
    assert on.attempts() == [(None, "unreachable")]
    assert "TLS" in on.errors()[0]


def test_a_port_that_takes_connections_and_says_nothing(tmp_path: Path) -> None:
    before = threading.enumerate()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for scheme in ("http", "https"):
            (tmp_path / scheme).mkdir()
            on = bench(tmp_path / scheme, f"{scheme}://127.0.0.1:{port}/", timeout=0.5)
            on.shipper.run_once()
            ((status, verdict),) = on.attempts()
            assert status is None
            assert verdict in ("retry", "unreachable")
    assert [one for one in threading.enumerate() if one not in before] == []


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:port/",
        "http://a..b/",
        "http://" + "a" * 300 + "/",
        "http://\udcff/",
        "http://?key=1",
        "http://no-such-host.invalid/",
    ],
)
def test_an_address_that_cannot_be_used_raises_nothing(tmp_path: Path, url: str) -> None:
    on = bench(tmp_path, url)
    on.shipper.run_once()
    assert on.attempts() == [(None, "unreachable")]
    assert on.errors()[0]


@pytest.mark.parametrize(
    "proxy", ["http://", "nonsense://127.0.0.1:1", "http://127.0.0.1:9", "socks5://127.0.0.1:9"]
)
def test_a_proxy_that_does_not_work_is_named(
    tmp_path: Path, server: ServerProcess, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    on = bench(tmp_path, "http://central.invalid/api/metrics")
    on.shipper.run_once()
    assert on.attempts() == [(None, "unreachable")]
    assert "proxy" in on.errors()[0]
