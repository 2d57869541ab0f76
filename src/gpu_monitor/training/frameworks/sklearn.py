# SPDX-License-Identifier: MIT
"""scikit-learn: parameters, scores, searches and cross-validations of estimators. It asks them; it imports nothing of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_monitor.core.clock import process_seconds
from gpu_monitor.training.monitor import TrainingMonitor
from gpu_monitor.training.values import number_in

_CURVES = ("loss_curve_", "validation_scores_", "train_score_")
"""What estimators that learn step by step remember of each step."""
_TIMES_AND_SCORES = ("mean_", "std_", "rank_")


class SklearnRun:
    """A run of scikit-learn: `fit` fits and records. `monitor` is there for all else."""

    def __init__(self, monitor: TrainingMonitor) -> None:
        self.monitor = monitor

    def fit(self, estimator: Any, X: Any, y: Any = None, X_test: Any = None, y_test: Any = None) -> Any:  # noqa: N803
        """Fit an estimator (or a search, or a pipeline) and record its parameters, time and scores; the estimator."""
        began = process_seconds()
        fitted = estimator.fit(X, y) if y is not None else estimator.fit(X)
        self.monitor.log_metrics({"fit_seconds": process_seconds() - began})
        if hasattr(fitted, "cv_results_"):
            log_search(self.monitor, fitted)
        log_estimator(self.monitor, fitted, X, y, prefix="train_")
        if X_test is not None:
            log_estimator(self.monitor, fitted, X_test, y_test, prefix="test_")
        return fitted


@contextlib.contextmanager
def sklearn_run(experiment_name: str | None = None, **options: Any) -> Iterator[SklearnRun]:
    """A run with a monitor of its own (`options`: what TrainingMonitor takes), which ends with the block."""
    with TrainingMonitor(experiment_name, **options) as monitor:
        yield SklearnRun(monitor)


def log_estimator(
    monitor: TrainingMonitor,
    estimator: Any,
    X: Any = None,  # noqa: N803 (scikit-learn's own names)
    y: Any = None,
    prefix: str = "",
) -> None:
    """Record an estimator's parameters and, where there is data, its score on it.

    Of a classifier the table `{prefix}confusion_matrix` says how many of each class were taken for which; what an estimator
    remembers of its steps (a loss curve) becomes a metric of that many steps.
    """
    monitor.log_params({"estimator": type(estimator).__name__, **estimator.get_params(deep=True)})
    for name in _CURVES:
        for step, value in enumerate(_listed(getattr(estimator, name, None))):
            monitor.log_metrics({name.rstrip("_"): value}, step)
    if X is None:
        return
    score = estimator.score(X, y) if y is not None else estimator.score(X)
    monitor.log_metrics({f"{prefix}score": score})
    if y is not None and hasattr(estimator, "classes_") and hasattr(estimator, "predict"):
        _log_confusion(monitor, f"{prefix}confusion_matrix", _listed(y), _listed(estimator.predict(X)))


def log_search(monitor: TrainingMonitor, search: Any) -> None:
    """Record a search over parameters: each candidate as a step of `search/…`, all as a table, the best as parameters."""
    results = {name: _listed(values) for name, values in search.cv_results_.items()}
    shown = {name: values for name, values in results.items() if name.startswith(_TIMES_AND_SCORES)}
    for step in range(len(results["params"])):
        numbers = {
            f"search/{name}": values[step]
            for name, values in shown.items()
            if number_in(values[step]) is not None
        }
        monitor.log_metrics(numbers, step)
    rows = [
        {
            **{name: str(value) for name, value in candidate.items()},
            **{name: values[step] for name, values in shown.items()},
        }
        for step, candidate in enumerate(results["params"])
    ]
    monitor.log_table("cv_results", rows)
    if hasattr(search, "best_params_"):
        monitor.log_params({f"best/{name}": value for name, value in search.best_params_.items()})
    if hasattr(search, "best_score_"):
        monitor.log_metrics({"best_score": search.best_score_})


def log_cross_validation(monitor: TrainingMonitor, scores: Mapping[str, Any], prefix: str = "cv/") -> None:
    """Record what `cross_validate` gave: each fold as a step, and the means."""
    folds = {name: _listed(values) for name, values in scores.items()}
    numbers = {
        name: values
        for name, values in folds.items()
        if values and all(number_in(one) is not None for one in values)
    }
    for step in range(max(map(len, numbers.values()), default=0)):
        monitor.log_metrics({f"{prefix}{name}": values[step] for name, values in numbers.items()}, step)
    means = {
        f"{prefix}mean_{name}": sum(map(float, values)) / len(values) for name, values in numbers.items()
    }
    if means:
        monitor.log_metrics(means)


def _log_confusion(monitor: TrainingMonitor, name: str, truth: list[Any], said: list[Any]) -> None:
    counts: dict[tuple[str, str], int] = {}
    for one, other in zip(truth, said, strict=True):
        counts[str(one), str(other)] = counts.get((str(one), str(other)), 0) + 1
    classes = sorted({label for pair in counts for label in pair}, key=lambda label: (len(label), label))
    rows = [[label, *(counts.get((label, other), 0) for other in classes)] for label in classes]
    monitor.log_table(name, rows, columns=["true \\ predicted", *classes])


def _listed(values: Any) -> list[Any]:
    """An array, masked or not, or a sequence as a list; nothing for None."""
    if values is None:
        return []
    return list(values.tolist()) if hasattr(values, "tolist") else list(values)
