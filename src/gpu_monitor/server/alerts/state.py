"""What becomes of an alert when a window was judged: pending, firing, resolved. Pure.

At most one alert of a rule and subject is active. What was over before it became known is handed back as
finished episodes: whether those are on record already, only the database knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from gpu_monitor.server.alerts.rule import Severity
from gpu_monitor.server.alerts.window import Episode, Judgement
from gpu_monitor.server.store.alerts import Alert, Moment, new_id

OLD_SECONDS = 900.0
"""Data whose interval or period ended longer ago than this on arrival is recorded as past and never notifies."""
STALE_SECONDS = 86_400.0
"""An alert about which no data says anything for a day ends: nobody can act on what may long be over."""
_WRITE_SECONDS = 300.0
"""How far a lasting alert's newest sight and value may lag behind in the database."""
RECOVERED, NO_DATA, CHANGED = "recovered", "no data for a day", "the rule was changed or switched off"


@dataclass(frozen=True)
class Subject:
    """What an alert is about, with what is copied into it. `agent` and `contract` None: the server itself."""

    name: str
    agent: int | None = None
    uid: str | None = None
    contract: int | None = None
    simulated: bool = False


@dataclass(frozen=True)
class View:
    """How a window is to be taken: `is_newest`, it reaches to the newest there is; `is_old`, its data came late."""

    now: float
    is_newest: bool = True
    is_old: bool = False


@dataclass(frozen=True)
class Step:
    """One write: `alert` as it is to be; `tell` lists the moments to notify of, in order."""

    kind: Literal["insert", "update", "delete"]
    alert: Alert
    tell: tuple[Moment, ...] = ()


@dataclass
class Outcome:
    """What to do. `finished`: episodes that fired and were over, perhaps on record already."""

    steps: list[Step] = field(default_factory=list)
    finished: list[Episode] = field(default_factory=list)


def settle(
    rule: str, severity: Severity, subject: Subject, active: Alert | None, judgement: Judgement, view: View
) -> Outcome:
    """The steps from the active alert (None: there is none) to what the window shows."""
    outcome = Outcome()
    for episode in judgement.episodes:
        if episode.until is None and view.is_newest:
            if active is None:
                alert = begin(rule, severity, subject, episode, view)
                told: tuple[Moment, ...] = ("fired",) if alert.state == "firing" and not alert.past else ()
                outcome.steps.append(Step("insert", alert, told))
            else:
                outcome.steps += _go_on(active, severity, episode, view)
            return outcome
        end = episode.seen if episode.until is None else episode.until
        if active is not None and end > active.since:
            if not view.is_newest:
                continue  # the newest data knows better
            outcome.steps.append(_end(active, episode, end, view))
            active = None
        elif episode.is_firing:
            outcome.finished.append(replace(episode, until=end))
    if (
        active is not None
        and view.is_newest
        and judgement.known is not None
        and judgement.known >= active.seen
    ):
        outcome.steps.append(
            finish(active, max(judgement.known, active.since), judgement.ending or RECOVERED)
        )
    return outcome


def begin(rule: str, severity: Severity, subject: Subject, episode: Episode, view: View) -> Alert:
    """A new alert for an episode that goes on, or that is over."""
    is_over = episode.until is not None
    is_firing = episode.is_firing
    return Alert(
        id=new_id(),
        rule=rule,
        subject=subject.name,
        agent=subject.agent,
        uid=subject.uid,
        contract=subject.contract,
        state="resolved" if is_over else "firing" if is_firing else "pending",
        severity=severity,
        since=episode.since,
        fired=view.now if is_firing else None,
        resolved=episode.until,
        value=episode.value,
        message=episode.message,
        past=view.is_old and is_firing,
        simulated=subject.simulated,
        seen=episode.seen,
        ending=RECOVERED if is_over else None,
    )


def _go_on(active: Alert, severity: Severity, episode: Episode, view: View) -> list[Step]:
    """The same alert, as it is now; nothing to write where it hardly changed."""
    since = min(active.since, episode.since)
    now = replace(
        active, since=since, seen=max(active.seen, episode.seen), value=episode.value, message=episode.message
    )
    if active.state == "pending":
        if not episode.is_firing:
            return [] if now.seen - active.seen < _WRITE_SECONDS else [Step("update", now)]
        now = replace(now, state="firing", fired=view.now, past=view.is_old, severity=severity)
        return [Step("update", now, () if view.is_old else ("fired",))]
    if active.past and not view.is_old:
        return [Step("update", replace(now, past=False, fired=view.now), ("fired",))]
    return [Step("update", now)] if now.seen - active.seen >= _WRITE_SECONDS else []


def _end(active: Alert, episode: Episode, end: float, view: View) -> Step:
    """The active alert's episode is over; one that never fired is forgotten, or fired and is over at once."""
    if active.state == "firing":
        return finish(replace(active, seen=max(active.seen, episode.seen)), end, RECOVERED)
    if not episode.is_firing:
        return Step("delete", active)
    over = replace(
        active, state="resolved", fired=view.now, resolved=end, seen=episode.seen, value=episode.value,
        message=episode.message, past=view.is_old, ending=RECOVERED,
    )  # fmt: skip
    return Step("update", over, () if view.is_old else ("fired", "resolved"))


def finish(active: Alert, end: float, why: str) -> Step:
    """The alert is over; one that never fired is forgotten."""
    if active.state == "pending":
        return Step("delete", active)
    return Step("update", replace(active, state="resolved", resolved=end, ending=why), ("resolved",))


def is_stale(active: Alert, judgement: Judgement, now: float) -> bool:
    """Whether no data has said anything about it for too long."""
    known = active.seen if judgement.known is None else max(active.seen, judgement.known)
    return now - known >= STALE_SECONDS


def without_stale(judgement: Judgement, now: float) -> Judgement:
    """The same, but what was last seen too long ago does not go on: nobody can tell whether it does."""
    if not judgement.episodes or judgement.episodes[-1].until is not None:
        return judgement
    *before, last = judgement.episodes
    if now - last.seen < STALE_SECONDS:
        return judgement
    return replace(judgement, episodes=(*before, replace(last, until=last.seen)))
