"""The tables of experiments, on the same metadata as `schema`: what segments say, ready to be asked.

Keys are integers: `experiments.id`, `series.id`; the id that people and programs use is `experiments.uid`. Times are
seconds since 1970 UTC, JSON is text that msgspec wrote. Lists and expressions need `experiments`, `params`, `tags` and
`series` alone, which has the last, least and greatest value of each metric: they never look at a point.

A value that is not finite has NULL in its value column, and says in the one beside it (`special`) which it is.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

from gpu_monitor.server.store.schema import BigId, metadata

__all__ = ["metadata"]

NAN, INFINITY, MINUS_INFINITY = 1, 2, 3
"""What `special` says; NULL: the value beside it is finite."""

# --- who and what --------------------------------------------------------------------------------------

projects = Table(
    "projects",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("contract", Integer, ForeignKey("contracts.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created", Double, nullable=False),
    UniqueConstraint("contract", "name"),
)

experiments = Table(
    "experiments",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("uid", Text, nullable=False, unique=True),  # the id in URLs, made by the SDK
    Column("contract", Integer, ForeignKey("contracts.id"), nullable=False),
    Column("project", BigId, ForeignKey("projects.id"), nullable=False),
    Column("name", Text, nullable=False),  # not unique: it means its newest experiment
    Column("created", Double, nullable=False),  # when its first header came
    Column("created_by", Text, nullable=False),  # the principal who brought it
    Column("started", Double, nullable=False),  # the earliest header
    Column("ended", Double),  # NULL while it runs
    Column("status", Text, nullable=False),  # running, completed, failed, stopped, crashed
    Column("status_changed", Double, nullable=False),  # by our clock: what watches goes by it
    Column("exit_code", BigInteger),
    Column("signal", Text),
    Column("reason", Text),
    Column("proof", Text),  # of `crashed`: JSON, who saw the process gone, and the cause
    Column("last_heard", Double, nullable=False),  # by our clock
    Column("lease", Double, nullable=False),  # a running one that was not heard from by then is stalled
    Column("last_step", BigInteger),  # of the newest record with a step
    Column("last_time", Double),  # of the newest record
    Column("points", BigInteger, nullable=False),  # taken, whatever retention took away since
    Column("texts", BigInteger, nullable=False),  # lines of output: the next one's ordinal
    Column("specials", BigInteger, nullable=False),  # points that are not finite
    Column("bytes", BigInteger, nullable=False),  # of its segments
    Column("simulated", Boolean, nullable=False),
    Column("host", Text),  # of the segment that began last
    Column("user", Text),
    Column("archived", Double),  # since when; NULL: it is not
    Column("thinned", Double),  # when retention took points away; NULL: all are there
    Column("removed", Double),  # deleted then: no question finds it, and its id never comes back
    Column("revision", BigInteger, nullable=False),  # counts what changed
    Index("experiments_started", "contract", "started"),
    Index("experiments_project", "project", "started"),
    Index("experiments_name", "name", "started"),
    Index("experiments_ended", "ended"),
    Index("experiments_changed", "status_changed"),
)

segments = Table(
    "segments",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("experiment", BigId, ForeignKey("experiments.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # held: the offset at which the next upload goes on
    Column("damaged", BigInteger, nullable=False),  # lines whose check is wrong
    Column("unknown", BigInteger, nullable=False),  # lines of kinds that this program does not know
    Column("started", Double, nullable=False),
    Column("received", Double, nullable=False),
    Column("last_heard", Double, nullable=False),
    Column("last_time", Double),
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("user", Text),
    Column("boot_id", Text),
    Column("start_ticks", BigInteger),
    Column("ns_pid", BigInteger),
    Column("rank", BigInteger),
    Column("python", Text),
    Column("version", Text),
    Column("gpus", Text),  # JSON: the uids that the process saw; NULL: not known
    Column("simulated", Boolean, nullable=False),
    Column("resumed", Boolean, nullable=False),
    Column("parent", Text),  # the segment of the process that this one was forked from
    Column("status", Text, nullable=False),  # what the writer itself said last; running from the header on
    Column("status_time", Double, nullable=False),
    Column("status_more", Text),  # JSON
    Column("proof", Text),  # JSON: who saw the writer gone, and the cause
    Column("proof_time", Double),
    Column("decoder", Text, nullable=False),  # JSON: series by their numbers in the segment, and its sets
    UniqueConstraint("experiment", "name"),
    Index("segments_writer", "boot_id", "start_ticks"),
)
"""One writer's log, and how far it has come. Its bytes are in `segment_chunks`."""

segment_chunks = Table(
    "segment_chunks",
    metadata,
    Column("segment", BigId, ForeignKey("segments.id"), nullable=False),
    Column("start", BigInteger, nullable=False),  # the first byte's place in the segment
    Column("length", Integer, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),  # SHA-256 of the bytes
    Column("data", LargeBinary, nullable=False),  # the bytes, compressed with zlib
    PrimaryKeyConstraint("segment", "start"),
)

# --- metrics -------------------------------------------------------------------------------------------

series = Table(
    "series",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("experiment", BigId, ForeignKey("experiments.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("unit", Text),
    Column("source", Text),  # sdk: read by the SDK itself, not logged by the script
    Column("points", BigInteger, nullable=False),  # taken: the next point's ordinal
    Column("first_time", Double),
    # The newest point by its time; of one time the one logged last.
    Column("last_step", BigInteger),
    Column("last_time", Double),
    Column("last_value", Double),
    Column("last_special", SmallInteger),
    # Over finite values; of equal ones the first. NULL where there is none.
    Column("min_value", Double),
    Column("min_step", BigInteger),
    Column("min_time", Double),
    Column("max_value", Double),
    Column("max_step", BigInteger),
    Column("max_time", Double),
    Column("specials", BigInteger, nullable=False),  # points that are not finite
    Column("special_step", BigInteger),  # the first of them
    UniqueConstraint("experiment", "name"),
)
"""A metric of an experiment, over all its segments."""

points = Table(
    "points",
    metadata,
    # The widest first: PostgreSQL fills up to the width of what follows.
    Column("step", BigInteger, nullable=False),
    Column("time", Double, nullable=False),
    Column("value", Double),
    Column("series", Integer, nullable=False),
    Column("ordinal", Integer, nullable=False),  # counts the series' points from 0, as they came
    Column("special", SmallInteger),  # NAN, INFINITY, MINUS_INFINITY
    PrimaryKeyConstraint("series", "step", "ordinal"),
    sqlite_with_rowid=False,  # read by series and step: one tree, not two
)
"""Every value. A series belongs to one experiment, so its key is the index (experiment, series, step)."""

# --- what was said beside them -------------------------------------------------------------------------

params = Table(
    "params",
    metadata,
    Column("experiment", BigId, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", Text, nullable=False),  # JSON
    Column("number", Double),  # where it is a finite number or a truth value (1 or 0): for expressions
    Column("text", Text),  # where it is a text: its first 500 characters, for expressions
    Column("time", Double, nullable=False),
    PrimaryKeyConstraint("experiment", "name"),
)

tags = Table(
    "tags",
    metadata,
    Column("experiment", BigId, nullable=False),
    Column("key", Text, nullable=False),
    Column("value", Text),  # NULL: it was taken away
    Column("time", Double, nullable=False),
    PrimaryKeyConstraint("experiment", "key"),
    Index("tags_key", "key"),
)

notes = Table(
    "notes",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("experiment", BigId, nullable=False),
    Column("time", Double, nullable=False),
    Column("text", Text, nullable=False),
    Column("author", Text),  # NULL: the script
    Index("notes_experiment", "experiment", "time"),
)

captures = Table(
    "captures",
    metadata,
    Column("experiment", BigId, nullable=False),
    Column("topic", Text, nullable=False),  # git, command, packages, slurm ...
    Column("body", Text, nullable=False),  # JSON
    Column("time", Double, nullable=False),
    PrimaryKeyConstraint("experiment", "topic"),
)

run_alerts = Table(
    "run_alerts",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("experiment", BigId, nullable=False),
    Column("time", Double, nullable=False),
    Column("level", Text, nullable=False),  # info, warning, error
    Column("title", Text, nullable=False),
    Column("text", Text, nullable=False),
    Index("run_alerts_experiment", "experiment", "time"),
)

texts = Table(
    "texts",
    metadata,
    Column("experiment", BigId, nullable=False),
    Column("ordinal", BigInteger, nullable=False),  # counts from 0, as they came
    Column("time", Double, nullable=False),
    Column("stream", Text, nullable=False),  # stdout, stderr, log
    Column("text", Text, nullable=False),
    PrimaryKeyConstraint("experiment", "ordinal"),
    sqlite_with_rowid=False,
)

media = Table(
    "media",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("experiment", BigId, nullable=False),
    Column("time", Double, nullable=False),
    Column("step", BigInteger),
    Column("kind", Text, nullable=False),  # image, histogram, table, graph, text, artifact, checkpoint, model
    Column("name", Text, nullable=False),
    Column("sha256", LargeBinary(32)),  # of a blob
    Column("size", BigInteger),
    Column("type", Text),  # MIME
    Column("file", Text),  # relative to the experiment's folder
    Column("data", Text),  # JSON: the content itself, where it is no blob
    Column("more", Text, nullable=False),  # JSON: what the kind says besides
    Index("media_experiment", "experiment", "kind", "name"),
    Index("media_sha256", "sha256"),
)

models = Table(
    "models",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("contract", Integer, ForeignKey("contracts.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),  # from 1, as they came
    Column("experiment", BigId, nullable=False),
    Column("media", BigId, nullable=False),  # the record that made it: blob, metrics, where it came from
    Column("time", Double, nullable=False),
    UniqueConstraint("contract", "name", "version"),
    Index("models_experiment", "experiment"),
)
"""The registry: the versions of each name within a contract."""

# --- files ---------------------------------------------------------------------------------------------

blobs = Table(
    "blobs",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("sha256", LargeBinary(32), nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),
    Column("received", Double, nullable=False),
)
"""Files that are whole and verified; their bytes lie in BLOBS_DIRECTORY."""

blob_holders = Table(
    "blob_holders",
    metadata,
    Column("blob", BigId, ForeignKey("blobs.id"), nullable=False),
    Column("contract", Integer, ForeignKey("contracts.id"), nullable=False),
    Column("wanted", Double, nullable=False),  # when it was brought, or last asked for by who would bring it
    PrimaryKeyConstraint("contract", "blob"),
    Index("blob_holders_blob", "blob"),
)
"""Which contracts brought all of a blob's bytes: knowing a digest alone gives nobody the file."""
