"""What was sent, tried and is still owed, period by period: the reading side of the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpu_monitor.storage.database import Reader, Row


@dataclass(frozen=True)
class SendRow:
    """The delivery of one period. Times are UTC epoch seconds; None where there is none.

    `attempts` is summed over revisions. `last_error` is that of the last failed attempt; it stays
    after success. `state` is that of the newest revision: pending, sent, rejected or parked.
    """

    period: int
    period_seconds: int
    attempts: int
    first_attempt: float | None
    last_attempt: float | None
    last_error: str | None
    uid: str | None
    sent: bool
    state: str
    revision: int
    proof: str | None


# One pass over reports and one over attempts; SQLite takes bare columns from the row that has the max.
_SQL = """
WITH tries AS (
    SELECT r.period AS period, min(a.started) AS first, max(a.started) AS last,
        max(CASE WHEN a.error IS NOT NULL THEN a.id END) AS failed
    FROM reports r JOIN attempts a ON a.report = r.id WHERE r.node = ? {bounds} GROUP BY r.period)
SELECT r.period, r.period_seconds, sum(r.attempts), t.first, t.last,
    (SELECT error FROM attempts WHERE id = t.failed),
    (SELECT n.uid FROM reports n WHERE n.node = ? AND n.period = r.period AND n.uid IS NOT NULL
        ORDER BY n.revision DESC LIMIT 1),
    max(r.revision), r.state, r.proof
FROM reports r LEFT JOIN tries t ON t.period = r.period WHERE r.node = ? {bounds}
GROUP BY r.period ORDER BY r.period DESC"""
_ALL = _SQL.format(bounds="")
_ONE = _SQL.format(bounds="AND r.period <= ? AND r.period + r.period_seconds > ?")


def list_sends(reader: Reader, node: int = 1) -> list[SendRow]:
    """Every period of a node, newest first."""
    return _rows(reader.rows(_ALL, (node, node, node)))


def search_send(reader: Reader, moment: float, node: int = 1) -> SendRow | None:
    """The period that contains `moment`, None where there is none."""
    found = _rows(reader.rows(_ONE, (node, moment, moment, node, node, moment, moment)))
    return found[0] if found else None


def _rows(found: Iterable[Row]) -> list[SendRow]:
    return [
        SendRow(period, seconds, attempts, first, last, error, uid, state == "sent", state, revision, proof)
        for period, seconds, attempts, first, last, error, uid, revision, state, proof in found
    ]
