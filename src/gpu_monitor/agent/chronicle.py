"""What happened on a node, in order of time: events and gaps as one list, for a whole node or one GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpu_monitor.agent.ask import LOCAL, Asked, interval_of
from gpu_monitor.core.errors import UsageError
from gpu_monitor.sources.host.kernel_log import canonical_pci
from gpu_monitor.storage.tables import MAX_GPUS, key_start

GAP = "gap"
"""The kind of a stretch without data; every other kind is an event's."""
SEVERITIES = ("info", "warning", "error", "critical")
_EXPECTED = ("agent stopped", "host suspended", "asleep", "suspended", "let go", "replay ended")
"""Beginnings of the causes of gaps that are nobody's fault: somebody asked for them."""
_LASTING = (
    "It gives nothing now: look for an Xid just before (dmesg | grep -i xid); a reset or reboot may help."
)


@dataclass(frozen=True)
class Card:
    """A GPU as it was last seen. What is not known is None."""

    uid: str
    index: int | None
    name: str | None
    pci_bus_id: str | None
    source: str
    parent_uid: str | None = None


@dataclass(frozen=True)
class Entry:
    """One event, or one gap (`kind` is `gap`). Times are UTC epoch seconds.

    `end` and `seconds` belong to gaps; `end` is None while one lasts, and `seconds` counts up to now.
    `card` is None where it is about the whole node; `cause` is a gap's. `advice` says what to do, if anything.
    """

    time: float
    kind: str
    severity: str
    message: str
    uid: str | None = None
    card: Card | None = None
    end: float | None = None
    seconds: float | None = None
    cause: str | None = None
    detail: Mapping[str, Any] | None = None
    advice: str | None = None


@dataclass(frozen=True)
class Wanted:
    """What is asked for: one node over [since, until); `now` ends what still lasts.

    `uids`: these GPUs and the node's gaps only. `severity`: this one and worse. `kind`: this one only.
    """

    node: int
    since: float
    until: float
    now: float
    uids: frozenset[str] | None = None
    kind: str | None = None
    severity: str | None = None


def chronicle(store: Asked, wanted: Wanted) -> list[Entry]:
    """Events in the span and gaps that touch it, ascending; a gap stands where it began."""
    known = cards(store, wanted.node)
    found = [*_gaps(store, wanted, known), *_events(store, wanted, known)]
    return sorted((entry for entry in found if _is_wanted(entry, wanted)), key=lambda entry: entry.time)


def _is_wanted(entry: Entry, wanted: Wanted) -> bool:
    if wanted.kind is not None and entry.kind != wanted.kind:
        return False
    if wanted.severity is not None and _rank(entry.severity) < _rank(wanted.severity):
        return False
    if wanted.uids is None or entry.uid in wanted.uids:
        return True
    # While the whole node gave nothing, neither did the GPU that is asked about.
    return entry.kind == GAP and entry.uid is None


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else 0


def _gaps(store: Asked, wanted: Wanted, known: Mapping[str, Card]) -> Iterator[Entry]:
    rows = store.rows(
        'SELECT uid, start, "end", cause, detail FROM gaps WHERE node = ? AND start < ?'
        ' AND ("end" IS NULL OR "end" > ?) ORDER BY start, id',
        (wanted.node, wanted.until, wanted.since),
    )
    for uid, start, end, cause, said in rows:
        is_expected = str(cause).startswith(_EXPECTED)
        severity = "info" if is_expected else "warning" if uid is None else "error"
        yield Entry(
            start,
            GAP,
            severity,
            f"{cause} ({said})" if said else str(cause),
            uid,
            known.get(uid),
            end,
            max(0.0, (wanted.now if end is None else end) - start),
            cause,
            {"note": said} if said else None,
            _LASTING if end is None and severity == "error" else None,
        )


def _events(store: Asked, wanted: Wanted, known: Mapping[str, Card]) -> Iterator[Entry]:
    # A MIG instance lies at its GPU's address; of several GPUs that were at one, the last is taken.
    seen = store.rows(
        "SELECT pci_bus_id, uid FROM gpus WHERE node = ? AND parent_uid IS NULL ORDER BY id", (wanted.node,)
    )
    by_pci = {canonical_pci(address or ""): uid for address, uid in seen}
    rows = store.rows(
        "SELECT time, uid, kind, severity, message, detail FROM events WHERE node = ? AND time >= ? AND time < ?"
        " ORDER BY time, id",
        (wanted.node, wanted.since, wanted.until),
    )
    for time, uid, kind, severity, message, text in rows:
        detail = json.loads(text) if text else {}
        # The kernel log names a GPU by its address; at that moment nobody may have known whose it was.
        address = canonical_pci(str(detail.get("pci_bus_id") or ""))
        owner = uid or (by_pci.get(address) if address else None)
        entry = Entry(time, kind, severity, message, owner, known.get(owner or ""), detail=detail or None)
        advice = detail.get("advice")
        yield replace(entry, advice=advice) if isinstance(advice, str) else entry


def cards(store: Asked, node: int) -> dict[str, Card]:
    """The GPUs of a node by uid, each as it was last seen, in order of their index."""
    rows = store.rows(
        'SELECT uid, "index", name, pci_bus_id, source, parent_uid FROM gpus WHERE node = ? ORDER BY id',
        (node,),
    )
    found = {row[0]: Card(*row) for row in rows}
    return dict(
        sorted(found.items(), key=lambda one: (one[1].index is None, one[1].index or 0, one[1].name or ""))
    )


def find_cards(store: Asked, node: int, text: str) -> list[Card]:
    """The GPUs meant by an index, a PCI address or the beginning of a uid, with their MIG instances.

    Several have the same index where one card replaced another. UsageError where none is meant, or a
    beginning is that of several uids.
    """
    known = cards(store, node)
    asked = text.strip()
    address = canonical_pci(asked)
    if asked.isdecimal():
        found = [card for card in known.values() if card.index == int(asked) and card.parent_uid is None]
    elif address is not None:
        found = [card for card in known.values() if canonical_pci(card.pci_bus_id or "") == address]
    else:
        found = [card for card in known.values() if asked and _begins(card.uid, asked)]
        exact = [card for card in found if card.uid == asked]
        if len(found) > 1 and not exact:
            raise UsageError(f"{asked!r} begins {len(found)} uids", f"They are: {_listed(found)}.")
        found = exact or found
    if not found:
        raise UsageError(
            f"the store knows no GPU {text!r}", f"It knows: {_listed(list(known.values())) or 'none'}."
        )
    parents = {card.uid for card in found}
    return [*found, *(card for card in known.values() if card.parent_uid in parents and card not in found)]


def _begins(uid: str, text: str) -> bool:
    """Whether `text` begins the uid, with or without its `GPU-`."""
    own, asked = uid.lower(), text.lower()
    return own.startswith(asked) or own.partition("-")[2].startswith(asked)


def _listed(found: Sequence[Card]) -> str:
    return ", ".join(f"{card.uid} (index {card.index}, {card.pci_bus_id})" for card in found)


def recorded(store: Asked, node: int) -> tuple[float, float] | None:
    """From when to when the store has rows or hours of a node (UTC epoch s), None where it has none."""
    own = "IN (SELECT id FROM gpus WHERE node = ?)"
    rows = f"SELECT id FROM samples_raw WHERE id & {MAX_GPUS - 1} {own} ORDER BY id"
    hours = f"FROM aggregates WHERE gpu {own} ORDER BY period"
    first, last, first_hour, first_ended, last_ended = store.rows(
        f"SELECT ({rows} LIMIT 1), ({rows} DESC LIMIT 1), (SELECT period {hours} LIMIT 1),"
        f" (SELECT period + period_seconds {hours} LIMIT 1), (SELECT period + period_seconds {hours} DESC LIMIT 1)",
        (node,) * 5,
    )[0]
    keys = [key for key in (first, last) if key is not None]
    if node == 1:
        keys += [key for row in store.rows("SELECT min(id), max(id) FROM hosts_raw") for key in row if key]
    if not keys:
        return None if first_hour is None else (float(first_hour), float(last_ended))
    begin, end = float(key_start(min(keys))), float(key_start(max(keys)) + interval_of(store))
    # An hour of which the rows are there began with the first of them, not with the clock's hour.
    return (begin if first_hour is None or first_ended > begin else float(first_hour)), end


def silence(entries: Sequence[Entry], since: float, until: float) -> float:
    """Seconds of [since, until) in which a gap took something away; where gaps lie over each other, once."""
    total, reached = 0.0, since
    spans = sorted(
        (entry.time, entry.time + (entry.seconds or 0.0)) for entry in entries if entry.kind == GAP
    )
    for start, end in spans:
        begin, stop = max(start, reached), min(end, until)
        if stop > begin:
            total += stop - begin
            reached = stop
    return total


def node_name(store: Asked, node: int) -> str:
    """What a node is called in the store."""
    return str(store.value("SELECT name FROM nodes WHERE id = ?", (node,)) or LOCAL)


def other_nodes(store: Asked) -> list[str]:
    """Names of the imported nodes."""
    return [str(name) for (name,) in store.rows("SELECT name FROM nodes WHERE id <> 1 ORDER BY name")]
