# SPDX-License-Identifier: MIT
"""A callback for Keras 3, on any of its backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras.callbacks import Callback

from gpu_monitor.training.frameworks.held import Held
from gpu_monitor.training.monitor import TrainingMonitor


class KerasMonitor(Callback):  # type: ignore[misc]  # Keras is seldom installed where types are checked
    """Records the metrics of each epoch (step: the epoch) and, with `batches`, of each batch (`batch/…`, step: the batch).

    `model.fit(..., callbacks=[KerasMonitor("mnist")])`; what TrainingMonitor takes may be given, or `monitor=` one that
    is there. `callback.monitor` is the monitor. The experiment stays open after `fit`, for an `evaluate` may follow
    (`test/…`): the end of the process completes it.
    """

    def __init__(
        self,
        experiment_name: str | None = None,
        *,
        monitor: TrainingMonitor | None = None,
        batches: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if experiment_name is not None:
            options["experiment_name"] = experiment_name
        self._held = Held(monitor, options)
        self._batches = batches
        self._batch = 0
        self._is_fitting = False

    @property
    def monitor(self) -> TrainingMonitor:
        """The monitor; it is begun where it is not there yet."""
        return self._held.get()

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Record how it is trained."""
        self._is_fitting = True
        optimizer = getattr(self.model, "optimizer", None)
        how = {"optimizer": optimizer.get_config()} if optimizer is not None else {}
        given = {name: value for name, value in (self.params or {}).items() if name != "verbose"}
        self.monitor.log_params({**given, **how})

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record a batch, where that is wanted."""
        if self._batches and logs:
            self.monitor.log_metrics({f"batch/{name}": value for name, value in logs.items()}, self._batch)
        self._batch += 1

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record an epoch."""
        if logs:
            self.monitor.log_metrics(logs, epoch)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """What is evaluated from here on is a test, not a validation."""
        self._is_fitting = False

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Record an evaluation that is not part of the training, whose epochs have it already."""
        if logs and not self._is_fitting:
            self.monitor.log_metrics({f"test/{name}": value for name, value in logs.items()})
