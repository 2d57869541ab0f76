"""Why an expression finds nothing: a name of it is of no experiment, and which name may have been meant."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, select, true

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.store.experiment_list import experiment_rows
from gpu_monitor.server.store.experiment_terms import Terms
from gpu_monitor.server.store.schema_experiments import experiments, params, series, tags
from gpu_monitor.wire.expressions import Expression, Kind, operands_of, said_unknown

_ASKED_FOR = 5
"""Names of an expression that are looked for: each is a look at every experiment."""
_LOOKED_AT = 200
"""Newest experiments among whose names the nearest one is looked for."""
_NAMES = 5000
_HELD = {
    "param": (params.c.experiment, params.c.name, true()),
    "metric": (series.c.experiment, series.c.name, true()),
    "tag": (tags.c.experiment, tags.c.key, tags.c.value.is_not(None)),
}
"""Of which experiment, the name, and whether it counts: a tag without a value was taken away."""


def unknown_name(connection: Connection, who: Principal, expression: Expression, terms: Terms) -> str | None:
    """A sentence about the first name that no experiment which `who` may see has; None where each is of one."""
    operands = dict.fromkeys(
        replace(one, stat="last", column=1) for one in operands_of(expression) if one.kind != "field"
    )
    for operand in list(operands)[:_ASKED_FOR]:
        query = experiment_rows(who).where(terms.is_known(operand)).limit(1)
        if connection.execute(query).first() is None:
            return said_unknown(operand, _names(connection, who, operand.kind))
    return None


def _names(connection: Connection, who: Principal, kind: Kind) -> list[str]:
    """What of this kind the newest experiments have."""
    newest = experiment_rows(who).order_by(experiments.c.started.desc()).limit(_LOOKED_AT).subquery()
    found: dict[str, None] = {}
    for owner, name, counts in _HELD.values() if kind == "any" else (_HELD[kind],):
        query = select(name).where(owner.in_(select(newest.c.id)), counts).distinct().limit(_NAMES)
        found.update(dict.fromkeys(connection.execute(query).scalars()))
    return list(found)
