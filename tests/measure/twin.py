"""Compares the store of an agent that was killed with its unkilled twin's, and its ledger with its server.

Each check returns what it found wrong, in words; nothing means that it holds. Stores are read with SQLite
alone; only the report's bytes are built by the program's own code, to be compared with what the server holds.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.agent import reports
from gpu_monitor.core.buckets import Period
from gpu_monitor.wire import telemetry
from tests.fakes.server import Received

INTERVAL, HOUR = 60, 3600
LOCAL = 1
WHOLE = INTERVAL * 10  # tenths of a second, as rows keep them
_SLACK = 0.35
"""Seconds by which an interrupted minute may fail to add up: a row keeps whole tenths of what each run covered."""
_MANY = 5

Key = tuple[int, str]


@dataclass(frozen=True)
class Gap:
    """A stretch without data; `end` None where it was never closed."""

    start: float
    end: float | None
    cause: str


@contextlib.contextmanager
def opened(store: Path) -> Iterator[sqlite3.Connection]:
    """The store, to read."""
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=10)) as connection:
        yield connection


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def _shown(found: list[str]) -> list[str]:
    """The first few, and how many there are."""
    return found if len(found) <= _MANY else [*found[:_MANY], f"... and {len(found) - _MANY} more like these"]


def rows_of(store: Path) -> dict[Key, tuple[int, tuple[Any, ...]]]:
    """(start, uid) to the tenths covered and all stored values; ValueError where one is there twice."""
    with opened(store) as connection:
        names = ", ".join(f"r.{name}" for name in _columns(connection, "samples_raw")[2:])
        found: dict[Key, tuple[int, tuple[Any, ...]]] = {}
        for start, uid, seconds, *values in connection.execute(
            f"SELECT r.id >> 20, g.uid, r.seconds, {names} FROM samples_raw r JOIN gpus g ON g.id = r.id & 65535"
        ):
            if (start, uid) in found:
                raise ValueError(f"two rows of {uid} at {start}")
            found[(start, uid)] = (seconds, tuple(values))
    return found


def gaps_of(store: Path) -> list[Gap]:
    """The gaps of the whole node, by start."""
    with opened(store) as connection:
        return [
            Gap(*row)
            for row in connection.execute(
                'SELECT start, "end", cause FROM gaps WHERE uid IS NULL AND node = ? ORDER BY start', (LOCAL,)
            )
        ]


def check_rows(store: Path, twin: Path, start: int, end: int) -> list[str]:
    """Every row that covers its whole interval is the twin's; the twin has every interval of [start, end)."""
    found, expected = rows_of(store), rows_of(twin)
    wrong = []
    uids = {uid for _, uid in expected}
    for key in itertools.product(range(start, end, INTERVAL), uids):
        if key not in expected or expected[key][0] != WHOLE:
            wrong.append(f"the twin itself lacks {key}")
    for key, (seconds, values) in found.items():
        if seconds > WHOLE:
            wrong.append(f"{key} covers {seconds / 10} s")
        if start <= key[0] < end and seconds == WHOLE and key in expected and expected[key][1] != values:
            wrong.append(f"{key} differs from the twin's: {values} is not {expected[key][1]}")
    return _shown(wrong)


def check_seconds(store: Path, start: int, end: int) -> list[str]:
    """Every second of [start, end) of every GPU is covered by its row or lies in a gap, and never in both."""
    rows, gaps = rows_of(store), gaps_of(store)
    wrong = [f"{gap} was never closed" for gap in gaps if gap.end is None]
    lost: dict[int, float] = {}
    for gap in gaps:
        until = gap.start if gap.end is None else gap.end
        for minute in range(int(gap.start) // INTERVAL * INTERVAL, int(until) + 1, INTERVAL):
            inside = min(until, minute + INTERVAL) - max(gap.start, minute)
            lost[minute] = lost.get(minute, 0.0) + max(0.0, inside)
    for minute in range(start, end, INTERVAL):
        for uid in {uid for _, uid in rows}:
            covered = rows.get((minute, uid), (0, ()))[0] / 10
            if abs(covered + lost.get(minute, 0.0) - INTERVAL) > _SLACK:
                wrong.append(
                    f"{minute} {uid}: {covered} s in its row and {lost.get(minute, 0.0):.1f} s in gaps"
                )
    return _shown(wrong)


def check_gaps(store: Path, causes: Iterable[str], start: int, end: int) -> list[str]:
    """Gaps have one of `causes` and do not overlap; every missing minute of [start, end) lies in exactly one.

    Only where an agent started within such a minute, and was killed before its first row, do two meet there.
    """
    gaps, allowed = gaps_of(store), set(causes)
    wrong = [f"{gap} has another cause than {sorted(allowed)}" for gap in gaps if gap.cause not in allowed]
    for before, after in itertools.pairwise(gaps):
        if before.end is None or before.end > after.start:
            wrong.append(f"{before} overlaps {after}")
    with opened(store) as connection:
        starts = {row[0] for row in connection.execute("SELECT started FROM runs")}
    present = {minute for minute, _ in rows_of(store)}
    for minute in range(start, end, INTERVAL):
        if minute in present:
            continue
        here = [gap for gap in gaps if gap.start < minute + INTERVAL and (gap.end or minute) > minute]
        met = [gap.start for gap in here[1:]]
        if not here or here[0].start > minute or not set(met) <= starts:
            wrong.append(f"the missing minute {minute} lies in {here}")
    return _shown(wrong)


def check_hours(store: Path, twin: Path) -> list[str]:
    """An hour in which nothing is missing has the twin's aggregates; the others say how much of them is there."""
    wrong = []
    with opened(store) as ours, opened(twin) as theirs:
        names = ", ".join(f'a."{name}"' for name in _columns(ours, "aggregates") if name != "gpu")
        sql = f"SELECT a.period, g.uid, {names} FROM aggregates a JOIN gpus g ON g.id = a.gpu"
        expected = {row[:2]: row for row in theirs.execute(sql)}
        covered = {
            (period, uid): seconds
            for period, uid, seconds in ours.execute(
                f"SELECT (r.id >> 20) / {HOUR} * {HOUR}, g.uid, sum(r.seconds) / 10.0 FROM samples_raw r"
                " JOIN gpus g ON g.id = r.id & 65535 GROUP BY 1, 2"
            )
        }
        coverage_at = [name.strip('a."') for name in names.split(", ")].index("coverage") + 2
        for row in ours.execute(sql):
            key, coverage = row[:2], row[coverage_at]
            if coverage == 1.0 and row != expected.get(key):
                wrong.append(f"the hour {key} differs from the twin's: {row} is not {expected.get(key)}")
            if abs(coverage - covered.get(key, 0.0) / HOUR) > 1e-3:
                wrong.append(f"the hour {key} says coverage {coverage}, its rows {covered.get(key, 0.0)} s")
    return _shown(wrong)


def check_integrity(store: Path) -> list[str]:
    """SQLite finds the file sound."""
    with opened(store) as connection:
        said = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    return [] if said == ["ok"] else _shown(said)


def check_ledger(store: Path, start: int, end: int) -> list[str]:
    """Every hour of [start, end) was delivered in its newest revision, with one acknowledgement a report."""
    wrong = []
    with opened(store) as connection:
        newest = {
            period: (state, revision)
            for period, state, revision in connection.execute(
                "SELECT period, state, max(revision) FROM reports WHERE node = ? GROUP BY period", (LOCAL,)
            )
        }
        for period in range(start, end, HOUR):
            if newest.get(period, ("missing", 0))[0] != "sent":
                wrong.append(f"the hour {period} is {newest.get(period, ('missing', 0))[0]}")
        for report, acknowledged, last in connection.execute(
            "SELECT report, sum(verdict = 'acknowledged'), max(CASE WHEN verdict = 'acknowledged' THEN number END)"
            " = max(number) FROM attempts GROUP BY report"
        ):
            row = connection.execute("SELECT state FROM reports WHERE id = ?", (report,)).fetchone()
            state = "gone" if row is None else row[0]
            if acknowledged > 1 or (acknowledged and not last):
                wrong.append(f"report {report} was sent again after it was acknowledged")
            if (state == "sent") != bool(acknowledged):
                wrong.append(f"report {report} is {state} with {acknowledged} acknowledgements")
        wrong += [
            f"attempt {row[0]} of report {row[1]} has no end"
            for row in connection.execute("SELECT id, report FROM attempts WHERE verdict IS NULL")
        ]
        wrong += [
            f"attempt {row[0]}: conflict"
            for row in connection.execute("SELECT id FROM attempts WHERE status = 409")
        ]
    return _shown(wrong)


def check_server(store: Path, held: dict[str, bytes], received: Iterable[Received]) -> list[str]:
    """Server and ledger agree: the same reports and bytes, none that the ledger does not know, no conflict."""
    wrong = []
    with opened(store) as connection:
        ledger = {
            report_id: (sha256, state, period, revision, attempts)
            for report_id, sha256, state, period, revision, attempts in connection.execute(
                "SELECT report_id, sha256, state, period, revision, attempts FROM reports WHERE report_id IS NOT NULL"
            )
        }
    for report_id, body in held.items():
        if report_id not in ledger:
            wrong.append(f"the server holds {report_id}, which the ledger does not know")
        elif hashlib.sha256(body).hexdigest() != ledger[report_id][0]:
            wrong.append(f"the server holds other bytes of {report_id}")
    wrong += [
        f"{report_id} is sent and not at the server"
        for report_id, entry in ledger.items()
        if entry[1] == "sent" and report_id not in held
    ]
    highest: dict[str, int] = {}
    for body in held.values():
        report = json.loads(body)
        highest[report["aggregation_time"]] = max(
            highest.get(report["aggregation_time"], 0), report["revision"]
        )
    sent: dict[int, int] = {}
    for _, state, period, revision, _ in ledger.values():
        if state == "sent":
            sent[period] = max(sent.get(period, 0), revision)
    if sorted(highest.values()) != sorted(sent.values()) or len(highest) != len(sent):
        wrong.append(f"the server holds {len(highest)} hours, the ledger sent {len(sent)}")
    posted: collections.Counter[str] = collections.Counter()
    for request in received:
        posted.update(request.ids)
        if "conflict" in request.outcomes or request.status == 409:
            wrong.append(f"request {request.number} was a conflict")
        if request.faults:
            wrong.append(f"request {request.number}: {', '.join(request.faults)}")
    for report_id, count in posted.items():
        if report_id not in ledger or count > ledger[report_id][4]:
            wrong.append(f"{report_id} came {count} times; the ledger knows {ledger.get(report_id)}")
    return _shown(wrong)


def check_bytes(store: Path, held: dict[str, bytes]) -> list[str]:
    """What the server holds of each hour's newest revision is what the store says of that hour, byte for byte."""
    wrong = []
    with opened(store) as connection:
        for report_id, period, seconds, revision in connection.execute(
            "SELECT report_id, period, period_seconds, max(revision) FROM reports WHERE node = ? AND state = 'sent'"
            " GROUP BY period",
            (LOCAL,),
        ).fetchall():
            contract = json.loads(held.get(report_id, b'{"contract_number": ""}'))["contract_number"]
            built = reports.build(
                connection, LOCAL, Period(period, seconds),
                report_id=report_id, revision=revision, contract_number=contract,
            )  # fmt: skip
            if telemetry.encode(built) != held.get(report_id):
                wrong.append(f"the hour {period} in revision {revision}")
    return _shown(wrong)
