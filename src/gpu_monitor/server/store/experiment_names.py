"""Which experiment is meant by an id, by a name (its newest one), or by `name~2` (the one before)."""

from __future__ import annotations

import difflib
import re
from typing import Any

from sqlalchemy import Connection, select

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.store.experiment_list import experiment_rows
from gpu_monitor.server.store.schema_experiments import experiments

_COUNTED = re.compile(r"(?P<name>.+)~(?P<number>[1-9][0-9]{0,5})", re.DOTALL)
_LOOKED_AT = 2000
"""Newest experiments among whose names the nearest one is looked for."""


def find_experiment(connection: Connection, who: Principal, meant: str) -> Any | None:
    """The row (of `experiment_rows`) of the experiment that is meant; None where there is none to see.

    An id goes before a name, and a name that ends in ~2 itself before the second newest of another.
    """
    rows = experiment_rows(who)
    newest = (experiments.c.started.desc(), experiments.c.id.desc())
    row = connection.execute(rows.where(experiments.c.uid == meant)).first()
    if row is None:
        row = connection.execute(rows.where(experiments.c.name == meant).order_by(*newest).limit(1)).first()
    counted = _COUNTED.fullmatch(meant)
    if row is None and counted is not None:
        query = rows.where(experiments.c.name == counted["name"]).order_by(*newest)
        row = connection.execute(query.limit(1).offset(int(counted["number"]) - 1)).first()
    return row


def nearest_name(connection: Connection, who: Principal, meant: str) -> str | None:
    """The name or id of a recent experiment that may have been meant; None where none is near."""
    recent = experiment_rows(who).order_by(experiments.c.started.desc()).limit(_LOOKED_AT).subquery()
    names: dict[str, None] = {}
    for row in connection.execute(select(recent.c.name, recent.c.uid)):
        names.update({row.name: None, row.uid: None})
    near = difflib.get_close_matches(meant, names, 1)
    return near[0] if near else None
