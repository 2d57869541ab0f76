"""Simulation and replay as sources, from their flags. Loaded by name, where they are asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpu_monitor.config.model import Settings
from gpu_monitor.config.training import registries
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.ports import Source
from gpu_monitor.sources.gpu.replay import open_replay
from gpu_monitor.sources.gpu.simulated import SimulatedSource, parse_simulate
from gpu_monitor.sources.gpu.simulated_faults import Fault
from gpu_monitor.sources.gpu.simulated_guests import GuestSource
from gpu_monitor.sources.host.processes import ProcessDirectory


def check_flags(args: argparse.Namespace) -> None:
    """UsageError where `--simulate` or a `--fault` cannot be read."""
    if args.simulate is not None:
        count, model = parse_simulate(args.simulate)
        SimulatedSource(count, model, faults=[Fault.parse(fault, 0.0) for fault in args.fault]).close()


def open_played(args: argparse.Namespace, settings: Settings, start: float) -> tuple[Source, str]:
    """The source and what it is in words. `start`: the agent's time now, for faults and replay."""
    if args.simulate is None:
        return open_replay(Path(args.replay), start), f"replay of {args.replay} (not this machine's GPUs)"
    count, model = parse_simulate(args.simulate)
    faults = [Fault.parse(fault, start) for fault in args.fault]
    source: Source = SimulatedSource(count, model, seed=args.seed, faults=faults)
    if args.with_runs:
        described = ProcessDirectory(mode=settings.collection.processes, registries=registries("{uid}"))
        source = GuestSource(source, described, registries(), SystemClock())
    return source, f"{count} SIMULATED GPUs ({model}, seed {args.seed})"
