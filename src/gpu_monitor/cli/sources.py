"""Chooses the source of GPU readings from flags and machine, and says what it chose."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from typing import Any

from gpu_monitor.config.load import Loaded
from gpu_monitor.core.errors import SourceUnavailable, UsageError
from gpu_monitor.core.model import Identity
from gpu_monitor.core.ports import Source
from gpu_monitor.sources.gpu.nvml.settings import NvmlSettings
from gpu_monitor.sources.gpu.nvml.source import open_nvml

_PLAYED = "gpu_monitor.cli.played"
"""Loaded by name, like a command: recorded logs and simulated lives are 1.4 MB that no recording agent needs."""


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
    if args.with_runs and args.simulate is None:
        raise UsageError(
            "--with-runs needs --simulate", "On real GPUs the driver says which processes there are."
        )
    if is_played(args):
        _played().check_flags(args)


def choose_source(
    args: argparse.Namespace, loaded: Loaded, start: float = 0.0, known: tuple[Identity, ...] = ()
) -> Chosen:
    """The source; simulation and replay only where asked for.

    `start`: the agent's time now, for faults and replay. `known`: GPUs that earlier runs recorded here.
    """
    if is_played(args):
        return Chosen(*_played().open_played(args, loaded.settings, start))
    return open_machine(loaded, known)


def _played() -> Any:
    return importlib.import_module(_PLAYED)


def open_machine(loaded: Loaded, known: tuple[Identity, ...] = ()) -> Chosen:
    """This machine's own GPUs; where none answers now the source goes on looking, and the warning says why."""
    collection = loaded.settings.collection
    source = open_nvml(NvmlSettings(deadline_seconds=collection.deadline_seconds, known=known))
    try:
        source.probe()
    except SourceUnavailable as error:
        return Chosen(source, "no GPU now, host only", f"{error.message}. {error.hint or ''}".strip())
    return Chosen(source, "NVIDIA GPUs through NVML")
