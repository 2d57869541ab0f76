# SPDX-License-Identifier: MIT
"""A logger for PyTorch Lightning (`lightning`, or `pytorch_lightning`), 2.0 or newer."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from gpu_monitor.training.frameworks.held import Held
from gpu_monitor.training.monitor import TrainingMonitor

try:
    from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
    from lightning.pytorch.utilities.rank_zero import rank_zero_only
except ModuleNotFoundError:
    from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
    from pytorch_lightning.utilities.rank_zero import rank_zero_only


class LightningLogger(Logger):  # type: ignore[misc]  # Lightning carries no types where it is not installed
    """Records what a Lightning module logs, and its hyperparameters, as an experiment of rank zero.

    `Trainer(logger=LightningLogger("resnet50", project_name="vision"))`; what TrainingMonitor takes may be given, or
    `monitor=` one that is there. `logger.experiment` is the monitor. Lightning's own checkpoints lie in the experiment's
    folder, where no policy of ours touches them. After a success the experiment stays open, for a test may follow: the
    end of the process completes it, or `logger.experiment.finish()`.
    """

    def __init__(
        self, experiment_name: str | None = None, *, monitor: TrainingMonitor | None = None, **options: Any
    ) -> None:
        super().__init__()
        if experiment_name is not None:
            options["experiment_name"] = experiment_name
        self._held = Held(monitor, options)
        self._has_graph = False

    @property
    @rank_zero_experiment  # type: ignore[untyped-decorator]
    def experiment(self) -> TrainingMonitor:
        """The monitor; on other ranks than zero something that ignores everything."""
        return self._held.get()

    @property
    def name(self) -> str | None:
        """The folder of all experiments: Lightning puts its checkpoints under save_dir / name / version."""
        return self._held.get().directory.name if self._has_monitor() else None

    @property
    def version(self) -> str | None:
        """The experiment's id; None on other ranks than zero."""
        return self._held.get().experiment_id if self._has_monitor() else None

    @property
    def save_dir(self) -> str | None:
        """What the folder of all experiments lies in; None on other ranks than zero."""
        return str(self._held.get().directory.parent) if self._has_monitor() else None

    def _has_monitor(self) -> bool:
        return bool(rank_zero_only.rank == 0)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record what the module logged."""
        self._held.get().log_metrics(metrics, step)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *_args: Any, **_more: Any) -> None:
        """Record hyperparameters."""
        self._held.get().log_params(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Record once what the module is made of, with its `example_input_array` where there is no other."""
        if self._has_graph:  # Lightning asks before each fit and each test
            return
        self._has_graph = True
        sample = input_array if input_array is not None else getattr(model, "example_input_array", None)
        self._held.get().log_graph(model, sample)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def finalize(self, status: str) -> None:
        """End the experiment where the training failed."""
        if status == "failed" and self._held.is_begun:
            self._held.get().finish("failed")
