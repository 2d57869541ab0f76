"""Asking for reports to be sent again: rejected and parked ones, acknowledged ones, and imported history."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gpu_monitor.agent.ledger import add_revision
from gpu_monitor.agent.reports import LOCAL_NODE, has_content
from gpu_monitor.agent.ship import RESEND_KEY
from gpu_monitor.core.buckets import Period
from gpu_monitor.storage.database import Reader, Writer

_BATCH = 200
"""Periods per transaction: about 10 ms, so that the agent's samples do not wait."""


@dataclass(frozen=True)
class Owed:
    """The newest report of a period. `report` and `state` are None where it was never to be sent."""

    period: Period
    report: int | None
    state: str | None
    reason: str | None


def find(store: Reader | Writer, node: int, start: float, end: float, states: Collection[str]) -> list[Owed]:
    """Periods that touch [start, end] and whose newest report is in one of `states`, oldest first."""
    rows = store.rows(
        "SELECT period, period_seconds, id, state, reason, max(revision) FROM reports WHERE node = ? AND period <= ?"
        " AND period + period_seconds > ? GROUP BY period ORDER BY period",
        (node, end, start),
    )
    return [Owed(Period(row[0], row[1]), row[2], row[3], row[4]) for row in rows if row[3] in states]


def find_unasked(store: Reader | Writer, node: int, start: float, end: float) -> list[Owed]:
    """Aggregated periods of an imported node for which no report was ever asked."""
    rows = store.rows(
        "SELECT DISTINCT a.period, a.period_seconds FROM aggregates a JOIN gpus g ON g.id = a.gpu WHERE g.node = ?"
        " AND a.period <= ? AND a.period + a.period_seconds > ? AND NOT EXISTS"
        " (SELECT 1 FROM reports r WHERE r.node = g.node AND r.period = a.period) ORDER BY a.period",
        (node, end, start),
    )
    return [Owed(Period(start, seconds), None, None, None) for start, seconds in rows]


def node_number(store: Reader | Writer, name: str | None) -> int | None:
    """The store's number of a node (None: this machine), None where it knows no such node."""
    if name is None:
        return LOCAL_NODE
    found = store.value("SELECT id FROM nodes WHERE name = ? ORDER BY id LIMIT 1", (name,))
    return None if found is None else int(found)


def ask(writer: Writer, node: int, owed: Sequence[Owed], now: float) -> tuple[int, int]:
    """Make the reports pending with ten fresh attempts; returns (how many, how many cannot be built any more).

    One whose bytes are kept goes again unchanged. An acknowledged one (its bytes are gone) and one that
    the server refused for a conflict go as a new revision. A running agent sees it within a minute.
    """
    asked = gone = 0
    for place in range(0, len(owed), _BATCH):
        with writer.transaction() as connection:
            for one in owed[place : place + _BATCH]:
                if _ask(connection, node, one, now):
                    asked += 1
                else:
                    gone += 1
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (RESEND_KEY, now))
    return asked, gone


def _ask(connection: sqlite3.Connection, node: int, one: Owed, now: float) -> bool:
    """True where the report will go; the row is looked at again, the agent may have been faster."""
    row = None
    if one.report is not None:
        row = connection.execute(
            "SELECT state, origin, body IS NOT NULL OR report_id IS NULL FROM reports WHERE id = ?",
            (one.report,),
        ).fetchone()
    if row is not None and row[0] == "replaced":
        return True  # a newer revision is already waiting
    is_conflict = row is not None and row[0] == "rejected" and row[1] == "conflict"
    if row is not None and row[2] and row[0] != "sent" and not is_conflict:
        connection.execute(
            "UPDATE reports SET state = 'pending', spent = 0, next_try = NULL, parked_by = NULL, reason = NULL,"
            " changed = ? WHERE id = ?",
            (now, one.report),
        )
        return True
    if not has_content(connection, node, one.period):
        return False
    add_revision(connection, node, one.period, now, "resend")
    return True
