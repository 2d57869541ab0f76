"""`gpu_monitor` without a command: builds the agent from settings and flags, and runs it."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_monitor import __version__
from gpu_monitor.agent.ask import parse_fields
from gpu_monitor.agent.beat import Pace
from gpu_monitor.agent.service import Agent
from gpu_monitor.cli.assembly import Assembly, assemble
from gpu_monitor.cli.clocks import check_flags
from gpu_monitor.cli.dry_run import print_plan
from gpu_monitor.cli.logs import ONCE, be_quiet, set_up
from gpu_monitor.cli.output import groups_csv, groups_json, note
from gpu_monitor.cli.reading import read_group
from gpu_monitor.cli.sources import check_source_flags, choose_source, is_played
from gpu_monitor.config.load import Loaded, load, read_token
from gpu_monitor.config.model import Settings
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOTHING,
    ConfigError,
    GpuMonitorError,
    StorageError,
)
from gpu_monitor.core.times import parse_moment
from gpu_monitor.storage.check import quick_check

_LOG = logging.getLogger("agent")
_RELOAD_SECONDS = 2.0
"""How long an end waits for settings that are being taken over."""
_LOOK_SECONDS = 1.0
"""How long a stop looks for damage: all of some 100 MB; service managers wait for 90."""

Handler = Callable[[int, object], None]
"""What a signal calls: its number and the frame it interrupted."""


def run(args: argparse.Namespace) -> int:
    """Run the agent until it is stopped; or one reading (--once); or say what would be done (--dry-run)."""
    check_source_flags(args)
    check_flags(args, is_played(args))
    loaded = load(args.config)
    if args.once or args.dry_run:
        be_quiet()
    if args.once:
        return _once(args, loaded)
    if args.dry_run:
        return print_plan(args, loaded, sys.stdout)
    logging_settings = loaded.settings.logging
    file = loaded.resolve(logging_settings.file) if logging_settings.file else None
    set_up(logging_settings, file, args.log_level, args.verbose)
    if not args.offline:
        _warn_of_token(loaded)
    with assemble(args, loaded) as assembly:
        until = parse_moment(args.until, assembly.parts.clock.now()).epoch if args.until else None
        stop = assembly.stop
        agent = Agent(assembly.parts, _pace(loaded), assembly.describe, stop)
        with _signals(agent, assembly, args, loaded, stop):
            _LOG.info("gpu_monitor %s, %s, store %s", __version__, assembly.describe, loaded.store)
            _settle_memory()
            unstored = agent.run(until)
    return _say_end(loaded.store, unstored)


def _warn_of_token(loaded: Loaded) -> None:
    """Say at once, not when the first hour is due, that the token cannot be used. Recording goes on without."""
    if loaded.settings.server.url is None:
        return
    try:
        read_token(loaded)
    except ConfigError as error:
        _LOG.warning("nothing can be sent: %s", error)


def _say_end(store: Path, unstored: str | None) -> int:
    """Say in the log how the run ended, once the store is closed: what lies there now is looked over, too."""
    try:
        found = quick_check(store, SystemClock(), _LOOK_SECONDS)
        lines = [line for line in "\n".join(found or ()).splitlines() if not line.startswith("***")]
        trouble = f"{store} is damaged ({lines[0]}); the next run salvages it" if lines else None
    except StorageError as error:
        trouble = str(error)
    complaints = [text for text in (unstored, trouble) if text is not None]
    if not complaints:
        _LOG.info("stopped; everything collected is stored")
        return EXIT_DONE
    _LOG.critical("stopped; %s", "; ".join(complaints))
    return EXIT_FAILED


def _settle_memory() -> None:
    """Set aside what was loaded at the start: it lives as long as the process, and is not looked through again.

    An interval makes a few thousand short-lived objects without cycles; looking for cycles after each
    700 of them (Python's default) would cost more than all else the agent does between readings.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def _pace(loaded: Loaded) -> Pace:
    collection = loaded.settings.collection
    return Pace(collection.interval_seconds, collection.reading_seconds)


def _once(args: argparse.Namespace, loaded: Loaded) -> int:
    fields = parse_fields(args.fields)
    chosen = choose_source(args, loaded, SystemClock().now())
    if chosen.warning:
        note(f"gpu_monitor: {chosen.warning}")
    try:
        group = read_group(chosen.source, fields)
    finally:
        chosen.source.close()
    groups = [group] if group else []
    if args.output_format == "csv":
        groups_csv(groups, fields, sys.stdout, args.naive)
    else:
        groups_json(groups, sys.stdout, args.naive)
    return EXIT_DONE if groups else EXIT_NOTHING


@contextlib.contextmanager
def _signals(
    agent: Agent, assembly: Assembly, args: argparse.Namespace, loaded: Loaded, stop: threading.Event
) -> Iterator[None]:
    """SIGTERM and SIGINT stop, SIGHUP reads the configuration again; what was there before comes back after."""

    asked: list[int] = []

    def end(number: int, _frame: object) -> None:
        if asked:
            return
        asked.append(number)
        _LOG.info("stopping (%s)", signal.Signals(number).name)
        assembly.stopping()
        # In a thread of its own: an event's lock is not reentrant, and its holder may be what was interrupted.
        threading.Thread(target=stop.set, name="stop").start()

    hangups: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def reload(_number: int, _frame: object) -> None:
        # In a thread, too: what the handler interrupted may hold a lock that reloading needs. This queue's put may.
        hangups.put(True)

    def follow() -> None:
        nonlocal loaded
        while hangups.get() and not stop.is_set():
            loaded = _reload(agent, assembly, args, loaded)

    handlers: dict[signal.Signals, Handler] = {signal.SIGTERM: end, signal.SIGINT: end}
    # Windows has no SIGHUP, and only Windows has SIGBREAK.
    wanted: tuple[tuple[str, Handler], ...] = (("SIGHUP", reload), ("SIGBREAK", end))
    handlers.update({getattr(signal, name): handler for name, handler in wanted if hasattr(signal, name)})
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    follower = threading.Thread(target=follow, name="reload", daemon=True)
    follower.start()
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        hangups.put(False)
        follower.join(_RELOAD_SECONDS)


def _reload(agent: Agent, assembly: Assembly, args: argparse.Namespace, loaded: Loaded) -> Loaded:
    """Take over what changed in the configuration file, and return what is in force.

    A bad file leaves the old settings, `loaded`, in force.
    """
    assembly.reloading()
    try:
        fresh = load(args.config)
        if fresh.store != loaded.store:
            raise ConfigError(
                "database.file cannot change while the agent runs", "Restart it to use another store."
            )
        file = fresh.resolve(fresh.settings.logging.file) if fresh.settings.logging.file else None
        assembly.apply(fresh)
        set_up(fresh.settings.logging, file, args.log_level, args.verbose)
        agent.change_pace(_pace(fresh))
        agent.nudge("ship")
        if not args.offline:
            _warn_of_token(fresh)
        changes = ", ".join(_changed(loaded.settings, fresh.settings)) or "nothing"
        source = fresh.path or "defaults"
        _LOG.info("configuration read again from %s: %s changed", source, changes, extra=ONCE)
        return fresh
    except GpuMonitorError as error:
        _LOG.error("the configuration was not taken over, the old one stays in force: %s", error)
        return loaded
    finally:
        assembly.ready()


def _changed(before: Settings, now: Settings) -> Iterator[str]:
    """The keys whose values differ, as `section.key`."""
    for section in now.__struct_fields__:
        old, new = getattr(before, section), getattr(now, section)
        yield from (
            f"{section}.{key}" for key in new.__struct_fields__ if getattr(old, key) != getattr(new, key)
        )
