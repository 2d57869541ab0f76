"""A process that ships is killed at random instants while the server misbehaves: nothing lost, nothing twice."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpu_monitor.agent.reports import build
from gpu_monitor.core.buckets import Period
from gpu_monitor.storage.database import Writer
from gpu_monitor.wire.telemetry import content_digest, decode
from tests.fakes.hours import FIRST, HOUR, add_event, add_hour, make_store
from tests.fakes.server import ServerProcess, Step

SCRIPT = Path(__file__).with_name("shipping.py")
KILLS = 20
FAULTS = (
    "good", "good", "reset", "cut", "close", "wrong_digest", "garbage", "drip",
    Step("status", status=500), Step("status", status=429, headers={"Retry-After": "2"}),
    Step("status", status=409), Step("hang", seconds=5), Step("reset", stored=False),
)  # fmt: skip


@contextmanager
def shipping(store: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    """The process, shipping; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(store), url, "2000"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for(condition: object, seconds: float = 60.0) -> None:
    """Until `condition()` is true; it is told by another process, so it is looked at every few milliseconds."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.005)


def unsettled(writer: Writer) -> int:
    return int(writer.value("SELECT count(*) FROM reports WHERE state IN ('pending', 'parked')"))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [None, "/batch"], ids=["single", "batches"])
def test_killed_at_random_instants(tmp_path: Path, batch: str | None) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    writer = make_store(tmp_path)
    hours = 0
    with ServerProcess(tmp_path) as server:
        for _ in range(KILLS):
            for _ in range(chance.randint(1, 6)):
                add_hour(writer, hours)
                hours += 1
            add_event(writer, Period(FIRST + chance.randrange(hours) * HOUR, HOUR), f"late {hours}")
            server.behave(*(chance.choice(FAULTS) for _ in range(8)), batch=batch)
            before = len(server.received())
            with shipping(writer.path, server.url):
                wait_for(lambda before=before: len(server.received()) > before or not unsettled(writer))
                time.sleep(chance.random() * 0.05)
        server.behave(batch=batch)
        with shipping(writer.path, server.url):
            wait_for(lambda: not unsettled(writer))
        compare(writer, server, hours)
    assert unsettled(writer) == 0
    writer.close()


def compare(writer: Writer, server: ServerProcess, hours: int) -> None:
    """The server's view and the ledger's are the same, byte for byte."""
    received, held = server.received(), server.held()
    assert [one.faults for one in received if one.faults] == []
    assert [one.ids for one in received if "conflict" in one.outcomes] == [], "other bytes under an id"
    rows = writer.rows("SELECT report_id, sha256, state FROM reports WHERE report_id IS NOT NULL")
    digests = {report_id: sha for report_id, sha, _ in rows}
    assert held.keys() <= digests.keys()
    assert {key: hashlib.sha256(body).hexdigest() for key, body in held.items()}.items() <= digests.items()
    sent = {report_id for report_id, _, state in rows if state == "sent"}
    assert sent <= held.keys()
    # A 409 that was not one (a fault above) may reject for good; everything else is delivered.
    rejected = writer.value("SELECT count(DISTINCT period) FROM reports WHERE state = 'rejected'")
    newest = {decode(body).aggregation_time: decode(body) for body in server.newest().values()}
    assert len(server.newest()) == len(newest) >= hours - rejected
    wrong = 0
    for number in range(hours):
        with writer.transaction() as connection:
            report = build(connection, 1, Period(FIRST + number * HOUR, HOUR))
        known = newest.get(report.aggregation_time)
        wrong += known is None or content_digest(known) != content_digest(report)
    assert wrong <= rejected
    attempts = dict(
        writer.rows(
            "SELECT r.report_id, count(*) FROM attempts a JOIN reports r ON r.id = a.report GROUP BY 1"
        )
    )
    tries = Counter(report_id for one in received for report_id in one.ids)
    assert all(attempts[report_id] >= count for report_id, count in tries.items()), "sent, but not on record"
    assert writer.value("SELECT count(*) FROM attempts WHERE verdict = 'interrupted'") > 0, (
        "no kill hit a send"
    )
    assert json.loads(next(iter(held.values())))["schema"] == 1
