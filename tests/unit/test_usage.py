"""Usage of small hand-made stores; every expected figure is worked out beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_monitor.agent.collect import Absence
from gpu_monitor.agent.usage import By, Line, Question, Usage, usage
from gpu_monitor.core.model import GpuProcess, Identity
from gpu_monitor.core.shares import Presence, Sighting
from gpu_monitor.core.tally import Figures, figures
from gpu_monitor.storage.database import Reader
from tests.made_stores import CARD, GIB, HOUR, OTHER, PRETENDED, MadeStore

BUSY = {"gpu_utilization": 80.0, "memory_used": 10.0 * GIB, "power_usage": 300.0, "energy": 18000.0}
IDLE = {"gpu_utilization": 0.0, "memory_used": 0.0, "power_usage": 60.0, "energy": 3600.0}
HELD = {"gpu_utilization": 4.9, "memory_used": 1.0 * GIB, "power_usage": 60.0, "energy": 3600.0}


def ask(path: Path, since: float, until: float, by: By = By.GPU, node: int = 1) -> Usage:
    reader = Reader(path)
    try:
        return usage(reader, Question(node, since, until, by))
    finally:
        reader.close()


def shown(line: Line, price: float | None = None) -> Figures:
    return figures(line.tally, line.known, line.possible, price)


def two_hours(path: Path) -> MadeStore:
    """14:00: 30 busy minutes, 20 idle, 10 held. 15:00: 60 busy minutes, and the second card idle for 30."""
    made = MadeStore(path)
    made.minutes(HOUR, 30, {CARD: BUSY})
    made.minutes(HOUR + 1800, 20, {CARD: IDLE})
    made.minutes(HOUR + 3000, 10, {CARD: HELD})
    made.minutes(HOUR + 3600, 30, {CARD: BUSY, OTHER: IDLE})
    return made.minutes(HOUR + 5400, 30, {CARD: BUSY})


@pytest.mark.parametrize("rolled_until", [0, HOUR + 3600, HOUR + 7200])
def test_a_span_is_the_same_from_rows_and_from_aggregates(tmp_path: Path, rolled_until: int) -> None:
    path = two_hours(tmp_path / "s.db").roll_up(rolled_until).close()
    first, second = ask(path, HOUR, HOUR + 7200).lines
    # 120 of 120 minutes; (30+60) min at 80 % and 10 at 4.9 %: (90*80 + 10*4.9) / 120 = 60.408 -> 60.4
    # (rolled up, 14:00 is (30*80 + 49) / 60 = 40.8167 -> 40.8, and (40.8 + 80) / 2 = 60.4)
    # idle 30 min, held 10 min; energy 90 * 18 kJ + 30 * 3.6 kJ = 1728 kJ = 0.48 kWh; at 0.5: 0.24
    assert (first.key, second.key) == (CARD.uid, OTHER.uid)
    assert shown(first, 0.5) == Figures(
        gpu_hours=2.0, coverage=1.0, gpu_utilization=60.4, utilization_coverage=1.0, idle_hours=0.5,
        idle_coverage=1.0, held_idle_hours=0.1667, held_idle_coverage=1.0, energy_kwh=0.48,
        energy_estimated_kwh=None, energy_coverage=1.0, money=0.24,
    )  # fmt: skip
    # 30 of 120 minutes, all idle: 30 * 3.6 kJ = 108 kJ = 0.03 kWh
    assert shown(second) == Figures(
        gpu_hours=0.5, coverage=0.25, gpu_utilization=0.0, utilization_coverage=0.25, idle_hours=0.5,
        idle_coverage=0.25, held_idle_hours=0.0, held_idle_coverage=0.25, energy_kwh=0.03,
        energy_estimated_kwh=None, energy_coverage=0.25, money=None,
    )  # fmt: skip


def test_pieces_at_the_ends_come_from_rows(tmp_path: Path) -> None:
    path = two_hours(tmp_path / "s.db").roll_up(HOUR + 7200).close()
    # 14:45 to 15:15: 5 idle, 10 held, 15 busy minutes of the first card, 15 idle ones of the second.
    first, second = ask(path, HOUR + 2700, HOUR + 4500).lines
    assert shown(first).gpu_hours == 0.5
    assert shown(first).idle_hours == 0.25
    assert shown(first).held_idle_hours == 0.1667
    assert shown(first).energy_kwh == round((15 * 3600 + 15 * 18000) / 3.6e6, 6)
    assert (shown(second).gpu_hours, shown(second).coverage) == (0.25, 0.5)


def test_an_hour_of_which_the_rows_are_gone(tmp_path: Path) -> None:
    path = two_hours(tmp_path / "s.db").roll_up(HOUR + 7200).prune_rows().close()
    whole = ask(path, HOUR, HOUR + 7200)
    assert [shown(line).gpu_hours for line in whole.lines] == [2.0, 0.5]
    assert whole.notes == []
    # Half of 14:00 cannot be told from the whole: it is left out, and said so.
    part = ask(path, HOUR + 1800, HOUR + 7200)
    assert [shown(line).gpu_hours for line in part.lines] == [1.0, 0.5]
    assert shown(part.lines[0]).coverage == 0.6667
    assert part.notes == [
        "2024-03-20T14:30:00+00:00 to 2024-03-20T15:00:00+00:00 is part of a period of which only the whole"
        " is kept; it is left out"
    ]


def test_late_rows_count_before_they_are_rolled_up_again(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db").minutes(HOUR, 10, {CARD: BUSY}).roll_up(HOUR + 3600)
    path = made.minutes(HOUR + 600, 20, {CARD: BUSY}).close()
    assert shown(ask(path, HOUR, HOUR + 3600).lines[0]).gpu_hours == 0.5


def test_energy_without_a_counter_is_estimated_apart(tmp_path: Path) -> None:
    bare = {"gpu_utilization": 50.0, "power_usage": 120.0}
    made = MadeStore(tmp_path / "s.db").minutes(HOUR, 60, {CARD: bare, OTHER: BUSY})
    made.minutes(HOUR + 3600, 30, {CARD: bare, OTHER: {"power_usage": 200.0}})
    path = made.roll_up(HOUR + 3600).close()
    first, second = (shown(line, 1.0) for line in ask(path, HOUR, HOUR + 5400).lines)
    # 120 W over 1.5 h; nothing of memory is known, so nothing of holding it.
    assert (first.energy_kwh, first.energy_estimated_kwh, first.money) == (None, 0.18, 0.18)
    assert (first.held_idle_hours, first.held_idle_coverage, first.idle_hours) == (None, 0.0, 0.0)
    # 60 * 18 kJ = 0.3 kWh counted, 200 W over half an hour estimated.
    assert (second.energy_kwh, second.energy_estimated_kwh, second.money) == (0.3, 0.1, 0.4)
    assert (second.energy_coverage, second.utilization_coverage) == (1.0, 0.6667)


def test_nothing_known_is_none_and_a_price_of_nothing_is_nothing(tmp_path: Path) -> None:
    path = MadeStore(tmp_path / "s.db").minutes(HOUR, 60, {CARD: {}, OTHER: BUSY}).close()
    empty, busy = (shown(line, 0.0) for line in ask(path, HOUR, HOUR + 3600).lines)
    assert (empty.gpu_hours, empty.coverage) == (1.0, 1.0)
    assert (empty.gpu_utilization, empty.idle_hours, empty.energy_kwh, empty.money) == (None,) * 4
    assert (busy.energy_kwh, busy.money) == (0.3, 0.0)


def test_a_gpu_that_was_lost_all_along_is_in_the_report(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db").minutes(HOUR - 3600, 1, {CARD: BUSY, OTHER: BUSY})
    made.record(Absence(HOUR - 3540.0, None, "lost", OTHER.uid))
    path = made.minutes(HOUR, 60, {CARD: BUSY}).close()
    found = ask(path, HOUR, HOUR + 3600)
    assert [(line.key, shown(line).gpu_hours) for line in found.lines] == [(CARD.uid, 1.0), (OTHER.uid, 0.0)]
    assert shown(found.lines[1]).gpu_utilization is None
    assert shown(found.totals[0]).coverage == 0.5


def test_nothing_recorded_has_no_lines(tmp_path: Path) -> None:
    path = MadeStore(tmp_path / "s.db").minutes(HOUR, 1, {CARD: BUSY}).close()
    found = ask(path, HOUR + 86400, HOUR + 2 * 86400)
    assert (found.lines, found.totals) == ([], [])


def test_days_are_utc_and_add_up(tmp_path: Path) -> None:
    midnight = HOUR + 10 * 3600  # 2024-03-21T00:00Z
    made = MadeStore(tmp_path / "s.db").minutes(midnight - 1800, 60, {CARD: BUSY})
    made.roll_up(midnight)
    path = made.minutes(midnight + 86400 + 3600, 30, {CARD: HELD}).close()
    found = ask(path, midnight - 7200, midnight + 2 * 86400, By.DAY)
    # The 20th from 22:00 on: 30 of 120 minutes; the 21st: 30 of 1440; the 22nd: 30 of 1440.
    assert [line.day for line in found.lines] == [midnight - 86400, midnight, midnight + 86400]
    assert [shown(line).gpu_hours for line in found.lines] == [0.5, 0.5, 0.5]
    assert [shown(line).coverage for line in found.lines] == [0.25, 0.0208, 0.0208]
    assert [shown(line).held_idle_hours for line in found.lines] == [0.0, 0.0, 0.5]
    assert shown(found.totals[0]).gpu_hours == 1.5


def test_simulated_gpus_are_never_added_to_real_ones(tmp_path: Path) -> None:
    path = MadeStore(tmp_path / "s.db").minutes(HOUR, 60, {CARD: BUSY, PRETENDED: IDLE}).close()
    found = ask(path, HOUR, HOUR + 3600, By.NODE)
    assert [(line.origin, shown(line).gpu_hours) for line in found.lines] == [
        ("real", 1.0),
        ("simulated", 1.0),
    ]
    assert [(line.origin, shown(line).energy_kwh) for line in found.totals] == [
        ("real", 0.3),
        ("simulated", 0.06),
    ]


def test_mig_instances_are_not_gpus_beside_their_gpu(tmp_path: Path) -> None:
    part = Identity("MIG-1", "nvml", "Card MIG 1g", CARD.pci_bus_id, 10 * GIB, 0, parent_uid=CARD.uid)
    processes = {part.uid: (GpuProcess(7, user="ada"),)}
    path = (
        MadeStore(tmp_path / "s.db").minutes(HOUR, 60, {CARD: {"energy": 6e4}, part: {}}, processes).close()
    )
    assert [line.key for line in ask(path, HOUR, HOUR + 3600).lines] == [CARD.uid, "MIG-1"]
    total = ask(path, HOUR, HOUR + 3600, By.NODE).lines[0]
    assert (shown(total).gpu_hours, shown(total).coverage, shown(total).energy_kwh) == (1.0, 1.0, 1.0)
    users = ask(path, HOUR, HOUR + 3600, By.USER).lines
    assert [(line.key, shown(line).gpu_hours) for line in users] == [("ada", 1.0)]


def test_users_get_the_minutes_they_were_there(tmp_path: Path) -> None:
    ada, ben = GpuProcess(1, user="ada", start_ticks=5, boot_id="b"), GpuProcess(2, user="ben")
    made = MadeStore(tmp_path / "s.db")
    made.minutes(HOUR, 15, {CARD: BUSY}, {CARD.uid: (ada,)})
    made.minutes(HOUR + 900, 15, {CARD: BUSY}, {CARD.uid: (ada, ben)})
    made.minutes(HOUR + 1800, 15, {CARD: HELD}, {CARD.uid: (ben,)})
    path = made.minutes(HOUR + 2700, 15, {CARD: IDLE}, {CARD.uid: ()}).roll_up(HOUR + 3600).close()
    found = {line.key: shown(line) for line in ask(path, HOUR, HOUR + 3600, By.USER).lines}
    # ada: 15 min alone and half of 15; ben: half of 15 and 15 alone; nobody: 15.
    assert {name: line.gpu_hours for name, line in found.items()} == {
        "ada": 0.375,
        "ben": 0.375,
        "(nobody)": 0.25,
    }
    # kJ: ada 15*18 + 7.5*18 = 405; ben 7.5*18 + 15*3.6 = 189; nobody 15*3.6 = 54.
    assert {name: line.energy_kwh for name, line in found.items()} == {
        "ada": 0.1125, "ben": 0.0525, "(nobody)": 0.015,
    }  # fmt: skip
    assert {name: line.held_idle_hours for name, line in found.items()} == {
        "ada": 0,
        "ben": 0.25,
        "(nobody)": 0,
    }
    assert found["ada"].gpu_utilization == 80.0
    assert {line.coverage for line in found.values()} == {1.0}


def test_users_of_pruned_hours_share_them_by_time(tmp_path: Path) -> None:
    ada = GpuProcess(1, user="ada")
    made = MadeStore(tmp_path / "s.db").minutes(HOUR, 15, {CARD: BUSY}, {CARD.uid: (ada,)})
    made.minutes(HOUR + 900, 45, {CARD: IDLE}, {CARD.uid: ()})
    path = made.roll_up(HOUR + 3600).prune_rows().close()
    found = {line.key: shown(line) for line in ask(path, HOUR, HOUR + 3600, By.USER).lines}
    # A quarter of the hour and so a quarter of everything in it: (15*18 + 45*3.6) / 4 = 108 kJ = 0.03 kWh
    assert {name: line.gpu_hours for name, line in found.items()} == {"ada": 0.25, "(nobody)": 0.75}
    assert found["ada"].energy_kwh == 0.03


def test_a_process_without_a_readable_user_is_not_nobody(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db").minutes(HOUR, 60, {CARD: BUSY}, {CARD.uid: (GpuProcess(1),)})
    found = ask(made.close(), HOUR, HOUR + 3600, By.USER).lines
    assert [(line.key, shown(line).gpu_hours) for line in found] == [("(unknown user)", 1.0)]


def test_time_without_process_lists_is_not_nobodys(tmp_path: Path) -> None:
    path = MadeStore(tmp_path / "s.db").minutes(HOUR, 60, {CARD: BUSY}).close()
    reader = Reader(path)
    found = usage(reader, Question(1, HOUR, HOUR + 3600, By.USER, has_processes=False)).lines
    reader.close()
    assert [line.key for line in found] == ["(not recorded)"]


def test_presence_cuts_a_stretch_where_users_come_and_go() -> None:
    presence = Presence(
        [Sighting("g", "ada", 160.0, 400.0, 60.0), Sighting("g", "ben", 300.0, 300.0, 60.0)], {"part": "g"}
    )
    # ada from 100 to 400, ben from 240 to 300.
    parts = [(set(users), round(share, 4)) for users, share in presence.parts("g", 0.0, 500.0)]
    assert parts == [(set(), 0.2), ({"ada"}, 0.28), ({"ada", "ben"}, 0.12), ({"ada"}, 0.2), (set(), 0.2)]
    assert list(presence.parts("other", 0.0, 10.0)) == [(frozenset(), 1.0)]
    assert list(presence.parts("g", 120.0, 180.0)) == [(frozenset({"ada"}), 1.0)]


def test_an_hour_recorded_twice_is_no_more_than_covered(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db").minutes(HOUR, 60, {CARD: BUSY})
    line = shown(ask(made.minutes(HOUR, 60, {CARD: BUSY}).close(), HOUR, HOUR + 3600).lines[0])
    # Two hours passed while the clock showed one.
    assert (line.gpu_hours, line.coverage) == (2.0, 1.0)
