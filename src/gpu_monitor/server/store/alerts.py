"""Rules, alerts, silences and what waits to be told: reading them, and writing them in the engine's transactions."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, case, delete, func, insert, or_, select, update

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.alerts.kinds import name_of, read_spec
from gpu_monitor.server.alerts.rule import Rule, Severity
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import alerts, channels, engine_state, outbox, rules, silences
from gpu_monitor.server.store.write import Touched, append_changes

AlertState = Literal["pending", "firing", "resolved"]
Moment = Literal["fired", "resolved"]


@dataclass(frozen=True)
class Alert:
    """One alert: the row. `subject` is a node's id, `node/GPU`, or `server`."""

    id: str
    rule: str
    subject: str
    agent: int | None
    uid: str | None
    contract: int | None
    state: AlertState
    severity: Severity
    since: float
    fired: float | None
    resolved: float | None
    value: float | None
    message: str
    past: bool
    simulated: bool
    seen: float
    silenced: bool = False
    ending: str | None = None
    acknowledged: float | None = None
    acknowledged_by: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether it is not over."""
        return self.state != "resolved"


@dataclass(frozen=True)
class Silence:
    """Nothing is told of these alerts from `start` to `stop`. None: every rule, every subject, every contract."""

    id: str
    rule: str | None
    subject: str | None
    start: float
    stop: float
    reason: str | None
    author: str
    contract: int | None

    def covers(self, alert: Alert, now: float) -> bool:
        """Whether it holds the alert back now; one of a node covers its GPUs, too."""
        return (
            self.start <= now < self.stop
            and self.rule in (None, alert.rule)
            and (self.subject is None or self.subject in (alert.subject, alert.subject.partition("/")[0]))
            and self.contract in (None, alert.contract)
        )


@dataclass(frozen=True)
class Waiting:
    """Something to tell through a channel."""

    id: int
    alert: str
    moment: Moment
    channel: str
    body: str
    created: float
    attempts: int
    next_try: float


_ALERT = [column for column in alerts.c if column.name != "active"]


def new_id() -> str:
    """The id of a new alert or silence."""
    return str(uuid.uuid4())


# --- rules ---------------------------------------------------------------------------------------------


def list_rules(connection: Connection) -> list[Rule]:
    """Every rule by its id; one whose settings this program cannot read is left out (`unreadable_rules`)."""
    return [rule for rule, _ in _read_rules(connection) if rule is not None]


def unreadable_rules(connection: Connection) -> list[tuple[str, str]]:
    """Ids of rules that this program cannot read, each with the reason: a newer version wrote them."""
    return [(name, str(wrong)) for rule, (name, wrong) in _read_rules(connection) if rule is None]


def _read_rules(connection: Connection) -> list[tuple[Rule | None, tuple[str, UsageError | None]]]:
    found: list[tuple[Rule | None, tuple[str, UsageError | None]]] = []
    for row in connection.execute(select(rules).order_by(rules.c.id)):
        try:
            spec = read_spec(row.spec)
        except UsageError as error:
            found.append((None, (row.id, error)))
            continue
        rule = Rule(
            row.id, spec, row.severity, row.advice, row.enabled, row.builtin, row.contract, row.changed
        )
        found.append((rule, (row.id, None)))
    return found


def find_rule(connection: Connection, name: str) -> Rule | None:
    """The rule with this id; None where there is none that can be read."""
    return next((rule for rule in list_rules(connection) if rule.id == name), None)


def put_rule(connection: Connection, rule: Rule) -> None:
    """Write a rule in place of the one with its id, or as a new one."""
    values = {
        "kind": name_of(rule.spec),
        "spec": msgspec.json.encode(rule.spec).decode(),
        "severity": rule.severity,
        "enabled": rule.enabled,
        "builtin": rule.builtin,
        "advice": rule.advice,
        "contract": rule.contract,
        "changed": rule.changed,
    }
    if connection.execute(update(rules).where(rules.c.id == rule.id).values(values)).rowcount == 0:
        connection.execute(insert(rules).values(id=rule.id, **values))


def delete_rule(connection: Connection, name: str) -> bool:
    """Remove a rule; whether there was one."""
    return connection.execute(delete(rules).where(rules.c.id == name)).rowcount > 0


def setup_version(connection: Connection) -> tuple[Any, ...]:
    """Changes whenever a rule, silence or channel was made, changed or removed, by any process."""
    return tuple(
        value
        for query in (
            select(func.count(), func.max(rules.c.changed)).select_from(rules),
            select(func.count(), func.max(silences.c.start), func.sum(silences.c.stop)).select_from(silences),
            select(func.count(), func.max(channels.c.changed)).select_from(channels),
        )
        for value in connection.execute(query).one()
    )


# --- alerts --------------------------------------------------------------------------------------------


def active_alerts(connection: Connection, agents: Sequence[int] | None = None) -> list[Alert]:
    """Alerts that are not over: of these nodes, or all of them, the server's own included."""
    query = select(*_ALERT).where(alerts.c.active == 1)
    if agents is not None:
        query = query.where(alerts.c.agent.in_(agents))
    return [Alert(**row) for row in connection.execute(query).mappings()]


def server_alerts(connection: Connection) -> list[Alert]:
    """Alerts about the server itself that are not over."""
    query = select(*_ALERT).where(alerts.c.active == 1, alerts.c.agent.is_(None))
    return [Alert(**row) for row in connection.execute(query).mappings()]


def overlapping(connection: Connection, rule: str, subject: str, since: float, until: float) -> Alert | None:
    """The newest alert of this rule and subject that was on at some time of [since, until]."""
    query = (
        select(*_ALERT)
        .where(
            alerts.c.rule == rule,
            alerts.c.subject == subject,
            alerts.c.since <= until,
            or_(alerts.c.resolved.is_(None), alerts.c.resolved >= since),
        )
        .order_by(alerts.c.since.desc())
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else Alert(**row)


def insert_alert(connection: Connection, alert: Alert) -> None:
    """Write a new alert; the database refuses a second active one of the same rule and subject."""
    connection.execute(insert(alerts).values(**asdict(alert), active=1 if alert.is_active else None))


def update_alert(connection: Connection, alert: Alert) -> None:
    """Write what an alert has become; who acknowledged it stays."""
    values = asdict(alert)
    for name in ("id", "acknowledged", "acknowledged_by"):
        del values[name]
    values["active"] = 1 if alert.is_active else None
    connection.execute(update(alerts).where(alerts.c.id == alert.id).values(values))


def delete_alert(connection: Connection, alert: Alert) -> None:
    """Remove an alert that never fired."""
    connection.execute(delete(alerts).where(alerts.c.id == alert.id, alerts.c.state == "pending"))


def tell_pages(connection: Connection, store: Store, agents: Iterable[int], now: float) -> int | None:
    """Append to the changes that alerts of these nodes changed; the newest number. Takes the writers' lock."""
    store.lock_sequence(connection)
    touched = [Touched("alert", agent, int(now // 3600)) for agent in agents]
    committed = append_changes(connection, touched, now)
    return None if committed is None else committed.seq_to


# --- silences ------------------------------------------------------------------------------------------


def list_silences(connection: Connection, until: float | None = None) -> list[Silence]:
    """Silences, the newest start first; with `until`, those only that end after it."""
    query = select(silences).order_by(silences.c.start.desc(), silences.c.id)
    if until is not None:
        query = query.where(silences.c.stop > until)
    return [Silence(**row) for row in connection.execute(query).mappings()]


def insert_silence(connection: Connection, silence: Silence) -> None:
    """Write a new silence."""
    connection.execute(insert(silences).values(**asdict(silence)))


def end_silence(connection: Connection, name: str, now: float) -> bool:
    """End a silence now, one that has not begun too; whether there was one that had not ended."""
    query = update(silences).where(silences.c.id == name, silences.c.stop > now)
    begun = case((silences.c.start > now, now), else_=silences.c.start)
    return connection.execute(query.values(stop=now, start=begun)).rowcount > 0


# --- the outbox ----------------------------------------------------------------------------------------


def queue(
    connection: Connection, alert: str, moment: Moment, body: str, to: Iterable[str], now: float
) -> None:
    """Put what is to be told into the outbox, once for each channel."""
    for channel in to:
        is_there = connection.execute(
            select(outbox.c.id).where(
                outbox.c.alert == alert, outbox.c.moment == moment, outbox.c.channel == channel
            )
        ).first()
        if is_there is None:
            connection.execute(
                insert(outbox).values(
                    alert=alert,
                    moment=moment,
                    channel=channel,
                    body=body,
                    created=now,
                    attempts=0,
                    next_try=now,
                )
            )


def told_channels(connection: Connection, alert: str) -> list[str]:
    """The channels that are, or will be, told that this alert fired."""
    query = select(outbox.c.channel).where(outbox.c.alert == alert, outbox.c.moment == "fired")
    return list(connection.execute(query).scalars())


def due(connection: Connection, channel: str, now: float, limit: int) -> list[Waiting]:
    """What is to be told through a channel now, oldest first."""
    query = (
        select(outbox.c.id, outbox.c.alert, outbox.c.moment, outbox.c.channel, outbox.c.body, outbox.c.created,
               outbox.c.attempts, outbox.c.next_try)
        .where(outbox.c.channel == channel, outbox.c.next_try <= now)
        .order_by(outbox.c.id)
        .limit(limit)
    )  # fmt: skip
    return [Waiting(**row) for row in connection.execute(query).mappings()]


def waiting(connection: Connection) -> list[tuple[str, float]]:
    """Each channel with something to tell, and when the first of it is due."""
    query = select(outbox.c.channel, func.min(outbox.c.next_try)).where(outbox.c.next_try.is_not(None))
    return [(row[0], row[1]) for row in connection.execute(query.group_by(outbox.c.channel))]


# --- the engine's own ------------------------------------------------------------------------------------


def read_state(connection: Connection, key: str, *, hold: bool = False) -> str | None:
    """What the engine noted under a key; `hold`: nobody else changes it before the transaction ends."""
    query = select(engine_state.c.value).where(engine_state.c.key == key)
    found: str | None = connection.execute(query.with_for_update() if hold else query).scalar()
    return found


def write_state(connection: Connection, key: str, value: str) -> None:
    """Note something."""
    query = update(engine_state).where(engine_state.c.key == key).values(value=value)
    if connection.execute(query).rowcount == 0:
        connection.execute(insert(engine_state).values(key=key, value=value))
