"""Reads what the rules about experiments look at."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from gpu_monitor.server.alerts.window import RunSaid, RunValue, RunWindow
from gpu_monitor.server.store.schema_experiments import experiments, projects, run_alerts, series

RUN_SUBJECT = "experiment/"
"""What the subjects of alerts about experiments begin with; then comes the experiment's id."""
_AT_ONCE = 400


@dataclass(frozen=True)
class RunFacts:
    """An experiment as alerts name it, and what is known of it now."""

    uid: str
    name: str
    project: str
    contract: int
    simulated: bool
    status_changed: float
    window: RunWindow


def load_runs(
    connection: Connection,
    held: Collection[str],
    names: Sequence[str],
    wants_special: bool,
    now: float,
    reach: float,
    said: float | None = None,
) -> Iterator[RunFacts]:
    """Experiments that run, whose status changed in the last `reach` seconds, or whose subject is in `held`.

    Of their metrics those in `names`, and with `wants_special` those that are or were not finite. Of the alerts they raised
    those of twice the last `said` seconds.
    """
    row = experiments.c
    base = select(experiments, projects.c.name.label("project_name")).join(
        projects, projects.c.id == row.project
    )
    base = base.where(row.removed.is_(None))
    alive = base.where(row.archived.is_(None), row.ended.is_(None))
    lately = base.where(row.archived.is_(None), row.status_changed >= now - reach)
    found = {one.id: one for query in (alive, lately) for one in connection.execute(query)}
    uids = sorted(subject.removeprefix(RUN_SUBJECT) for subject in held)
    for start in range(0, len(uids), _AT_ONCE):
        named = base.where(row.uid.in_(uids[start : start + _AT_ONCE]))
        found |= {one.id: one for one in connection.execute(named)}
    running = [one.id for one in found.values() if one.status == "running"]
    specials = [one.id for one in found.values() if one.status == "running" and one.specials]
    values: dict[int, dict[str, RunValue]] = {}
    if names:
        _load(connection, running, names, values)
    if wants_special:
        _load(connection, specials, None, values)
    spoken = {} if said is None else _load_said(connection, list(found), now - 2 * said)
    for one in found.values():
        window = RunWindow(
            now, f"run {one.name} ({one.uid}) of {one.project_name}", one.status, one.ended, one.last_heard, one.lease,
            one.reason or one.signal or (None if one.exit_code is None else f"exit code {one.exit_code}"),
            one.last_step, values.get(one.id, {}), spoken.get(one.id, ()),
        )  # fmt: skip
        yield RunFacts(
            one.uid, one.name, one.project_name, one.contract, bool(one.simulated), one.status_changed, window
        )


def _load_said(connection: Connection, ids: Sequence[int], since: float) -> dict[int, list[RunSaid]]:
    row = run_alerts.c
    found: dict[int, list[RunSaid]] = {}
    for start in range(0, len(ids), _AT_ONCE):
        asked = select(row.experiment, row.time, row.level, row.title, row.text).where(
            row.experiment.in_(ids[start : start + _AT_ONCE]), row.time >= since
        )
        for run, *one in connection.execute(asked.order_by(row.experiment, row.time, row.id)):
            found.setdefault(run, []).append(RunSaid(*one))
    return found


def _load(
    connection: Connection,
    ids: Sequence[int],
    names: Sequence[str] | None,
    into: dict[int, dict[str, RunValue]],
) -> None:
    row = series.c
    for start in range(0, len(ids), _AT_ONCE):
        which: Any = (row.specials > 0) if names is None else row.name.in_(names)
        asked = select(
            row.experiment, row.name, row.last_value, row.last_special, row.last_step, row.last_time, row.special_step
        ).where(row.experiment.in_(ids[start : start + _AT_ONCE]), which)  # fmt: skip
        for run, name, value, special, step, time, first in connection.execute(asked):
            one = RunValue(value, special is not None, step, time, first)
            into.setdefault(run, {})[name] = one
