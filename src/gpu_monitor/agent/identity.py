"""Who this node is: a random UUID made at the first start, kept in the store and in a file beside it.

The file survives a store that was damaged and replaced; the store survives a lost file. Both hold a
SHA-256 of the machine id: where that is another machine's (a cloned image, a moved disk) a new UUID is
made. Hours recorded before that keep the old one, so that two clones cannot both count them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.storage.database import Writer

_LOG = logging.getLogger("identity")
_LOCAL_NODE = 1
_KEY, _HISTORY_KEY = "node_identity", "node_ids"
_FILE_BYTES = 4096
"""A file of ours holds about 150 bytes; a longer one is not ours and is not read."""

_OLDEST_OWED = """SELECT min(period + period_seconds) FROM reports
    WHERE node = ? AND state IN ('pending', 'parked', 'rejected')
    UNION ALL SELECT min(start + seconds) FROM periods WHERE node = ? AND dirty = 1"""


@dataclass(frozen=True)
class _Record:
    """A node's id and the hash of the machine it was made on; None where that was not known."""

    id: str
    machine: str | None

    def text(self) -> str:
        return json.dumps({"id": self.id, "machine": self.machine})


def identity_path(store: Path) -> Path:
    """The file beside the store."""
    return store.with_name(store.name + ".node.json")


def establish(writer: Writer, machine_id: str | None, now: float) -> str:
    """The node's id, made, repaired or renewed as need be; writes the file, `meta`, `nodes` and the event.

    `machine_id` is what the system says (never stored, only its hash); None: nothing can be compared.
    """
    path = identity_path(writer.path)
    machine = None if machine_id is None else hashlib.sha256(machine_id.strip().encode()).hexdigest()
    kept, filed = _parse(writer.get_meta(_KEY)), _read(path)
    known = _choose(kept, filed, machine)
    if known is None or _is_foreign(known, machine):
        chosen = _Record(str(uuid.uuid4()), machine)
    else:
        chosen = _Record(known.id, known.machine if machine is None else machine)
    if filed != chosen:
        # The file first: after a kill in between it is found and taken over.
        _write(path, chosen)
    previous = kept or known
    if kept != chosen or _needs_history(writer, now):
        _keep(writer, chosen, now, None if previous is None or previous.id == chosen.id else previous.id)
    return chosen.id


def _is_foreign(record: _Record, machine: str | None) -> bool:
    return machine is not None and record.machine is not None and record.machine != machine


def _choose(kept: _Record | None, filed: _Record | None, machine: str | None) -> _Record | None:
    """The record to go by where store and file disagree: the one of this machine, else the store's.

    The store's ledger was written under the store's id, so it wins a tie.
    """
    for record in (kept, filed):
        if record is not None and machine is not None and record.machine == machine:
            return record
    for record in (kept, filed):
        if record is not None and not _is_foreign(record, machine):
            return record
    return kept or filed


def _parse(text: object) -> _Record | None:
    """The record in a text; None for whatever is not exactly one."""
    if not isinstance(text, str):
        return None
    try:
        found = json.loads(text)
        node, machine = found["id"], found["machine"]
        if str(uuid.UUID(node)) != node or not (machine is None or len(bytes.fromhex(machine)) == 32):
            return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return _Record(node, machine)


def _read(path: Path) -> _Record | None:
    """What the file holds; None (said once in the log) where it is not a small plain file of ours."""
    # Without O_NONBLOCK a named pipe in its place would stop the agent at start.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        _LOG.warning("cannot read %s: %s; it is written anew", path, error.strerror)
        return None
    try:
        is_plain = stat.S_ISREG(os.fstat(handle).st_mode)
        data = os.read(handle, _FILE_BYTES + 1) if is_plain else b""
    except OSError as error:
        _LOG.warning("cannot read %s: %s; it is written anew", path, error.strerror)
        return None
    finally:
        os.close(handle)
    record = _parse(data.decode("utf-8", errors="replace")) if len(data) <= _FILE_BYTES else None
    if record is None:
        _LOG.warning("%s does not hold a node's identity; it is written anew", path)
    return record


def _write(path: Path, record: _Record) -> None:
    """Replace the file at once and for good; a folder that forbids it leaves the id in the store alone."""
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(handle, (record.text() + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        new.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        _LOG.warning(
            "cannot write %s (%s): the node's identity is kept in the store alone", path, error.strerror
        )


def _sync_folder(folder: Path) -> None:
    """Make the rename durable; Windows cannot open a folder and does so by itself."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _needs_history(writer: Writer, now: float) -> bool:
    """True where it is missing, or its last change lies in the future: the clock was wrong at that start."""
    with writer.transaction() as connection:
        history = _history(connection)
    return not history or history[-1][0] > now


def _keep(writer: Writer, chosen: _Record, now: float, before: str | None) -> None:
    """The id in the store: `meta`, `nodes`, since when it holds, and the event where it replaced another."""
    with writer.transaction() as connection:
        history = _history(connection)
        if not history:
            history = [(0.0, before or chosen.id)]
        if history[-1][1] != chosen.id:
            history.append((now, chosen.id))
        history = [(min(since, now), node) for since, node in history]
        for key, value in ((_KEY, chosen.text()), (_HISTORY_KEY, json.dumps(history))):
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        connection.execute("UPDATE nodes SET uuid = ? WHERE id = ?", (chosen.id, _LOCAL_NODE))
        if before is not None:
            text = "this store comes from another machine (a cloned image or a moved disk): the node has a new id"
            _LOG.warning("%s, %s; it was %s", text, chosen.id, before)
            connection.execute(
                "INSERT INTO events (time, node, uid, kind, severity, message, detail)"
                " VALUES (?, ?, NULL, 'node_identity_changed', 'warning', ?, ?)",
                (now, _LOCAL_NODE, text, json.dumps({"new": chosen.id, "old": before})),
            )


def _history(connection: sqlite3.Connection) -> list[tuple[float, str]]:
    """(since, id), ascending; empty before the first `establish`."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_HISTORY_KEY,)).fetchone()
    return [(float(since), str(node)) for since, node in json.loads(row[0])] if row else []


def id_at(connection: sqlite3.Connection, node: int, moment: float) -> str:
    """The UUID under which the store's node `node` reports what it did until `moment`.

    An imported node's is made from this machine's first id and the name it was imported under, so a
    second import of the same recordings is the same node.
    """
    history = _history(connection)
    if not history:
        raise LookupError("the node has no identity yet: establish() comes first")
    if node == _LOCAL_NODE:
        return next((known for since, known in reversed(history) if since < moment), history[0][1])
    name = connection.execute("SELECT name FROM nodes WHERE id = ?", (node,)).fetchone()[0]
    return str(uuid.uuid5(uuid.UUID(history[0][1]), f"import:{name}"))


def reporting_ids(writer: Writer) -> set[str]:
    """Every UUID that reports of this store go out under: its own, its imported nodes', and an earlier one of its
    own for as long as hours that were recorded under it are owed."""
    with writer.transaction() as connection:
        history = _history(connection)
        imported = connection.execute("SELECT id FROM nodes WHERE id <> ?", (_LOCAL_NODE,)).fetchall()
        found = {id_at(connection, int(row[0]), 0.0) for row in imported}
        ends = [row[0] for row in connection.execute(_OLDEST_OWED, (_LOCAL_NODE, _LOCAL_NODE)) if row[0]]
    if not history:
        return found
    found.add(history[-1][1])
    oldest = min(ends, default=float("inf"))
    untils = [since for since, _ in history[1:]]
    return found | {node for (_, node), until in zip(history, untils, strict=False) if oldest <= until}
