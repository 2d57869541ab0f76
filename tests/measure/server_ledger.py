"""What senders of a soak know, and what a server's database must hold for it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Table, select

from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.schema import (
    aggregates,
    events,
    fleet_hours,
    gaps,
    gpus,
    host_hours,
    latest,
    nodes,
    processes,
    receipts,
    revisions,
)
from tests.server.posts import headers_of
from tests.server.rig import Server

Key = tuple[str, int]
"""A node's id and an hour."""


@dataclass(frozen=True)
class Parcel:
    """One report as it goes out, each time the same bytes."""

    node: str
    hour: int
    revision: int
    report_id: str
    body: bytes

    @property
    def key(self) -> Key:
        """The period it tells of."""
        return self.node, self.hour

    @property
    def digest(self) -> bytes:
        """SHA-256 of the bytes."""
        return hashlib.sha256(self.body).digest()


class Ledger:
    """Everything that was answered; usable from any thread. `wrong`: answers that must not be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered: dict[Key, dict[int, Parcel]] = {}
        self.uids: dict[str, str] = {}
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def note(self, parcel: Parcel, answer: dict[str, Any], repeats: bool) -> None:
        """An answer of 200 to a parcel; `repeats`: it had been answered before."""
        with self._lock:
            held = self._answered.setdefault(parcel.key, {})
            known = self.uids.setdefault(parcel.report_id, answer["uid"])
            self.outcomes[answer["outcome"]] += 1
            newest = max(held, default=0)
            if known != answer["uid"]:
                self.wrong.append(f"{parcel.report_id}: first called {known}, then {answer['uid']}")
            if answer["sha256"] != parcel.digest.hex():
                self.wrong.append(f"{parcel.report_id}: the answer names another digest")
            if repeats and answer["outcome"] == "stored":
                self.wrong.append(f"{parcel.report_id}: stored again though it had been answered")
            if answer["revision"] < max(newest, parcel.revision) and answer["outcome"] != "repeated":
                self.wrong.append(f"{parcel.report_id}: answered with revision {answer['revision']}")
            held[parcel.revision] = parcel

    def complain(self, what: str) -> None:
        """Keep something that must not be."""
        with self._lock:
            self.wrong.append(what)

    def count(self) -> int:
        """Periods that were answered."""
        with self._lock:
            return len(self._answered)

    def newest(self) -> dict[Key, Parcel]:
        """The parcel of each period that must be held: its highest revision."""
        return {key: held[max(held)] for key, held in self._answered.items()}

    def answered(self) -> list[Parcel]:
        """Every parcel that was answered."""
        return [parcel for held in self._answered.values() for parcel in held.values()]

    def told(self) -> list[str]:
        """In words."""
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return [
            f"{self.count()} periods of {len({node for node, _ in self._answered})} nodes; answers: {outcomes}"
        ]


def deliver_to_twin(server: Server, ledger: Ledger) -> None:
    """Every newest report, once, of each node in order of time; nodes beside each other: a commit takes several."""
    token = server.token("--contract", "12345")
    of_nodes: dict[str, list[Parcel]] = {}
    for parcel in sorted(ledger.newest().values(), key=lambda one: one.hour):
        of_nodes.setdefault(parcel.node, []).append(parcel)

    def deliver(parcels: list[Parcel]) -> None:
        for parcel in parcels:
            headers = headers_of(parcel.body, report_id=parcel.report_id)
            answer = server.ask("POST", "/api/metrics", parcel.body, token, headers)
            if answer.status != 200:
                raise RuntimeError(f"the twin answered {answer.status}: {answer.body[:300]!r}")

    with ThreadPoolExecutor(len(of_nodes) or 1) as pool:
        list(pool.map(deliver, of_nodes.values()))


def compare(folder: Path, database: str, twin: str, ledger: Ledger) -> dict[str, list[str]]:
    """What each check found wrong."""
    checked = Server(None, folder, database, None).command("server", "check")  # type: ignore[arg-type]
    complaints = [] if checked.returncode == 0 else (checked.stdout + checked.stderr).splitlines()
    with contextlib.closing(open_store(database)) as store, contextlib.closing(open_store(twin)) as other:
        return {
            "gpu_monitor server check is clean": complaints,
            "what was answered is there": list(_missing(store, ledger)),
            "every period is held once, in its highest revision": _differences(_receipts(store), _wanted(ledger)),
            "rows, hosts, gaps, events, processes are the twin's": _differences(_counts(store), _counts(other)),
            "receipts vouch for the same rows as the twin's": _differences(_digests(store), _digests(other)),
            "the fleet's hours add up to the twin's": _differences(_fleet(store), _fleet(other)),
            "the newest row of each GPU is the twin's": _differences(_latest(store), _latest(other)),
        }  # fmt: skip


def _differences(ours: dict[Any, Any], theirs: dict[Any, Any]) -> list[str]:
    return [
        f"{key}: {ours.get(key)} and not {theirs.get(key)}"
        for key in sorted(ours.keys() | theirs.keys(), key=str)
        if ours.get(key) != theirs.get(key)
    ]


def _rows(store: Store, *columns: Any, of: Table | None = None) -> list[Any]:
    query = select(*columns)
    if of is not None:
        query = query.select_from(of.join(nodes, nodes.c.id == of.c.agent))
    with store.read() as connection:
        return list(connection.execute(query).all())


def _receipts(store: Store) -> dict[Key, tuple[int, bytes]]:
    found = _rows(
        store, nodes.c.uuid, receipts.c.hour, receipts.c.revision, receipts.c.body_digest, of=receipts
    )
    assert len({(uuid, hour) for uuid, hour, *_ in found}) == len(found)
    return {(uuid, hour): (revision, bytes(digest)) for uuid, hour, revision, digest in found}


def _wanted(ledger: Ledger) -> dict[Key, tuple[int, bytes]]:
    return {key: (parcel.revision, parcel.digest) for key, parcel in ledger.newest().items()}


def _missing(store: Store, ledger: Ledger) -> Any:
    held = _receipts(store)
    older = {
        (uuid, hour, revision): bytes(digest)
        for uuid, hour, revision, digest in _rows(
            store, nodes.c.uuid, revisions.c.hour, revisions.c.revision, revisions.c.body_digest, of=revisions
        )
    }
    for parcel in ledger.answered():
        revision, digest = held.get(parcel.key, (0, b""))
        found = digest if revision == parcel.revision else older.get((*parcel.key, parcel.revision), b"")
        if found != parcel.digest:
            yield f"{parcel.report_id} (revision {parcel.revision} of {parcel.key}) was answered and is not there"


def _digests(store: Store) -> dict[Key, bytes]:
    found = _rows(store, nodes.c.uuid, receipts.c.hour, receipts.c.row_digest, of=receipts)
    return {(uuid, hour): bytes(digest) for uuid, hour, digest in found}


def _counts(store: Store) -> dict[str, int]:
    with store.read() as connection:
        return {
            table.name: len(connection.execute(select(table.c.hour)).all())
            for table in (receipts, aggregates, host_hours, gaps, events, processes)
        }


def _fleet(store: Store) -> dict[Any, Any]:
    found = _rows(store, *(column for column in fleet_hours.c if column.name != "contract"))
    return {(row[0], row[1]): tuple(row) for row in found}


def _latest(store: Store) -> dict[Any, Any]:
    left_out = ("agent", "gpu", "facts")  # numbers, which depend on who came first
    columns = [column for column in latest.c if column.name not in left_out]
    query = (
        select(nodes.c.uuid, gpus.c.uid, *columns)
        .select_from(latest.join(nodes, nodes.c.id == latest.c.agent))
        .join(gpus, (gpus.c.agent == latest.c.agent) & (gpus.c.ordinal == latest.c.gpu))
    )
    with store.read() as connection:
        return {(uuid, uid): tuple(row) for uuid, uid, *row in connection.execute(query).all()}
