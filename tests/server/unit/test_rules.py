"""Each kind of rule over windows worked out by hand: quiet, firing, recovering, no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.alerts.builtin import BUILTIN
from gpu_monitor.server.alerts.kinds import KINDS, AnySpec, convert_spec, kind_of, name_of, scope_of
from gpu_monitor.server.alerts.rules.coverage import Coverage
from gpu_monitor.server.alerts.rules.disk import Disk
from gpu_monitor.server.alerts.rules.held import Held
from gpu_monitor.server.alerts.rules.late import Late
from gpu_monitor.server.alerts.rules.lost import Lost
from gpu_monitor.server.alerts.rules.silent import Silent
from gpu_monitor.server.alerts.rules.skew import Skew
from gpu_monitor.server.alerts.rules.threshold import Threshold
from gpu_monitor.server.alerts.rules.throttled import Throttled
from gpu_monitor.server.alerts.rules.xid import XidErrors
from gpu_monitor.server.alerts.window import (
    Basis,
    DiskUse,
    Episode,
    GpuWindow,
    Happening,
    Hole,
    Judgement,
    NodeWindow,
    Reading,
    ServerWindow,
    Values,
)

GIB = 1 << 30
T = 1_710_943_200.0  # 2024-03-20T14:00:00Z
M, H = 60.0, 3600.0


def minutes(name: str, values: Sequence[float | None], start: float = T, **other: float) -> list[Reading]:
    """Live minutes from `start` on; None is a minute that does not know the metric."""
    found = []
    for number, value in enumerate(values):
        held = {key: Values(one, one, one) for key, one in other.items()}
        if value is not None:
            held[name] = Values(value, value, value)
        found.append(Reading(start + number * M, start + (number + 1) * M, True, held))
    return found


def hours(
    values: Sequence[dict[str, tuple[float, float, float]]],
    basis: Sequence[Basis] = (),
    shadowed: Sequence[bool] = (),
) -> list[Reading]:
    """Periods of an hour from T on."""
    return [
        Reading(
            T + number * H, T + (number + 1) * H, False, {k: Values(*v) for k, v in one.items()},
            basis[number] if basis else Basis(3600.0, 1.0, 0.0), bool(shadowed) and shadowed[number],
        )
        for number, one in enumerate(values)
    ]  # fmt: skip


def gpu(readings: Sequence[Reading] = (), now: float = T + 2 * H, **more: object) -> GpuWindow:
    return GpuWindow(now, readings, **more)  # type: ignore[arg-type]


def judged(spec: AnySpec, window: object) -> Judgement:
    return kind_of(spec).judge(spec, window)


def brief(episodes: Sequence[Episode]) -> list[tuple[float, float | None, bool]]:
    """Since and until in minutes from T, and whether it fires."""
    return [
        ((one.since - T) / M, None if one.until is None else (one.until - T) / M, one.is_firing)
        for one in episodes
    ]


HOT = Threshold(metric="temperature", limit=90, for_seconds=300)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([80] * 10, [], id="quiet"),
        pytest.param([90] * 10, [], id="at the limit is not above it"),
        pytest.param([80, 91, 92, 93], [(1, None, False)], id="pending: three minutes of five"),
        pytest.param([80, 91, 92, 93, 94, 95], [(1, None, True)], id="firing: five minutes"),
        pytest.param([91] * 6 + [80], [(0, 6, True)], id="recovering"),
        pytest.param([91] * 2 + [80] + [91] * 2, [(0, 2, False), (3, None, False)], id="never five in a row"),
        pytest.param([91, 91, None, 91, 91, 91], [(0, None, True)], id="an unknown minute parts nothing"),
        pytest.param([91] * 3 + [None] * 4 + [91] * 3, [(0, 3, False), (7, None, False)], id="a hole parts"),
    ],
)
def test_threshold_over_live_minutes(
    values: list[float | None], expected: list[tuple[float, float | None, bool]]
) -> None:
    assert brief(judged(HOT, gpu(minutes("temperature", values))).episodes) == expected


def test_threshold_without_data_says_nothing() -> None:
    assert judged(HOT, gpu()) == Judgement((), None)
    assert judged(HOT, gpu(minutes("power_usage", [100]))) == Judgement((), None)


def test_threshold_says_value_duration_and_where_from() -> None:
    (episode,) = judged(HOT, gpu(minutes("temperature", [91, 92, 93, 94, 95.5]))).episodes
    assert episode.value == 95.5
    assert episode.message == "temperature is 95.5 °C, above 90 for 5 min (mean; by live minutes)"
    (episode,) = judged(HOT, gpu(hours([{"temperature": (91, 60, 95)}]))).episodes
    assert episode.message == "temperature is 91 °C, above 90 for 60 min (mean; by hourly means)"


@pytest.mark.parametrize(
    ("stat", "when", "limit", "fires"),
    [
        ("mean", "above", 79, True), ("mean", "above", 80, False), ("max", "above", 94, True),
        ("min", "above", 61, False), ("min", "below", 62, True), ("min", "below", 61, False), ("max", "below", 95, False),
    ],
)  # fmt: skip
def test_threshold_by_stat_of_an_hour(stat: str, when: str, limit: float, fires: bool) -> None:
    spec = convert_spec(
        {"kind": "threshold", "metric": "temperature", "limit": limit, "stat": stat, "when": when}
    )
    found = judged(spec, gpu(hours([{"temperature": (80, 61, 95)}])))
    assert bool(found.episodes) is fires


def test_an_hour_that_live_minutes_tell_of_counts_only_where_they_do_not_carry_the_metric() -> None:
    told = hours([{"temperature": (95, 90, 99), "sm_active": (95.0, 90.0, 99.0)}], shadowed=[True])
    assert judged(HOT, gpu(told)) == Judgement((), None)
    spec = Threshold(metric="sm_active", limit=90)
    assert brief(judged(spec, gpu(told)).episodes) == [(0, None, True)]


def test_threshold_of_the_machine() -> None:
    spec = Threshold(metric="cpu_utilization", limit=95, of="host", for_seconds=3600)
    readings = hours([{"cpu_utilization": (97, 90, 100)}, {"cpu_utilization": (40, 10, 90)}])
    assert brief(judged(spec, NodeWindow(T + 2 * H, T, readings=readings)).episodes) == [(0, 60, True)]
    assert scope_of(spec) == "node"


IDLE = Held(for_seconds=600)


@pytest.mark.parametrize(
    ("used", "memory", "expected"),
    [
        pytest.param(50.0, 40 * GIB, [], id="at work"),
        pytest.param(0.0, 100 << 20, [], id="idle and free"),
        pytest.param(0.0, 40 * GIB, [(0, None, True)], id="idle and held"),
        pytest.param(4.9, 256 << 20, [(0, None, True)], id="just"),
        pytest.param(5.0, 256 << 20, [], id="just not"),
    ],
)
def test_held_over_live_minutes(used: float, memory: float, expected: list[object]) -> None:
    readings = minutes("gpu_utilization", [used] * 10, memory_used=memory)
    assert brief(judged(IDLE, gpu(readings)).episodes) == expected


def test_held_recovers_and_needs_both_values() -> None:
    readings = minutes("gpu_utilization", [0.0] * 12 + [60.0], memory_used=2.0 * GIB)
    found = judged(IDLE, gpu(readings))
    assert brief(found.episodes) == [(0, 12, True)]
    assert found.episodes[0].message.startswith("idle for 12 min while 2.0 GiB of its memory are held")
    assert judged(IDLE, gpu(minutes("gpu_utilization", [0.0] * 12))) == Judgement((), None)


@pytest.mark.parametrize(
    ("held", "expected"),
    [(3600.0, [(0, None, True)]), (3420.0, [(0, None, True)]), (3419.0, []), (0.0, [])],
)
def test_held_over_hours(held: float, expected: list[object]) -> None:
    readings = hours([{"memory_used": (GIB, GIB, GIB)}], [Basis(3600.0, 1.0, held)])
    assert brief(judged(IDLE, gpu(readings)).episodes) == expected


def test_held_in_an_hour_of_which_nobody_knows() -> None:
    readings = hours([{"memory_used": (GIB, GIB, GIB)}], [Basis(3600.0, 1.0, None)])
    assert judged(IDLE, gpu(readings)) == Judgement((), None)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        pytest.param(0x000, [], id="free"),
        pytest.param(0x001, [], id="idle is no throttling"),
        pytest.param(0x004, [], id="nor is the power cap, unless asked for"),
        pytest.param(0x040, [(0, None, True)], id="heat"),
        pytest.param(0x0C5, [(0, None, True)], id="heat among others"),
    ],
)
def test_throttled_over_live_minutes(mask: int, expected: list[object]) -> None:
    found = judged(Throttled(), gpu(minutes("throttle_reasons", [mask] * 10)))
    assert brief(found.episodes) == expected


def test_throttled_names_the_reasons_and_recovers() -> None:
    found = judged(Throttled(), gpu(minutes("throttle_reasons", [0x0C4] * 11 + [0x004])))
    assert brief(found.episodes) == [(0, 11, True)]
    assert "hw_thermal_slowdown, hw_power_brake_slowdown for 11 min" in found.episodes[0].message
    assert judged(Throttled(), gpu()) == Judgement((), None)


@pytest.mark.parametrize(("seconds", "expected"), [(1800, [(0, None, True)]), (1799, []), (None, None)])
def test_throttled_over_hours_by_the_time_it_took(
    seconds: float | None, expected: list[object] | None
) -> None:
    values: dict[str, tuple[float, float, float]] = {"throttle_reasons": (0x040, 0x040, 0x040)}
    if seconds is not None:
        values["throttle_time"] = (seconds, seconds, seconds)
    found = judged(Throttled(), gpu(hours([values])))
    assert (None if found.known is None else brief(found.episodes)) == expected


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        pytest.param([1.0, 0.9, 0.5], [], id="quiet"),
        pytest.param([0.1], [(0, None, False)], id="the first period of an agent is pending"),
        pytest.param([0.1, 0.49], [(0, None, True)], id="two in a row"),
        pytest.param([0.1, 0.1, 1.0], [(0, 120, True)], id="recovering"),
        pytest.param([0.1, None, 0.1], [(0, 60, False), (120, None, False)], id="no data parts"),
    ],
)
def test_coverage(shares: list[float | None], expected: list[object]) -> None:
    readings = hours([{}] * len(shares), [Basis(3600.0, share, 0.0) for share in shares])
    assert brief(judged(Coverage(), gpu(readings)).episodes) == expected


def test_coverage_counts_hours_that_live_minutes_tell_of_and_no_live_minute() -> None:
    thin = hours([{}, {}], [Basis(60.0, 0.1, 0.0)] * 2, [True, True])
    assert brief(judged(Coverage(), gpu(thin)).episodes) == [(0, None, True)]
    assert judged(Coverage(), gpu(minutes("temperature", [50]))) == Judgement((), None)


def test_lost_by_the_newest_status() -> None:
    now = T + 10 * M
    assert judged(Lost(), gpu(now=now, status="ok", status_time=now - 30)) == Judgement((), now - 30)
    assert judged(Lost(), gpu(now=now, status="asleep", status_time=now)).known is None
    found = judged(Lost(), gpu(now=now, status="GPU lost", status_time=T + 8 * M))
    assert brief(found.episodes) == [(8, None, True)]
    assert found.episodes[0].message == "the GPU gives nothing: GPU lost"
    hung = judged(Lost(for_seconds=300), gpu(now=now, status="hung in nvmlX", status_time=T + 8 * M))
    assert brief(hung.episodes) == [(8, None, False)]
    assert hung.recheck == T + 13 * M


@pytest.mark.parametrize(
    ("holes", "expected"),
    [
        pytest.param([Hole(T, T + H, "asleep", "G")], [], id="rest is no loss"),
        pytest.param([Hole(T, T + H, "agent killed", None)], [], id="nor is an agent that is not there"),
        pytest.param([Hole(T, T + H, "agent killed", "G")], [], id="whomever it is about"),
        pytest.param([Hole(T + 5 * M, T + 9 * M, "lost", "G")], [(5, 9, True)], id="over"),
        pytest.param([Hole(T, T + M, "driver hung", None)], [(0, 1, True)], id="the whole driver"),
        pytest.param(
            [Hole(T + H, T + 2 * H, "lost", "G"), Hole(T + M, T + H, "lost", "G")], [(1, 120, True)],
            id="cut at the hour, and out of order",
        ),
    ],
)  # fmt: skip
def test_lost_by_gaps(holes: list[Hole], expected: list[object]) -> None:
    found = judged(Lost(), gpu(now=T + 2 * H, holes=holes, status="ok", status_time=T + 2 * H))
    assert brief(found.episodes) == expected
    assert judged(Lost(), gpu(now=T + 2 * H, holes=holes)).known == T + 2 * H  # a window of the past


def test_lost_goes_on_from_the_gap_that_reaches_up_to_now() -> None:
    holes = [Hole(T + 30 * M, T + H, "lost", "G")]
    found = judged(Lost(), gpu(now=T + 62 * M, holes=holes, status="lost", status_time=T + H))
    assert brief(found.episodes) == [(30, None, True)]


def xid(minute: float, number: int, text: str = "") -> Happening:
    return Happening(T + minute * M, "xid", f"Xid {number}", number, text)


@pytest.mark.parametrize(
    ("happenings", "spec", "expected"),
    [
        pytest.param([], XidErrors(), [], id="quiet"),
        pytest.param([xid(0, 31)], XidErrors(), [], id="31 is an application's fault: a warning"),
        pytest.param([xid(0, 31)], XidErrors(least="warning"), [(0, 60, True)], id="unless asked for"),
        pytest.param([xid(70, 79)], XidErrors(), [(70, None, True)], id="79: off the bus"),
        pytest.param([xid(0, 48), xid(50, 48)], XidErrors(), [(0, 110, True)], id="one after the other is one"),
        pytest.param([xid(0, 48), xid(60, 48)], XidErrors(), [(0, 60, True), (60, 120, True)], id="and later two"),
        pytest.param([xid(0, 79), xid(0, 31)], XidErrors(least="info", actions=("check_application",)),
                     [(0, 60, True)], id="by class"),
        pytest.param([xid(0, 79)], XidErrors(numbers=(13,)), [], id="by number: another"),
        pytest.param([xid(0, 13)], XidErrors(numbers=(13,)), [(0, 60, True)], id="by number"),
        pytest.param([xid(0, 154, "changed to 0x2 (Node Reboot Required)")], XidErrors(least="critical"),
                     [(0, 60, True)], id="154 says it in its text"),
        pytest.param([Happening(T, "gpu_lost", "x")], XidErrors(least="info"), [], id="other events"),
    ],
)  # fmt: skip
def test_xid(happenings: list[Happening], spec: XidErrors, expected: list[object]) -> None:
    assert brief(judged(spec, gpu(now=T + 2 * H, happenings=happenings)).episodes) == expected


def test_xid_tells_what_to_do_and_when_to_look_again() -> None:
    found = judged(XidErrors(), gpu(now=T + 65 * M, happenings=[xid(0, 48), xid(30, 79)]))
    (episode,) = found.episodes
    assert episode.message.startswith("Xid 79: the GPU has fallen off the bus")
    assert "(2 Xids since the first)" in episode.message
    assert "reboot or power-cycle" in episode.message
    assert found.recheck == T + 90 * M


def node(now: float, **more: object) -> NodeWindow:
    return NodeWindow(now, T, **{"period_seconds": 3600, "interval_seconds": 60, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("window", "since", "recheck"),
    [
        # Live minutes count for 180 s, and 120 s of grace: 300 s after the last one.
        pytest.param(node(T + 299, last_live=T), None, T + 300, id="quiet"),
        pytest.param(node(T + 300, last_live=T), T, None, id="silent after live minutes"),
        # Without them the next report is due an hour and 900 s after the last: T + 4620 with the grace.
        pytest.param(node(T + 4619, last_report=T), None, T + 4620, id="waits for a report"),
        pytest.param(node(T + 4620, last_report=T), T, None, id="silent after reports"),
        pytest.param(node(T + 4620), T, None, id="never said anything"),
        pytest.param(node(T + 9000, last_report=T, last_live=T + 8990), None, T + 9290, id="recovered"),
    ],
)
def test_silent(window: NodeWindow, since: float | None, recheck: float | None) -> None:
    found = judged(Silent(), window)
    assert (found.episodes[0].since if found.episodes else None, found.recheck) == (since, recheck)
    assert found.known == window.now


HOUR = int(T // 3600)


@pytest.mark.parametrize(
    ("now", "last_hour", "expected", "recheck"),
    [
        # The period from T to T + 1 h is held; the next one ends at T + 2 h and is late half an hour later.
        pytest.param(T + 2.5 * H - 1, HOUR, [], T + 2.5 * H, id="quiet"),
        pytest.param(T + 2.5 * H, HOUR, [(120, None, True)], None, id="late"),
        pytest.param(T + 2.6 * H, HOUR + 1, [], T + 3.5 * H, id="recovered"),
        # A node that was first seen at T can report the whole hour from T + 1 h on: the same.
        pytest.param(T + 2.5 * H - 1, None, [], T + 2.5 * H, id="a new node"),
        pytest.param(T + 2.5 * H, None, [(120, None, True)], None, id="a new node that never reports"),
    ],
)
def test_late(now: float, last_hour: int | None, expected: list[object], recheck: float | None) -> None:
    found = judged(Late(), node(now, last_live=now - 30, last_hour=last_hour))
    assert (brief(found.episodes), found.recheck) == (expected, recheck)


def test_a_backlog_is_not_late_before_the_server_could_have_had_it() -> None:
    # Its newest report is of the hour before T; the node was first heard of at T + 4 h 53 min.
    def late(now: float) -> Judgement:
        window = node(now, last_live=now - 30, last_hour=HOUR - 1)
        return judged(Late(), replace(window, first_seen=T + 4 * H + 53 * M))

    assert late(T + 4 * H + 54 * M) == Judgement((), T + 4 * H + 54 * M, T + 5 * H + 23 * M)
    (episode,) = late(T + 5 * H + 23 * M).episodes
    assert (episode.since, episode.message[-14:]) == (T + 4 * H + 53 * M, "is 30 min late")


def test_a_silent_node_is_not_late_as_well() -> None:
    assert judged(Late(), node(T + 9 * H, last_live=T, last_report=T, last_hour=HOUR)) == Judgement((), None)


@pytest.mark.parametrize(
    ("skew", "message"),
    [
        (30.0, None),
        (-30.0, None),
        (30.1, "the node's clock is 30.1 s ahead of the server's"),
        (-3600.0, "the node's clock is 3600.0 s behind the server's"),
    ],
)
def test_skew(skew: float, message: str | None) -> None:
    found = judged(Skew(), node(T + 60, skew_seconds=skew, skew_measured=T + 50))
    assert (found.episodes[0].message if found.episodes else None) == message
    assert found.known == T + 50


def test_skew_that_was_never_measured() -> None:
    assert judged(Skew(), node(T)) == Judgement((), None)


def test_disk_of_a_node() -> None:
    def full(share: float) -> dict[str, tuple[float, float, float]]:
        return {"disk_used": (share, share, share), "disk_total": (100, 100, 100)}

    window = node(T + 4 * H, readings=hours([full(90), full(91), full(95), full(50)]))
    found = judged(Disk(), window)
    assert brief(found.episodes) == [(60, 180, True)]
    assert found.episodes[0].message == "the disk of the agent's store is 95 % full, over 90 % for 2 h 0 min"
    assert judged(Disk(), node(T)) == Judgement((), None)


def test_disk_of_the_server() -> None:
    spec = Disk(of="server", percent=90)
    quiet, full = DiskUse("a", 10.0 * GIB, 100.0 * GIB), DiskUse("b", 96.0 * GIB, 100.0 * GIB)
    assert judged(spec, ServerWindow(T, [quiet])) == Judgement((), T)
    (episode,) = judged(spec, ServerWindow(T, [quiet, full])).episodes
    assert episode.message == "the server's disk with b is 96 % full (4.0 GiB left)"
    assert judged(spec, ServerWindow(T, [])) == Judgement((), None)


def test_every_kind_but_one_has_a_built_in_rule_that_is_on_and_says_what_to_do() -> None:
    # No limit of a metric is right for everybody's training.
    assert {name_of(rule.spec) for rule in BUILTIN} == {kind.name for kind in KINDS} - {"run_metric"}
    assert all(rule.advice for rule in BUILTIN)
    assert [rule.id for rule in BUILTIN if not rule.enabled] == ["run-completed"]
    assert len({rule.id for rule in BUILTIN}) == len(BUILTIN)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "nothing"}, "nothing"),
        ({"kind": "threshold", "metric": "temperatur", "limit": 1}, "temperatur"),
        ({"kind": "threshold", "metric": "cpu_utilization", "limit": 1}, "not measured of a gpu"),
        ({"kind": "threshold", "metric": "temperature"}, "limit"),
        ({"kind": "threshold", "metric": "temperature", "limit": 1, "colour": 1}, "colour"),
        ({"kind": "held", "for_seconds": -1}, "for_seconds"),
        ({"kind": "xid", "actions": ["pray"]}, "pray"),
        ({"kind": "coverage", "percent": 101}, "percent"),
        ("held", "object"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        convert_spec(given)
