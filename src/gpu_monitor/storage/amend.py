"""Puts a salvaged store in order: GPUs without a name, unexplained holes, the record of what happened."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gpu_monitor.storage.rescue import Stretch
from gpu_monitor.storage.tables import MAX_GPUS, SALVAGED, key_floor, key_gpu, key_start

CAUSE = "store damaged"
_LOCAL = 1
_SOURCES = (("SIM-", "simulated"), ("IMPORT-", "import"))


def amend(
    connection: sqlite3.Connection,
    source: sqlite3.Connection | None,
    lost: Mapping[str, Sequence[Stretch]],
    now: float,
    kept: str,
    trouble: str,
) -> None:
    """Complete the new store after its rows were copied; `lost` says by table what could not be read."""
    connection.execute("BEGIN")
    _name_gpus(connection, source)
    _name_nodes(connection)
    interval = _interval(connection)
    _keep_end(connection, interval)
    for stretch in lost.get("samples_raw", ()):
        for start, end in _holes(connection, stretch, interval):
            connection.execute(
                'INSERT INTO gaps (node, start, "end", cause, detail) VALUES (?, ?, ?, ?, ?)',
                (_LOCAL, start, end, CAUSE, f"rows could not be read; the file is kept as {kept}"),
            )
    estimates = {name: _estimate(connection, name, stretches, interval) for name, stretches in lost.items()}
    for name, count in (estimates or {"samples_raw": 0}).items():
        connection.execute(
            "INSERT INTO losses (time, what, cause, rows) VALUES (?, ?, ?, ?)",
            (now, name.removesuffix("_raw"), f"{CAUSE} ({trouble}); about", count),
        )
    _tell(connection, estimates, now, kept, trouble)
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (SALVAGED, now))
    connection.execute("COMMIT")


def _tell(
    connection: sqlite3.Connection, estimates: Mapping[str, int], now: float, kept: str, trouble: str
) -> None:
    tables = [
        row[0]
        for row in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
    ]
    rows = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    missing = ", ".join(f"about {count} of {name}" for name, count in estimates.items()) or "none"
    message = f"the store was damaged; {rows['samples_raw']} samples were salvaged, rows lost: {missing}"
    detail = {"kept": kept, "trouble": trouble, **{f"rows_{name}": count for name, count in rows.items()}}
    connection.execute(
        "INSERT INTO events (time, node, kind, severity, message, detail) VALUES (?, ?, 'store_salvaged', 'error', ?, ?)",
        (now, _LOCAL, message, json.dumps(detail, sort_keys=True)),
    )


def _name_gpus(connection: sqlite3.Connection, source: sqlite3.Connection | None) -> None:
    """Rows whose GPU is not known any more get one: its number must never be given to another card."""
    missing = connection.execute(
        f"SELECT gpu, min(start) FROM (SELECT id & {MAX_GPUS - 1} AS gpu, id >> 20 AS start FROM samples_raw"
        " UNION ALL SELECT gpu, period FROM aggregates) WHERE gpu NOT IN (SELECT id FROM gpus) GROUP BY gpu"
    ).fetchall()
    uids = _uids_of_index(source) if missing else {}
    unknown = "simulated" if missing and _is_simulated(connection, uids.values()) else "unknown"
    for gpu, since in missing:
        uid = uids.get(gpu, f"LOST-{gpu}")
        found = next((name for start, name in _SOURCES if uid.startswith(start)), "nvml")
        connection.execute(
            "INSERT INTO gpus (id, node, uid, source, first_seen) VALUES (?, ?, ?, ?, ?)",
            (gpu, _LOCAL, uid, found if gpu in uids else unknown, since),
        )


def _is_simulated(connection: sqlite3.Connection, uids: Iterable[str]) -> bool:
    """Whether what is left says that the GPUs here are simulated ones: real ones never share a store with them."""
    if any(uid.startswith("SIM-") for uid in uids):
        return True
    found = connection.execute(
        "SELECT 1 FROM gpus WHERE node = ?1 AND source = 'simulated' UNION ALL"
        " SELECT 1 FROM processes WHERE node = ?1 AND uid GLOB 'SIM-*' UNION ALL"
        " SELECT 1 FROM events WHERE node = ?1 AND (uid GLOB 'SIM-*'"
        " OR kind = 'agent_started' AND message GLOB '*(* SIMULATED GPU*') LIMIT 1",
        (_LOCAL,),
    ).fetchone()
    return found is not None


def _name_nodes(connection: sqlite3.Connection) -> None:
    """Nodes that GPUs hang on and that are not known any more; the local one gets its name at the next start."""
    connection.execute(
        "INSERT OR IGNORE INTO nodes (id, name, kind) VALUES (?, coalesce((SELECT hostname FROM runs"
        " WHERE hostname IS NOT NULL ORDER BY id DESC LIMIT 1), 'unknown'), 'local')",
        (_LOCAL,),
    )
    connection.execute(
        "INSERT INTO nodes (id, name, kind) SELECT DISTINCT node, 'LOST-' || node, 'import' FROM gpus"
        " WHERE node NOT IN (SELECT id FROM nodes)"
    )


def _uids_of_index(source: sqlite3.Connection | None) -> dict[int, str]:
    """Number and uid of each GPU as the index says them, which lies on a page of its own."""
    found: dict[int, str] = {}
    if source is None:
        return found
    try:
        for number, uid in source.execute("SELECT id, uid FROM gpus INDEXED BY gpus_uid ORDER BY uid"):
            if isinstance(number, int) and isinstance(uid, str):
                found[number] = uid
    except sqlite3.Error:
        return found
    return found


def _interval(connection: sqlite3.Connection) -> int:
    """The collection interval; read from the rows where no run is on record any more, and a run is put there."""
    known = connection.execute("SELECT interval_seconds FROM runs ORDER BY id DESC LIMIT 1").fetchone()
    if known is not None:
        return int(known[0])
    ends = connection.execute("SELECT min(id), max(id) FROM samples_raw").fetchone()
    if ends[0] is None:
        return 60
    first, last = key_start(ends[0]), key_start(ends[1])
    second = connection.execute("SELECT min(id) FROM samples_raw WHERE id >= ?", (key_floor(first + 1),))
    step = key_start(second.fetchone()[0] or ends[0]) - first or 60
    connection.execute(
        "INSERT INTO runs (started, ended, interval_seconds) VALUES (?, ?, ?)", (first, last + step, step)
    )
    return step


def _keep_end(connection: sqlite3.Connection, interval: int) -> None:
    """Where the data end, so that the hole up to the next row is found."""
    known = connection.execute("SELECT 1 FROM meta WHERE key = 'data_end'").fetchone()
    newest = connection.execute(
        "SELECT max(id) FROM (SELECT max(id) AS id FROM samples_raw UNION ALL SELECT max(id) FROM hosts_raw)"
    ).fetchone()[0]
    if known is None and newest is not None:
        connection.execute("INSERT INTO meta VALUES ('data_end', ?)", (float(key_start(newest) + interval),))


def _data_end(connection: sqlite3.Connection) -> float:
    return float(connection.execute("SELECT value FROM meta WHERE key = 'data_end'").fetchone()[0])


def _neighbours(connection: sqlite3.Connection, stretch: Stretch) -> tuple[int | None, int | None]:
    """The keys of the salvaged samples next to a stretch that could not be read.

    Where there is none before it, the first that was found on a stray page within.
    """
    bottom, top = stretch
    before = connection.execute("SELECT max(id) FROM samples_raw WHERE id <= ?", (bottom,)).fetchone()[0]
    if before is None:
        inside = (bottom, top)
        before = connection.execute(
            "SELECT min(id) FROM samples_raw WHERE id > ? AND id < ?", inside
        ).fetchone()[0]
    after = connection.execute("SELECT min(id) FROM samples_raw WHERE id >= ?", (top,)).fetchone()[0]
    return before, after


def _holes(connection: sqlite3.Connection, stretch: Stretch, interval: int) -> Iterator[tuple[float, float]]:
    """The times of a stretch in which no sample is left and no gap is on record yet."""
    before, after = _neighbours(connection, stretch)
    edges = [key_start(key) for key in (before, after) if key is not None]
    if not edges:
        return
    last = edges[-1] if after is not None else round(_data_end(connection))
    inside = connection.execute(
        "SELECT DISTINCT id >> 20 FROM samples_raw WHERE id >= ? AND id <= ? ORDER BY 1",
        (key_floor(edges[0]), key_floor(last + 1)),
    ).fetchall()
    starts = [row[0] for row in inside]
    for start, end in itertools.pairwise([*starts, last] if after is None else starts):
        yield from _unexplained(connection, float(start + interval), float(end))


def _unexplained(connection: sqlite3.Connection, start: float, end: float) -> Iterator[tuple[float, float]]:
    """[start, end) without the gaps that are on record."""
    known = connection.execute(
        'SELECT start, coalesce("end", ?) FROM gaps WHERE node = ? AND uid IS NULL AND start < ?'
        ' AND coalesce("end", ?) > ? ORDER BY start',
        (end, _LOCAL, end, end, start),
    ).fetchall()
    for begin, until in known:
        if begin > start:
            yield start, begin
        start = max(start, until)
    if end > start:
        yield start, end


def _estimate(connection: sqlite3.Connection, name: str, stretches: Sequence[Stretch], interval: int) -> int:
    """About how many rows a table lost, judged by its neighbours."""
    if name == "samples_raw":
        return sum(_lost_samples(connection, stretch, interval) for stretch in stretches)
    if name == "hosts_raw":
        return sum(
            (key_start(top) - key_start(bottom)) // interval for bottom, top in stretches if bottom > 0
        )
    key = _first_key(connection, name)
    if key is None:
        return len(stretches)
    newest = connection.execute(f"SELECT max({key}) FROM {name}").fetchone()[0] or 0
    return sum(max(1, min(top, newest + 1) - bottom - 1) for bottom, top in stretches)


def _first_key(connection: sqlite3.Connection, name: str) -> str | None:
    """The key of a table whose rows are numbered one after another."""
    keys: list[Any] = [row[1] for row in connection.execute(f"PRAGMA table_info({name})") if row[5]]
    return "id" if keys == ["id"] else None


def _lost_samples(connection: sqlite3.Connection, stretch: Stretch, interval: int) -> int:
    before, after = _neighbours(connection, stretch)
    if before is None:
        return 0 if after is None else 1  # how far back the rows went nobody can say
    inside: int = connection.execute(
        "SELECT count(*) FROM samples_raw WHERE id > ? AND id < ?",
        (before, key_floor(1 << 42) if after is None else after),
    ).fetchone()[0]
    gpus = sorted(_gpus_at(connection, key_start(before)) | _gpus_at(connection, key_start(after or before)))
    if after is None:
        steps = round((_data_end(connection) - key_start(before) - interval) / interval)
        return max(1, steps * len(gpus) - inside)
    steps = (key_start(after) - key_start(before)) // interval
    rest = gpus.index(key_gpu(after)) - gpus.index(key_gpu(before)) - 1
    return max(0, steps * len(gpus) + rest - inside)


def _gpus_at(connection: sqlite3.Connection, start: int) -> set[int]:
    rows = connection.execute(
        "SELECT id FROM samples_raw WHERE id >= ? AND id < ?", (key_floor(start), key_floor(start + 1))
    )
    return {key_gpu(row[0]) for row in rows}
