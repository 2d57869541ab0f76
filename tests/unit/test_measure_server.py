"""`scripts/bench server` and the soak around what they measure: arguments, the page, what a load says of itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.measure import server_bench
from tests.measure.bench import PAGE
from tests.measure.figures import Figure
from tests.measure.machine import Machine
from tests.measure.server_ledger import Ledger, Parcel
from tests.measure.server_load import Outcome, Reply, Template, node_id

MACHINE = Machine("2026-01-02 03:04 UTC", "CPU", 2, 16.0, "Linux 6", "3.11.7", "3.40.1", "0.1 0.1 0.1", 1.04)


def test_the_whole_measure_alone_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert server_bench.read_arguments(["--write"]).parts == list(server_bench.PARTS)
    assert server_bench.read_arguments(["--only", "ingest,year"]).parts == ["ingest", "year"]
    for wrong in (["--write", "--quick"], ["--write", "--only", "year"], ["--only", "nothing"]):
        with pytest.raises(SystemExit):
            server_bench.read_arguments(wrong)
    assert "--write wants the whole measure" in capsys.readouterr().err


def test_every_part_is_there() -> None:
    assert [name for name in server_bench.PARTS if not callable(getattr(server_bench.Bench, name))] == []


def test_the_page_has_its_place_and_the_agents_part_stays(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    server_bench.write(
        page, MACHINE, [Figure("rate", 1000, 1234.0, "a second", 0, at_least=True)], ["year: no room"]
    )
    text = page.read_text(encoding="utf-8")
    assert "| rate | ≥ 1,000 a second | 1,234 a second | yes |" in text
    assert "- year: no room" in text
    assert text.count("- date: 2026-01-02 03:04 UTC") == 1
    before = PAGE.read_text(encoding="utf-8").partition("## The server")[0]
    assert text.startswith(before)


def test_a_template_tells_of_other_nodes_and_hours() -> None:
    entry = {"uid": "SIM-1", "source": "simulated", "serial": "1", "power_usage": 1.5}
    report = {
        "schema": 1,
        "node": {"id": "x", "hostname": "h", "simulated": True},
        "gpus": [entry, entry],
        "host": None,
    }
    template = Template(report)
    known, body = template.body(7, 472_222)
    assert known.encode() in body
    assert body.count(node_id(7).encode()) == 4, "the node's id, its name, and the uids of two GPUs"
    assert b'"aggregation_time":"2023-11-14T22:00:00+00:00"' in body
    assert template.body(8, 472_222)[0] != known
    assert b"SIM-" not in body


def test_an_outcome_counts_what_must_not_be() -> None:
    outcome = Outcome()
    assert math.isnan(outcome.at(0.5))
    for number, reply in enumerate(
        [Reply(200, b"", None), Reply(503, b"", 2.0), Reply(503, b"", None), Reply(500, b"", None)]
    ):
        outcome.note(reply, 0.001 * (number + 1))
    assert outcome.faults == 2, "503 with Retry-After is no fault"
    assert outcome.statuses == {200: 1, 503: 2, 500: 1}
    assert outcome.at(0.5) == 0.003
    assert outcome.at(0.99) == 0.004


def test_a_ledger_complains_of_answers_that_must_not_be() -> None:
    ledger, parcel = Ledger(), Parcel("n", 1, 2, "id", b"body")
    right = {"uid": "u", "sha256": parcel.digest.hex(), "outcome": "stored", "revision": 2}
    ledger.note(parcel, right, repeats=False)
    ledger.note(parcel, {**right, "outcome": "repeated"}, repeats=True)
    assert ledger.wrong == []
    ledger.note(parcel, right, repeats=True)
    ledger.note(parcel, {**right, "uid": "v", "outcome": "repeated"}, repeats=True)
    ledger.note(parcel, {**right, "sha256": "00"}, repeats=False)
    ledger.note(
        Parcel("n", 1, 1, "other", b"older"),
        {**right, "sha256": parcel.digest.hex(), "revision": 1},
        repeats=False,
    )
    assert len(ledger.wrong) == 5
    assert ledger.newest() == {("n", 1): parcel}
