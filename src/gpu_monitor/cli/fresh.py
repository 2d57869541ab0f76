"""A fresh reading of this machine's own GPUs, for `-sc` where nothing recent is stored."""

from __future__ import annotations

from gpu_monitor.agent.ask import Group
from gpu_monitor.cli.logs import be_quiet
from gpu_monitor.cli.output import note
from gpu_monitor.cli.reading import read_group
from gpu_monitor.cli.sources import open_machine
from gpu_monitor.config.load import Loaded


def take_reading(loaded: Loaded, fields: tuple[str, ...]) -> Group | None:
    """One round of the real GPUs, not stored; None where there are none."""
    be_quiet()
    chosen = open_machine(loaded)
    try:
        if chosen.warning:
            note(chosen.warning)
            return None
        return read_group(chosen.source, fields)
    finally:
        chosen.source.close()
