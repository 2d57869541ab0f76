"""Times of logs: every way they are written, time zones, and the clock that is put back."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.sources.recorded.stamps import StampReader, pick
from tests.recordings import zone_named

UTC = timezone.utc
BERLIN = "Europe/Berlin"

# 2026-04-25 16:06:06 UTC, from `date -u -d '2026-04-25 16:06:06' +%s`.
EPOCH = 1777133166


@pytest.mark.parametrize(
    ("text", "epoch"),
    [
        ("2026/04/25 16:06:06.780", EPOCH + 0.78),
        ("2026-04-25 16:06:06,780", EPOCH + 0.78),
        ("2026-04-25T16:06:06Z", EPOCH),
        ("2026-04-25T18:06:06+02:00", EPOCH),
        ("2026-04-25T18:06:06+0200", EPOCH),
        ("2026-04-25 11:06:06.000 -05:00", EPOCH),
        ("2026-04-25T21:36:06+05:30", EPOCH),
        ("2026-04-25 16:06:06 UTC", EPOCH),
        ("Sat Apr 25 16:06:06 2026", EPOCH),
        ("Sat Apr 25 16:06:06 UTC 2026", EPOCH),
        (f"{EPOCH}", EPOCH),
        (f"{EPOCH}.25", EPOCH + 0.25),
        (f"{EPOCH}780", EPOCH + 0.78),
        (f"{EPOCH}780123", EPOCH + 0.780123),
        (f"{EPOCH}780123456", EPOCH + 0.780123456),
        ("2026/4/25 16:06", EPOCH - 6),
    ],
)
def test_the_ways_a_time_is_written(text: str, epoch: float) -> None:
    assert StampReader(UTC).candidates(text) == pytest.approx((epoch,), abs=1e-4)


@pytest.mark.parametrize(
    "text",
    ["", "0", "27", "timestamp", "2026/13/25 16:06:06", "2026/02/30 00:00:00", "25/04/2026 16:06:06",
     "1926/04/25 16:06:06", "2026/04/25 16:412026/04/25 17:05:24.781", "20260425160606",
     "2026/04/25 16:06:75", "Sat Foo 25 16:06:06 2026", "11.64 W"],
)  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    assert StampReader(UTC).candidates(text) == ()


def test_an_offset_in_the_log_wins_over_the_zone() -> None:
    reader = StampReader(zone_named(BERLIN))
    assert reader.candidates("2026-04-25 18:06:06") == (EPOCH,)
    assert reader.candidates("2026-04-25 16:06:06Z") == (EPOCH,)


def test_the_local_zone_of_this_machine_is_the_default() -> None:
    naive = datetime(2026, 4, 25, 16, 6, 6)  # noqa: DTZ001 - the machine's own zone is meant
    assert StampReader().candidates("2026/04/25 16:06:06") == (naive.timestamp(),)


def test_small_numbers_count_from_the_start_if_there_is_one() -> None:
    assert StampReader(UTC, start=EPOCH).candidates("12.5") == (EPOCH + 12.5,)
    assert StampReader(UTC).candidates("12.5") == ()


def test_the_hour_that_is_repeated_has_two_meanings() -> None:
    # Germany put its clocks back on 2026-10-25 at 01:00 UTC: 02:30 was at 00:30 UTC and at 01:30 UTC.
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp()
    assert StampReader(zone_named(BERLIN)).candidates("2026/10/25 02:30:00") == (first, first + 3600)


def test_a_time_the_clock_jumped_over_is_counted() -> None:
    # Germany put its clocks forward on 2026-03-29 from 02:00 to 03:00.
    reader = StampReader(zone_named(BERLIN))
    assert len(reader.candidates("2026/03/29 02:30:00")) == 1
    assert reader.imaginary == 1


def test_a_log_through_the_repeated_hour_never_goes_back() -> None:
    """Written every 10 minutes through the change, as nvidia-smi would in local time."""
    begin = datetime(2026, 10, 24, 23, 30, tzinfo=UTC)
    real = [begin + timedelta(minutes=10 * n) for n in range(18)]
    reader, read, last = StampReader(zone_named(BERLIN)), [], None
    for moment in real:
        written = moment.astimezone(zone_named(BERLIN)).strftime("%Y/%m/%d %H:%M:%S")
        last = pick(reader.candidates(written), last, last)
        read.append(last)
    assert read == [moment.timestamp() for moment in real]


def test_gpus_of_one_round_stay_together_in_the_repeated_hour() -> None:
    two = (1000.0, 4600.0)
    assert pick(two, None, 1000.5) == 1000.0
    assert pick(two, None, 4000.0) == 4600.0
    assert pick(two, 1000.0, 1000.0) == 4600.0
    assert pick(two, None, None) == 1000.0


@given(
    st.datetimes(min_value=datetime(1991, 1, 1), max_value=datetime(2098, 1, 1)),  # noqa: DTZ001
    st.sampled_from(["Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"]),
)
def test_any_moment_is_found_again_in_any_zone(moment: datetime, zone: str) -> None:
    instant = moment.replace(tzinfo=UTC, microsecond=moment.microsecond // 1000 * 1000)
    written = instant.astimezone(zone_named(zone)).strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]
    candidates = StampReader(zone_named(zone)).candidates(written)
    assert any(abs(candidate - instant.timestamp()) < 1e-3 for candidate in candidates)
