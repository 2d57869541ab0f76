"""Chooses the source of GPU readings from flags and machine, and says what it chose."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.config.load import Loaded
from gpu_monitor.core.errors import SourceUnavailable, UsageError
from gpu_monitor.core.model import Identity
from gpu_monitor.core.ports import Source
from gpu_monitor.sources.gpu.nvml.settings import NvmlSettings
from gpu_monitor.sources.gpu.nvml.source import open_nvml
from gpu_monitor.sources.gpu.replay import open_replay
from gpu_monitor.sources.gpu.simulated import SimulatedSource, parse_simulate
from gpu_monitor.sources.gpu.simulated_faults import Fault


@dataclass(frozen=True)
class Chosen:
    """A source, what it is in words, and a warning where it gives no GPU now."""

    source: Source
    describe: str
    warning: str | None = None


def is_played(args: argparse.Namespace) -> bool:
    """Whether the readings are simulated or replayed."""
    return args.simulate is not None or args.replay is not None


def check_source_flags(args: argparse.Namespace) -> None:
    """UsageError where the flags that choose a source make no sense, before anything is opened or made."""
    if args.simulate is not None and args.replay is not None:
        raise UsageError("--simulate and --replay exclude each other", "Give one of them.")
    if args.fault and args.simulate is None:
        raise UsageError("--fault needs --simulate", "Real GPUs have faults of their own.")
    if args.simulate is not None:
        count, model = parse_simulate(args.simulate)
        SimulatedSource(count, model, faults=[Fault.parse(fault, 0.0) for fault in args.fault]).close()


def choose_source(
    args: argparse.Namespace, loaded: Loaded, start: float = 0.0, known: tuple[Identity, ...] = ()
) -> Chosen:
    """The source; simulation and replay only where asked for.

    `start`: the agent's time now, for faults and replay. `known`: GPUs that earlier runs recorded here.
    """
    if args.simulate is not None:
        return _simulated(args.simulate, args.seed, args.fault, start)
    if args.replay is not None:
        source = open_replay(Path(args.replay), start)
        return Chosen(source, f"replay of {args.replay} (not this machine's GPUs)")
    return open_machine(loaded, known)


def _simulated(text: str, seed: int, faults: Sequence[str], start: float) -> Chosen:
    count, model = parse_simulate(text)
    parsed = [Fault.parse(fault, start) for fault in faults]
    return Chosen(
        SimulatedSource(count, model, seed=seed, faults=parsed),
        f"{count} SIMULATED GPUs ({model}, seed {seed})",
    )


def open_machine(loaded: Loaded, known: tuple[Identity, ...] = ()) -> Chosen:
    """This machine's own GPUs; where none answers now the source goes on looking, and the warning says why."""
    collection = loaded.settings.collection
    source = open_nvml(NvmlSettings(deadline_seconds=collection.deadline_seconds, known=known))
    try:
        source.probe()
    except SourceUnavailable as error:
        return Chosen(source, "no GPU now, host only", f"{error.message}. {error.hint or ''}".strip())
    return Chosen(source, "NVIDIA GPUs through NVML")
