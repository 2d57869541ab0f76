"""Two parts of one interval as one row of scaled columns. Pure."""

from __future__ import annotations

from gpu_monitor.core.catalogue import Metric


def combine(
    base_weight: int, base: list[int | None], weight: int, new: list[int | None], metrics: tuple[Metric, ...]
) -> list[int | None]:
    """Two parts of one interval as one row of scaled columns, weighted by the seconds each covers."""
    from_parts: list[int | None] = []
    position = 0
    total = base_weight + weight
    for metric in metrics:
        old_mean, new_mean = base[position], new[position]
        width = 3 if metric.spread else 1
        if old_mean is None or new_mean is None:
            source = base if new_mean is None else new
            from_parts += source[position : position + width]
        else:
            mean = _joined(metric, old_mean, base_weight, new_mean, weight, total)
            from_parts.append(mean)
            if metric.spread:
                low = min(_or(base[position + 1], old_mean), _or(new[position + 1], new_mean))
                high = max(_or(base[position + 2], old_mean), _or(new[position + 2], new_mean))
                from_parts += [None if low == mean else low, None if high == mean else high]
        position += width
    return from_parts


def _joined(metric: Metric, old: int, old_weight: int, new: int, weight: int, total: int) -> int:
    kind = metric.kind.value
    if kind == "total":
        return old + new
    if kind == "flags":
        return old | new
    return round((old * old_weight + new * weight) / total) if total else new


def _or(value: int | None, other: int) -> int:
    return other if value is None else value
