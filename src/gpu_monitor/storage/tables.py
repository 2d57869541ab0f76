"""The store's tables; the columns of samples, aggregates and hosts come from the catalogue.

A row of `samples_raw` is one GPU over one collection interval. Its key holds start, clock era and GPU
(see `sample_key`), so rows lie in the file in order of time and need no index. Values are scaled
integers (`Metric.scale`); the view `samples` shows documented names and units. `x_min` is NULL where
it equals the mean; so is `x_max`. `seconds` is in tenths.
"""

from __future__ import annotations

from gpu_monitor.core.catalogue import HOST_METRICS, SAMPLED, Kind, Metric

APPLICATION_ID = 0x67706D6F  # "gpmo"

SALVAGED = "salvaged"
"""The key in `meta` under which a salvage says that hours may lack their aggregates; taken away once they were looked for."""

GPU_BITS, ERA_BITS = 16, 4
MAX_GPUS, MAX_ERAS = 1 << GPU_BITS, 1 << ERA_BITS
_SHIFT = GPU_BITS + ERA_BITS


def sample_key(start: int, era: int, gpu: int) -> int:
    """The row key: start (UTC epoch s), era (0, or more where the clock was put back), GPU number."""
    return (start << _SHIFT) | (era << GPU_BITS) | gpu


def key_floor(start: float) -> int:
    """The smallest key of interval `start` or later."""
    return int(start) << _SHIFT


def key_start(key: int) -> int:
    """The interval's start of a row key."""
    return key >> _SHIFT


def key_era(key: int) -> int:
    """The clock era of a row key."""
    return (key >> GPU_BITS) & (MAX_ERAS - 1)


def key_gpu(key: int) -> int:
    """The GPU number of a row key."""
    return key & (MAX_GPUS - 1)


def sample_columns(metrics: tuple[Metric, ...] = SAMPLED) -> list[str]:
    """Column names after `id` and `seconds`, in order: mean, then min and max where kept."""
    names: list[str] = []
    for metric in metrics:
        names.append(metric.name)
        if metric.spread:
            names += [f"{metric.name}_min", f"{metric.name}_max"]
    return names


def aggregate_columns(metrics: tuple[Metric, ...] = SAMPLED) -> list[str]:
    """Column names of an aggregate's values: mean, min and max of gauges and rates; sums; masks."""
    names: list[str] = []
    for metric in metrics:
        names.append(metric.name)
        if metric.kind in (Kind.GAUGE, Kind.RATE):
            names += [f"{metric.name}_min", f"{metric.name}_max"]
    return names


def unscaled(metric: Metric, column: str, table: str = "r") -> str:
    """SQL that turns a stored integer back into the metric's unit, rounded to its resolution."""
    raw = f"{table}.{column}"
    if metric.kind is Kind.FLAGS or metric.scale == 1:
        return raw
    if metric.scale < 1:
        return f"{raw} * {round(1 / metric.scale)}"
    return f"{raw} / {float(metric.scale)!r}"


def view_columns(metrics: tuple[Metric, ...], table: str = "r") -> list[str]:
    """SELECT expressions of the view with documented names and units."""
    shown: list[str] = []
    for metric in metrics:
        shown.append(f"{unscaled(metric, metric.name, table)} AS {metric.name}")
        for end in ("_min", "_max") if metric.spread else ():
            column = f"{metric.name}{end}"
            lowest = unscaled(metric, column, table)
            mean = unscaled(metric, metric.name, table)
            shown.append(f"coalesce({lowest}, {mean}) AS {column}")
    return shown


def _integers(names: list[str]) -> str:
    return ", ".join(f"{name} INTEGER" for name in names)


def _plain(names: list[str]) -> str:
    return ", ".join(f"{name} NUMERIC" for name in names)


GPU_FIELDS = (
    "uid", "source", "name", "pci_bus_id", "memory_total", '"index"', "serial", "minor_number",
    "parent_uid", "mig_instance", "memory_kind",
)  # fmt: skip
"""Columns of `gpus` after id and node, in the order of `core.model.Identity`."""

SCHEMA_1: tuple[str, ...] = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE nodes (id INTEGER PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL,
        uuid TEXT, UNIQUE (kind, name))""",
    """CREATE TABLE runs (id INTEGER PRIMARY KEY, started REAL NOT NULL, ended REAL, ended_how TEXT,
        pid INTEGER, boot_id TEXT, version TEXT, interval_seconds INTEGER NOT NULL, suspended REAL,
        hostname TEXT, os TEXT)""",
    f"""CREATE TABLE gpus (id INTEGER PRIMARY KEY, node INTEGER NOT NULL REFERENCES nodes,
        {", ".join(GPU_FIELDS)}, first_seen REAL NOT NULL)""",
    "CREATE INDEX gpus_uid ON gpus (uid)",
    f"CREATE TABLE samples_raw (id INTEGER PRIMARY KEY, seconds INTEGER NOT NULL, {_integers(sample_columns())})",
    f"CREATE TABLE hosts_raw (id INTEGER PRIMARY KEY, seconds INTEGER NOT NULL, {_integers(sample_columns(HOST_METRICS))})",
    """CREATE TABLE states (gpu INTEGER NOT NULL, key TEXT NOT NULL, since REAL NOT NULL, value,
        PRIMARY KEY (gpu, key, since)) WITHOUT ROWID""",
    """CREATE TABLE reasons (gpu INTEGER NOT NULL, metric TEXT NOT NULL, since REAL NOT NULL, reason TEXT,
        PRIMARY KEY (gpu, metric, since)) WITHOUT ROWID""",
    """CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, node INTEGER NOT NULL, uid TEXT,
        kind TEXT NOT NULL, severity TEXT NOT NULL, message TEXT NOT NULL, detail TEXT)""",
    "CREATE INDEX events_time ON events (time)",
    """CREATE TABLE gaps (id INTEGER PRIMARY KEY, node INTEGER NOT NULL, uid TEXT, start REAL NOT NULL,
        "end" REAL, cause TEXT NOT NULL, detail TEXT)""",
    "CREATE INDEX gaps_start ON gaps (start)",
    """CREATE TABLE processes (id INTEGER PRIMARY KEY, node INTEGER NOT NULL, uid TEXT NOT NULL,
        pid INTEGER NOT NULL, kind TEXT NOT NULL, start_ticks INTEGER, boot_id TEXT, ns_pid INTEGER, user TEXT,
        command TEXT, container TEXT, job TEXT, experiment_id TEXT, first_seen REAL NOT NULL,
        last_seen REAL NOT NULL, memory INTEGER, memory_max INTEGER)""",
    "CREATE INDEX processes_seen ON processes (last_seen)",
    f"""CREATE TABLE aggregates (period INTEGER NOT NULL, gpu INTEGER NOT NULL, period_seconds INTEGER NOT NULL,
        samples INTEGER NOT NULL, expected_samples INTEGER NOT NULL, coverage REAL NOT NULL, seconds REAL NOT NULL,
        idle_seconds REAL, held_idle_seconds REAL, energy_seconds REAL, {_plain(aggregate_columns())},
        PRIMARY KEY (period, gpu)) WITHOUT ROWID""",
    f"""CREATE TABLE host_aggregates (period INTEGER PRIMARY KEY, period_seconds INTEGER NOT NULL,
        samples INTEGER NOT NULL, expected_samples INTEGER NOT NULL, coverage REAL NOT NULL, seconds REAL NOT NULL,
        {_plain(aggregate_columns(HOST_METRICS))})""",
    """CREATE TABLE periods (node INTEGER NOT NULL, start INTEGER NOT NULL, seconds INTEGER NOT NULL,
        dirty INTEGER NOT NULL, content TEXT, PRIMARY KEY (node, start)) WITHOUT ROWID""",
    """CREATE TABLE reports (id INTEGER PRIMARY KEY, node INTEGER NOT NULL, period INTEGER NOT NULL,
        period_seconds INTEGER NOT NULL, revision INTEGER NOT NULL, report_id TEXT, state TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0, spent INTEGER NOT NULL DEFAULT 0, next_try REAL, changed REAL NOT NULL,
        origin TEXT NOT NULL DEFAULT 'content', parked_by INTEGER, uid TEXT, proof TEXT, reason TEXT,
        first_attempt REAL, last_attempt REAL, last_error TEXT, sha256 TEXT, content TEXT, body BLOB,
        UNIQUE (node, period, revision))""",
    "CREATE INDEX reports_state ON reports (state, period)",
    """CREATE TABLE attempts (id INTEGER PRIMARY KEY, report INTEGER NOT NULL, number INTEGER NOT NULL,
        started REAL NOT NULL, ended REAL, status INTEGER, verdict TEXT, error TEXT, uid TEXT)""",
    "CREATE INDEX attempts_report ON attempts (report)",
    """CREATE TABLE losses (id INTEGER PRIMARY KEY, time REAL NOT NULL, what TEXT NOT NULL,
        cause TEXT NOT NULL, rows INTEGER NOT NULL)""",
    """CREATE TABLE imports (id INTEGER PRIMARY KEY, node INTEGER NOT NULL, time REAL NOT NULL, file TEXT, rows INTEGER,
        step REAL)""",
    f"""CREATE VIEW samples AS SELECT r.id >> {_SHIFT} AS start, (r.id >> {GPU_BITS}) & {MAX_ERAS - 1} AS era,
        g.id AS gpu, g.node AS node, g.uid AS uid, g.source AS source, g.pci_bus_id, g.name, g.memory_total,
        r.seconds / 10.0 AS seconds, {", ".join(view_columns(SAMPLED))}
        FROM samples_raw r JOIN gpus g ON g.id = r.id & {MAX_GPUS - 1}""",
    f"""CREATE VIEW hosts AS SELECT r.id >> {_SHIFT} AS start, (r.id >> {GPU_BITS}) & {MAX_ERAS - 1} AS era,
        r.seconds / 10.0 AS seconds, {", ".join(view_columns(HOST_METRICS))} FROM hosts_raw r""",
)
