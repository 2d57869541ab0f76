# SPDX-License-Identifier: MIT
"""Experiments side by side: as a table, as what differs, as data frame, as curves over each other."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_monitor.config.training import TrainingSettings, load_training
from gpu_monitor.core.compare import Best, best_is, differs
from gpu_monitor.core.errors import NothingFound, UsageError
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.sinks.experiments import ExperimentServer
from gpu_monitor.training.compared import Came, ComparedRun, from_disk, from_server
from gpu_monitor.training.reading import open_experiment
from gpu_monitor.wire.training import written

_MOST = 50
_MISSING = object()
_LEAST_CELL, _LARGEST_CELL = 8, 28
SIMULATED = "SIMULATED GPUs: no real hardware gave these readings."


@dataclass(frozen=True)
class Comparison:
    """Experiments in the order in which they were named. Prints as a table.

    `step`: the step at which values were asked for besides. `said`: which experiments names meant, a sentence each.
    `goals`: for metrics whose name does not tell, whether the least or the greatest value is the best. `words`: how
    each was named; of those with one name they head the columns, and without them the ids do.
    """

    runs: tuple[ComparedRun, ...]
    step: int | None = None
    said: tuple[str, ...] = ()
    goals: Mapping[str, Best] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.table()

    def metric_names(self, *, own: bool = True) -> list[str]:
        """The metrics that any of them has; `own`: without what the SDK read of the machine by itself."""
        names = {name: one.source for run in self.runs for name, one in run.metrics.items()}
        return sorted(
            name for name, source in names.items() if not own or (source is None and not _is_reading(name))
        )

    def best_is(self, metric: str) -> Best | None:
        """Whether the least or greatest value of a metric is its best one; None where nothing says so."""
        return self.goals.get(metric) or best_is(metric)

    def best(self, metric: str) -> ComparedRun | None:
        """The run whose metric came best; None where nothing says what is good, none has it, or several have the same."""
        goal = self.best_is(metric)
        came = [(one.best(goal), run) for run in self.runs if (one := run.metrics.get(metric)) is not None]
        known = [(one.value, run) for one, run in came if one is not None]
        if not known:
            return None
        best = (min if goal == "min" else max)(value for value, _ in known)
        first = [run for value, run in known if value == best]
        return first[0] if len(first) == 1 else None

    def diff(self) -> dict[str, list[Any]]:
        """The parameters that differ, by name: their values in the order of the runs, None where it was not set."""
        return {name: values for name, values in self._params().items() if differs(self._held(name))}

    def _params(self) -> dict[str, list[Any]]:
        names = sorted({name for run in self.runs for name in run.params})
        return {name: [run.params.get(name) for run in self.runs] for name in names}

    def _held(self, name: str) -> list[Any]:
        return [run.params.get(name, _MISSING) for run in self.runs]

    def table(self, width: int = 100, *, every: bool = False) -> str:
        """The comparison as lines of at most `width` columns. `every`: also what is the same, and the SDK's readings."""
        rows = list(self._rows(every))
        first = min(max(len(name + kind) for name, kind, _ in rows), max(20, width // 3))
        room = max(_LEAST_CELL, width - first)
        cell = min(max(len(text) for *_, cells in rows for text in cells), _LARGEST_CELL)
        columns = max(1, room // (cell + 2))
        lines = [SIMULATED] if any(run.simulated for run in self.runs) else []
        for start in range(0, len(self.runs), columns):
            for name, kind, cells in rows:
                shown = "".join(
                    f"  {_cut(text, cell).rjust(cell)}" for text in cells[start : start + columns]
                )
                label = _cut(name, first - len(kind)) + kind  # what of the metric it is, is never cut
                lines.append(f"{label.ljust(first)}{shown}".rstrip())
            lines.append("")
        return "\n".join(lines[:-1])

    def _rows(self, every: bool) -> list[tuple[str, str, list[str]]]:
        runs = self.runs
        names = [run.name for run in runs]
        rows = [("", "", self._heads())]
        if len(set(names)) < len(names):
            rows.append(("id", "", [run.id for run in runs]))
        if len({run.project for run in runs}) > 1:
            rows.append(("project", "", [run.project for run in runs]))
        rows.append(("status", "", [run.status for run in runs]))
        rows.append(("duration", "", [_duration(run.seconds) for run in runs]))
        rows.append(("last step", "", [_whole(run.last_step) for run in runs]))
        params = self._params() if every else self.diff()
        rows += [(name, "", [_text(value) for value in values]) for name, values in params.items()]
        for name in self.metric_names(own=not every):
            goal = self.best_is(name)
            of_it = [run.metrics.get(name) for run in runs]
            if goal is not None:
                best = self.best(name)
                came = [_came(None if one is None else one.best(goal)) for one in of_it]
                marked = [
                    f"{text} *" if run is best and len(runs) > 1 else text
                    for text, run in zip(came, runs, strict=True)
                ]
                rows.append((name, " best", marked))
            rows.append(
                (name, " last", [_came(None if one is None else one.last, at=False) for one in of_it])
            )
            if self.step is not None:
                at = [_came(None if one is None else one.at) for one in of_it]
                rows.append((name, f" at {self.step}", at))
        return [(clean(name), kind, [clean(text) for text in cells]) for name, kind, cells in rows]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON could hold it; NaN and infinities as floats."""
        metrics = {}
        for name in self.metric_names(own=False):
            goal = self.best_is(name)
            of_it = [run.metrics.get(name) for run in self.runs]
            metrics[name] = {"best_is": goal} | {
                kind: [None if one is None else _pair(one.best(goal) if kind == "best" else getattr(one, kind)) for one in of_it]
                for kind in ("best", "last", "min", "max", "at")
            }  # fmt: skip
        about = ("id", "name", "project", "status", "simulated", "seconds", "last_step", "tags", "where")
        return {
            "experiments": [{word: getattr(run, word) for word in about} for run in self.runs],
            "params": self._params(),
            "differing": list(self.diff()),
            "step": self.step,
            "metrics": metrics,
        }

    def to_pandas(self) -> Any:
        """A pandas DataFrame: one row for each run; columns `params.x`, `tags.x`, `x` (last), `x.min`, `x.max`."""
        pandas = _other("pandas", "to_pandas()")
        rows = []
        for run in self.runs:
            row: dict[str, Any] = {
                "name": run.name,
                "project": run.project,
                "status": run.status,
                "seconds": run.seconds,
            }
            row |= {f"params.{name}": value for name, value in run.params.items()}
            row |= {f"tags.{name}": value for name, value in run.tags.items()}
            for name, one in run.metrics.items():
                row[name] = None if one.last is None else one.last.value
                row[f"{name}.min"] = None if one.min is None else one.min.value
                row[f"{name}.max"] = None if one.max is None else one.max.value
            rows.append(row)
        return pandas.DataFrame(rows, index=pandas.Index([run.id for run in self.runs], name="experiment"))

    def plot(self, metrics: str | Sequence[str] | None = None, *, log: bool = False) -> Any:
        """A matplotlib Figure with the curves of all runs over each other, a chart for each metric (at most 12).

        `metrics`: which ones, by default the training's own. `log`: values on a logarithmic axis.
        """
        figure_of = _other("matplotlib.figure", "plot()").Figure
        names = [metrics] if isinstance(metrics, str) else list(metrics or self.metric_names())[:12]
        if not names:
            raise NothingFound("these experiments have no metrics to plot")
        known = self.metric_names(own=False)
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"Did you mean {near[0]}?" if near else f"They have: {', '.join(known) or 'none'}."
                raise NothingFound(f"none of these experiments has a metric {name!r}", hint)
        columns = 1 if len(names) == 1 else 2
        lines = -(-len(names) // columns)
        figure = figure_of(figsize=(6.4 * columns, 3.6 * lines), layout="constrained")
        for place, name in enumerate(names, 1):
            chart = figure.add_subplot(lines, columns, place)
            for number, run in enumerate(self.runs):
                if name in run.metrics:
                    curve = run.curve(name)
                    style = ("-", "--", "-.", ":")[number // 10 % 4]
                    chart.plot(curve.x, curve.value, style, label=self._label(run), linewidth=1.2)
            chart.set_title(name, fontsize=10)
            chart.set_xlabel("step")
            if log:
                chart.set_yscale("log")
            if place == 1:
                chart.legend(fontsize=8)
        return figure

    def _heads(self) -> list[str]:
        """What tells the runs apart: their names, and of those with one name the words that named them, or the ids."""
        names = [run.name for run in self.runs]
        words = self.words or tuple(run.id for run in self.runs)
        return [
            run.name if names.count(run.name) == 1 else word
            for run, word in zip(self.runs, words, strict=True)
        ]

    def _label(self, run: ComparedRun) -> str:
        same = [one for one in self.runs if one.name == run.name]
        return run.name if len(same) == 1 else f"{run.name} ({run.id})"


def compare_experiments(
    ids_or_names: Sequence[str],
    *,
    directory: str | Path | None = None,
    server: str | None = None,
    step: int | None = None,
    best: Mapping[str, Best] | None = None,
    settings: TrainingSettings | None = None,
) -> Comparison:
    """Experiments side by side, each from this machine where it lies here, else from the server.

    A name means its newest experiment, `name~2` the one before. `step`: also the values at this step. `best`: whether
    the least ("min") or greatest ("max") value of a metric is the best, where its name does not tell. NothingFound
    names what there is nowhere; UsageError where none, or more than 50, are named.
    """
    wanted = [ids_or_names] if isinstance(ids_or_names, str) else [str(one) for one in ids_or_names]
    if not 1 <= len(wanted) <= _MOST:
        raise UsageError(f"{len(wanted)} experiments cannot be compared", f"Name 1 to {_MOST} of them.")
    found = settings or load_training(server=server, directory=directory)
    runs: dict[str, ComparedRun] = {}
    said: list[str] = []
    missing: dict[str, NothingFound] = {}
    for name in dict.fromkeys(wanted):
        try:
            stored = open_experiment(found.directory, name)
        except NothingFound as error:
            missing[name] = error
            continue
        said += [stored.said] if stored.said else []
        runs[name] = from_disk(stored, step)
    if missing:
        runs |= _ask_server(found, missing, step)
    words = {runs[name].id: name for name in reversed(wanted)}
    in_order = {runs[name].id: runs[name] for name in wanted}
    heads = tuple(words[one] for one in in_order)
    return Comparison(tuple(in_order.values()), step, tuple(said), dict(best or {}), heads)


def _ask_server(
    settings: TrainingSettings, missing: Mapping[str, NothingFound], step: int | None
) -> dict[str, ComparedRun]:
    """The runs that are not here, from the server; where there is none, what was not found here is the error."""
    if settings.server is None:
        raise next(iter(missing.values()))
    server = ExperimentServer(settings.server, settings.read_token, settings.ca_file)
    try:
        server.prepare()
        return dict(zip(missing, from_server(server, list(missing), step), strict=True))
    finally:
        server.close()


def _other(module: str, what: str) -> Any:
    """Another package, loaded when it is asked for; UsageError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"{what} needs {package}, which is not installed", f"Run: pip install {package}"
        ) from error


def _is_reading(name: str) -> bool:
    return name.startswith(("system/", "process/", "gpu/"))


def _pair(came: Came | None) -> dict[str, Any] | None:
    return None if came is None else {"value": came.value, "step": came.step}


def _came(came: Came | None, *, at: bool = True) -> str:
    if came is None:
        return "-"
    value = written(came.value)
    text = value if isinstance(value, str) else f"{value:.6g}"
    return text + (f" @{came.step}" if at and came.step is not None else "")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _whole(value: int | None) -> str:
    return "-" if value is None else str(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width, 2) - 1] + "…"
