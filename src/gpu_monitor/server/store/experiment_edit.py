"""What people change of an experiment: its name, its tags, notes, and whether it is archived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, func, select, text

from gpu_monitor.server.store.schema_experiments import experiments, notes, tags

_TAGS, _NOTES = 1_000, 10_000
"""Of one experiment, as from its segments."""


@dataclass(frozen=True)
class Edit:
    """What is to change; None and empty leave as it is. A tag of None is taken away; notes are added."""

    name: str | None = None
    tags: Mapping[str, str | None] = field(default_factory=dict)
    notes: Sequence[str] = ()
    archived: bool | None = None


_PUT_TAG = text(
    "INSERT INTO tags (experiment, key, value, time) VALUES (:experiment, :key, :value, :time)"
    " ON CONFLICT (experiment, key) DO UPDATE SET value = excluded.value, time = excluded.time"
)


def edit_experiment(connection: Connection, row: int, edit: Edit, author: str, now: float) -> str | None:
    """Change the experiment with this row; what its segments say later still counts as newer.

    None where it was done; else of what it would have too much, and the caller is to roll back.
    """
    changed: dict[str, object] = {"revision": experiments.c.revision + 1}
    if edit.name is not None:
        changed["name"] = edit.name
    if edit.archived is not None:
        changed["archived"] = now if edit.archived else None
    connection.execute(experiments.update().where(experiments.c.id == row).values(changed))
    for key, value in edit.tags.items():
        connection.execute(_PUT_TAG, {"experiment": row, "key": key, "value": value, "time": now})
    for note in edit.notes:
        connection.execute(notes.insert().values(experiment=row, time=now, text=note, author=author))
    for table, most in ((tags, _TAGS), (notes, _NOTES)):
        count = select(func.count()).select_from(table).where(table.c.experiment == row)
        if (edit.tags or edit.notes) and connection.execute(count).scalar_one() > most:
            return f"{most} {table.name}"
    return None
