"""The engine over both databases: pending, firing, resolved; past, silent, silenced; again and again; after a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import insert, select, update

from gpu_monitor.server.alerts.rule import Rule
from gpu_monitor.server.alerts.rules.disk import Disk
from gpu_monitor.server.alerts.rules.lost import Lost
from gpu_monitor.server.alerts.rules.silent import Silent
from gpu_monitor.server.alerts.rules.threshold import Threshold
from gpu_monitor.server.alerts.rules.xid import XidErrors
from gpu_monitor.server.alerts.window import DiskUse
from gpu_monitor.server.notify.notice import read_notice
from gpu_monitor.server.store.alerts import Silence, end_silence, insert_silence, list_rules, put_rule
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.leader import Leadership, LeadLost
from gpu_monitor.server.store.schema import alerts, changes, engine_state, outbox, rules
from tests.server.watched import GPU, HOUR, NODE, NOW, Watched

HOT = Rule("hot", Threshold(metric="temperature", limit=90, for_seconds=180), "warning", "Cool it.")
LAST = int(NOW) // HOUR - 1
"""The hour before NOW."""


Watch = Callable[..., Watched]


@pytest.fixture
def watch(store: Store) -> Iterator[Watch]:
    """Makes a watched node, with these rules alone."""
    opened: list[Watched] = []

    def make(*only: Rule, simulated: bool = False) -> Watched:
        found = Watched(store)
        opened.append(found)
        found.begin(only)
        found.add_node(simulated=simulated)
        return found

    yield make
    for found in opened:
        found.lead.give_up()


def pass_minutes(fleet: Watched, temperatures: list[int]) -> list[list[tuple[str, str]]]:
    """Each minute one live sample (tenths of a degree) and one turn; the states after each."""
    found = []
    for value in temperatures:
        start = fleet.clock.now()
        fleet.clock.advance(60)
        fleet.minute(start, temperature=value)
        fleet.turn()
        found.append(fleet.states())
    return found


def test_pending_firing_resolved_and_each_told_once(watch: Watch) -> None:
    fleet = watch(HOT)
    seen = pass_minutes(fleet, [800, 910, 920, 930, 940, 800, 800])
    pending, firing, resolved = [("hot", "pending")], [("hot", "firing")], [("hot", "resolved")]
    assert seen == [[], pending, pending, firing, firing, resolved, resolved]
    (alert,) = fleet.alerts()
    assert (alert.since, alert.fired, alert.resolved) == (NOW + 60, NOW + 240, NOW + 300)
    assert (alert.subject, alert.uid, alert.severity, alert.past) == (f"{NODE}/{GPU}", GPU, "warning", False)
    assert fleet.told() == [(alert.id, "fired"), (alert.id, "resolved")]


def test_what_was_told_can_be_understood_without_asking(store: Store, watch: Watch) -> None:
    fleet = watch(HOT)
    pass_minutes(fleet, [910, 920, 930])
    with store.read() as connection:
        notice = read_notice(connection.execute(select(outbox.c.body)).scalar_one())
    assert (notice.node, notice.hostname, notice.gpu, notice.gpu_name) == (NODE, "host-1", GPU, "NVIDIA H100")
    assert (notice.contract_number, notice.advice, notice.value) == ("12345", "Cool it.", 93.0)
    assert (notice.since, notice.resolved, notice.simulated) == ("2024-03-20T14:00:00+00:00", None, False)
    assert notice.title == f"WARNING: hot on host-1 NVIDIA H100 {GPU}"


def test_a_condition_that_passes_before_its_time_leaves_nothing(watch: Watch) -> None:
    fleet = watch(HOT)
    assert pass_minutes(fleet, [910, 920, 800]) == [[("hot", "pending")], [("hot", "pending")], []]
    assert fleet.told() == []


def test_a_restart_keeps_what_is_pending_and_fires_nothing_twice(watch: Watch) -> None:
    fleet = watch(HOT)
    pass_minutes(fleet, [910, 920])
    fleet.restart()
    assert fleet.turn() > 0
    assert fleet.states() == [("hot", "pending")]
    pass_minutes(fleet, [930])
    first = fleet.alerts()
    for _ in range(3):
        fleet.restart()
        fleet.turn()
    assert [(one.id, one.state, one.since) for one in fleet.alerts()] == [(first[0].id, "firing", NOW)]
    assert fleet.told() == [(first[0].id, "fired")]
    pass_minutes(fleet, [800])
    assert fleet.told() == [(first[0].id, "fired"), (first[0].id, "resolved")]


def test_a_condition_that_lasts_longer_than_the_minutes_that_are_read_each_time(watch: Watch) -> None:
    """Of most GPUs the last five minutes are read: what began before them is known from the alert, or read anew."""
    fleet = watch(Rule("hot", Threshold(metric="temperature", limit=90, for_seconds=600), "warning"))
    seen = pass_minutes(fleet, [800, *[950] * 9])
    assert seen[-1] == [("hot", "pending")]
    assert pass_minutes(fleet, [950])[-1] == [("hot", "firing")]
    (alert,) = fleet.alerts()
    assert alert.since == NOW + 60
    # A process that knows nothing of the alert but what is written, and one that finds none at all.
    fleet.restart()
    pass_minutes(fleet, [950] * 3)
    assert [(one.id, one.state) for one in fleet.alerts()] == [(alert.id, "firing")]
    with fleet.store.write() as connection:
        connection.execute(alerts.delete())
    fleet.restart()
    fleet.turn()
    assert [(one.since, one.state) for one in fleet.alerts()] == [(NOW + 60, "firing")]
    pass_minutes(fleet, [800])
    assert fleet.states() == [("hot", "resolved")]


def test_alerts_of_simulated_gpus_say_so(store: Store, watch: Watch) -> None:
    fleet = watch(HOT, simulated=True)
    pass_minutes(fleet, [910, 920, 930])
    assert [alert.simulated for alert in fleet.alerts()] == [True]
    with store.read() as connection:
        notice = read_notice(connection.execute(select(outbox.c.body)).scalar_one())
    assert notice.simulated
    assert notice.title.startswith("[SIMULATED] WARNING")


def test_a_node_that_falls_silent_is_found_by_the_clock_alone_and_comes_back(watch: Watch) -> None:
    fleet = watch(Rule("silent", Silent(), "error"))
    fleet.minute(NOW - 60, temperature=500)
    until = fleet.turn()
    assert fleet.alerts() == []
    # 180 s for a live minute and 120 s of grace after the message of NOW; disks are looked at each minute.
    assert until <= NOW + 300
    fleet.clock.advance(299)
    fleet.turn()
    assert fleet.alerts() == []
    fleet.clock.advance(1)
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.state, alert.since, alert.subject) == ("firing", NOW, NODE)
    fleet.clock.advance(100)
    fleet.restart()
    fleet.turn()
    assert fleet.told() == [(alert.id, "fired")]
    fleet.minute(NOW + 360, temperature=500)
    fleet.turn()
    assert fleet.states() == [("silent", "resolved")]
    assert fleet.told() == [(alert.id, "fired"), (alert.id, "resolved")]


def test_a_silence_longer_than_a_day_does_not_end_the_alert(watch: Watch) -> None:
    fleet = watch(Rule("silent", Silent(), "error"))
    fleet.minute(NOW - 60, temperature=500)
    fleet.turn()
    for _ in range(60):
        fleet.clock.advance(HOUR)
        fleet.turn()
    assert fleet.states() == [("silent", "firing")]
    assert len(fleet.told()) == 1


def test_data_that_says_nothing_for_a_day_ends_the_alert_once(watch: Watch) -> None:
    fleet = watch(HOT)
    pass_minutes(fleet, [910, 920, 930])
    for _ in range(60):
        fleet.clock.advance(HOUR)
        fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.state, alert.ending, alert.resolved) == ("resolved", "no data for a day", NOW + 180)


def test_an_hour_feeds_a_threshold_where_there_are_no_live_minutes(watch: Watch) -> None:
    fleet = watch(HOT)
    fleet.report(LAST, temperature=910, temperature_lo=100, temperature_hi=50)
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.state, alert.since, alert.past) == ("firing", NOW - HOUR, False)
    assert "by hourly means" in alert.message
    fleet.clock.advance(HOUR)
    fleet.report(LAST + 1, temperature=500, temperature_lo=0, temperature_hi=0)
    fleet.turn()
    assert fleet.states() == [("hot", "resolved")]


def test_an_hour_that_live_minutes_tell_of_fires_nothing_of_its_own(watch: Watch) -> None:
    fleet = watch(HOT)
    for minute in range(60):
        fleet.minute(NOW - HOUR + 60 * minute, temperature=500, came=NOW)
    fleet.report(LAST, temperature=910, temperature_lo=0, temperature_hi=0)
    fleet.turn()
    assert fleet.alerts() == []


def test_late_data_is_recorded_as_past_and_never_told(watch: Watch) -> None:
    fleet = watch(HOT)
    # The period ended at NOW - 1 h; it comes an hour later.
    fleet.report(LAST - 1, temperature=950, temperature_lo=0, temperature_hi=0)
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.state, alert.past, alert.since) == ("firing", True, NOW - 2 * HOUR)
    # Fresh data shows that it goes on: now it is told, under the same id.
    fleet.report(LAST, temperature=950, temperature_lo=0, temperature_hi=0)
    fleet.turn()
    (now,) = fleet.alerts()
    assert (now.id, now.state, now.past) == (alert.id, "firing", False)
    assert fleet.told() == [(alert.id, "fired")]


@pytest.mark.parametrize("age", [14 * 60, 16 * 60])
def test_the_age_that_counts_is_a_quarter_of_an_hour(watch: Watch, age: int) -> None:
    fleet = watch(HOT)
    fleet.clock.advance(age)
    fleet.report(LAST, temperature=950, temperature_lo=0, temperature_hi=0)
    fleet.turn()
    assert [alert.past for alert in fleet.alerts()] == [age > 900]
    assert len(fleet.told()) == (0 if age > 900 else 1)


def test_a_backlog_is_recorded_once_and_never_told(store: Store, watch: Watch) -> None:
    fleet = watch(HOT)
    cold, hot = {"temperature": 500}, {"temperature": 950}
    for back, values in ((9, cold), (8, hot), (7, hot), (6, cold), (5, cold), (4, hot), (3, cold), (1, cold)):
        fleet.report(LAST - back, temperature_lo=0, temperature_hi=0, **values)
    fleet.report(LAST, temperature_lo=0, temperature_hi=0, **cold)
    fleet.turn()

    def recorded() -> list[tuple[float, float | None, str, bool]]:
        return [(a.since, a.resolved, a.state, a.past) for a in fleet.alerts()]

    start = NOW - HOUR
    expected = [
        (start - 8 * HOUR, start - 6 * HOUR, "resolved", True),
        (start - 4 * HOUR, start - 3 * HOUR, "resolved", True),
    ]
    assert recorded() == expected
    # The same changes once more, as after a kill before their number was noted.
    with store.write() as connection:
        connection.execute(update(engine_state).where(engine_state.c.key == "seq").values(value="0"))
    fleet.restart()
    fleet.turn()
    assert recorded() == expected
    assert fleet.told() == []


def test_an_old_hour_that_comes_late_leaves_the_present_alone(watch: Watch) -> None:
    fleet = watch(HOT)
    fleet.report(LAST, temperature=950, temperature_lo=0, temperature_hi=0)
    fleet.turn()
    (alert,) = fleet.alerts()
    fleet.report(LAST - 5, temperature=500, temperature_lo=0, temperature_hi=0)
    fleet.turn()
    assert [(a.id, a.state) for a in fleet.alerts()] == [(alert.id, "firing")]


def test_an_xid_of_a_report_in_time_is_told_and_ends_when_it_is_quiet(watch: Watch) -> None:
    fleet = watch(Rule("xid", XidErrors(), "error"))
    fleet.report(LAST, xids=[(NOW - 1800, 79)])
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.state, alert.since, alert.value) == ("firing", NOW - 1800, 79)
    # Live minutes say nothing of Xids: they must not end it.
    pass_minutes(fleet, [500, 500])
    assert fleet.states() == [("xid", "firing")]
    fleet.clock.advance(1800)
    fleet.turn()
    (over,) = fleet.alerts()
    assert (over.state, over.resolved) == ("resolved", NOW + 1800)
    assert fleet.told() == [(alert.id, "fired"), (alert.id, "resolved")]


def test_an_xid_that_was_over_before_its_report_came_is_told_at_once_with_its_end(watch: Watch) -> None:
    fleet = watch(Rule("xid", XidErrors(quiet_seconds=60), "error"))
    fleet.report(LAST, xids=[(NOW - 1800, 79)])
    fleet.turn()
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.state, alert.past) == ("resolved", False)
    assert fleet.told() == [(alert.id, "fired"), (alert.id, "resolved")]


def test_a_gpu_that_is_lost_and_comes_back(watch: Watch) -> None:
    fleet = watch(Rule("lost", Lost(), "critical"))
    fleet.status("GPU lost")
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.state, alert.message) == ("firing", "the GPU gives nothing: GPU lost")
    fleet.clock.advance(HOUR)
    fleet.status("GPU lost")
    fleet.report(LAST + 1, lost=[(NOW, NOW + HOUR)], status="GPU lost")
    fleet.turn()
    assert len(fleet.alerts()) == 1
    fleet.clock.advance(60)
    fleet.status("ok")
    fleet.turn()
    assert fleet.states() == [("lost", "resolved")]
    assert fleet.told() == [(alert.id, "fired"), (alert.id, "resolved")]


def silence(rule: str | None, subject: str | None, stop: float) -> Silence:
    return Silence("quiet", rule, subject, NOW - 10, stop, "known", "me", None)


@pytest.mark.parametrize(
    ("rule", "subject"), [("hot", None), (None, NODE), ("hot", f"{NODE}/{GPU}"), (None, None)]
)
def test_what_fires_under_a_silence_is_told_when_that_ends(
    store: Store, watch: Watch, rule: str | None, subject: str | None
) -> None:
    fleet = watch(HOT)
    with store.write() as connection:
        insert_silence(connection, silence(rule, subject, NOW + 600))
    pass_minutes(fleet, [910, 920, 930])
    (alert,) = fleet.alerts()
    assert (alert.state, alert.silenced, fleet.told()) == ("firing", True, [])
    fleet.restart()
    fleet.turn()
    assert fleet.told() == []
    pass_minutes(fleet, [930] * 7)
    assert fleet.told() == [(alert.id, "fired")]


def test_what_came_and_went_under_a_silence_is_not_told(store: Store, watch: Watch) -> None:
    fleet = watch(HOT)
    with store.write() as connection:
        insert_silence(connection, silence(None, None, NOW + 3600))
    pass_minutes(fleet, [910, 920, 930, 500])
    with store.write() as connection:
        assert end_silence(connection, "quiet", fleet.clock.now())
    pass_minutes(fleet, [500])
    assert fleet.states() == [("hot", "resolved")]
    assert fleet.told() == []


def test_another_silence_does_not_hold_it_back(store: Store, watch: Watch) -> None:
    fleet = watch(HOT)
    with store.write() as connection:
        insert_silence(connection, silence("cold", None, NOW + 3600))
    pass_minutes(fleet, [910, 920, 930])
    assert len(fleet.told()) == 1


def test_a_rule_that_is_switched_off_ends_its_alerts(store: Store, watch: Watch) -> None:
    fleet = watch(HOT)
    pass_minutes(fleet, [910, 920, 930])
    with store.write() as connection:
        connection.execute(update(rules).where(rules.c.id == "hot").values(enabled=False, changed=NOW + 1000))
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.state, alert.ending) == ("resolved", "the rule was changed or switched off")
    assert fleet.told()[-1] == (alert.id, "resolved")


def test_a_new_rule_judges_what_is_there(store: Store, watch: Watch) -> None:
    fleet = watch()
    pass_minutes(fleet, [910, 920, 930])
    assert fleet.alerts() == []
    with store.write() as connection:
        put_rule(connection, HOT)
    fleet.turn()
    assert fleet.states() == [("hot", "firing")]


def test_a_rule_is_only_about_what_it_names(watch: Watch) -> None:
    spec = Threshold(metric="temperature", limit=90, for_seconds=0, only=("host-2", "NVIDIA A*"))
    fleet = watch(Rule("hot", spec, "warning"), Rule("all", Threshold(metric="temperature", limit=90,
                    for_seconds=0, only=("NVIDIA H*",)), "warning"), Rule("other", Threshold(metric="temperature",
                    limit=90, for_seconds=0), "warning", contract=999_999 - 1))  # fmt: skip
    pass_minutes(fleet, [950])
    assert fleet.states() == [("all", "firing")]


def test_nobody_is_told_where_notifications_are_off_and_little_where_little_is_wanted(
    store: Store, watch: Watch
) -> None:
    fleet = watch(HOT)
    fleet.channels = ()
    pass_minutes(fleet, [910, 920, 930, 500])
    assert fleet.told() == []
    fleet.channels = (("pager", "error"), ("chat", "warning"))
    fleet.restart()
    pass_minutes(fleet, [910, 920, 930])
    with store.read() as connection:
        assert list(connection.execute(select(outbox.c.channel)).scalars()) == ["chat"]


def test_the_servers_own_disk(watch: Watch) -> None:
    fleet = watch(Rule("server-disk", Disk(of="server"), "critical"))
    fleet.disks = [DiskUse("x", 95.0, 100.0)]
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.subject, alert.agent, alert.state) == ("server", None, "firing")
    fleet.disks = [DiskUse("x", 50.0, 100.0)]
    fleet.clock.advance(60)
    fleet.turn()
    assert fleet.states() == [("server-disk", "resolved")]


def test_changes_that_were_pruned_unseen_are_made_up_for(store: Store, watch: Watch) -> None:
    fleet = watch(HOT)
    fleet.turn()
    fleet.report(LAST, temperature=950, temperature_lo=0, temperature_hi=0)
    with store.write() as connection:
        connection.execute(changes.delete())
        connection.execute(insert(changes).values(seq=1_000_000, time=NOW, kind="node", agent=fleet.agent))
    fleet.turn()
    assert fleet.states() == [("hot", "firing")]


def test_alerts_stand_in_the_changes_for_live_pages(store: Store, watch: Watch) -> None:
    fleet = watch(HOT)
    pass_minutes(fleet, [910, 920, 930])
    with store.read() as connection:
        rows = connection.execute(
            select(changes.c.agent, changes.c.hour).where(changes.c.kind == "alert")
        ).all()
    assert [tuple(row) for row in rows] == [(fleet.agent, LAST + 1), (fleet.agent, LAST + 1)]


def test_who_lost_the_lead_cannot_write(store: Store, watch: Watch) -> None:
    fleet = watch(HOT)
    pass_minutes(fleet, [910, 920])
    # On PostgreSQL its connection was cut and another process took the lock; on SQLite the name alone tells.
    other = Leadership(store)
    if fleet.lead._connection is not None:
        fleet.lead._connection.close()
    assert other.take()
    with pytest.raises(LeadLost):
        pass_minutes(fleet, [930])
    assert fleet.states() == [("hot", "pending")]
    other.give_up()


def test_two_processes_on_postgresql_and_one_leads(store: Store) -> None:
    first, second = Leadership(store), Leadership(store)
    assert first.take()
    if store.dialect == "postgresql":
        assert not second.take()
        first.give_up()
        assert second.take()
    second.give_up()
    first.give_up()


def test_the_built_in_rules_are_there_and_what_was_changed_stays(store: Store) -> None:
    fleet = Watched(store)
    fleet.begin()
    with store.write() as connection:
        connection.execute(update(rules).where(rules.c.id == "gpu-hot").values(enabled=False))
    fleet.restart()
    with store.read() as connection:
        found = {rule.id: rule for rule in list_rules(connection)}
    assert len(found) == 17
    assert not found["gpu-hot"].enabled
    assert found["gpu-lost"].enabled
    assert all(rule.builtin for rule in found.values())
    fleet.lead.give_up()


def test_an_xid_that_a_live_message_tells_of_fires_at_once_and_once(watch: Watch) -> None:
    fleet = watch(Rule("xid", XidErrors(least="error"), "error", "Do what it says."))
    fleet.turn()
    at = fleet.clock.now() + 5.0
    fleet.clock.advance(20)
    fleet.event(at, 79)
    fleet.turn()
    assert fleet.states() == [("xid", "firing")]
    assert [moment for _, moment in fleet.told()] == ["fired"]
    # The report of the hour tells of it again, an hour later; it is the same alert.
    hour = int(at) // HOUR
    fleet.clock.advance((hour + 1) * HOUR + 60 - fleet.clock.now())
    fleet.report(hour, xids=[(at, 79)])
    fleet.turn()
    (alert,) = fleet.alerts("xid")
    assert (alert.since, alert.past) == (at, False)
    assert [moment for _, moment in fleet.told()].count("fired") == 1


def test_without_any_report_an_xid_of_live_messages_is_over_in_its_time(watch: Watch) -> None:
    fleet = watch(Rule("xid", XidErrors(least="error", quiet_seconds=600), "error", "Do what it says."))
    at = fleet.clock.now()
    fleet.event(at, 48)
    fleet.turn()
    fleet.clock.advance(300)
    fleet.event(at + 300, 48)
    fleet.turn()
    assert fleet.states() == [("xid", "firing")]
    fleet.clock.advance(700)
    fleet.minute(fleet.clock.now() - 60, temperature=500)
    fleet.turn()
    (alert,) = fleet.alerts("xid")
    assert (alert.state, alert.since, alert.resolved) == ("resolved", at, at + 900)
