# SPDX-License-Identifier: MIT
"""Trainings by session id: `training_monitor.start_session(...)` and so on, each session an experiment of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.training.beginning import find_settings
from gpu_monitor.training.monitor import TrainingMonitor
from gpu_monitor.training.notice import tell
from gpu_monitor.training.reading import StoredExperiment, open_experiment

EPOCH = "epoch"
"""The metric that an epoch is recorded as, beside the others."""
_SESSION, _MODEL = "session_id", "model_name"


class Sessions:
    """The sessions of this process, by id. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[str, TrainingMonitor] = {}
        self._ended: dict[str, TrainingMonitor] = {}

    def start(
        self, session_id: str, model_name: str, hyperparameters: Mapping[str, Any] | None = None, **more: Any
    ) -> TrainingMonitor:
        """Begin a session. One that is active under this id goes on, with the parameters added."""
        with self._lock:
            monitor = self._active.get(session_id)
            if monitor is None:
                tags = {_SESSION: session_id, _MODEL: model_name, **more.pop("tags", {})}
                monitor = TrainingMonitor(session_id, model_name, tags=tags, **more)
                self._active[session_id] = monitor
                self._ended.pop(session_id, None)
            else:
                tell(f"session {session_id!r} is active already; it goes on")
        if hyperparameters:
            monitor.log_params(hyperparameters)
        return monitor

    def log(
        self, session_id: str, epoch: int | None, step: int | None, metrics: Mapping[str, object]
    ) -> None:
        """Record metrics of a session at a step; an epoch is recorded beside them."""
        with self._lock:
            monitor = self._active.get(session_id)
        if monitor is None:
            tell(
                f"session {session_id!r} is not active: start_session begins it; its metrics are not recorded"
            )
            return
        named = metrics if epoch is None or EPOCH in metrics else {**metrics, EPOCH: epoch}
        monitor.log_metrics(named, step)

    def end(self, session_id: str, status: str = "completed") -> None:
        """End a session. One that is not active is told of, once each time."""
        with self._lock:
            monitor = self._active.pop(session_id, None)
            if monitor is not None:
                self._ended[session_id] = monitor
        if monitor is None:
            tell(f"session {session_id!r} is not active; there is nothing to end")
            return
        monitor.finish(status)

    def active(self) -> list[str]:
        """The ids of the active sessions, in the order of their start."""
        with self._lock:
            return [name for name, monitor in self._active.items() if not monitor.recorder.is_over]

    def stored(self, session_id: str) -> StoredExperiment | None:
        """What is on disk of a session of this process; None where there was none."""
        with self._lock:
            monitor = self._active.get(session_id) or self._ended.get(session_id)
        return StoredExperiment(monitor.folder) if monitor is not None else None


SESSIONS = Sessions()
"""Those of this process."""


def start_session(
    session_id: str, model_name: str, hyperparameters: Mapping[str, Any] | None = None, **options: Any
) -> TrainingMonitor:
    """Begin a session: an experiment called `session_id` in the project `model_name`.

    `options` are those of TrainingMonitor (tags, server, directory, resume, strict, capture). Returns the monitor, for
    all that this style has no word for.
    """
    return SESSIONS.start(session_id, model_name, hyperparameters, **options)


def log_metric(session_id: str, epoch: int | None, step: int | None, name: str, value: object) -> None:
    """Record one metric of a session; on disk when this returns. The epoch is a metric of its own beside it."""
    SESSIONS.log(session_id, epoch, step, {name: value})


def log_batch_metrics(
    session_id: str, epoch: int | None, step: int | None, metrics: Mapping[str, object]
) -> None:
    """Record several metrics of a session at one step."""
    SESSIONS.log(session_id, epoch, step, metrics)


def end_session(session_id: str, status: str = "completed") -> None:
    """End a session: completed, failed or stopped."""
    SESSIONS.end(session_id, status)


def get_active_sessions() -> list[str]:
    """The ids of the sessions of this process that have not ended, in the order of their start."""
    return SESSIONS.active()


def get_session_summary(session_id: str, directory: str | Path | None = None) -> dict[str, Any]:
    """What is known of a session: its own of this process, else the newest experiment of that name or id on disk.

    Times are UTC epoch seconds. `duration_seconds` is None where the clocks do not tell; `duration_reason` says why then.
    `metrics` holds for each name the last value, its step, the least, the greatest and the number of values (NaN where no
    value is finite). NothingFound where there is no such session.
    """
    stored = _find(session_id, directory)
    ended = stored.ended
    return {
        "session_id": stored.name,
        "experiment_id": stored.id,
        "model_name": stored.tags.get(_MODEL, stored.project),
        "status": stored.status,
        "started": stored.started,
        "ended": ended,
        "duration_seconds": _since(stored) if ended is None else stored.seconds,
        "duration_reason": stored.clock_trouble,
        "last_step": stored.last_step,
        "hyperparameters": stored.params,
        "metrics": {name: _summed(stored, name) for name in stored.metric_names()},
    }


def get_latest_metrics(session_id: str, directory: str | Path | None = None) -> dict[str, float]:
    """The last value of each metric of a session, found as by `get_session_summary`."""
    stored = _find(session_id, directory)
    return {name: _summed(stored, name)["last"] for name in stored.metric_names()}


def _since(stored: StoredExperiment) -> float | None:
    """How long it runs by now; None where the clock was set back to before its begin."""
    passed = SystemClock().now() - stored.started
    return passed if passed >= 0 else None


def _find(session_id: str, directory: str | Path | None) -> StoredExperiment:
    held = SESSIONS.stored(session_id) if directory is None else None
    return held or open_experiment(find_settings("", directory, False).directory, session_id)


def _summed(stored: StoredExperiment, name: str) -> dict[str, Any]:
    whole = stored.thinned(name, 1)
    return {
        "last": whole.value[-1],
        "step": int(whole.x[-1]),
        "min": whole.min[-1],
        "max": whole.max[-1],
        "count": stored.count(name),
    }
