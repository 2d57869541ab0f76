"""Judges experiments by the rules about them: the running ones, those that ended lately, those with an alert."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from gpu_monitor.server.alerts.actives import ActiveAlerts
from gpu_monitor.server.alerts.book import RuleBook
from gpu_monitor.server.alerts.judge import Found
from gpu_monitor.server.alerts.kinds import is_meant
from gpu_monitor.server.alerts.rules.run_alert import RunAlert
from gpu_monitor.server.alerts.rules.run_metric import RunMetric
from gpu_monitor.server.alerts.rules.run_nan import RunNan
from gpu_monitor.server.alerts.state import CHANGED, OLD_SECONDS, Subject, View, finish, settle
from gpu_monitor.server.store.alert_runs import RUN_SUBJECT, RunFacts, load_runs

LOOK_SECONDS = 10.0
"""Between two looks at experiments."""
_AT_ONCE = 500


def evaluate_experiments(
    connection: Connection, book: RuleBook, actives: ActiveAlerts, now: float
) -> list[Found]:
    """Judge experiments. One that came long after it had ended (brought by `sync`) is recorded as past."""
    held = {alert.subject for alert in actives.of(None).values() if alert.subject.startswith(RUN_SUBJECT)}
    names = [entry.rule.spec.metric for entry in book.experiment if isinstance(entry.rule.spec, RunMetric)]
    wants_special = any(isinstance(entry.rule.spec, RunNan) for entry in book.experiment)
    said = max(
        (entry.duration for entry in book.experiment if isinstance(entry.rule.spec, RunAlert)), default=None
    )
    reach = max((entry.duration for entry in book.experiment), default=0.0)
    found: list[Found] = []
    seen: set[str] = set()
    for run in load_runs(connection, held, sorted(set(names)), wants_special, now, reach, said):
        subject = Subject(f"{RUN_SUBJECT}{run.uid}", None, None, run.contract, run.simulated)
        seen.add(subject.name)
        found += _judged(book, actives, subject, run, now)
    for alert in list(actives.of(None).values()):
        # Deleted: nobody hears of it any more.
        if alert.subject in held and alert.subject not in seen:
            step = finish(alert, now, CHANGED)
            gone = Subject(alert.subject, None, None, alert.contract, alert.simulated)
            found.append(Found(alert.rule, gone, step, view=View(now)))
    return found


def _judged(
    book: RuleBook, actives: ActiveAlerts, subject: Subject, run: RunFacts, now: float
) -> Sequence[Found]:
    found: list[Found] = []
    window = run.window
    came_late = window.ended is not None and run.status_changed - window.ended > OLD_SECONDS
    view = View(now, True, came_late)
    for entry in book.experiment:
        rule = entry.rule
        active = actives.of(None).get((rule.id, subject.name))
        is_its = rule.contract in (None, subject.contract) and is_meant(
            rule.spec, (run.uid, run.name, run.project)
        )
        if not is_its:
            if active is not None:
                found.append(Found(rule.id, subject, finish(active, now, CHANGED), view=View(now)))
            continue
        judgement = entry.judge(window)
        if active is None and not any(one.until is None for one in judgement.episodes):
            continue
        outcome = settle(rule.id, rule.severity, subject, active, judgement, view)
        found += [Found(rule.id, subject, step, view=view) for step in outcome.steps]
    return found
