"""Looking for suspects leads to the same as judging everything: random fleets near every rule's limits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Connection, insert

from gpu_monitor.server.alerts.actives import ActiveAlerts
from gpu_monitor.server.alerts.book import RuleBook
from gpu_monitor.server.alerts.builtin import BUILTIN
from gpu_monitor.server.alerts.evaluate import Evaluator
from gpu_monitor.server.alerts.judge import Result, Touch
from gpu_monitor.server.alerts.kinds import KINDS, AnySpec
from gpu_monitor.server.alerts.rule import Rule
from gpu_monitor.server.alerts.rules.coverage import Coverage
from gpu_monitor.server.alerts.rules.disk import Disk
from gpu_monitor.server.alerts.rules.held import Held
from gpu_monitor.server.alerts.rules.lost import Lost
from gpu_monitor.server.alerts.rules.threshold import Threshold
from gpu_monitor.server.alerts.rules.throttled import Throttled
from gpu_monitor.server.alerts.suspects import Marks, Ranges
from gpu_monitor.server.store.alerts import Alert
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import (
    aggregates,
    contracts,
    events,
    facts,
    gaps,
    gpus,
    host_hours,
    latest,
    nodes,
    receipts,
    samples,
)
from tests.server.watched import HOUR, NOW

LAST = int(NOW) // HOUR - 1
NODES, GPUS, HOURS, MINUTES = 6, 2, 4, 12
GIB = 1 << 30
SPECS: tuple[AnySpec, ...] = (
    Threshold(metric="temperature", limit=90.05, for_seconds=120),
    Threshold(metric="temperature", limit=30, when="below", stat="min", for_seconds=0),
    Threshold(metric="temperature", limit=95, stat="max", for_seconds=3600),
    Threshold(metric="memory_used", limit=1e300, when="below", for_seconds=300),
    Threshold(metric="power_usage", limit=-1e300, for_seconds=600),
    Threshold(metric="energy", limit=1000, for_seconds=0),
    Threshold(metric="disk_used", limit=80 * GIB, for_seconds=0, of="host"),
    Throttled(reasons=("sw_power_cap",), for_seconds=60),
    Throttled(for_seconds=120),
    Held(for_seconds=120),
    Held(for_seconds=7200),
    Coverage(percent=50, for_seconds=0),
    Disk(percent=90),
    Lost(for_seconds=60),
)
RULES = (*BUILTIN, *(Rule(f"rule-{place}", spec, "warning") for place, spec in enumerate(SPECS)))


def test_every_kind_that_looks_at_readings_can_be_looked_for() -> None:
    """A kind without a screen would never be judged: only those that look at the node alone, or at experiments, have none."""
    without = {kind.name for kind in KINDS if kind.screen is None}
    assert without == {
        "silent",
        "late",
        "skew",
        "run_ended",
        "run_stalled",
        "run_metric",
        "run_nan",
        "run_alert",
    }


def mark_all(
    _connection: Connection, book: RuleBook, live: Sequence[int], _since: float, _ranges: Ranges
) -> Marks:
    """Everything is a suspect."""
    return {agent: {(one.rule.id, None) for one in (*book.gpu, *book.machine)} for agent in live}


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_overlooked(store: Store, seed: int) -> None:
    draw = random.Random(seed)
    store.make_room(
        hours=range(LAST - HOURS, LAST + 1), times=[int(NOW) - 60 * n for n in range(MINUTES + 2)], now=NOW
    )
    with store.write() as connection:
        fill(connection, draw)
    book = RuleBook.of(RULES)
    touches = {agent: touch(draw) for agent in range(1, NODES + 1)}
    first = both(store, book, ActiveAlerts(), touches, NOW)
    assert len(first.found) > 20
    # With the alerts that came of it, a minute later, and after news of another kind.
    held = ActiveAlerts(one.step.alert for one in first.found if one.step is not None)
    again = {agent: touch(draw) for agent in range(1, NODES + 1)}
    both(store, book, held, again, NOW + 60)


def both(store: Store, book: RuleBook, held: ActiveAlerts, touches: dict[int, Touch], now: float) -> Result:
    """The result of judging the suspects, which is that of judging everything."""
    with store.read() as connection:
        found = Evaluator(book, held).evaluate(connection, touches, now)
        every = Evaluator(book, held, mark_all).evaluate(connection, touches, now)
    assert told(found) == told(every)
    assert (found.absence, found.other, found.full) == (every.absence, every.other, every.full)
    return found


def told(result: Result) -> list[object]:
    """What was found, without the random ids."""
    return [
        replace(one, step=None if one.step is None else replace(one.step, alert=_plain(one.step.alert)))
        for one in result.found
    ]


def _plain(alert: Alert) -> Alert:
    return replace(alert, id="")


def touch(draw: random.Random) -> Touch:
    """News of some kind."""
    hours = {LAST - draw.randrange(3) for _ in range(draw.randrange(3))}
    return Touch(hours, draw.random() < 0.6, draw.random() < 0.2, draw.random() < 0.2)


def fill(connection: Connection, draw: random.Random) -> None:
    """A fleet of which everything is near a limit, unknown, or well."""
    connection.execute(insert(contracts).values(id=1, number="12345"))
    connection.execute(insert(facts).values(id=1, digest=b"f" * 16, body="{}"))
    for agent in range(1, NODES + 1):
        live = draw.random() < 0.7
        connection.execute(insert(nodes).values(
            id=agent, uuid=f"00000000-0000-4000-8000-{agent:012x}", contract=1, hostname=f"host-{agent}",
            simulated=False, first_seen=NOW - 86400, last_report=NOW - draw.choice([60, 9000]),
            last_live=NOW - draw.choice([5, 5, 900]) if live else None, last_hour=LAST, period_seconds=HOUR,
            interval_seconds=60, skew_seconds=draw.choice([0.1, 31.0]), skew_measured=NOW - 60,
        ))  # fmt: skip
        for hour in range(LAST - HOURS + 1, LAST + 1):
            _hour(connection, draw, agent, hour)
        for gpu in range(GPUS):
            _gpu(connection, draw, agent, gpu, live)


def _hour(connection: Connection, draw: random.Random, agent: int, hour: int) -> None:
    came = float((hour + 1) * HOUR + draw.choice([60, 5000]))
    connection.execute(insert(receipts).values(
        agent=agent, hour=hour, contract=1, period_seconds=HOUR, interval_seconds=60, revision=1,
        body_digest=b"b" * 32, row_digest=b"r" * 32, body_bytes=1, rows=GPUS, quarantined=0, simulated=False,
        received=came,
    ))  # fmt: skip
    connection.execute(insert(host_hours).values(
        hour=hour, agent=agent, disk_used=draw.choice([None, 79 * GIB, 81 * GIB, 90 * GIB, 91 * GIB]),
        disk_total=draw.choice([None, 100 * GIB]),
    ))  # fmt: skip
    if draw.random() < 0.3:
        uid = draw.choice([None, f"GPU-{agent}-0"])
        cause = draw.choice(["asleep", "GPU lost", "driver hangs", "the agent was stopped"])
        connection.execute(insert(gaps).values(
            hour=hour, agent=agent, uid=uid, start=hour * HOUR + 60.0, stop=hour * HOUR + 900.0, cause=cause
        ))  # fmt: skip
    if draw.random() < 0.3:
        connection.execute(insert(events).values(
            hour=hour, agent=agent, time=hour * HOUR + 3000.0, uid=f"GPU-{agent}-1", kind="xid",
            severity="error", message="Xid", detail=f'{{"xid":{draw.choice([13, 48, 79])}}}',
        ))  # fmt: skip


def _gpu(connection: Connection, draw: random.Random, agent: int, gpu: int, live: bool) -> None:
    connection.execute(insert(gpus).values(
        agent=agent, ordinal=gpu, uid=f"GPU-{agent}-{gpu}", source="nvml", simulated=False, name="NVIDIA H100",
        identity=1, first_hour=0, last_hour=LAST,
    ))  # fmt: skip
    status = draw.choice(["ok", "ok", "ok", "asleep", "GPU lost"])
    connection.execute(insert(latest).values(agent=agent, gpu=gpu, time=NOW - 5, live=live, status=status))
    for hour in range(LAST - HOURS + 1, LAST + 1):
        seconds = draw.choice([None, 18000, 36000])
        connection.execute(insert(aggregates).values(
            hour=hour, agent=agent, gpu=gpu, identity=1, facts=1, seconds=seconds,
            coverage=draw.choice([None, 4999, 5000, 9000]),
            held_idle_seconds=None if seconds is None else draw.choice([0, seconds, seconds * 94 // 100]),
            temperature_lo=draw.choice([None, 0, 200, 600]), temperature_hi=draw.choice([None, 0, 51, 300]),
            throttle_time=draw.choice([None, 10, 3000]), energy=draw.choice([None, 9999, 10001]), **_values(draw),
        ))  # fmt: skip
    calm = _values(draw)
    for minute in range(MINUTES if live else 0, 0, -1):
        calm = calm if draw.random() < 0.7 else _values(draw)
        connection.execute(
            insert(samples).values(time=int(NOW) - 60 * minute, agent=agent, gpu=gpu, seconds=600, **calm)
        )


def _values(draw: random.Random) -> dict[str, int | None]:
    return {
        "temperature": draw.choice([None, 299, 300, 500, 899, 900, 901, 949, 951]),
        "gpu_utilization": draw.choice([None, 0, 49, 50, 900]),
        "memory_used": draw.choice([None, 0, 256 * 1024 * 1024 - 1, 256 * 1024 * 1024, 40 * GIB]),
        "power_usage": draw.choice([None, 40_000]),
        "throttle_reasons": draw.choice([None, 0, 1, 4, 8, 0x28]),
    }
