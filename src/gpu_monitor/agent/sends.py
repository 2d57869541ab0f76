"""What was sent, tried and is still owed, period by period: the reading side of the ledger.

It must list a year of hours in a few milliseconds, so it reads one table, once, in the order of an index.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gpu_monitor.storage.database import Reader, Row


class SendRow(msgspec.Struct, frozen=True):
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
    state: str
    revision: int
    proof: str | None

    @property
    def sent(self) -> bool:
        """Whether the newest revision is acknowledged."""
        return self.state == "sent"


_COLUMNS = """SELECT period, period_seconds, attempts, first_attempt, last_attempt, last_error, uid, state, revision, proof
    FROM reports WHERE node = ?"""
_NEWEST_FIRST = "ORDER BY period DESC, revision DESC"


def list_sends(reader: Reader, node: int = 1) -> list[SendRow]:
    """Every period of a node, newest first."""
    return _by_period(reader.rows(f"{_COLUMNS} {_NEWEST_FIRST}", (node,)))


def search_send(reader: Reader, moment: float, node: int = 1) -> SendRow | None:
    """The period that contains `moment`, None where there is none."""
    rows = reader.rows(
        f"{_COLUMNS} AND period <= ? AND period + period_seconds > ? {_NEWEST_FIRST}", (node, moment, moment)
    )
    found = _by_period(rows)
    return found[0] if found else None


def _by_period(rows: Iterable[Row]) -> list[SendRow]:
    """One row per period from one per revision; the first of a period is its newest revision."""
    found: list[SendRow] = []
    period = None
    for row in rows:
        if row[0] == period:
            found[-1] = _joined(found[-1], SendRow(*row))
        else:
            found.append(SendRow(*row))
            period = row[0]
    return found


def _joined(newer: SendRow, older: SendRow) -> SendRow:
    return SendRow(
        newer.period,
        newer.period_seconds,
        newer.attempts + older.attempts,
        newer.first_attempt if older.first_attempt is None else older.first_attempt,
        newer.last_attempt if newer.last_attempt is not None else older.last_attempt,
        newer.last_error if newer.last_error is not None else older.last_error,
        newer.uid if newer.uid is not None else older.uid,
        newer.state,
        newer.revision,
        newer.proof,
    )
