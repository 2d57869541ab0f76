"""The SQL that makes sums of recorded time and energy (`core/tally`) of rows and of aggregates."""

from __future__ import annotations

from gpu_monitor.core.catalogue import BY_NAME
from gpu_monitor.core.tally import HELD_BYTES, IDLE_BELOW, SLIVER, Figures, Tally, figures
from gpu_monitor.storage.tables import unscaled

__all__ = ["HOUR_SUMS", "ROW_SUMS", "Figures", "Tally", "figures"]


def _row_sums() -> tuple[str, ...]:
    """SQL for a Tally's fields of one row `r` of samples_raw."""
    metrics = ("gpu_utilization", "memory_used", "power_usage", "energy")
    used, memory, power, energy = (unscaled(BY_NAME[name], name) for name in metrics)
    seconds = "r.seconds / 10.0"
    is_idle = f"{used} < {IDLE_BELOW}"
    return (
        seconds,
        f"CASE WHEN r.gpu_utilization IS NULL THEN 0.0 ELSE {seconds} END",
        f"coalesce({used} * {seconds}, 0.0)",
        f"CASE WHEN {is_idle} THEN {seconds} ELSE 0.0 END",
        f"CASE WHEN r.gpu_utilization IS NULL OR r.memory_used IS NULL THEN 0.0 ELSE {seconds} END",
        f"CASE WHEN {is_idle} AND {memory} >= {HELD_BYTES} THEN {seconds} ELSE 0.0 END",
        f"CASE WHEN r.energy IS NULL THEN 0.0 ELSE {seconds} END",
        f"coalesce({energy}, 0.0)",
        f"CASE WHEN r.energy IS NULL AND r.power_usage IS NOT NULL THEN {seconds} ELSE 0.0 END",
        f"CASE WHEN r.energy IS NULL THEN coalesce({power} * {seconds}, 0.0) ELSE 0.0 END",
    )


def _hour_sums() -> tuple[str, ...]:
    """SQL for a Tally's fields of one row `a` of aggregates.

    An aggregate does not keep for how many of its seconds a metric was known: one that is known at all
    counts as known for all of them.
    """
    uncounted = "(a.seconds - coalesce(a.energy_seconds, 0.0))"
    has_rest = f"{uncounted} > {SLIVER} AND a.power_usage IS NOT NULL"
    return (
        "a.seconds",
        "CASE WHEN a.idle_seconds IS NULL THEN 0.0 ELSE a.seconds END",
        "CASE WHEN a.idle_seconds IS NULL THEN 0.0 ELSE a.gpu_utilization * a.seconds END",
        "coalesce(a.idle_seconds, 0.0)",
        "CASE WHEN a.held_idle_seconds IS NULL THEN 0.0 ELSE a.seconds END",
        "coalesce(a.held_idle_seconds, 0.0)",
        "coalesce(a.energy_seconds, 0.0)",
        "coalesce(a.energy, 0.0)",
        f"CASE WHEN {has_rest} THEN {uncounted} ELSE 0.0 END",
        f"CASE WHEN {has_rest} THEN a.power_usage * {uncounted} ELSE 0.0 END",
    )


ROW_SUMS = _row_sums()
HOUR_SUMS = _hour_sums()
