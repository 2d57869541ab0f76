"""Until when what a node said last counts as now. Pure."""

from __future__ import annotations

LIVE_SECONDS = 180.0
"""A live value counts as now for three of the default interval; of longer intervals, for three of those."""
REPORT_SECONDS = 900.0
"""Beyond the end of the next period, a report's means count for as long: it is sent within five minutes of it."""
_HOUR = 3600


def live_counts(interval_seconds: int | None) -> float:
    """Seconds after its end that a live value counts as now."""
    return max(LIVE_SECONDS, 3.0 * (interval_seconds or 0))


def values_until(
    time: float | None, live: bool | None, period_seconds: int | None, interval_seconds: int | None
) -> float:
    """Until when (UTC epoch s) the values of a GPU that end at `time` count as now; 0.0 without any."""
    if time is None:
        return 0.0
    return time + (live_counts(interval_seconds) if live else (period_seconds or _HOUR) + REPORT_SECONDS)


def seen_until(
    first_seen: float,
    last_report: float | None,
    last_live: float | None,
    period_seconds: int | None,
    interval_seconds: int | None,
) -> float:
    """Until when (UTC epoch s) a node that says nothing more is not silent yet."""
    period = period_seconds or _HOUR
    reported = first_seen if last_report is None else last_report
    # One that has sent no live sample for a whole period no longer sends any.
    if last_live is not None and last_live >= reported - period:
        return last_live + live_counts(interval_seconds)
    return reported + period + REPORT_SECONDS
