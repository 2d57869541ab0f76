"""Every table of the server, once, for SQLite and PostgreSQL alike.

Keys are integers: `hour` (hours since 1970 UTC, the start of a report's period), `agent` (`nodes.id`) and
`gpu` (`gpus.ordinal`, which counts the GPUs of one node from 0). Identities, states and reasons are interned
in `facts`: most rows share them. Measured values are integers, scaled by the decimals the catalogue
promises, so nothing is lost and sums are exact; a mean stands beside its distances to the extremes
(`_lo`, `_hi`), which are small numbers and often 0. Read values through `value_of`, never by hand.

Times are REAL seconds since 1970 UTC, text is text, JSON is text that msgspec wrote.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    literal,
    text,
)
from sqlalchemy.sql.elements import ColumnElement

from gpu_monitor.core.catalogue import DEFAULT_FIELDS, HOST_METRICS, SAMPLED, Kind, Metric

Stat = Literal["mean", "min", "max"]
metadata = MetaData()

BigId = BigInteger().with_variant(Integer, "sqlite")
"""Counts rows without end: 64 bits everywhere (in SQLite an INTEGER, which alone may be the rowid)."""

COVER: tuple[tuple[str, int], ...] = (
    ("samples", 0),
    ("expected_samples", 0),
    ("coverage", 4),
    ("seconds", 1),
)
"""What every aggregate says of its own basis, with the decimals that are kept."""
IDLE: tuple[tuple[str, int], ...] = (
    ("idle_seconds", 1),
    ("held_idle_seconds", 1),
    ("energy_seconds", 1),
)


def scale_of(metric: Metric) -> float:
    """What a value of the metric is multiplied with to be a whole number: 10 ** decimals, an integer.

    A rate is kept in thousands of bytes/s (so 0.001), as the agent keeps its minutes: the digits below say
    nothing of an hour's mean and would make each row 12 bytes longer.
    """
    return 0.001 if metric.kind is Kind.RATE else int(10**metric.decimals)


def has_extremes(metric: Metric) -> bool:
    """Whether an aggregate keeps minimum and maximum beside the mean."""
    return metric.kind in (Kind.GAUGE, Kind.RATE)


def _type(metric: Metric) -> type[Integer] | type[BigInteger]:
    """The least type that holds the value and its distances to the extremes (which PostgreSQL's rows gain by)."""
    widest = max(metric.high, metric.high - metric.low) * scale_of(metric)
    if widest < 2**15:
        return SmallInteger
    return Integer if widest < 2**31 else BigInteger


def metric_columns(metrics: tuple[Metric, ...]) -> list[Column[int]]:
    """The columns of an aggregate: the value, and its distances down and up to the extremes."""
    columns: list[Column[int]] = []
    for metric in metrics:
        names = [metric.name]
        if has_extremes(metric):
            names += [f"{metric.name}_lo", f"{metric.name}_hi"]
        columns += [Column(name, _type(metric)) for name in names]
    return columns


def value_of(table: Table, metric: Metric, stat: Stat = "mean") -> ColumnElement[float]:
    """The value of a metric in its documented unit (a float; NULL where unknown), for SELECTs over history."""
    whole: ColumnElement[Any] = table.c[metric.name]
    if stat == "min" and has_extremes(metric):
        whole = whole - table.c[f"{metric.name}_lo"]
    if stat == "max" and has_extremes(metric):
        whole = whole + table.c[f"{metric.name}_hi"]
    scale = scale_of(metric)
    if scale < 1:  # dividing by 0.001 would not give whole numbers
        return cast("ColumnElement[float]", whole * literal(float(round(1 / scale)), Double))
    return cast("ColumnElement[float]", whole / literal(float(scale), Double))


# --- who -----------------------------------------------------------------------------------------------

contracts = Table(
    "contracts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", Text, nullable=False, unique=True),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uuid", Text, nullable=False, unique=True),
    Column("contract", Integer, ForeignKey("contracts.id"), nullable=False, index=True),
    Column("hostname", Text),
    Column("simulated", Boolean, nullable=False),
    Column("os", Text),
    Column("agent_version", Text),
    Column("driver_version", Text),
    Column("first_seen", Double, nullable=False),
    Column("last_report", Double),  # when its newest report arrived
    Column("last_live", Double),  # when its newest live sample arrived
    Column("last_hour", Integer),  # the newest period held
    Column("period_seconds", Integer),
    Column(
        "longest_seconds", Integer
    ),  # the longest period ever held: how far back one may reach into another
    Column("interval_seconds", Integer),
    Column("skew_seconds", Double),  # the node's clock minus the server's; NULL until it was measured
    Column("skew_measured", Double),
)

gpus = Table(
    "gpus",
    metadata,
    Column("agent", Integer, ForeignKey("nodes.id"), primary_key=True),
    Column("ordinal", SmallInteger, primary_key=True, autoincrement=False),
    Column("uid", Text, nullable=False, index=True),
    Column("source", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),  # source simulated or replay
    Column("name", Text),
    Column("identity", BigId, ForeignKey("facts.id")),  # the newest one
    Column("first_hour", Integer, nullable=False),
    Column("last_hour", Integer, nullable=False),
    UniqueConstraint("agent", "uid", "source"),
    sqlite_with_rowid=False,
)

facts = Table(
    "facts",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("digest", LargeBinary(16), nullable=False, unique=True),  # first half of SHA-256 over `body`
    Column("body", Text, nullable=False),
)
"""Interned JSON objects: identities ({metric: value} of IDENTITY) and states ({"states": …, "reasons": …})."""

# --- reports -------------------------------------------------------------------------------------------

receipts = Table(
    "receipts",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("agent", Integer, ForeignKey("nodes.id"), nullable=False),
    Column("hour", Integer, nullable=False),
    Column("contract", Integer, nullable=False),  # the one its rows are counted under in fleet_hours
    Column("period_seconds", Integer, nullable=False),
    Column("interval_seconds", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("body_digest", LargeBinary(32), nullable=False),  # of the decoded JSON bytes
    Column("row_digest", LargeBinary(32), nullable=False),  # over the typed rows, see store/digest
    Column("body_bytes", Integer, nullable=False),
    Column("rows", Integer, nullable=False),  # GPU rows stored
    Column("quarantined", Integer, nullable=False),
    Column("coverage", Integer),  # mean coverage of the GPU rows * 10000, for the strip; NULL without rows
    Column("simulated", Boolean, nullable=False),
    Column("received", Double, nullable=False),
    Column("extra", Text),  # unknown fields of the envelope, as JSON
    UniqueConstraint("agent", "hour"),
    Index("receipts_hour", "hour"),
)

revisions = Table(
    "revisions",
    metadata,
    Column("agent", Integer, primary_key=True),
    Column("hour", Integer, primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("body_digest", LargeBinary(32), nullable=False),
    Column("received", Double, nullable=False),
    Column("outcome", Text, nullable=False),  # replaced, superseded
)
"""Bodies that are not the newest of their period: a repeat is told from a conflict by their digests."""

aggregates = Table(
    "aggregates",
    metadata,
    Column("hour", Integer, nullable=False),
    Column("agent", Integer, nullable=False),
    Column("gpu", SmallInteger, nullable=False),
    Column("identity", Integer, nullable=False),
    Column("facts", Integer, nullable=False),
    *(Column(name, Integer) for name, _ in (*COVER, *IDLE)),
    *metric_columns(SAMPLED),
    Column("extra", Text),  # unknown fields of the entry, as JSON
    UniqueConstraint("hour", "agent", "gpu", name="aggregates_key"),
    # With what ranks "who was idle", so that a week of 1,000 GPUs is read from the index alone (not 134 ms). A
    # third column there, `seconds`, would take a row past 260 bytes: it is looked up for those that are shown.
    Index("aggregates_gpu", "agent", "gpu", "hour", "idle_seconds", "held_idle_seconds"),
    postgresql_partition_by="RANGE (hour)",
)
"""One GPU over one period. PostgreSQL: partitioned by month of `hour`."""

host_hours = Table(
    "host_hours",
    metadata,
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("agent", Integer, primary_key=True, autoincrement=False),
    *(Column(name, Integer) for name, _ in COVER),
    *metric_columns(HOST_METRICS),
)

gaps = Table(
    "gaps",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("hour", Integer, nullable=False),
    Column("agent", Integer, nullable=False),
    Column("uid", Text),  # NULL: the whole node
    Column("start", Double, nullable=False),
    Column("stop", Double, nullable=False),
    Column("cause", Text, nullable=False),
    Column("detail", Text),
    Index("gaps_key", "agent", "hour"),
    Index("gaps_start", "start"),
)

events = Table(
    "events",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("hour", Integer, nullable=False),
    Column("agent", Integer, nullable=False),
    Column("time", Double, nullable=False),
    Column("uid", Text),
    Column("kind", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("detail", Text),  # JSON
    Index("events_key", "agent", "hour"),
    Index("events_time", "time"),
)

processes = Table(
    "processes",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("hour", Integer, nullable=False),
    Column("agent", Integer, nullable=False),
    Column("uid", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("first_seen", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("start_ticks", BigInteger),
    Column("boot_id", Text),
    Column("ns_pid", Integer),
    Column("user", Text),
    Column("command", Text),
    Column("container", Text),
    Column("job", Text),
    Column("experiment_id", Text),
    Column("memory", BigInteger),
    Column("memory_max", BigInteger),
    Index("processes_key", "agent", "hour"),
    Index("processes_seen", "last_seen"),
    # Which GPUs a run used: by what names its process for good, or by what the process said of itself.
    Index("processes_start", "start_ticks"),
    Index(
        "processes_experiment",
        "experiment_id",
        sqlite_where=text("experiment_id IS NOT NULL"),
        postgresql_where=text("experiment_id IS NOT NULL"),
    ),
)

live_processes = Table(
    "live_processes",
    metadata,
    Column("agent", Integer, nullable=False),
    Column("gpu", SmallInteger, nullable=False),
    Column("boot_id", Text, nullable=False),  # '' where it is not known
    Column("start_ticks", BigInteger, nullable=False),  # -1 where it is not known
    Column("pid", Integer, nullable=False),
    Column("ns_pid", Integer),
    Column("experiment_id", Text),
    Column("since", Double, nullable=False),
    Column("until", Double, nullable=False),
    PrimaryKeyConstraint("agent", "gpu", "boot_id", "start_ticks", "pid"),
    Index("live_processes_start", "start_ticks"),
    Index("live_processes_experiment", "experiment_id"),
    Index("live_processes_until", "until"),
    sqlite_with_rowid=False,
)
"""Processes on GPUs as live messages told of them, until the reports have: `processes` is the record."""

live_events = Table(
    "live_events",
    metadata,
    Column("agent", Integer, nullable=False),
    Column("time", Double, nullable=False),
    Column("uid", Text, nullable=False),  # '' of the whole node
    Column("kind", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("detail", Text),  # JSON
    PrimaryKeyConstraint("agent", "time", "uid", "kind", "message"),
    Index("live_events_time", "time"),
    sqlite_with_rowid=False,
)
"""Events as live messages told of them, before the report of their period does: `events` is the record."""

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", BigId, primary_key=True),
    Column(
        "kind", Text, nullable=False
    ),  # entry: one GPU of a stored report; early: a report from the future
    Column("agent", Integer, nullable=False),
    Column("hour", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("uid", Text),
    Column("field", Text),
    Column("reason", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("received", Double, nullable=False),
    Column("due", Double),  # when an early report is taken up; NULL for entries
    Index("quarantine_key", "agent", "hour"),
    Index("quarantine_due", "due"),
)

# --- live and rolled up ------------------------------------------------------------------------------------

LIVE_METRICS: tuple[Metric, ...] = tuple(m for m in SAMPLED if m.name in DEFAULT_FIELDS) + tuple(
    m for m in SAMPLED if m.name in ("memory_temperature", "throttle_reasons")
)
"""What a live minute and the `latest` row carry."""

_live = [Column(m.name, _type(m)) for m in LIVE_METRICS]

samples = Table(
    "samples",
    metadata,
    Column("time", Integer, nullable=False),  # start of the interval, UTC epoch s
    Column("agent", Integer, nullable=False),
    Column("gpu", SmallInteger, nullable=False),
    Column("seconds", Integer, nullable=False),  # covered * 10
    *(Column(m.name, _type(m)) for m in LIVE_METRICS),
    UniqueConstraint("time", "agent", "gpu", name="samples_key"),
    Index("samples_gpu", "agent", "gpu", "time"),
    postgresql_partition_by="RANGE (time)",
)
"""Live minutes, kept a week. PostgreSQL: partitioned by day of `time`."""

latest = Table(
    "latest",
    metadata,
    Column("agent", Integer, primary_key=True, autoincrement=False),
    Column("gpu", SmallInteger, primary_key=True, autoincrement=False),
    Column("time", Double, nullable=False),  # end of what the values cover
    Column("live", Boolean, nullable=False),  # from a live sample; else the mean of a whole period
    Column("status", Text, nullable=False),  # ok, or the cause of the newest gap that is not over
    *_live,
    Column("coverage", Integer),
    Column("facts", Integer),
    sqlite_with_rowid=False,  # written with every report: one tree, not two
)
"""The newest row of each GPU, so that `fleet now` scans no history."""

FLEET_UNITS: dict[str, int] = {"memory_used": 1 << 20}
"""Where a mean is divided (rounding down) before it is summed: bytes of 10,000 GPUs pass 64 bits, MiB do not."""

EVERYONE = 0
"""The contract number (`contracts.id` begins at 1) of the rows of `fleet_hours` that hold all contracts together."""

fleet_hours = Table(
    "fleet_hours",
    metadata,
    Column("hour", Integer, nullable=False),
    Column("contract", Integer, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("reports", Integer, nullable=False),
    Column("gpus", Integer, nullable=False),
    # Exact sums of integers, so that a replaced report is taken off again without a trace.
    Column("seconds", BigInteger, nullable=False),  # covered, * 10
    Column("period_seconds", BigInteger, nullable=False),  # sum over rows of the period's length, s
    Column("idle_seconds", BigInteger, nullable=False),
    Column("held_idle_seconds", BigInteger, nullable=False),
    Column("energy_seconds", BigInteger, nullable=False),
    Column("energy", BigInteger, nullable=False),  # J * 10, of rows that have it
    Column("energy_rows", Integer, nullable=False),
    # For each metric below: sum(scaled value // FLEET_UNITS * seconds * 10) over rows that have it, and those
    # seconds * 10.
    *(
        Column(f"{name}_{part}", BigInteger, nullable=False)
        for name in ("gpu_utilization", "memory_utilization", "power_usage", "temperature", "memory_used")
        for part in ("sum", "seconds")
    ),
    PrimaryKeyConstraint("contract", "simulated", "hour"),
    sqlite_with_rowid=False,  # read in order of the key: a year by the hour is one scan
)

# --- what happened, in the order of commits ----------------------------------------------------------------

changes = Table(
    "changes",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=False),  # assigned under the writer's lock
    Column("time", Double, nullable=False),
    Column("kind", Text, nullable=False),  # report, samples, events, node, alert
    Column("agent", Integer),
    Column("hour", Integer),
    Index("changes_time", "time"),
)
"""What each commit touched: alerts and live pages follow it. Rows older than an hour are dropped."""

watches = Table(
    "watches",
    metadata,
    Column("process", Text, primary_key=True),  # a server process, by a random name
    Column("node", Text, primary_key=True),  # nodes.uuid
    Column("until", Double, nullable=False),  # by the database's clock: a process that died watches nothing
)
"""Nodes that somebody looks at now, told from process to process on PostgreSQL; empty on SQLite."""

# --- watching ----------------------------------------------------------------------------------------------

rules = Table(
    "rules",
    metadata,
    Column("id", Text, primary_key=True),  # a slug: gpu-lost
    Column("kind", Text, nullable=False),
    Column("spec", Text, nullable=False),  # JSON of the rule's typed settings
    Column("severity", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("builtin", Boolean, nullable=False),
    Column("advice", Text),
    Column("contract", Integer),  # NULL: of every contract
    Column("changed", Double, nullable=False),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", Text, primary_key=True),  # UUID
    Column("rule", Text, nullable=False),
    Column("subject", Text, nullable=False),  # node uuid, or node uuid / gpu uid
    Column("agent", Integer),
    Column("uid", Text),
    Column("contract", Integer),
    Column("state", Text, nullable=False),  # pending, firing, resolved
    Column("severity", Text, nullable=False),
    Column("since", Double, nullable=False),  # when the condition began
    Column("fired", Double),
    Column("resolved", Double),
    Column("value", Double),
    Column("message", Text, nullable=False),
    Column("past", Boolean, nullable=False),  # data was older than 15 min on arrival: never notified
    Column("simulated", Boolean, nullable=False),
    Column("seen", Double, nullable=False),  # up to when data has shown the condition
    Column(
        "silenced", Boolean, nullable=False
    ),  # fired under a silence: told when that ends, if it still fires
    Column("ending", Text),  # why it is over: recovered, no data, rule changed, run ended
    Column("acknowledged", Double),
    Column("acknowledged_by", Text),
    Column("active", Integer),  # 1 while pending or firing, NULL after: one active alert a rule and subject
    UniqueConstraint("rule", "subject", "active", name="alerts_active"),
    Index("alerts_since", "since"),
)

silences = Table(
    "silences",
    metadata,
    Column("id", Text, primary_key=True),
    Column("rule", Text),  # NULL: every rule
    Column("subject", Text),  # NULL: every subject; a node uuid covers its GPUs
    Column("start", Double, nullable=False),
    Column("stop", Double, nullable=False),
    Column("reason", Text),
    Column("author", Text, nullable=False),
    Column("contract", Integer),
)

engine_state = Table(
    "engine_state",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),  # JSON
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("alert", Text, nullable=False),
    Column("moment", Text, nullable=False),  # fired, resolved
    Column("channel", Text, nullable=False),
    Column("body", Text, nullable=False),  # JSON
    Column("created", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_try", Double),  # NULL: delivered or given up
    Column("delivered", Double),
    Column("error", Text),
    UniqueConstraint("alert", "moment", "channel", name="outbox_once"),
    Index("outbox_due", "next_try"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("outbox", BigId, nullable=False),
    Column("time", Double, nullable=False),
    Column("channel", Text, nullable=False),
    Column("ok", Boolean, nullable=False),
    Column("status", Text, nullable=False),
    Index("deliveries_time", "time"),
)

channels = Table(
    "channels",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # slack, webhook, email, apprise
    Column("settings", Text, nullable=False),  # JSON; secrets are never given out again
    Column("enabled", Boolean, nullable=False),
    Column("changed", Double, nullable=False),
)

# --- who may -----------------------------------------------------------------------------------------------

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("password", Text, nullable=False),  # argon2id
    Column("admin", Boolean, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created", Double, nullable=False),
)

memberships = Table(
    "memberships",
    metadata,
    Column("user", Integer, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("contract", Integer, ForeignKey("contracts.id"), primary_key=True),
    Column("project", Text, primary_key=True, server_default=""),  # empty: the whole contract
    Column("role", Text, nullable=False),  # viewer, member, admin
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),  # SHA-256 of the cookie
    Column("user", Integer, ForeignKey("users.id", ondelete="CASCADE")),  # NULL: by the local link
    Column("csrf", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),  # short public name
    Column("digest", LargeBinary(32), nullable=False, unique=True),  # SHA-256 of the token
    Column("scope", Text, nullable=False),  # report:write, experiment:write, read, admin
    Column("contract", Integer, ForeignKey("contracts.id")),  # NULL: every contract (admin, local)
    Column("node", Text),  # a node's UUID: writes only its rows
    Column("enrol", Boolean, nullable=False),
    Column("parent", Text),  # the enrolling token that made this one
    Column("name", Text),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("revoked", Double),
    Column("first_used", Double),
    Column("last_used", Double),
    Index("tokens_node", "node"),
)

versions = Table(
    "versions",
    metadata,
    Column("name", Text, primary_key=True),  # access: counted up with every change that takes a right away
    Column("number", Integer, nullable=False),
)
"""How other processes notice that what they hold in memory is out of date."""

audit = Table(
    "audit",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("time", Double, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text),
    Column("address", Text),
    Column("detail", Text),  # JSON, no secrets
    Index("audit_time", "time"),
)
