"""The rules about experiments: each kind quiet, firing, recovering, without data; then over real tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.alerts.kinds import AnySpec, convert_spec, kind_of, scope_of
from gpu_monitor.server.alerts.rule import Rule
from gpu_monitor.server.alerts.rules.run_alert import RunAlert
from gpu_monitor.server.alerts.rules.run_ended import RunEnded
from gpu_monitor.server.alerts.rules.run_metric import RunMetric
from gpu_monitor.server.alerts.rules.run_nan import RunNan
from gpu_monitor.server.alerts.rules.run_stalled import RunStalled
from gpu_monitor.server.alerts.window import RUN_OVER, Judgement, RunSaid, RunValue, RunWindow
from gpu_monitor.server.notify.notice import read_notice
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import alerts, outbox
from gpu_monitor.server.store.schema_experiments import experiments
from gpu_monitor.wire.training import Alert
from tests.server.runs import Segment, write_segment
from tests.server.watched import Watched

T = 1_710_943_200.0
RUNS = RunWindow(T, "run resnet", "running", None, T - 5, T + 55, None, 40)


def judged(spec: AnySpec, window: RunWindow) -> Judgement:
    """What the kind says."""
    return kind_of(spec).judge(spec, window)


def ended(status: str, ago: float, reason: str | None = None) -> RunWindow:
    """A run that ended so long ago."""
    return replace(RUNS, status=status, ended=T - ago, reason=reason)


def value(number: float | None, step: int = 40, first: int | None = None) -> dict[str, RunValue]:
    """The loss as it was logged last; None: NaN."""
    return {"loss": RunValue(number, number is None, step, T - 5, first)}


@pytest.mark.parametrize("status", ["running", "completed", "stopped"])
def test_a_run_that_did_not_fail_is_quiet(status: str) -> None:
    window = RUNS if status == "running" else ended(status, 10)
    assert judged(RunEnded(), window) == Judgement((), T)


def test_a_failed_run_fires_says_why_and_is_over_after_its_time() -> None:
    (one,) = judged(RunEnded(), ended("failed", 10, "ValueError: no data")).episodes
    assert (one.since, one.until, one.is_firing) == (T - 10, None, True)
    assert one.message == "run resnet failed (ValueError: no data), at step 40"
    (one,) = judged(RunEnded(quiet_seconds=60), ended("failed", 61)).episodes
    assert one.until == T - 1
    # Resumed: nothing is wrong any more.
    assert judged(RunEnded(), RUNS).episodes == ()


def test_statuses_are_told_apart() -> None:
    assert judged(RunEnded(statuses=("crashed",)), ended("failed", 5)).episodes == ()
    (one,) = judged(RunEnded(statuses=("crashed",)), ended("crashed", 5, "SIGKILL")).episodes
    assert one.message == "run resnet vanished without a word of its own (SIGKILL), at step 40"
    (one,) = judged(RunEnded(statuses=("completed",)), ended("completed", 5)).episodes
    assert one.message == "run resnet completed, at step 40"


def test_a_run_is_stalled_once_its_grace_is_over() -> None:
    spec = RunStalled(grace_seconds=60)
    assert judged(spec, RUNS).episodes == ()
    assert judged(spec, replace(RUNS, lease=T - 59, last_heard=T - 119)).episodes == ()
    (one,) = judged(spec, replace(RUNS, lease=T - 60, last_heard=T - 120)).episodes
    assert (one.since, one.value) == (T - 120, 120.0)
    # It was heard again, or it ended.
    assert judged(spec, replace(RUNS, lease=T + 60)).episodes == ()
    assert judged(spec, replace(ended("completed", 5), lease=T - 900)).episodes == ()


def test_a_metric_beyond_its_limit() -> None:
    spec = RunMetric(metric="loss", limit=10.0)
    assert judged(spec, replace(RUNS, metrics=value(10.0))).episodes == ()
    (one,) = judged(spec, replace(RUNS, metrics=value(10.5))).episodes
    assert (one.value, one.message) == (10.5, "run resnet: loss is 10.5 at step 40, above 10")
    below = RunMetric(metric="loss", limit=0.5, when="below")
    assert judged(below, replace(RUNS, metrics=value(0.4))).episodes
    assert judged(replace_from(spec, 41), replace(RUNS, metrics=value(99.0))).known is None
    # Unknown is not well: not logged yet, or not finite.
    assert judged(spec, RUNS).known is None
    assert judged(spec, replace(RUNS, metrics=value(None))).known is None
    assert judged(spec, replace(ended("completed", 5), metrics=value(99.0))) == Judgement(
        (), T, ending=RUN_OVER
    )


def replace_from(spec: RunMetric, step: int) -> RunMetric:
    """The same from this step on."""
    return RunMetric(metric=spec.metric, limit=spec.limit, from_step=step)


def test_a_metric_that_is_no_finite_number() -> None:
    assert judged(RunNan(), RUNS).known is None
    assert judged(RunNan(), replace(RUNS, metrics=value(1.0))) == Judgement((), T)
    (one,) = judged(RunNan(), replace(RUNS, metrics=value(None, first=17))).episodes
    assert one.message == "run resnet: loss is no finite number any more (since step 17)"
    assert judged(RunNan(metrics=("val/*",)), replace(RUNS, metrics=value(None))).known is None
    assert judged(RunNan(), replace(ended("failed", 5), metrics=value(None))).episodes == ()


def test_what_a_run_says_by_itself() -> None:
    said = [
        RunSaid(T - 9000, "error", "old", ""),
        RunSaid(T - 700, "error", "first", "a"),
        RunSaid(T - 60, "info", "no", ""),
    ]
    one, two = replace(RUNS, said=said), replace(RUNS, said=[*said, RunSaid(T - 30, "error", "second", "b")])
    assert judged(RunAlert(), RUNS) == Judgement((), T)
    (episode,) = judged(RunAlert(), one).episodes
    assert (episode.since, episode.until, episode.message) == (T - 700, None, "run resnet says: first: a")
    (episode,) = judged(RunAlert(), two).episodes
    assert (episode.since, episode.seen, episode.message) == (
        T - 700,
        T - 30,
        "run resnet says: second: b (2 alerts of it)",
    )
    (episode,) = judged(RunAlert(levels=("info",), quiet_seconds=60), one).episodes
    assert (episode.until, episode.message) == (T, "run resnet says: no")
    (episode,) = judged(RunAlert(), replace(two, status="completed", ended=T - 5)).episodes
    assert episode.until is None, "it was said, though the run is over"


def test_settings_are_checked() -> None:
    assert scope_of(convert_spec({"kind": "run_ended", "statuses": ["stopped"]})) == "experiment"
    for wrong in (
        {"kind": "run_ended", "statuses": []},
        {"kind": "run_ended", "statuses": ["done"]},
        {"kind": "run_metric", "metric": "loss"},
        {"kind": "run_metric", "metric": "lo\x00ss", "limit": 1},
        {"kind": "run_stalled", "grace": 5},
        {"kind": "run_alert", "levels": []},
        {"kind": "run_alert", "levels": ["fatal"]},
    ):
        with pytest.raises(UsageError):
            convert_spec(wrong)


# --- over real tables ------------------------------------------------------------------------------------------

ALL = (
    Rule("failed", RunEnded(), "warning", "Look."),
    Rule("nan", RunNan(), "warning", "Stop it."),
    Rule("loss", RunMetric(metric="loss", limit=5.0, only=("vision",)), "warning", "Look."),
    Rule("stalled", RunStalled(grace_seconds=60), "warning", "Look."),
    Rule("said", RunAlert(), "error", "Ask."),
)


@pytest.fixture
def fleet(store: Store) -> Iterator[Watched]:
    made = Watched(store)
    made.begin(ALL)
    yield made
    made.lead.give_up()


def write(fleet: Watched, segment: Segment) -> None:
    """A segment that comes now."""
    write_segment(fleet.store, "100", segment, fleet.clock.now())


def test_what_a_run_says_is_told_once_and_is_over_an_hour_later(fleet: Watched) -> None:
    begun = fleet.clock.now()
    write(
        fleet,
        Segment("run-a", "resnet", "vision", begun).add(Alert(1000, "error", "loss is odd", "look at lr")),
    )
    fleet.turn()
    fleet.clock.advance(20)
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.rule, alert.subject, alert.state) == ("said", "experiment/run-a", "firing")
    assert alert.message.endswith("says: loss is odd: look at lr")
    with fleet.store.read() as connection:
        assert len(connection.execute(outbox.select()).all()) == 1
    fleet.clock.advance(3600)
    fleet.turn()
    assert ("said", "resolved") in fleet.states()


def test_a_run_fires_for_its_metric_then_nan_then_its_failure(fleet: Watched) -> None:
    begun = fleet.clock.now()
    other = Segment("run-b", "other", "speech", begun, segment="seg-bbbbbbbb").log(1.0, 0, loss=9.0)
    write(fleet, other)
    write(fleet, Segment("run-a", "resnet", "vision", begun).log(1.0, 0, loss=9.0))
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.rule, alert.subject, alert.state, alert.value) == (
        "loss",
        "experiment/run-a",
        "firing",
        9.0,
    )
    fleet.clock.advance(20)
    write(fleet, Segment("run-a", "resnet", "vision", begun, segment="seg-00000002").log(5.0, 1, loss="NaN"))
    fleet.turn()
    assert ("nan", "firing") in fleet.states()
    fleet.clock.advance(20)
    last = Segment("run-a", "resnet", "vision", begun + 30, segment="seg-00000003")
    write(fleet, last.log(1.0, 2, loss=1.0).end(2.0, "failed", exit_code=1))
    fleet.turn()
    assert sorted(fleet.states()) == [("failed", "firing"), ("loss", "resolved"), ("nan", "resolved")]
    with fleet.store.read() as connection:
        asked = select(alerts.c.ending).where(alerts.c.rule == "nan")
        assert connection.execute(asked).scalar_one() == RUN_OVER
        bodies = [
            read_notice(row[0])
            for row in connection.execute(outbox.select().with_only_columns(outbox.c.body))
        ]
    failed = next(one for one in bodies if one.rule == "failed")
    assert (failed.experiment, failed.experiment_name, failed.contract_number) == ("run-a", "resnet", "100")
    assert failed.title == "WARNING: failed of run resnet run-a"
    # Nothing is told twice, whatever is looked at again.
    before = len(bodies)
    fleet.restart()
    fleet.turn()
    assert len(fleet.told()) == before


def test_a_stalled_run_recovers_when_it_is_heard_again(fleet: Watched) -> None:
    write(fleet, Segment("run-a", "resnet", "speech", fleet.clock.now()).log(1.0, 0, loss=1.0))
    fleet.turn()
    assert fleet.alerts() == []
    fleet.clock.advance(125)
    fleet.turn()
    assert fleet.states() == [("stalled", "firing")]
    with fleet.store.write() as connection:
        now = fleet.clock.now()
        connection.execute(update(experiments).values(last_heard=now, lease=now + 60))
    fleet.clock.advance(20)
    fleet.turn()
    assert fleet.states() == [("stalled", "resolved")]


def test_what_was_brought_long_after_its_end_is_not_told(fleet: Watched) -> None:
    old = Segment("run-a", "resnet", "speech", fleet.clock.now() - 2000)
    write(fleet, old.end(200.0, "failed"))
    fleet.turn()
    (alert,) = fleet.alerts()
    assert (alert.past, alert.state) == (True, "firing")
    assert fleet.told() == []


def test_an_alert_about_a_deleted_run_ends(fleet: Watched) -> None:
    write(fleet, Segment("run-a", "resnet", "vision", fleet.clock.now()).log(1.0, 0, loss=9.0))
    fleet.turn()
    assert fleet.states() == [("loss", "firing")]
    with fleet.store.write() as connection:
        connection.execute(update(experiments).values(removed=fleet.clock.now()))
    fleet.clock.advance(20)
    fleet.turn()
    assert fleet.states() == [("loss", "resolved")]
