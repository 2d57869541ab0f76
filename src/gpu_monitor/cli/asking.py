"""The reading flags: finds the store, opens it read-only, prints what is asked."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from gpu_monitor.agent.ask import Group
from gpu_monitor.agent.sends import list_sends, search_send
from gpu_monitor.cli.output import note
from gpu_monitor.cli.sends import print_detail, print_list, summary
from gpu_monitor.cli.show import show
from gpu_monitor.config.load import Loaded, load, read_file, system_file
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_NOTHING
from gpu_monitor.core.times import parse_moment
from gpu_monitor.storage.database import Reader, looks_like

SERVICE_STATE = Path("/var/lib/gpu_monitor")
"""The state directory of the systemd service: what relative paths of its configuration start at."""


def find_store(named: str | None) -> tuple[Loaded, Path]:
    """Configuration and store to read: those named or found here, else the installed service's (said on stderr)."""
    loaded = load(named)
    if named is None and looks_like(loaded.store) in ("absent", "empty"):
        system = system_file()
        if system.is_file():
            service = Loaded(read_file(system), system, SERVICE_STATE)
            if service.store.exists():
                note(f"reading the service's store {service.store} (configuration {system})")
                return service, service.store
    return loaded, loaded.store


def open_reader(named: str | None) -> Reader:
    """A reader of the store that `find_store` finds; StorageError where there is none."""
    return Reader(find_store(named)[1])


def run(args: argparse.Namespace) -> int:
    """Answer -ls, -ss or -sc."""
    loaded, path = find_store(args.config)
    missing = looks_like(path) in ("absent", "empty")
    if args.show_collection is not None:
        store = None if missing else Reader(path)
        if missing:
            note(f"there is no store at {path} yet")
        return show(store, args, SystemClock().now(), lambda fields: _fresh(loaded, fields))
    if args.list_sends:
        rows = [] if missing else list_sends(Reader(path))
        print_list(rows, sys.stdout, naive=args.naive, as_json=args.json)
        if not args.json:
            sys.stdout.flush()
            note(summary(rows, has_server=not loaded.offline))
        return EXIT_DONE
    moment = parse_moment(args.search_send, SystemClock().now())
    found = None
    for candidate in () if missing else moment.candidates:
        found = search_send(Reader(path), candidate) or found
    if found is None:
        note(f"no report for the period that contains {args.search_send!r}")
        return EXIT_NOTHING
    print_detail(found, sys.stdout, naive=args.naive, as_json=args.json)
    return EXIT_DONE


def _fresh(loaded: Loaded, fields: tuple[str, ...]) -> Group | None:
    """One reading now. The sources are loaded only here: reading commands must start fast and need no driver."""
    found: Group | None = importlib.import_module("gpu_monitor.cli.fresh").take_reading(loaded, fields)
    return found
