"""The comparison of a killed agent with its twin finds what is wrong, and nothing where all is right."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpu_monitor.agent.collect import Absence
from gpu_monitor.agent.ledger import Ledger
from gpu_monitor.core.outcome import Outcome, Verdict
from gpu_monitor.storage.database import Writer
from tests.fakes.server import Received
from tests.measure import twin
from tests.measure.made import Life, Made, make_store

START, HOURS, GPUS = 1_710_892_800, 3, 2
END = START + HOURS * 3600
KILLED, BACK = START + 3600 + 600, START + 3600 + 1500
"""The other agent gave nothing from minute 10 to minute 25 of the second hour."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with a hole that is on record, its hours delivered; and its twin's without one."""
    folder = tmp_path_factory.mktemp("twins")
    with make_store(folder / "twin.db", START, Life(GPUS, START, seed=3)) as made:
        made.extend(END)
    with make_store(folder / "killed.db", START, Life(GPUS, START, seed=3)) as made:
        made.extend(KILLED)
        made.store.record(absences=[Absence(float(KILLED), float(BACK), "agent killed")])
        made.life = Life(GPUS, BACK - 60, seed=3)
        made.life.next()  # what came before the agent was back
        made.extend(END)
        deliver(made)
    return folder / "killed.db", folder / "twin.db"


def deliver(made: Made) -> None:
    ledger = Ledger(made.writer, "12345", 5)
    for (report,) in made.writer.rows("SELECT id FROM reports ORDER BY period"):
        failed = ledger.begin([report], float(END), 1 << 20)
        ledger.finish(
            failed, [Outcome(Verdict.RETRY, status=500, error="HTTP 500")], float(END), lambda *_: 1.0
        )
        tried = ledger.begin([report], float(END + 10), 1 << 20)
        outcome = Outcome(Verdict.ACKNOWLEDGED, status=200, uid="uid", proof="digest")
        ledger.finish(tried, [outcome], float(END + 11), lambda *_: None)


def bodies(store: Path) -> dict[str, bytes]:
    """What a server holds that took every report: built from the store, as the ledger froze them."""
    from gpu_monitor.agent import reports
    from gpu_monitor.core.buckets import Period
    from gpu_monitor.wire import telemetry

    held = {}
    with twin.opened(store) as connection:
        for report_id, period, revision in connection.execute(
            "SELECT report_id, period, revision FROM reports"
        ).fetchall():
            built = reports.build(
                connection,
                1,
                Period(period, 3600),
                report_id=report_id,
                revision=revision,
                contract_number="12345",
            )
            held[report_id] = telemetry.encode(built)
    return held


def received(held: dict[str, bytes], times: int = 2) -> list[Received]:
    """The requests that brought them: each `times` times, as the ledger of `deliver` says."""
    return [
        Received(number, "POST", "/", {}, body, body, (report_id,), ("stored",), "good", 200, (), number)
        for number, (report_id, body) in enumerate(list(held.items()) * times)
    ]


@pytest.fixture
def broken(stores: tuple[Path, Path], tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a copy of the store with a hole, changed by one statement."""

    def change(statement: str) -> Path:
        copy = tmp_path / "broken.db"
        shutil.copyfile(stores[0], copy)
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute(statement).rowcount > 0, "the statement changed nothing"
            connection.commit()
        return copy

    yield change


CAUSES = ["agent killed"]


def test_a_store_that_is_right_is_found_right(stores: tuple[Path, Path]) -> None:
    store, other = stores
    held = bodies(store)
    assert len(held) == HOURS
    assert twin.check_integrity(store) == []
    assert twin.check_rows(store, other, START, END) == []
    assert twin.check_seconds(store, START, END) == []
    assert twin.check_gaps(store, CAUSES, START, END) == []
    assert twin.check_hours(store, other) == []
    assert twin.check_ledger(store, START, END) == []
    assert twin.check_server(store, held, received(held)) == []
    assert twin.check_bytes(store, held) == []
    present = {start for start, _ in twin.rows_of(store)}
    assert present == set(range(START, END, 60)) - set(range(KILLED, BACK, 60))


def in_minute(minute: int) -> str:
    return f"id >> 20 = {START + minute * 60}"


def test_a_row_that_differs_from_the_twins_is_found(
    stores: tuple[Path, Path], broken: Callable[[str], Path]
) -> None:
    store = broken(
        f"UPDATE samples_raw SET power_usage = power_usage + 1 WHERE {in_minute(5)} AND id & 65535 = 1"
    )
    (wrong,) = twin.check_rows(store, stores[1], START, END)
    assert str(START + 300) in wrong
    assert "differs from the twin's" in wrong


def test_a_row_that_covers_more_than_its_interval_is_found(
    stores: tuple[Path, Path], broken: Callable[[str], Path]
) -> None:
    store = broken(f"UPDATE samples_raw SET seconds = 601 WHERE {in_minute(5)} AND id & 65535 = 2")
    assert [wrong.endswith("covers 60.1 s") for wrong in twin.check_rows(store, stores[1], START, END)] == [
        True
    ]


def test_a_twin_with_a_hole_is_no_twin(stores: tuple[Path, Path]) -> None:
    store, other = stores
    wrong = twin.check_rows(other, store, START, END)
    assert len(wrong) == 6
    assert wrong[0].startswith("the twin itself lacks")
    assert wrong[-1] == f"... and {(BACK - KILLED) // 60 * GPUS - 5} more like these"


@pytest.mark.parametrize(
    "statement",
    [
        f"DELETE FROM samples_raw WHERE {in_minute(70 - 40)}",
        f'UPDATE gaps SET "end" = {BACK - 60}',
        f"UPDATE gaps SET start = {KILLED + 30}",
        f"INSERT INTO gaps (node, uid, start, \"end\", cause) VALUES (1, NULL, {START + 60}, {START + 61}, 'agent killed')",
        'UPDATE gaps SET "end" = NULL',
    ],
    ids=["row gone", "gap ends early", "gap begins late", "gap where a row is", "gap left open"],
)
def test_seconds_that_are_nowhere_or_twice_are_found(broken: Callable[[str], Path], statement: str) -> None:
    assert twin.check_seconds(broken(statement), START, END) != []


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE gaps SET cause = 'agent stopped'", "has another cause"),
        (
            f"INSERT INTO gaps (node, uid, start, \"end\", cause) VALUES (1, NULL, {KILLED + 60}, {BACK}, 'agent killed')",
            "overlaps",
        ),
        (f"DELETE FROM samples_raw WHERE {in_minute(30)}", f"the missing minute {START + 1800} lies in []"),
        (f"UPDATE gaps SET start = {KILLED + 120}", f"the missing minute {KILLED} lies in []"),
    ],
    ids=["cause", "overlap", "no gap", "part of a gap"],
)
def test_gaps_that_are_wrong_are_found(broken: Callable[[str], Path], statement: str, said: str) -> None:
    assert said in "\n".join(twin.check_gaps(broken(statement), CAUSES, START, END))


def test_a_minute_may_be_split_where_an_agent_started_and_nowhere_else(broken: Callable[[str], Path]) -> None:
    split = KILLED + 90
    store = broken(f'UPDATE gaps SET "end" = {split}')
    with closing(sqlite3.connect(store)) as connection:
        connection.execute(
            'INSERT INTO gaps (node, uid, start, "end", cause) VALUES (1, NULL, ?, ?, ?)',
            (split, BACK, CAUSES[0]),
        )
        connection.commit()
        assert f"the missing minute {KILLED + 60}" in "\n".join(twin.check_gaps(store, CAUSES, START, END))
        connection.execute("INSERT INTO runs (started, interval_seconds) VALUES (?, 60)", (split,))
        connection.commit()
    assert twin.check_gaps(store, CAUSES, START, END) == []
    assert twin.check_seconds(store, START, END) == []


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            f"UPDATE aggregates SET temperature = temperature + 1 WHERE period = {START}",
            "differs from the twin's",
        ),
        (f"UPDATE aggregates SET coverage = 0.9 WHERE period = {START + 3600}", "says coverage 0.9"),
    ],
    ids=["value", "coverage"],
)
def test_hours_that_are_wrong_are_found(
    stores: tuple[Path, Path], broken: Callable[[str], Path], statement: str, said: str
) -> None:
    assert said in "\n".join(twin.check_hours(broken(statement), stores[1]))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (f"DELETE FROM reports WHERE period = {START}", f"the hour {START} is missing"),
        (f"UPDATE reports SET state = 'parked' WHERE period = {START}", f"the hour {START} is parked"),
        (
            "INSERT INTO attempts (report, number, started, verdict) VALUES (1, 3, 0, 'acknowledged')",
            "was sent again after it was acknowledged",
        ),
        (
            "INSERT INTO attempts (report, number, started, verdict) VALUES (1, 3, 0, 'retry')",
            "was sent again after it was acknowledged",
        ),
        ("UPDATE attempts SET verdict = 'retry' WHERE report = 2", "is sent with 0 acknowledgements"),
        ("UPDATE attempts SET verdict = NULL WHERE id = 1", "has no end"),
        ("UPDATE attempts SET status = 409 WHERE id = 1", "conflict"),
    ],
    ids=["no report", "parked", "twice", "after", "unproved", "open", "conflict"],
)
def test_a_ledger_that_is_wrong_is_found(broken: Callable[[str], Path], statement: str, said: str) -> None:
    assert said in "\n".join(twin.check_ledger(broken(statement), START, END))


def test_a_server_that_disagrees_is_found(stores: tuple[Path, Path]) -> None:
    store, held = stores[0], bodies(stores[0])
    first = next(iter(held))
    less = {report_id: body for report_id, body in held.items() if report_id != first}
    assert f"{first} is sent and not at the server" in twin.check_server(store, less, [])
    assert f"the server holds other bytes of {first}" in twin.check_server(
        store, {**held, first: held[first] + b" "}, []
    )
    more = {**held, "unknown": held[first].replace(b'"revision":1', b'"revision":2')}
    assert "the server holds unknown, which the ledger does not know" in twin.check_server(store, more, [])
    thrice = twin.check_server(store, held, received(held, 3))
    assert len(thrice) == HOURS
    assert all("came 3 times" in wrong for wrong in thrice)


@pytest.mark.parametrize(
    "changed", [{"outcomes": ("conflict",)}, {"status": 409}, {"faults": ("wrong Content-Digest",)}], ids=str
)
def test_requests_that_were_wrong_are_found(stores: tuple[Path, Path], changed: dict[str, object]) -> None:
    held = bodies(stores[0])
    whole = received(held)
    bad = Received(**{**whole[0].__dict__, **changed})
    assert len(twin.check_server(stores[0], held, [bad, *whole[1:]])) == 1


def test_a_report_that_says_other_than_the_store_is_found(
    stores: tuple[Path, Path], broken: Callable[[str], Path]
) -> None:
    store = broken(f"UPDATE aggregates SET power_usage = power_usage + 1 WHERE period = {START + 7200}")
    assert twin.check_bytes(store, bodies(stores[0])) == [f"the hour {START + 7200} in revision 1"]


def test_a_damaged_file_is_found(broken: Callable[[str], Path]) -> None:
    store = broken("UPDATE meta SET value = 1 WHERE key = 'data_end'")
    writer = Writer(store)
    root = writer.value("SELECT rootpage FROM sqlite_master WHERE name = 'events_time'")
    writer.close()
    content = bytearray(store.read_bytes())
    content[(root - 1) * 4096 + 3 : (root - 1) * 4096 + 5] = (0).to_bytes(
        2, "big"
    )  # an index that lost its entries
    store.write_bytes(content)
    assert twin.check_integrity(store) != []
