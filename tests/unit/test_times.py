"""Times as typed and printed: expected epochs worked out by hand (date -u -d ... +%s)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.times import (
    format_duration,
    format_time,
    parse_duration,
    parse_moment,
    parse_range,
)

NOW = 1_710_945_000.0  # 2024-03-20T14:30:00Z


@pytest.fixture(autouse=True)
def berlin() -> Iterator[None]:
    """A zone that changes its clock: UTC+1, UTC+2 from 2024-03-31 to 2024-10-27."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize(
    ("text", "epoch", "full_hour"),
    [
        ("2024-03-20T14:30:00+00:00", 1710945000, False),
        ("2024-03-20T14:30:00Z", 1710945000, False),
        ("2024-03-20 15:30", 1710945000, False),  # naive: Berlin, UTC+1
        ("2024/03/20 15:30:00.250", 1710945000.25, False),
        ("2024-03-20T14:30:00+0000", 1710945000, False),
        ("2024-03-20 16:30:00 +02:00", 1710945000, False),
        ("2024-03-20T14:00:00+00:00", 1710943200, True),
        ("2024-03-20T15", 1710943200, True),
        ("2024-03-20", 1710889200, True),  # local midnight is 23:00 UTC of the day before
        ("-2h", 1710937800, False),
        ("2h ago", 1710937800, False),
        ("-1h30m", 1710939600, False),
        ("90 minutes ago", 1710939600, False),
        ("+2h", 1710952200, False),
        ("now", 1710945000, False),
        ("today", 1710889200, True),
        ("yesterday", 1710802800, True),
    ],
)
def test_moment(text: str, epoch: float, full_hour: bool) -> None:
    moment = parse_moment(text, NOW)
    assert moment.candidates == (epoch,)
    assert moment.full_hour is full_hour


def test_both_hours_when_the_clock_was_put_back() -> None:
    # 2024-10-27 02:30 happened twice in Berlin: 00:30 UTC and 01:30 UTC.
    assert parse_moment("2024-10-27 02:30", NOW).candidates == (1729989000.0, 1729992600.0)
    assert parse_moment("2024-10-27 03:30", NOW).candidates == (1729996200.0,)


@pytest.mark.parametrize(
    "text", ["", "soon", "2024-13-01", "25:00", "-2x", "ago", "2024-03-20T14:30:00+99:00", "1e400"]
)
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_moment(text, NOW)
    assert "2h ago" in str(caught.value) or "outside" in str(caught.value)


def test_range() -> None:
    assert parse_range("-2h..-1h", NOW) == (1710937800, 1710941400)
    assert parse_range("2024-03-20T14:00Z..", NOW) == (1710943200, NOW)
    assert parse_range("2024-03-20", NOW) is None
    with pytest.raises(UsageError, match="ends before"):
        parse_range("-1h..-2h", NOW)


def test_every_printed_time_finds_itself_again() -> None:
    for epoch in (1710945000, 1729989000, 1729992600, 1711846800, 1710945000.25):
        assert parse_moment(format_time(epoch), NOW).candidates == (epoch,)
        assert epoch in parse_moment(format_time(epoch, naive=True), NOW).candidates


def test_printed_forms() -> None:
    assert format_time(1710945000) == "2024-03-20T14:30:00+00:00"
    assert format_time(1710945000, naive=True) == "2024-03-20T15:30:00"
    assert [format_duration(s) for s in (5, 119, 600, 12000, 445000)] == [
        "5 s", "119 s", "10 min", "3 h 20 min", "5 d 3 h",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("2h30m", 9000), ("7 days", 604800), ("1.5h", 5400)],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "5 parsecs", "5m!", "--5"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)
