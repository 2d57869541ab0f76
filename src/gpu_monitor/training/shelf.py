# SPDX-License-Identifier: MIT
"""The files of one experiment as its monitor offers them: what cannot be kept is told, and the training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gpu_monitor.training.artifacts import Artifact, Artifacts
from gpu_monitor.training.border import ForeignError, call_foreign
from gpu_monitor.training.checkpoints import Checkpoint, Checkpoints
from gpu_monitor.training.identity import find_rank
from gpu_monitor.training.models import Models, ModelVersion
from gpu_monitor.training.recorder import Recorder
from gpu_monitor.wire.training import Alert

_Result = TypeVar("_Result")


class Shelf:
    """Checkpoints, artifacts and models of one recorder. Any thread; raises only where the recorder is strict."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._checkpoints = Checkpoints(recorder, find_rank())
        self._artifacts = Artifacts(recorder)
        self._models = Models(recorder)

    def save_checkpoint(
        self, state: Any, epoch: int, metrics: Mapping[str, Any] | None, keep: str
    ) -> Checkpoint | None:
        """Save a checkpoint; None where it was not kept (not among the best), or could not be (told)."""
        return self._tried(
            f"the checkpoint of epoch {epoch}", self._checkpoints.save, state, epoch, metrics, keep
        )

    def log_artifact(self, path: str | Path, name: str | None, kind: str | None) -> list[Artifact]:
        """Store a file or folder; what is stored, nothing where that could not be (told)."""
        return self._tried(f"the artifact {path}", self._artifacts.log, path, name, kind) or []

    def register_model(
        self, name: str, checkpoint: Any, metrics: Mapping[str, Any] | None, stage: str | None
    ) -> ModelVersion | None:
        """Register a version of a model; None where that could not be done (told)."""
        return self._tried(f"the model {name}", self._models.register, name, checkpoint, metrics, stage)

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that are there, the first saved first."""
        return self._checkpoints.all()

    def _tried(self, what: str, function: Callable[..., _Result], *arguments: Any) -> _Result | None:
        recorder = self._recorder
        if recorder.is_over:
            recorder.refuse(
                "shelf:over", f"{what} is not kept: experiment {recorder.experiment_id} is finished"
            )
            return None
        try:
            result: _Result = call_foreign(function, *arguments)
        except ForeignError as error:
            hint = getattr(error.__cause__, "hint", None)
            text = f"{what} is not kept: {error}" + (f". {hint}" if hint else "")
            recorder.put(Alert(recorder.at(), "error", f"{what} is not kept"[:500], text))
            recorder.refuse(f"shelf:{text}", text)
            return None
        return result
