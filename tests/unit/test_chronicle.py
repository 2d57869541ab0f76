"""What happened on hand-made nodes, in order; every expected value is worked out beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_monitor.agent.chronicle import (
    Entry,
    Wanted,
    chronicle,
    find_cards,
    other_nodes,
    recorded,
    silence,
)
from gpu_monitor.agent.collect import Absence
from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.model import Event, Identity
from gpu_monitor.core.xid import xid_event
from gpu_monitor.storage.database import Reader
from tests.made_stores import CARD, GIB, HOUR, OTHER, MadeStore

BUSY = {"gpu_utilization": 80.0}
NOW = HOUR + 7200.0
SLICE = Identity("MIG-dddddddd", "nvml", "Card 1g", "00000000:02:00.0", 10 * GIB, 1, parent_uid=OTHER.uid)


def told(path: Path, since: float = HOUR, until: float = NOW, **more: object) -> list[Entry]:
    reader = Reader(path)
    try:
        return chronicle(reader, Wanted(1, since, until, NOW, **more))  # type: ignore[arg-type]
    finally:
        reader.close()


def eventful(path: Path) -> Path:
    """Two GPUs; the second is lost for ten minutes and hangs since; the node was down before."""
    made = MadeStore(path).minutes(HOUR, 60, {CARD: BUSY, OTHER: BUSY})
    made.record(
        Event(HOUR + 60.0, "agent_started", "agent 1 started"),
        Absence(HOUR - 600.0, HOUR + 60.0, "agent killed", None),
        Absence(HOUR + 600.0, HOUR + 1200.0, "GPU lost", OTHER.uid),
        xid_event(HOUR + 605.0, 79, uid=OTHER.uid, pci_bus_id="00000000:02:00.0"),
        Event(
            HOUR + 900.0,
            "throttle_started",
            "throttled: power cap",
            "warning",
            CARD.uid,
            {"reasons": "power cap"},
        ),
        Absence(HOUR + 3600.0, None, "hung in nvmlX", OTHER.uid),
        Absence(HOUR + 3000.0, HOUR + 3060.0, "asleep", CARD.uid),
    )
    return made.close()


def test_events_and_gaps_in_one_order(tmp_path: Path) -> None:
    found = told(eventful(tmp_path / "s.db"))
    assert [(e.time - HOUR, e.kind, e.severity, e.uid) for e in found] == [
        (-600, "gap", "warning", None),
        (60, "agent_started", "info", None),
        (600, "gap", "error", OTHER.uid),
        (605, "xid", "critical", OTHER.uid),
        (900, "throttle_started", "warning", CARD.uid),
        (3000, "gap", "info", CARD.uid),
        (3600, "gap", "error", OTHER.uid),
    ]
    lost, lasting = found[2], found[-1]
    assert (lost.end, lost.seconds, lost.cause, lost.advice) == (HOUR + 1200, 600, "GPU lost", None)
    # From 15:00 until 16:00, which is now.
    assert (lasting.end, lasting.seconds, lasting.cause) == (None, 3600, "hung in nvmlX")
    assert "reset or reboot" in str(lasting.advice)
    xid = found[3]
    assert xid.card is not None
    assert (xid.card.index, xid.card.name, xid.end, xid.seconds) == (1, "Card", None, None)
    assert xid.detail is not None
    assert (xid.detail["xid"], xid.detail["advice"]) == (79, xid.advice)


def test_the_span_takes_gaps_that_reach_into_it(tmp_path: Path) -> None:
    path = eventful(tmp_path / "s.db")
    # The lost GPU came back at 1200 s sharp: a span from there on has nothing of it; one from 1199 has.
    assert [e.kind for e in told(path, HOUR + 1200, HOUR + 3000)] == []
    assert [e.time - HOUR for e in told(path, HOUR + 1199, HOUR + 3000)] == [600]
    assert [e.time - HOUR for e in told(path, HOUR + 605, HOUR + 606)] == [600, 605]
    assert [e.time - HOUR for e in told(path, HOUR + 600, HOUR + 605)] == [600]


@pytest.mark.parametrize(
    ("wanted", "times"),
    [
        ({"kind": "gap"}, [-600, 600, 3000, 3600]),
        ({"kind": "xid"}, [605]),
        ({"kind": "xids"}, []),
        ({"severity": "warning"}, [-600, 600, 605, 900, 3600]),
        ({"severity": "critical"}, [605]),
        ({"uids": frozenset([CARD.uid])}, [-600, 900, 3000]),
        ({"uids": frozenset([OTHER.uid]), "kind": "gap", "severity": "error"}, [600, 3600]),
    ],
)
def test_what_is_left_out(tmp_path: Path, wanted: dict[str, object], times: list[int]) -> None:
    assert [e.time - HOUR for e in told(eventful(tmp_path / "s.db"), **wanted)] == times


def test_a_kernel_message_belongs_to_the_gpu_at_its_address(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db").minutes(HOUR, 1, {CARD: BUSY, OTHER: BUSY, SLICE: BUSY})
    made.record(
        xid_event(HOUR + 1.0, 48, pci_bus_id="0000:02:00", via="kernel_log"),
        xid_event(HOUR + 2.0, 48, pci_bus_id="0000:77:00", via="kernel_log"),
    )
    known, unknown = told(made.close())
    assert (known.uid, known.card and known.card.index) == (OTHER.uid, 1)
    assert (unknown.uid, unknown.card) == (None, None)


@pytest.mark.parametrize(
    ("text", "uids"),
    [
        ("0", [CARD.uid]),
        ("1", [OTHER.uid, SLICE.uid]),
        ("GPU-bbb", [OTHER.uid, SLICE.uid]),
        ("gpu-BBB", [OTHER.uid, SLICE.uid]),
        ("bbbb", [OTHER.uid, SLICE.uid]),
        ("MIG-d", [SLICE.uid]),
        ("0000:01:00.0", [CARD.uid]),
        ("00000000:01:00", [CARD.uid]),
    ],
)
def test_how_a_gpu_can_be_named(tmp_path: Path, text: str, uids: list[str]) -> None:
    path = MadeStore(tmp_path / "s.db").minutes(HOUR, 1, {CARD: BUSY, OTHER: BUSY, SLICE: BUSY}).close()
    reader = Reader(path)
    assert [card.uid for card in find_cards(reader, 1, text)] == uids
    reader.close()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("7", "knows no GPU '7'"),
        ("GPU-", "begins 2 uids"),
        ("", "knows no GPU ''"),
        ("0000:09:00.0", "knows no GPU"),
    ],
)
def test_names_that_mean_no_gpu(tmp_path: Path, text: str, says: str) -> None:
    path = MadeStore(tmp_path / "s.db").minutes(HOUR, 1, {CARD: BUSY, OTHER: BUSY}).close()
    reader = Reader(path)
    with pytest.raises(UsageError, match=says) as caught:
        find_cards(reader, 1, text)
    assert CARD.uid in str(caught.value)
    reader.close()


def test_an_exact_uid_is_meant_though_another_begins_with_it(tmp_path: Path) -> None:
    short, long = Identity("SIM-1", "simulated", index=0), Identity("SIM-10", "simulated", index=1)
    path = MadeStore(tmp_path / "s.db").minutes(HOUR, 1, {short: BUSY, long: BUSY}).close()
    reader = Reader(path)
    assert [card.uid for card in find_cards(reader, 1, "SIM-1")] == ["SIM-1"]
    reader.close()


def test_a_gpu_is_found_where_it_is_now(tmp_path: Path) -> None:
    moved = Identity(CARD.uid, "nvml", "Card", "00000000:05:00.0", 80 * GIB, 4)
    path = (
        MadeStore(tmp_path / "s.db")
        .minutes(HOUR, 1, {CARD: BUSY})
        .minutes(HOUR + 60, 1, {moved: BUSY})
        .close()
    )
    reader = Reader(path)
    (card,) = find_cards(reader, 1, "4")
    assert (card.uid, card.pci_bus_id) == (CARD.uid, "00000000:05:00.0")
    with pytest.raises(UsageError):
        find_cards(reader, 1, "0")
    reader.close()


def test_time_without_data_counts_once(tmp_path: Path) -> None:
    def gap(start: float, seconds: float) -> Entry:
        return Entry(start, "gap", "error", "lost", seconds=seconds, end=start + seconds)

    # 100-200 and 150-250 lie over each other: 150 s; 260-270 adds 10.
    entries = [gap(100, 100), gap(150, 100), gap(260, 10), Entry(300, "xid", "error", "Xid 1")]
    assert silence(entries, 0, 1000) == 160
    # From 180 to 265: 180-250 and 260-265.
    assert silence(entries, 180, 265) == 75
    assert silence([gap(100, 500), gap(200, 50)], 0, 1000) == 500
    assert silence([], 0, 1000) == 0


def test_from_when_to_when_there_is_data(tmp_path: Path) -> None:
    def span(path: Path, node: int = 1) -> tuple[float, float] | None:
        reader = Reader(path)
        try:
            return recorded(reader, node)
        finally:
            reader.close()

    empty = MadeStore(tmp_path / "empty.db").close()
    assert (span(empty), span(empty, 2)) == (None, None)
    rows = MadeStore(tmp_path / "rows.db").minutes(HOUR + 1800, 30, {CARD: BUSY}).close()
    assert span(rows) == (HOUR + 1800, HOUR + 3600)
    both = MadeStore(tmp_path / "both.db").minutes(HOUR + 1800, 40, {CARD: BUSY}).roll_up(HOUR + 3600).close()
    assert span(both) == (HOUR + 1800, HOUR + 4200)
    hours = MadeStore(tmp_path / "hours.db").minutes(HOUR + 1800, 90, {CARD: BUSY}).roll_up(HOUR + 7200)
    assert span(hours.prune_rows().close()) == (HOUR, HOUR + 7200)
    assert span(tmp_path / "hours.db", 2) is None


def test_imported_nodes(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db")
    with made.writer.transaction() as connection:
        connection.executemany("INSERT INTO nodes VALUES (?, ?, 'import', NULL)", [(2, "lab"), (3, "desk")])
    reader = Reader(made.close())
    assert other_nodes(reader) == ["desk", "lab"]
    reader.close()
