"""The report's bytes: a golden file, an id worked out by hand, and the same bytes whenever it is built."""

from __future__ import annotations

import json
import sqlite3
import uuid
from pathlib import Path

import pytest

from gpu_monitor.agent.identity import establish
from gpu_monitor.agent.reports import build
from gpu_monitor.core.buckets import Period
from gpu_monitor.core.catalogue import METRICS
from gpu_monitor.core.errors import WireVersionError
from gpu_monitor.storage.database import Writer
from gpu_monitor.wire.telemetry import content_digest, decode, encode, join, report_id
from tests.fakes.hours import FIRST, HOUR, add_hour, make_store

GOLDEN = Path(__file__).parents[1] / "golden" / "report_schema_1.json"
NODE = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


def full_store(folder: Path) -> Writer:
    """One hour with everything a report can hold."""
    writer = make_store(folder, gpus=2)
    with writer.transaction() as connection:
        run = connection.execute
        run("UPDATE meta SET value = ? WHERE key = 'node_ids'", (json.dumps([[0, NODE]]),))
        run("INSERT INTO states VALUES (1, 'driver_version', ?, '550.54.15')", (FIRST,))
        run("INSERT INTO states VALUES (1, 'power_limit', ?, 700)", (FIRST,))
        run("INSERT INTO states VALUES (1, 'power_limit', ?, 500)", (FIRST + HOUR,))
        run("INSERT INTO states VALUES (1, 'power_limit', ?, 300)", (FIRST + HOUR + 60,))
        run("INSERT INTO reasons VALUES (1, 'fan_speed', ?, 'unsupported')", (FIRST + 60,))
        run("INSERT INTO reasons VALUES (1, 'temperature', ?, 'invalid')", (FIRST + 60,))
        run("INSERT INTO reasons VALUES (2, 'fan_speed', ?, 'denied')", (FIRST + 60,))
        run("INSERT INTO reasons VALUES (2, 'fan_speed', ?, NULL)", (FIRST + 120,))
        for start, end, cause in (
            (FIRST - 500, FIRST + 100, "agent killed"),
            (FIRST + 3000, None, "driver hung"),
            (FIRST - 900, FIRST, "ends where the hour begins"),
            (FIRST + HOUR, None, "begins where the hour ends"),
        ):
            run(
                'INSERT INTO gaps (node, uid, start, "end", cause) VALUES (1, NULL, ?, ?, ?)',
                (start, end, cause),
            )
        for time, text in (
            (FIRST - 0.5, "before"),
            (FIRST, "first"),
            (FIRST + 3599.25, "last"),
            (FIRST + HOUR, "after"),
        ):
            run(
                "INSERT INTO events (time, node, uid, kind, severity, message, detail)"
                " VALUES (?, 1, 'GPU-1', 'xid', 'error', ?, ?)",
                (time, text, '{"xid": 79}'),
            )
        for pid, first, last in (
            (10, FIRST - 7200, FIRST + HOUR),  # before, and on to the end
            (11, FIRST + 600, FIRST + 1200),  # within
            (12, FIRST + 3540, FIRST + 90000),  # begins, goes on
            (13, FIRST - 600, FIRST),  # last seen in the last interval of the hour before
            (14, FIRST + HOUR, FIRST + HOUR),  # seen once, in the last interval
            (15, FIRST + HOUR + 60, FIRST + HOUR + 60),  # seen in the next hour
        ):
            run(
                "INSERT INTO processes (node, uid, pid, kind, start_ticks, boot_id, ns_pid, user, command, experiment_id,"
                " first_seen, last_seen, memory, memory_max) VALUES (1, 'GPU-1', ?, 'compute', 5, 'boot', 1, 'ann', 'python',"
                " 'exp-1', ?, ?, 100, 200)",
                (pid, first, last),
            )
        run(
            "INSERT INTO host_aggregates (period, period_seconds, samples, expected_samples, coverage, seconds, cpu_utilization,"
            " cpu_utilization_min, cpu_utilization_max, load_1m) VALUES (?, 3600, 60, 60, 1, 3600, 12.34, 1, 99.96, 1.5)",
            (FIRST,),
        )
        run("UPDATE gpus SET source = 'nvml'")
    add_hour(writer, gpus=2)
    return writer


def built(writer: Writer, **named: object) -> dict[str, object]:
    with writer.transaction() as connection:
        report = build(
            connection, 1, Period(FIRST, HOUR), report_id="id", revision=3, contract_number="12345"
        )
    found = json.loads(encode(report))
    assert isinstance(found, dict)
    return found


def test_golden(tmp_path: Path) -> None:
    """A changed golden file means another report format: say why in the commit, and see docs/report.md."""
    found = built(full_store(tmp_path))
    assert json.dumps(found, indent=1, ensure_ascii=False) + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_the_parts_of_a_report_by_hand(tmp_path: Path) -> None:
    found = built(full_store(tmp_path))
    assert list(found) == [
        "schema", "report_id", "revision", "contract_number", "node", "aggregation_time", "period_seconds",
        "collection_interval_seconds", "gpus", "host", "gaps", "events", "processes",
    ]  # fmt: skip
    assert found["node"] == {
        "id": NODE, "hostname": "node-1", "simulated": False, "os": "Linux", "agent_version": "0.1.0",
        "driver_version": "550.54.15",
    }  # fmt: skip
    gaps = [(gap["start"], gap["end"], gap["seconds"], gap["cause"]) for gap in found["gaps"]]  # type: ignore[attr-defined]
    assert gaps == [
        ("2023-11-14T23:00:00+00:00", "2023-11-14T23:01:40+00:00", 100.0, "agent killed"),
        ("2023-11-14T23:50:00+00:00", "2023-11-15T00:00:00+00:00", 600.0, "driver hung"),
    ]
    assert [event["message"] for event in found["events"]] == ["first", "last"]  # type: ignore[attr-defined]
    assert found["events"][1]["time"] == "2023-11-14T23:59:59.250+00:00"  # type: ignore[index]
    assert found["events"][0]["detail"] == {"xid": 79}  # type: ignore[index]
    seen = {
        one["pid"]: (one["first_seen"][11:19], one["last_seen"][11:19], one["ended"], one["memory"])
        for one in found["processes"]  # type: ignore[attr-defined]
    }
    assert seen == {
        10: ("21:00:00", "00:00:00", False, None),
        11: ("23:10:00", "23:20:00", True, 100),
        12: ("23:59:00", "00:00:00", False, None),
        14: ("00:00:00", "00:00:00", False, None),
    }
    first, second = found["gpus"]  # type: ignore[misc]
    assert first["power_limit"] == 500, "the state at the period's end"
    assert first["reasons"] == {"fan_speed": "unsupported"}, "temperature has a value, so it needs no reason"
    assert second["reasons"] == {}
    assert (first["temperature"], first["temperature_min"], first["temperature_max"]) == (50, 49, 51)
    assert first["memory_used"] == 1073741824
    assert first["source"] == "nvml"
    assert set(first) >= {metric.name for metric in METRICS}
    assert found["host"]["cpu_utilization"] == 12.3  # type: ignore[index]
    assert found["host"]["cpu_utilization_max"] == 100  # type: ignore[index]


def test_later_rows_of_other_times_change_no_byte(tmp_path: Path) -> None:
    writer = full_store(tmp_path)
    before = built(writer)
    with writer.transaction() as connection:
        run = connection.execute
        # The hung driver comes back, processes go on, the agent is restarted as a newer version elsewhere.
        run('UPDATE gaps SET "end" = ? WHERE "end" IS NULL', (FIRST + 2 * HOUR,))
        run(
            "UPDATE processes SET last_seen = last_seen + 7200, memory = 7, memory_max = 900 WHERE pid IN (10, 12)"
        )
        run("INSERT INTO states VALUES (1, 'driver_version', ?, '560')", (FIRST + HOUR + 1,))
        run("INSERT INTO reasons VALUES (2, 'fan_speed', ?, 'lost')", (FIRST + HOUR + 1,))
        run(
            "INSERT INTO runs (started, version, interval_seconds, hostname, os) VALUES (?, '9', 10, 'other', 'Plan 9')",
            (FIRST + HOUR + 5,),
        )
        run("UPDATE nodes SET name = 'renamed'")
    establish(writer, "another machine", FIRST + 3 * HOUR)
    assert built(writer) == before


def test_a_node_is_simulated_where_any_source_is(tmp_path: Path) -> None:
    writer = full_store(tmp_path)
    for source, expected in (("replay", True), ("simulated", True), ("import", False), ("nvml", False)):
        with writer.transaction() as connection:
            connection.execute("UPDATE gpus SET source = ? WHERE id = 2", (source,))
        assert built(writer)["node"]["simulated"] is expected  # type: ignore[index]


def test_a_damaged_detail_is_sent_as_text(tmp_path: Path) -> None:
    writer = full_store(tmp_path)
    with writer.transaction() as connection:
        connection.execute("UPDATE events SET detail = '{half' WHERE message = 'first'")
    assert built(writer)["events"][0]["detail"] == "{half"  # type: ignore[index]


def test_the_report_id_is_the_documented_uuid() -> None:
    # RFC 9562: UUIDv5 of the name space and the text, as docs/report.md says.
    space = uuid.uuid5(uuid.NAMESPACE_DNS, "reports.gpu-monitor")
    expected = str(uuid.uuid5(space, f"{NODE}/1700002800/3600/2"))
    assert report_id(NODE, 1_700_002_800, 3600, 2) == expected


def test_content_is_what_is_told_and_not_how_it_is_numbered(tmp_path: Path) -> None:
    writer = full_store(tmp_path)
    with writer.transaction() as connection:
        one = build(connection, 1, Period(FIRST, HOUR), report_id="a", revision=1, contract_number="1")
        two = build(connection, 1, Period(FIRST, HOUR), report_id="b", revision=2, contract_number="2")
        connection.execute("UPDATE aggregates SET temperature = 51 WHERE gpu = 1")
        three = build(connection, 1, Period(FIRST, HOUR), report_id="a", revision=1, contract_number="1")
    assert encode(one) != encode(two)
    assert content_digest(one) == content_digest(two) != content_digest(three)


def test_decode_reads_what_encode_wrote_and_more_fields(tmp_path: Path) -> None:
    writer = full_store(tmp_path)
    with writer.transaction() as connection:
        report = build(connection, 1, Period(FIRST, HOUR))
    assert decode(encode(report)) == report
    assert decode(encode(report)[:-1] + b',"new_field":1}') == report


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"schema":1}', b'{"schema":2}', b"\xff", b"[" * 100_000]
)
def test_decode_refuses_what_is_no_report(body: bytes) -> None:
    with pytest.raises(WireVersionError):
        decode(body)


def test_a_batch_holds_the_exact_bytes() -> None:
    assert join([b'{"a": 1}', b"{}"]) == b'{"reports":[{"a": 1},{}]}'


def test_the_sqlite_here_takes_bare_columns_from_the_row_with_the_maximum() -> None:
    """States and sends rest on this documented property (sqlite.org/lang_select.html#bareagg)."""
    found = sqlite3.connect(":memory:")
    try:
        found.execute("CREATE TABLE t (k, v, s)")
        found.executemany(
            "INSERT INTO t VALUES (?, ?, ?)", [("a", "old", 1), ("a", "new", 2), ("a", "mid", 1.5)]
        )
        assert found.execute("SELECT k, v, max(s) FROM t GROUP BY k").fetchall() == [("a", "new", 2)]
    finally:
        found.close()
