"""Which devices are known, and what is worth an event."""

from __future__ import annotations

from gpu_monitor.core.model import Identity, Status
from gpu_monitor.sources.gpu.nvml.roster import Roster, Trouble
from gpu_monitor.sources.gpu.nvml.worker import Opened

ADDRESS = {"A": "0000:0a:00.0", "B": "0000:0b:00.0"}


def sent(uid: str, index: int | None = 0, parent: str | None = None) -> tuple[object, ...]:
    """An identity as the child sends it."""
    bus = f"00000000:0{(parent or uid)[-1]}:00.0"
    return (f"GPU-{uid}", "card", bus, 80, index, None, index, parent, "1/0" if parent else None, "dedicated")


def opened(*identities: tuple[object, ...], driver: str = "590", absent: tuple[object, ...] = ()) -> Opened:
    return Opened(driver, identities, absent)  # type: ignore[arg-type]


def kinds(events: list[object]) -> list[str]:
    return [event.kind for event in events]  # type: ignore[attr-defined]


def test_the_first_look_is_no_news() -> None:
    roster = Roster(())
    assert roster.take(opened(sent("A"), sent("B", 1)), 1.0, (), ()) == []
    assert list(roster.uids) == ["GPU-A", "GPU-B"]
    assert roster.addresses() == set(ADDRESS.values())
    assert roster.uid_at(ADDRESS["B"]) == "GPU-B"
    assert roster.address_of("GPU-A") == ADDRESS["A"]


def test_appearing_and_disappearing() -> None:
    roster = Roster(())
    roster.take(opened(sent("A")), 1.0, (), ())
    appeared = roster.take(opened(sent("A"), sent("B", 1)), 2.0, (), ())
    assert [(event.kind, event.uid, event.time) for event in appeared] == [("gpu_appeared", "GPU-B", 2.0)]
    gone = roster.take(opened(sent("B", 0)), 3.0, (), ())
    assert [(event.kind, event.uid) for event in gone] == [("gpu_disappeared", "GPU-A")]
    assert list(roster.uids) == ["GPU-B"]
    assert roster.identity("GPU-B") == Identity(
        "GPU-B", "nvml", "card", "00000000:0B:00.0", 80, 0, None, 0, memory_kind="dedicated"
    )


def test_a_new_index_is_no_event() -> None:
    roster = Roster(())
    roster.take(opened(sent("A", 0), sent("B", 1)), 1.0, (), ())
    assert roster.take(opened(sent("B", 0), sent("A", 1)), 2.0, (), ()) == []
    assert list(roster.uids) == ["GPU-B", "GPU-A"]


def test_what_was_left_out_on_purpose_has_not_disappeared() -> None:
    roster = Roster(())
    roster.take(opened(sent("A"), sent("B", 1)), 1.0, (), ())
    assert roster.take(opened(sent("A")), 2.0, {ADDRESS["B"]}, ()) == []
    assert list(roster.uids) == ["GPU-A", "GPU-B"]


def test_what_the_kernel_still_holds_is_lost_and_not_gone() -> None:
    roster = Roster(())
    roster.take(opened(sent("A"), sent("B", 1)), 1.0, (), ())
    events = roster.take(opened(sent("A")), 2.0, (), tuple(ADDRESS.values()))
    assert kinds(events) == ["gpu_lost"]  # type: ignore[arg-type]
    trouble = roster.trouble_of("GPU-B")
    assert trouble == Trouble(Status.LOST, "no longer found by the driver", 2.0)


def test_what_the_driver_will_not_open_is_lost_with_its_words() -> None:
    roster = Roster(())
    roster.take(opened(sent("A"), sent("B", 1)), 1.0, (), ())
    for absent in ((ADDRESS["B"], None, 15), (None, 1, 15)):
        roster.take(opened(sent("A"), absent=(absent,)), 2.0, (), ())
        trouble = roster.trouble_of("GPU-B")
        assert trouble is not None and trouble.cause == "GPU is lost (fell off the bus)"


def test_trouble_begins_once_and_ends_once() -> None:
    roster = Roster(())
    roster.take(opened(sent("A")), 1.0, (), ())
    assert kinds(roster.fail("GPU-A", Trouble(Status.LOST, "gone", 5.0))) == ["gpu_lost"]  # type: ignore[arg-type]
    assert roster.fail("GPU-A", Trouble(Status.LOST, "gone for good", 6.0)) == []
    reading = roster.absent_reading("GPU-A")
    assert reading is not None
    assert (reading.cause, reading.since, reading.status) == ("gone for good", 5.0, Status.LOST)
    (back,) = roster.heal("GPU-A", 9.5)
    assert (back.kind, back.detail["seconds"]) == ("gpu_back", 4.5)
    assert roster.heal("GPU-A", 9.5) == []
    assert roster.absent_reading("GPU-A") is None


def test_sleep_is_no_event() -> None:
    roster = Roster(())
    roster.take(opened(sent("A")), 1.0, (), ())
    assert roster.fail("GPU-A", Trouble(Status.ASLEEP, "suspended", 5.0)) == []
    assert roster.absent_reading("GPU-A") is not None
    roster.wake({ADDRESS["A"]: "suspended"})
    assert roster.absent_reading("GPU-A") is not None
    roster.wake({})
    assert roster.absent_reading("GPU-A") is None


def test_another_driver_is_told() -> None:
    roster = Roster(())
    roster.take(opened(sent("A"), driver="590.48"), 1.0, (), ())
    (event,) = roster.take(opened(sent("A"), driver="595.10"), 2.0, (), ())
    assert (event.kind, dict(event.detail)) == ("driver_changed", {"from": "590.48", "to": "595.10"})


def test_instances_share_their_gpus_trouble() -> None:
    roster = Roster(())
    roster.take(opened(sent("A"), sent("A1", None, "GPU-A")), 1.0, (), ())
    roster.fail("GPU-A", Trouble(Status.HUNG, "hung in x", 5.0))
    reading = roster.absent_reading("GPU-A1")
    assert reading is not None and reading.status is Status.HUNG
    assert roster.take(opened(), 2.0, {ADDRESS["A"]}, ()) == []
    assert list(roster.uids) == ["GPU-A", "GPU-A1"]


def test_devices_of_earlier_runs_are_known_by_their_address() -> None:
    known = Identity("GPU-A", "nvml", "card", "00000000:0A:00.0", 80, 0)
    roster = Roster([known])
    assert (list(roster.uids), roster.uid_at(ADDRESS["A"])) == ([], "GPU-A")
    roster.remember(ADDRESS["A"])
    assert list(roster.uids) == ["GPU-A"]
    roster.remember(ADDRESS["B"])
    assert list(roster.uids) == ["GPU-A"]
