"""`--dry-run`: what the agent would collect, store and send, without doing any of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TextIO

from gpu_monitor.cli.sources import choose_source
from gpu_monitor.config.load import Loaded, read_token, search_path
from gpu_monitor.core.catalogue import METRICS
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, ConfigError
from gpu_monitor.core.model import Round, Span, Status
from gpu_monitor.storage.database import looks_like


def print_plan(args: argparse.Namespace, loaded: Loaded, stream: TextIO) -> int:
    """Print the plan; opens the source for one reading, opens no store and no connection."""
    chosen = choose_source(args, loaded, SystemClock().now())
    try:
        found = chosen.source.read(SystemClock().now(), Span.WIDE)
    finally:
        chosen.source.close()
    for line in _configuration(loaded):
        print(line, file=stream)
    print(f"\nwould collect    {chosen.describe}", file=stream)
    if chosen.warning:
        print(f"                 {chosen.warning}", file=stream)
    for line in (*_devices(found), *_pace(loaded), *_store(loaded), *_sending(args, loaded)):
        print(line, file=stream)
    print("\nNothing was stored and nothing was sent.", file=stream)
    return EXIT_DONE


def _configuration(loaded: Loaded) -> Iterator[str]:
    if loaded.path is not None:
        yield f"configuration    {loaded.path}"
    else:
        yield "configuration    none found, defaults hold; looked for:"
        for path in search_path(loaded.base):
            yield f"                 {path}"


def _devices(found: Round) -> Iterator[str]:
    if found.paused:
        yield f"                 nothing now: {found.paused}"
    for device in found.devices:
        identity = device.identity
        given = sum(1 for metric in METRICS if metric.name in device.values)
        status = "" if device.status is Status.OK else f", {device.cause or device.status.value}"
        yield f"                 {identity.uid}  {identity.name}, {identity.pci_bus_id}: {given} metrics{status}"
        if device.reasons:
            yield f"                   not given: {', '.join(f'{k} ({v})' for k, v in sorted(device.reasons.items()))}"


def _pace(loaded: Loaded) -> Iterator[str]:
    collection = loaded.settings.collection
    yield f"  pace           a row per GPU each {collection.interval_seconds} s, read every {collection.reading_seconds:g} s"
    yield f"  processes      {collection.processes}"
    yield f"  host           {'CPU, memory, disk, network' if collection.host else 'no'}"


def _store(loaded: Loaded) -> Iterator[str]:
    database = loaded.settings.database
    state = {"absent": "would be made", "empty": "would be made", "ours": "exists"}.get(
        looks_like(loaded.store), "NOT OURS"
    )
    yield f"\nwould store in   {loaded.store} ({state})"
    yield f"  kept           rows {database.raw_days} days, hours and the ledger {database.aggregate_days} days"
    yield f"  size           {f'at most {database.max_mb} MB' if database.max_mb else 'no cap'}"
    logging = loaded.settings.logging
    yield f"  log            {loaded.resolve(logging.file) if logging.file else 'console only'}, {logging.level}"


def _sending(args: argparse.Namespace, loaded: Loaded) -> Iterator[str]:
    server = loaded.settings.server
    if server.url is None:
        yield "\nwould send       nothing: no server.url (offline); hours are kept"
    elif args.offline:
        yield "\nwould send       nothing: --offline; hours are kept and sent by the next run without it"
    else:
        hours = loaded.settings.collection.aggregation_interval_hours
        yield f"\nwould send to    {server.url}, one report each {hours} h, contract {server.contract_number}"
        yield f"  token          {_token(loaded)}"
        yield f"  spread         5 to {server.spread_seconds} s after the period's end"


def _token(loaded: Loaded) -> str:
    try:
        return "yes" if read_token(loaded) else "none"
    except ConfigError as error:
        return f"WARNING: {error.message}: nothing can be sent. {error.hint or ''}".rstrip()
