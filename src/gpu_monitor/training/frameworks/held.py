# SPDX-License-Identifier: MIT
"""The monitor that a callback holds: one that it was given, or its own, begun when it is first needed."""

from __future__ import annotations

from typing import Any

from gpu_monitor.training.monitor import TrainingMonitor


class Held:
    """A monitor or what to begin one with. It survives pickling (a spawned worker): as the same experiment.

    `options`: arguments of TrainingMonitor. A monitor of its own is completed by the end of the process, so that what
    comes after the training (a test, an evaluation) is in it too.
    """

    def __init__(self, monitor: TrainingMonitor | None, options: dict[str, Any]) -> None:
        if monitor is not None and options:
            raise TypeError(f"a monitor was given, so {', '.join(sorted(options))} cannot be")
        self._monitor = monitor
        self._options = options

    @property
    def is_begun(self) -> bool:
        """Whether there is a monitor."""
        return self._monitor is not None

    def get(self, name: str | None = None) -> TrainingMonitor:
        """The monitor; one that is begun now is called `name`, unless a name was given before."""
        if self._monitor is None:
            self._monitor = TrainingMonitor(**{"experiment_name": name, **self._options})
        return self._monitor

    def __getstate__(self) -> dict[str, Any]:
        if self._monitor is None:
            return {"_monitor": None, "_options": self._options}
        monitor = self._monitor
        same = {"resume": monitor.experiment_id, "directory": monitor.directory}
        return {"_monitor": None, "_options": {**self._options, **same}}
