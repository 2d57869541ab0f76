# SPDX-License-Identifier: MIT
"""A callback for the Trainer of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from gpu_monitor.training.frameworks.held import Held
from gpu_monitor.training.monitor import TrainingMonitor
from gpu_monitor.training.values import number_in


class TransformersMonitor(TrainerCallback):  # type: ignore[misc]  # transformers is seldom installed where types are checked
    """Records what a Trainer logs, its arguments and the model's configuration, from the main process.

    `Trainer(..., callbacks=[TransformersMonitor("finetune")])`; what TrainingMonitor takes may be given, or `monitor=`
    one that is there. A name that is not given is the run's name in the arguments. `callback.monitor` is the monitor.
    The experiment stays open after the training, for an evaluation may follow: the end of the process completes it.
    """

    def __init__(
        self, experiment_name: str | None = None, *, monitor: TrainingMonitor | None = None, **options: Any
    ) -> None:
        if experiment_name is not None:
            options["experiment_name"] = experiment_name
        self._held = Held(monitor, options)

    @property
    def monitor(self) -> TrainingMonitor:
        """The monitor; it is begun where it is not there yet."""
        return self._held.get()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_more: Any) -> None:
        """Record the arguments and the model's configuration."""
        if not state.is_world_process_zero:
            return
        monitor = self._held.get(getattr(args, "run_name", None))
        # Their own way of saying them leaves tokens out.
        monitor.log_params(args.to_sanitized_dict())
        config = getattr(model, "config", None)
        if config is not None and hasattr(config, "to_dict"):
            monitor.log_params({"model": config.to_dict()})

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_more: Any
    ) -> None:
        """Record the numbers that the Trainer logs at its step."""
        if state.is_world_process_zero and logs:
            numbers = {name: value for name, value in logs.items() if number_in(value) is not None}
            self._held.get(getattr(args, "run_name", None)).log_metrics(numbers, state.global_step)
