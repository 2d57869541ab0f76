"""A node that is watched: what an agent tells, written straight into the tables, and an engine on a clock of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, insert, select, update

from gpu_monitor.server.alerts.engine import Engine, Setting
from gpu_monitor.server.alerts.record import Audience
from gpu_monitor.server.alerts.rule import Rule
from gpu_monitor.server.alerts.window import DiskUse
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.store.alerts import Alert, put_rule
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.leader import Leadership
from gpu_monitor.server.store.schema import (
    aggregates,
    alerts,
    changes,
    contracts,
    events,
    facts,
    gaps,
    gpus,
    latest,
    live_events,
    nodes,
    outbox,
    receipts,
    rules,
    samples,
)
from tests.fakes.clock import FakeClock

HOUR = 3600
NOW = 1_710_943_200.0  # 2024-03-20T14:00:00Z
NODE, GPU = "00000000-0000-4000-8000-0000000000aa", "GPU-1"
_COLUMNS = [column for column in alerts.c if column.name != "active"]


@dataclass
class Watched:
    """One node with a GPU, and what watches it."""

    store: Store
    clock: FakeClock = field(default_factory=lambda: FakeClock(NOW))
    channels: tuple[tuple[str, str], ...] = (("hook", "info"),)
    disks: list[DiskUse] = field(default_factory=list)
    seeds: tuple[Rule, ...] = ()
    agent: int = 0
    node: str = NODE

    def __post_init__(self) -> None:
        self.lead = Leadership(self.store)
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        """An engine that remembers nothing, as after a restart."""
        setting = Setting(
            lambda _: Audience(self.channels), lambda: self.disks, lambda _: None, self.seeds  # type: ignore[arg-type]
        )  # fmt: skip
        return Engine(self.store, self.clock, self.lead, setting, OwnMetrics())

    def begin(self, only: Sequence[Rule] | None = None) -> None:
        """Take the lead; with `only`, those are all the rules that are on."""
        assert self.lead.take()
        self.engine.lead()
        if only is not None:
            with self.store.write() as connection:
                connection.execute(update(rules).values(enabled=False, changed=self.clock.now() - HOUR))
                for rule in only:
                    put_rule(connection, rule)

    def restart(self) -> None:
        """A new process leads."""
        self.lead.give_up()
        self.engine = self.new_engine()
        assert self.lead.take()
        self.engine.lead()

    def turn(self) -> float:
        """Let the engine follow what is new."""
        return self.engine.turn()

    # --- what an agent tells ---------------------------------------------------------------------------

    def add_node(self, *, simulated: bool = False, node: str = NODE) -> None:
        """The node and its GPU; heard of now."""
        now = self.clock.now()
        self.node = node
        with self.store.write() as connection:
            contract = connection.execute(insert(contracts).values(number="12345")).inserted_primary_key[0]
            self.agent = int(
                connection.execute(
                    insert(nodes).values(
                        uuid=node, contract=contract, hostname="host-1", simulated=simulated, first_seen=now,
                        period_seconds=HOUR, interval_seconds=60,
                    )
                ).inserted_primary_key[0]
            )  # fmt: skip
            fact = connection.execute(insert(facts).values(digest=b"f" * 16, body="{}")).inserted_primary_key[
                0
            ]
            connection.execute(
                insert(gpus).values(
                    agent=self.agent, ordinal=0, uid=GPU, source="simulated" if simulated else "nvml",
                    simulated=simulated, name="NVIDIA H100", identity=fact, first_hour=0, last_hour=0,
                )
            )  # fmt: skip
            self.fact = fact
        self._changed("node", None)

    def minute(self, start: float, status: str = "ok", came: float | None = None, **values: int) -> None:
        """A live minute that begins at `start`, in whole numbers of the catalogue's decimals."""
        came = self.clock.now() if came is None else came
        self.store.make_room(times=[int(start)], now=self.clock.now())
        with self.store.write() as connection:
            connection.execute(
                insert(samples).values(time=int(start), agent=self.agent, gpu=0, seconds=600, **values)
            )
            connection.execute(update(nodes).where(nodes.c.id == self.agent).values(last_live=came))
            self._latest(connection, start + 60, True, status)
        self._changed("samples", int(start) // HOUR)

    def status(self, status: str) -> None:
        """A live message that says how the GPU is."""
        now = self.clock.now()
        with self.store.write() as connection:
            connection.execute(update(nodes).where(nodes.c.id == self.agent).values(last_live=now))
            self._latest(connection, now, True, status)
        self._changed("samples", int(now) // HOUR)

    def event(self, time: float, xid: int) -> None:
        """A live message that tells of an Xid."""
        now = self.clock.now()
        with self.store.write() as connection:
            connection.execute(
                insert(live_events).values(
                    agent=self.agent, time=time, uid=GPU, kind="xid", severity="error", message=f"Xid {xid}",
                    detail=f'{{"xid":{xid}}}',
                )
            )  # fmt: skip
            connection.execute(update(nodes).where(nodes.c.id == self.agent).values(last_live=now))
            self._latest(connection, now, True, "ok")
        self._changed("samples", int(now) // HOUR)
        self._changed("events", int(now) // HOUR)

    def report(
        self,
        hour: int,
        came: float | None = None,
        xids: Sequence[tuple[float, int]] = (),
        lost: Sequence[tuple[float, float]] = (),
        status: str = "ok",
        **values: int,
    ) -> None:
        """The report of an hour. `xids`: time and number; `lost`: from and to."""
        came = self.clock.now() if came is None else came
        self.store.make_room(hours=[hour], now=self.clock.now())
        digest = hashlib.sha256(str(hour).encode()).digest()
        with self.store.write() as connection:
            connection.execute(
                insert(receipts).values(
                    agent=self.agent, hour=hour, contract=1, period_seconds=HOUR, interval_seconds=60, revision=1,
                    body_digest=digest, row_digest=digest, body_bytes=1, rows=1, quarantined=0, simulated=False,
                    received=came,
                )
            )  # fmt: skip
            held = {"seconds": 36000, "coverage": 10000, "held_idle_seconds": 0, **values}
            connection.execute(
                insert(aggregates).values(
                    hour=hour, agent=self.agent, gpu=0, identity=self.fact, facts=self.fact, **held
                )
            )
            for time, number in xids:
                connection.execute(
                    insert(events).values(
                        hour=hour, agent=self.agent, time=time, uid=GPU, kind="xid", severity="error",
                        message=f"Xid {number}", detail=f'{{"xid":{number}}}',
                    )
                )  # fmt: skip
            for start, stop in lost:
                connection.execute(
                    insert(gaps).values(
                        hour=hour, agent=self.agent, uid=GPU, start=start, stop=stop, cause="GPU lost"
                    )
                )
            newest = connection.execute(select(nodes.c.last_hour).where(nodes.c.id == self.agent)).scalar()
            if newest is None or hour > newest:
                connection.execute(update(nodes).where(nodes.c.id == self.agent).values(last_hour=hour))
                self._latest(connection, float((hour + 1) * HOUR), False, status)
            connection.execute(update(nodes).where(nodes.c.id == self.agent).values(last_report=came))
        self._changed("report", hour)

    def _latest(self, connection: object, time: float, live: bool, status: str) -> None:
        execute = connection.execute  # type: ignore[attr-defined]
        values = {"time": time, "live": live, "status": status}
        where = (latest.c.agent == self.agent) & (latest.c.gpu == 0)
        if execute(select(latest.c.time).where(where)).first() is None:
            execute(insert(latest).values(agent=self.agent, gpu=0, **values))
        execute(update(latest).where(where, latest.c.time <= time).values(values))

    def _changed(self, kind: str, hour: int | None) -> None:
        with self.store.write() as connection:
            self.store.lock_sequence(connection)
            seq = (connection.execute(select(func.max(changes.c.seq))).scalar() or 0) + 1
            connection.execute(
                insert(changes).values(seq=seq, time=self.clock.now(), kind=kind, agent=self.agent, hour=hour)
            )

    # --- what came of it ----------------------------------------------------------------------------------

    def alerts(self, rule: str | None = None) -> list[Alert]:
        """Every alert, the oldest first."""
        query = select(*_COLUMNS).order_by(alerts.c.since, alerts.c.id)
        if rule is not None:
            query = query.where(alerts.c.rule == rule)
        with self.store.read() as connection:
            return [Alert(**row) for row in connection.execute(query).mappings()]

    def states(self, rule: str | None = None) -> list[tuple[str, str]]:
        """Rule and state of every alert."""
        return [(alert.rule, alert.state) for alert in self.alerts(rule)]

    def told(self) -> list[tuple[str, str]]:
        """Alert id and moment of everything in the outbox, in order."""
        with self.store.read() as connection:
            rows = connection.execute(select(outbox.c.alert, outbox.c.moment).order_by(outbox.c.id))
            return [(row[0], row[1]) for row in rows]
