"""`--show-collection`: the last collection, the one nearest to a time, a range, or the hours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from gpu_monitor.agent.ask import (
    Asked,
    Group,
    Hours,
    Machine,
    Samples,
    absences,
    holds_played,
    interval_of,
    node_number,
    parse_fields,
    period_at,
    recorded_span,
)
from gpu_monitor.cli.output import groups_csv, groups_json, hosts_json, note, records_csv
from gpu_monitor.core.errors import EXIT_DONE, EXIT_NOTHING
from gpu_monitor.core.times import format_duration, format_time, parse_moment, parse_range

Fresh = Callable[[tuple[str, ...]], Group | None]
"""Takes one reading now, without storing it; None where there is nothing to read."""


def show(store: Asked | None, args: argparse.Namespace, now: float, fresh: Fresh) -> int:
    """Print what `--show-collection` asks for; exit 3 where there is nothing."""
    text = (args.show_collection or "").strip()
    if args.host:
        return _show_host(store, text, args, now)
    groups, fields = _find(store, text, args, now, fresh)
    if args.output_format == "csv":
        groups_csv(groups, fields, sys.stdout, args.naive)
    else:
        groups_json(groups, sys.stdout, args.naive)
    if not groups and store is not None:
        _say_what_there_is(store, args.node)
    return EXIT_DONE if groups else EXIT_NOTHING


def _show_host(store: Asked | None, text: str, args: argparse.Namespace, now: float) -> int:
    """Print what is recorded of the machine itself, by the same rules of time."""
    span = parse_range(text, now) if text else None
    moment = parse_moment(text, now) if text and span is None else None
    hourly = args.hourly or (moment is not None and moment.full_hour and not args.raw)
    if store is None:
        return EXIT_NOTHING
    machine = Machine(store, hourly)
    if span is None:
        start: float | None = machine.last_start() if moment is None else moment.epoch
        length = period_at(store, start).seconds if hourly and start is not None else interval_of(store)
        span = (
            (start // length * length, start // length * length + length) if start is not None else (0.0, 0.0)
        )
    found = machine.between(*span)
    if args.output_format == "csv":
        records = [{"timestamp": format_time(start, args.naive), **values} for start, values in found]
        records_csv(["timestamp", *machine.fields], records, sys.stdout)
    else:
        hosts_json(found, sys.stdout, args.naive)
    return EXIT_DONE if found else EXIT_NOTHING


def _say_what_there_is(store: Asked, name: str | None) -> None:
    """Nothing was found: tell from when to when there is something."""
    span = recorded_span(store, node_number(store, name))
    if span is None:
        note("nothing is recorded yet" if name is None else f"nothing is recorded of {name}")
    else:
        note(f"nothing there; recorded is {format_time(span[0])} to {format_time(span[1])} (UTC)")


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
        return _latest(samples, store, now, fields, fresh, node), fields
    return _nearest(samples, moment.candidates, interval_of(store), store, node), fields


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


def _nearest(
    samples: Samples, moments: tuple[float, ...], interval: int, store: Asked, node: int
) -> list[Group]:
    found: list[Group] = []
    for moment in moments:
        start = samples.nearest(moment)
        # The row that covers the moment may begin almost an interval before it.
        if start is not None and abs(start - moment) <= interval:
            found += samples.between(start, start + 1)
            _say_absences(store, node, start, start + interval)
    return found


def _say_absences(store: Asked, node: int, start: float, end: float) -> None:
    """Tell of GPUs that gave nothing in an interval, and why; a missing line is easily overlooked."""
    for label, cause, since in absences(store, node, start, end):
        note(f"{label}: no data: {cause} (since {format_time(int(since))})")


def _latest(
    samples: Samples, store: Asked, now: float, fields: tuple[str, ...], fresh: Fresh, node: int
) -> list[Group]:
    start, interval = samples.last_start(), interval_of(store)
    if start is not None and now - start <= 2 * interval:
        _say_absences(store, node, start, start + interval)
        return samples.between(start, start + 1)
    reading = fresh(fields) if node == 1 and not holds_played(store) else None
    if reading is not None:
        return [reading]
    if start is None:
        return []
    if node == 1:
        note(f"the last stored collection is {format_duration(now - start)} old: no agent has stored since")
    return samples.between(start, start + 1)
