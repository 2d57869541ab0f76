# SPDX-License-Identifier: MIT
"""TrainingMonitor: what a training script holds. Thin: each method hands on to the module that does the work."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gpu_monitor.config.training import TrainingSettings
from gpu_monitor.core.clock import process_seconds
from gpu_monitor.training import beginning
from gpu_monitor.training.ending import PROCESS_END, of_exception, traceback_lines
from gpu_monitor.training.notice import tell
from gpu_monitor.training.parts import Parts, options_of
from gpu_monitor.training.recorder import Recorder
from gpu_monitor.training.topics import CONSOLE, Choice
from gpu_monitor.training.values import plain, text_in
from gpu_monitor.wire.training import STATUSES, Alert, Note, Params, Status, Tag, Text

if TYPE_CHECKING:
    from gpu_monitor.core.compare import Best
    from gpu_monitor.training.artifacts import Artifact
    from gpu_monitor.training.checkpoints import Checkpoint
    from gpu_monitor.training.compare import Comparison
    from gpu_monitor.training.models import ModelVersion
    from gpu_monitor.training.shelf import Shelf

_LEVELS = ("info", "warning", "error")
_EXIT_SECONDS = 10.0
"""What the end of the process waits for uploads and files."""


class TrainingMonitor:
    """One experiment, recorded from this process. Everything may be called from any thread and never blocks for long.

    Nothing here breaks a training: what cannot be recorded is told once, as a warning of `logging`. With `strict` (or
    GPU_MONITOR_STRICT=1) mistakes in calls raise ValueError instead.
    """

    def __init__(
        self,
        experiment_name: str | None = None,
        project_name: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str | None] | Collection[str] | None = None,
        server: str | None = None,
        directory: str | Path | None = None,
        resume: str | None = None,
        strict: bool = False,
        capture: Choice = True,
    ) -> None:
        """Begin an experiment, or go on with the one that `resume` (an id, or a name of this directory) means.

        `experiment_name`: by default the script's. `project_name`: by default "default". `server`: its address;
        by default GPU_MONITOR_SERVER, `.env` or the agent's; "" means none. `directory`: where experiments lie, by
        default GPU_MONITOR_DIR or ./experiments. `capture`: what is recorded without being asked for.
        """
        settings = beginning.find_settings(server, directory, strict)
        self._settings: TrainingSettings = settings
        self.recorder: Recorder = beginning.begin(settings, experiment_name, project_name, resume)
        self._parts = Parts(self.recorder)
        self._is_over = False
        self.recorder.put(Status(self.recorder.at(), "running", {}))
        PROCESS_END.watch(self)
        if tags:
            self.add_tags(tags)
        if params:
            self.log_params(params)
        self._options = options_of(self.recorder, settings, capture)
        self._parts.start(self._options)

    @property
    def experiment_id(self) -> str:
        """The experiment's id."""
        return self.recorder.experiment_id

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return self.recorder.folder

    @property
    def directory(self) -> Path:
        """The directory that the experiment lies in."""
        return self._settings.directory

    @property
    def last_step(self) -> int | None:
        """The last step that was logged, of a resumed experiment also before it: where a loop goes on. None: none is known."""
        return self.recorder.step()

    # What a training says.

    def log_metrics(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        """Record a value of each metric. `step` None: the last one + 1, first 0. On disk when this returns."""
        self.recorder.log_points(metrics, step)

    def log_metric(self, name: str, value: object, step: int | None = None) -> None:
        """Record one value of one metric."""
        self.recorder.log_points({name: value}, step)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters by name; what JSON has no word for is recorded as its text. A later value replaces."""
        found = plain(params)
        if isinstance(found, dict):
            self.recorder.put(Params(self.recorder.at(), found))
        else:
            kind = type(params).__name__
            self.recorder.refuse("params", f"parameters are a mapping of names to values, not a {kind}")

    def add_tag(self, key: str, value: object = "") -> None:
        """Put a tag on the experiment; None takes it away."""
        self.recorder.put(Tag(self.recorder.at(), text_in(key), None if value is None else text_in(value)))

    def add_tags(self, tags: Mapping[str, object] | Collection[str]) -> None:
        """Put several tags on the experiment."""
        named = (
            tags
            if isinstance(tags, Mapping)
            else dict.fromkeys([tags] if isinstance(tags, str) else tags, "")
        )
        for key, value in named.items():
            self.add_tag(key, value)

    def add_note(self, text: str) -> None:
        """Write something down."""
        self.recorder.put(Note(self.recorder.at(), text_in(text)))

    def alert(self, title: str, text: str = "", level: str = "warning") -> None:
        """Say something that a person should know of. `level`: info, warning or error."""
        if level not in _LEVELS:
            self.recorder.refuse(
                "level", f"the level of an alert is one of {', '.join(_LEVELS)}, not {level!r:.40}"
            )
            level = "warning"
        self.recorder.put(Alert(self.recorder.at(), level, text_in(title), text_in(text)))

    # Its files.

    @cached_property
    def _shelf(self) -> Shelf:
        """Loaded with the first file: a script that has none pays nothing for them."""
        shelf: Shelf = importlib.import_module("gpu_monitor.training.shelf").Shelf(self.recorder)
        return shelf

    @property
    def _media(self) -> Any:
        """Loaded with the first picture."""
        return importlib.import_module("gpu_monitor.training.media")

    def save_checkpoint(
        self, state: Any, epoch: int, metrics: Mapping[str, Any] | None = None, keep: str = "all"
    ) -> Checkpoint | None:
        """Save tensors, arrays or bytes, whole or not at all, under `checkpoints/`; it stands for its path.

        `keep`: "all", "last:2", or "best:3:val_loss:min" (or max) by a metric of `metrics`. None where it is not
        among the best, or could not be saved, which is told.
        """
        return self._shelf.save_checkpoint(state, epoch, metrics, keep)

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints of this experiment that are there, those of its other processes too; the first first."""
        return self._shelf.checkpoints()

    def log_artifact(
        self, path: str | Path, name: str | None = None, type: str | None = None
    ) -> list[Artifact]:
        """Store a file, or all files of a folder, under `artifacts/` by their content: what has not changed only once.

        `name`: by default that of the file or folder. `type`: what it is, in your words. Nothing where it could not
        be stored, which is told.
        """
        return self._shelf.log_artifact(path, name, type)

    def register_model(
        self, name: str, checkpoint: Checkpoint | str | Path | None, metrics: Mapping[str, Any] | None = None,
        stage: str | None = None,
    ) -> ModelVersion | None:  # fmt: skip
        """Make a checkpoint, or any file, the next version of a model. None where that could not be done, which is told."""
        return self._shelf.register_model(name, checkpoint, metrics, stage)

    # Pictures and the like: content beside the numbers.

    def log_image(self, name: str, image: object, step: int | None = None, layout: str | None = None) -> None:
        """Record a picture: a matplotlib or plotly figure, a PIL image, or an array (HW, HWC, CHW)."""
        self._media.log_image(self.recorder, name, image, step, layout)

    def log_histogram(self, name: str, values: object, step: int | None = None, bins: int = 64) -> None:
        """Record how the values of a tensor, array or list are spread; NaN and infinities are counted apart."""
        self._media.log_histogram(self.recorder, name, values, step, bins)

    def log_table(
        self,
        name: str,
        rows: object,
        step: int | None = None,
        columns: Sequence[object] | None = None,
    ) -> None:
        """Record a table: rows (dicts, or lists with `columns`), a dict of columns, or a data frame."""
        self._media.log_table(self.recorder, name, rows, step, columns)

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        """Record a text under a name."""
        self._media.log_text(self.recorder, name, text, step)

    def log_graph(
        self, model: object, input_sample: object = None, name: str = "model", step: int | None = None
    ) -> None:
        """Record what a model is made of, traced as far as it can be; what cannot is a note in it."""
        self._media.log_graph(self.recorder, model, input_sample, name, step)

    # Beside others.

    def compare_experiments(
        self, ids_or_names: Sequence[str], *, step: int | None = None, best: Mapping[str, Best] | None = None
    ) -> Comparison:
        """Experiments side by side, from this directory or the server; prints as a table. `name~2`: the one before.

        `step`: also the values at this step. `best`: {"reward": "max"} where a metric's name does not tell.
        """
        compare = importlib.import_module("gpu_monitor.training.compare")
        found: Comparison = compare.compare_experiments(
            ids_or_names, step=step, best=best, settings=self._settings
        )
        return found

    # The end.

    def finish(self, status: str = "completed", timeout: float = 10.0) -> list[str]:
        """End the experiment: everything is written, uploaded as far as `timeout` seconds allow, and synced.

        Returns what is still only on this machine, or was lost, a sentence each; they are logged, too. A second call
        changes nothing.
        """
        if status not in STATUSES:
            self.recorder.refuse("status", f"a status is one of {', '.join(STATUSES)}, not {status!r:.40}")
            status = "completed"
        return self._finish(status, {}, timeout)

    def _finish(self, status: str, more: dict[str, Any], timeout: float) -> list[str]:
        if self._is_over:
            return []
        self._is_over = True
        PROCESS_END.forget(self)
        deadline = process_seconds() + timeout
        self.recorder.put(Status(self.recorder.at(), status, more))
        said = self._parts.close(timeout)
        kept = self.recorder.close(max(0.1, deadline - process_seconds()))
        if kept.lost:
            said.append(f"{kept.lost:,} records could not be written to {kept.segment} and are lost")
        if kept.cut is not None:
            said.append(f"{kept.cut} was cut short by another program: what it held before is lost here")
        for words in said:
            tell(f"experiment {self.experiment_id}: {words}")
        return said

    def __enter__(self) -> TrainingMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status, more = of_exception(error) if error is not None else ("completed", {})
        if isinstance(error, Exception) and self._options.wants(CONSOLE) and not self._is_over:
            # It is printed, if it is, when nobody listens to the output any more.
            for line in traceback_lines(error):
                self.recorder.put(Text(self.recorder.at(), "stderr", line))
        self._finish(status, more, _EXIT_SECONDS)

    def __repr__(self) -> str:
        run = self.recorder.run
        return f"<TrainingMonitor {run.name!r} of {run.project!r}, {self.experiment_id}>"

    # What the process says of its end (ending.Ending).

    def end(self, status: str, more: dict[str, Any]) -> None:
        """The process exits with the experiment still open; a forked child only lets go of its segment."""
        if self.recorder.is_child:
            PROCESS_END.forget(self)
            self.recorder.close(1.0)
            return
        self._finish(status, more, _EXIT_SECONDS)

    def last_words(self, status: str, more: dict[str, Any]) -> None:
        """The process dies of a signal at once: the status is all that there is time for."""
        if not self.recorder.is_child:
            self.recorder.last_words(status, more)

    def lock_for_fork(self, timeout: float) -> bool:
        """Let no record be half written while the process forks."""
        return self.recorder.writer.lock.acquire(timeout=timeout)

    def unlock_after_fork(self) -> None:
        """Go on after a fork, in the parent."""
        self.recorder.writer.lock.release()

    def fork(self) -> None:
        """Go on in a forked child, with a segment of its own and without the parts, which are the parent's."""
        self.recorder.fork()
        self._parts.forget()
