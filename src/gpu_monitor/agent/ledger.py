"""The ledger of deliveries: which report of which period stands where, and every attempt to send it.

States of a report: `pending` (to be sent), `sent` (acknowledged), `rejected` (the server will never take
it), `parked` (ten attempts failed), `replaced` (a newer revision exists; never sent again). A report's
bytes are made and frozen at its first attempt and dropped once they are acknowledged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_monitor.agent import reports
from gpu_monitor.agent.identity import id_at
from gpu_monitor.agent.sends import SendRow, list_sends, search_send
from gpu_monitor.core.buckets import Period
from gpu_monitor.core.outcome import Outcome, Parcel, Verdict
from gpu_monitor.storage.database import Writer
from gpu_monitor.wire import telemetry

__all__ = ["Ledger", "SendRow", "Try", "add_revision", "list_sends", "refresh", "search_send"]

FIRST_SECOND = 5
"""No report goes out sooner after its period's end (design section 7)."""
LONGEST_WAIT = 600.0
"""No report waits longer than this for its next try, whatever the wall clock did meanwhile (design: 10 min)."""
REVIVAL_SECONDS = 6 * 3600.0
"""A parked report is tried again at most this often while others are acknowledged (design section 7)."""

_BATCH = 8
"""Reports begun in one transaction: about 40 ms to build for 8 GPUs, so that a sample hardly waits."""
_UNCOUNTED = (Verdict.INTERRUPTED, Verdict.UNCOMPRESSED, Verdict.SPLIT)
"""Verdicts that say nothing about the report: the attempt is on record, but is none of its ten."""

INTERRUPTED_ERROR = "interrupted: the agent ended before an answer came"


@dataclass(frozen=True)
class Try:
    """One attempt under way. `spent`: how many of its attempts count, this one included.

    `imported`: the name of the node that it is about, None for the local one.
    """

    attempt: int
    report: int
    period: int
    spent: int
    was_parked: bool
    parcel: Parcel
    imported: str | None = None


def refresh(connection: sqlite3.Connection, node: int, period: Period, now: float) -> None:
    """See to it that the newest revision of a closed period says what the store says now.

    Called in the transaction that wrote the period's aggregates. A period that was never sent needs no
    new revision; one whose bytes are frozen gets one when its content differs. For imported nodes
    nothing is begun here: `resend --node` does that.
    """
    newest = connection.execute(
        "SELECT report_id, content FROM reports WHERE node = ? AND period = ? ORDER BY revision DESC LIMIT 1",
        (node, period.start),
    ).fetchone()
    if newest is None:
        if node == reports.LOCAL_NODE and reports.has_content(connection, node, period):
            add_revision(connection, node, period, now, "content")
        return
    frozen, content = newest
    if frozen is None:
        return
    if telemetry.content_digest(reports.build(connection, node, period)) != content:
        add_revision(connection, node, period, now, "content")


def add_revision(
    connection: sqlite3.Connection, node: int, period: Period, now: float, origin: str, above: int = 0
) -> int:
    """A new pending revision (higher than `above`), its number; older ones that wait are replaced by it."""
    highest = connection.execute(
        "SELECT max(revision) FROM reports WHERE node = ? AND period = ?", (node, period.start)
    ).fetchone()[0]
    revision = max(highest or 0, above) + 1
    connection.execute(
        "UPDATE reports SET state = 'replaced', body = NULL, next_try = NULL, changed = ?"
        " WHERE node = ? AND period = ? AND state IN ('pending', 'parked', 'rejected')",
        (now, node, period.start),
    )
    connection.execute(
        "INSERT INTO reports (node, period, period_seconds, revision, state, changed, origin)"
        " VALUES (?, ?, ?, ?, 'pending', ?, ?)",
        (node, period.start, period.seconds, revision, now, origin),
    )
    return revision


def share_of(node_id: str, spread_seconds: int) -> int:
    """When after a period's end this node sends: 5 to `spread_seconds` seconds, fixed by its id.

    So a fleet's reports do not arrive at once, and each node's arrive at the same second of every hour.
    """
    number = int(telemetry.digest(node_id.encode())[:8], 16)
    return FIRST_SECOND + number % (max(spread_seconds, FIRST_SECOND) - FIRST_SECOND + 1)


class Ledger:
    """What the shipper reads and writes. Every call is one short transaction on the store's writer."""

    def __init__(self, writer: Writer, contract_number: str, spread_seconds: int) -> None:
        self._writer = writer
        self._contract = contract_number
        with writer.transaction() as connection:
            share = share_of(id_at(connection, reports.LOCAL_NODE, float("inf")), spread_seconds)
        # When a pending report may be tried (UTC epoch). A next try beyond the longest wait was set before
        # the wall clock was put back and counts no more; nor does a share of a period that ends ahead.
        self._ready_at = (
            f"max(CASE WHEN next_try > ? + {LONGEST_WAIT} THEN 0 ELSE coalesce(next_try, 0) END,"
            f" CASE WHEN period + period_seconds <= ? THEN period + period_seconds + {share} ELSE 0 END)"
        )

    def was_cut_off(self) -> bool:
        """Whether the last attempt on record reached nothing."""
        last = self._writer.value("SELECT verdict FROM attempts ORDER BY id DESC LIMIT 1")
        return bool(last == Verdict.UNREACHABLE.value)

    def settle_interrupted(self) -> int:
        """Name the attempts that no answer is known of (the agent died in between); returns how many.

        Their reports are sent again with the same bytes, and the attempts are not counted against them.
        """
        with self._writer.transaction() as connection:
            rows = connection.execute("SELECT id, report FROM attempts WHERE verdict IS NULL").fetchall()
            for attempt, report in rows:
                connection.execute(
                    "UPDATE attempts SET verdict = ?, error = ? WHERE id = ?",
                    (Verdict.INTERRUPTED.value, INTERRUPTED_ERROR, attempt),
                )
                connection.execute(
                    "UPDATE reports SET spent = max(0, spent - 1), last_error = ? WHERE id = ?",
                    (INTERRUPTED_ERROR, report),
                )
        return len(rows)

    def due(self, now: float, limit: int) -> list[int]:
        """Pending reports that may be tried now, oldest first."""
        return self._due(now, "period, node, revision", limit)

    def least_tried(self, now: float) -> list[int]:
        """Of those the one with the fewest attempts, so that bad reports do not stand before the others."""
        return self._due(now, "spent, period, node", 1)

    def newest_due(self, now: float) -> int | None:
        """The newest pending report that may be tried now."""
        found = self._due(now, "period DESC, node, revision DESC", 1)
        return found[0] if found else None

    def _due(self, now: float, order: str, limit: int) -> list[int]:
        rows = self._writer.rows(
            f"SELECT id FROM reports WHERE state = 'pending' AND {self._ready_at} <= ? ORDER BY {order} LIMIT ?",
            (now, now, now, limit),
        )
        return [row[0] for row in rows]

    def oldest_pending(self, now: float) -> tuple[int, float] | None:
        """The oldest pending report and the seconds until it may be tried; None where none is pending."""
        rows = self._writer.rows(
            f"SELECT id, {self._ready_at} FROM reports WHERE state = 'pending' ORDER BY period, node, revision LIMIT 1",
            (now, now),
        )
        return (rows[0][0], max(0.0, rows[0][1] - now)) if rows else None

    def is_ahead(self, report: int) -> bool:
        """Whether it is newer than every acknowledged one, so that the present is not known to the server."""
        newest = self._writer.value("SELECT max(period) FROM reports WHERE state = 'sent'")
        period = self._writer.value("SELECT period FROM reports WHERE id = ?", (report,))
        return newest is None or period > newest

    def revivable(self, now: float, limit: int) -> list[int]:
        """Parked reports that earned one more attempt: another was acknowledged after they were parked."""
        rows = self._writer.rows(
            f"SELECT id FROM reports WHERE state = 'parked' AND parked_by < {_LAST_ACKNOWLEDGED}"
            " AND (next_try IS NULL OR next_try <= ? OR next_try > ? + ?) ORDER BY period, node LIMIT ?",
            (now, now, REVIVAL_SECONDS, limit),
        )
        return [row[0] for row in rows]

    def last_resort(self) -> list[int]:
        """The oldest parked report where nothing else is pending and nothing was acknowledged since."""
        rows = self._writer.rows(
            "SELECT id FROM reports WHERE state = 'parked' AND NOT EXISTS"
            " (SELECT 1 FROM reports WHERE state = 'pending')"
            f" AND parked_by > {_LAST_ACKNOWLEDGED} ORDER BY period, node LIMIT 1"
        )
        return [row[0] for row in rows]

    def next_due(self, now: float) -> float | None:
        """Seconds until the next pending report may be tried, None where none is pending."""
        moment = self._writer.value(
            f"SELECT min({self._ready_at}) FROM reports WHERE state = 'pending'", (now, now)
        )
        return None if moment is None else max(0.0, float(moment) - now)

    def begin(self, ids: Sequence[int], now: float, max_bytes: int) -> list[Try]:
        """Put one attempt per report on record, freezing bytes that are not yet.

        Stops before `max_bytes` are exceeded, but begins at least one.
        """
        begun: list[Try] = []
        total = 0
        for place in range(0, len(ids), _BATCH):
            with self._writer.transaction() as connection:
                for report in ids[place : place + _BATCH]:
                    parcel = self._parcel(connection, report, now)
                    if parcel is None:
                        continue
                    total += len(parcel.body)
                    if begun and total > max_bytes:
                        return begun
                    begun.append(self._begin(connection, report, parcel, now))
        return begun

    def _begin(self, connection: sqlite3.Connection, report: int, parcel: Parcel, now: float) -> Try:
        # A clock that was put back, or a simulated one that waited for a busy agent: last is not before first.
        connection.execute(
            "UPDATE reports SET attempts = attempts + 1, spent = spent + 1,"
            " first_attempt = coalesce(first_attempt, ?), last_attempt = max(?, coalesce(first_attempt, 0)) WHERE id = ?",
            (now, now, report),
        )
        period, number, spent, state, imported = connection.execute(
            "SELECT period, attempts, spent, state, CASE WHEN node <> ? THEN nodes.name END"
            " FROM reports JOIN nodes ON nodes.id = node WHERE reports.id = ?",
            (reports.LOCAL_NODE, report),
        ).fetchone()
        attempt = connection.execute(
            "INSERT INTO attempts (report, number, started) VALUES (?, ?, ?)", (report, number, now)
        ).lastrowid
        return Try(int(attempt or 0), report, period, spent, state == "parked", parcel, imported)

    def _parcel(self, connection: sqlite3.Connection, report: int, now: float) -> Parcel | None:
        """The report's frozen bytes; made and frozen here if this is its first attempt.

        None where it was replaced or settled since it was chosen.
        """
        row = connection.execute(
            "SELECT node, period, period_seconds, revision, report_id, body FROM reports"
            " WHERE id = ? AND state IN ('pending', 'parked')",
            (report,),
        ).fetchone()
        if row is None:
            return None
        node, start, seconds, revision, report_id, body = row
        if report_id is not None:
            return Parcel(report_id, body)
        period = Period(start, seconds)
        report_id = telemetry.report_id(id_at(connection, node, period.end), start, seconds, revision)
        built = reports.build(
            connection, node, period,
            report_id=report_id, revision=revision, contract_number=self._contract,
        )  # fmt: skip
        body = telemetry.encode(built)
        connection.execute(
            "UPDATE reports SET report_id = ?, body = ?, sha256 = ?, content = ?, changed = ? WHERE id = ?",
            (report_id, body, telemetry.digest(body), telemetry.content_digest(built), now, report),
        )
        return Parcel(report_id, body)

    def finish(
        self,
        tries: Sequence[Try],
        outcomes: Sequence[Outcome],
        now: float,
        wait_after: Callable[[int, Outcome], float | None],
    ) -> list[str]:
        """Put what came of `tries` on record; returns the state each report is in now.

        `wait_after(counted attempts, outcome)`: seconds until the next try, None where there are no more.
        """
        with self._writer.transaction() as connection:
            return [
                self._finish(connection, one, outcome, now, wait_after)
                for one, outcome in zip(tries, outcomes, strict=True)
            ]

    def _finish(
        self,
        connection: sqlite3.Connection,
        one: Try,
        outcome: Outcome,
        now: float,
        wait_after: Callable[[int, Outcome], float | None],
    ) -> str:
        connection.execute(
            "UPDATE attempts SET ended = ?, status = ?, verdict = ?, error = ?, uid = ? WHERE id = ?",
            (now, outcome.status, outcome.verdict.value, outcome.error, outcome.uid, one.attempt),
        )
        if outcome.error is not None:
            connection.execute("UPDATE reports SET last_error = ? WHERE id = ?", (outcome.error, one.report))
        if outcome.verdict is Verdict.ACKNOWLEDGED:
            self._change(
                connection, one, now, "sent",
                body=None, uid=outcome.uid, proof=outcome.proof, reason=outcome.note, next_try=None, parked_by=None,
            )  # fmt: skip
            return "sent"
        node, start, seconds, state, origin = connection.execute(
            "SELECT node, period, period_seconds, state, origin FROM reports WHERE id = ?", (one.report,)
        ).fetchone()
        if state == "replaced":
            return "replaced"
        if outcome.verdict in _UNCOUNTED:
            connection.execute("UPDATE reports SET spent = max(0, spent - 1) WHERE id = ?", (one.report,))
            return str(state)
        if outcome.verdict is Verdict.CONFLICT and origin != "conflict":
            add_revision(connection, node, Period(start, seconds), now, "conflict", outcome.revision or 0)
            self._change(connection, one, now, "replaced", reason=outcome.error)
            return "replaced"
        if outcome.verdict in (Verdict.CONFLICT, Verdict.REJECTED, Verdict.TOO_LARGE):
            self._change(connection, one, now, "rejected", reason=outcome.error, next_try=None)
            return "rejected"
        wait = wait_after(one.spent, outcome)
        if one.was_parked:
            # Six hours after a revival; a try of last resort leaves the first revival free.
            connection.execute(
                f"UPDATE reports SET next_try = ? WHERE id = ? AND parked_by < {_LAST_ACKNOWLEDGED}",
                (now + REVIVAL_SECONDS, one.report),
            )
            return "parked"
        if wait is None:
            # Free to be revived by the first acknowledgement that comes; after that every 6 hours.
            self._change(connection, one, now, "parked", next_try=None, parked_by=one.attempt)
            return "parked"
        self._change(connection, one, now, "pending", next_try=now + min(wait, LONGEST_WAIT))
        return "pending"

    def _change(
        self, connection: sqlite3.Connection, one: Try, now: float, state: str, **columns: object
    ) -> None:
        given = {"state": state, "changed": now, **columns}
        assignments = ", ".join(f"{name} = ?" for name in given)
        connection.execute(f"UPDATE reports SET {assignments} WHERE id = ?", (*given.values(), one.report))


_LAST_ACKNOWLEDGED = "coalesce((SELECT max(id) FROM attempts WHERE verdict = 'acknowledged'), 0)"
