"""`--show-collection`: the last collection, the one nearest to a time, a range, or the hours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from gpu_monitor.agent.ask import (
    Asked,
    Group,
    Hours,
    Samples,
    interval_of,
    node_number,
    parse_fields,
    period_at,
)
from gpu_monitor.cli.output import groups_csv, groups_json, note
from gpu_monitor.core.errors import EXIT_DONE, EXIT_NOTHING
from gpu_monitor.core.times import format_duration, format_time, parse_moment, parse_range

Fresh = Callable[[tuple[str, ...]], Group | None]
"""Takes one reading now, without storing it; None where there is nothing to read."""


def show(store: Asked | None, args: argparse.Namespace, now: float, fresh: Fresh) -> int:
    """Print what `--show-collection` asks for; exit 3 where there is nothing."""
    text = (args.show_collection or "").strip()
    groups, fields = _find(store, text, args, now, fresh)
    if args.output_format == "csv":
        groups_csv(groups, fields, sys.stdout, args.naive)
    else:
        groups_json(groups, sys.stdout, args.naive)
    return EXIT_DONE if groups else EXIT_NOTHING


def _find(
    store: Asked | None, text: str, args: argparse.Namespace, now: float, fresh: Fresh
) -> tuple[list[Group], tuple[str, ...]]:
    span = parse_range(text, now) if text else None
    moment = parse_moment(text, now) if text and span is None else None
    hourly = args.hourly or (moment is not None and moment.full_hour and not args.raw)
    fields = parse_fields(args.fields, hourly)
    if store is None:
        group = fresh(fields) if not text and not hourly else None
        return ([group] if group else []), fields
    node = node_number(store, args.node)
    if span is not None:
        source = Hours(store, node, fields) if hourly else Samples(store, node, fields)
        return source.between(*span), fields
    if hourly:
        moments = moment.candidates if moment is not None else (_newest_hour(store, node),)
        return _hours(store, node, fields, moments), fields
    samples = Samples(store, node, fields)
    if moment is None:
        return _latest(samples, store, now, fields, fresh, args.node is None), fields
    return _nearest(samples, moment.candidates, interval_of(store)), fields


def _newest_hour(store: Asked, node: int) -> float:
    found = store.value(
        "SELECT max(period) FROM aggregates WHERE gpu IN (SELECT id FROM gpus WHERE node = ?)", (node,)
    )
    return float(found or 0)


def _hours(store: Asked, node: int, fields: tuple[str, ...], moments: tuple[float, ...]) -> list[Group]:
    found: list[Group] = []
    hours = Hours(store, node, fields)
    for moment in moments:
        period = period_at(store, moment)
        if node != 1:  # imported history is always kept by the hour
            period = type(period)(int(moment // 3600) * 3600, 3600)
        note(f"aggregates of {format_time(period.start)} to {format_time(period.end)} (UTC)")
        found += hours.between(period.start, period.start + 1)
    return found


def _nearest(samples: Samples, moments: tuple[float, ...], interval: int) -> list[Group]:
    found: list[Group] = []
    for moment in moments:
        start = samples.nearest(moment)
        # The row that covers the moment may begin almost an interval before it.
        if start is not None and abs(start - moment) <= interval:
            found += samples.between(start, start + 1)
    return found


def _latest(
    samples: Samples, store: Asked, now: float, fields: tuple[str, ...], fresh: Fresh, local: bool
) -> list[Group]:
    start, interval = samples.last_start(), interval_of(store)
    if start is not None and now - start <= 2 * interval:
        return samples.between(start, start + 1)
    reading = fresh(fields) if local else None
    if reading is not None:
        return [reading]
    if start is None:
        return []
    note(f"the last stored collection is {format_duration(now - start)} old")
    return samples.between(start, start + 1)
