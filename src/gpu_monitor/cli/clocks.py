"""Which clock the agent runs on: the machine's, or a faster one for simulation and replay."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gpu_monitor.core.clock import Clock, FastClock, SystemClock
from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.times import format_time, parse_moment

_LOG = logging.getLogger("agent")
_DEFAULT_BACK = 86400.0
"""A sped-up simulation begins a day ago and runs up to the present."""


def check_flags(args: argparse.Namespace, played: bool) -> None:
    """UsageError where --speed or --start make no sense, before anything is opened."""
    if not played and (args.speed != 1.0 or args.start):
        raise UsageError("--speed and --start need --simulate or --replay", "Real time cannot be sped up.")
    if not 1.0 <= args.speed <= 1_000_000:
        raise UsageError(
            f"--speed {args.speed:g} is not between 1 and 1000000", "Try --speed 720: a day in two minutes."
        )


def choose_clock(args: argparse.Namespace, played: bool, store: Path, data_end: float | None) -> Clock:
    """The clock that the flags ask for. `played`: simulated or replayed; `data_end`: where the store's rows end.

    A simulated machine goes on living while its agent is dead: after a restart its time continues at the
    last row plus the real time since, at the same speed, so a killed agent leaves a gap as a real one does.
    """
    if not played:
        if args.speed != 1.0 or args.start:
            raise UsageError(
                "--speed and --start need --simulate or --replay", "Real time cannot be sped up."
            )
        return SystemClock()
    if not 1.0 <= args.speed <= 1_000_000:
        raise UsageError(
            f"--speed {args.speed:g} is not between 1 and 1000000", "Try --speed 720: a day in two minutes."
        )
    real = SystemClock().now()
    if data_end is not None and data_end < real and (args.speed > 1 or args.start):
        if args.start:
            _LOG.warning(
                "the store has rows up to %s: going on from there, --start is not taken",
                format_time(int(data_end)),
            )
        written = max(
            file.stat().st_mtime for file in (store, store.with_name(store.name + "-wal")) if file.exists()
        )
        return FastClock(min(real, data_end + max(0.0, real - written) * args.speed), args.speed)
    if args.start:
        start = parse_moment(args.start, real).epoch
        if start > real:
            raise UsageError(
                f"--start {args.start} lies in the future", "Give a time in the past, e.g. -24h."
            )
        return FastClock(start, args.speed)
    return FastClock(real - _DEFAULT_BACK, args.speed) if args.speed > 1 else SystemClock()
