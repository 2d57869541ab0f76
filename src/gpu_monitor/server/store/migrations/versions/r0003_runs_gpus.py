"""Version 0003 of the tables: the GPUs of runs, and what live messages tell of processes and events.

Made by scripts/migration from `server/store/schema`. Edited only until it is released.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Version 0003 of the tables: runs_gpus."""

    op.create_table(
        "live_events",
        sa.Column("agent", sa.Integer(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("agent", "time", "uid", "kind", "message"),
        sqlite_with_rowid=False,
    )
    op.create_index("live_events_time", "live_events", ["time"], unique=False)
    op.create_table(
        "live_processes",
        sa.Column("agent", sa.Integer(), nullable=False),
        sa.Column("gpu", sa.SmallInteger(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("start_ticks", sa.BigInteger(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("ns_pid", sa.Integer(), nullable=True),
        sa.Column("experiment_id", sa.Text(), nullable=True),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("agent", "gpu", "boot_id", "start_ticks", "pid"),
        sqlite_with_rowid=False,
    )
    op.create_index("live_processes_experiment", "live_processes", ["experiment_id"], unique=False)
    op.create_index("live_processes_start", "live_processes", ["start_ticks"], unique=False)
    op.create_index("live_processes_until", "live_processes", ["until"], unique=False)
    op.create_index(
        "processes_experiment",
        "processes",
        ["experiment_id"],
        unique=False,
        sqlite_where=sa.text("experiment_id IS NOT NULL"),
        postgresql_where=sa.text("experiment_id IS NOT NULL"),
    )
    op.create_index("processes_start", "processes", ["start_ticks"], unique=False)
    # ### end Alembic commands ###
