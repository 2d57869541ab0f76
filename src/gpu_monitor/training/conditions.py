# SPDX-License-Identifier: MIT
"""Expressions about experiments, asked of those in a directory: what a server answers from its tables, from their logs.

What is not known is neither true nor false: `lr < 1` and `not lr < 1` both leave out an experiment without `lr`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gpu_monitor.training.listing import Listed
from gpu_monitor.training.stored import StoredExperiment
from gpu_monitor.wire.expressions import (
    COMPARE,
    FIELDS,
    Comparison,
    Expression,
    ExpressionError,
    Not,
    Operand,
    Operator,
    check_status,
)

Answer = bool | None
"""None: it cannot be known."""
_COMPARE: Mapping[Operator, Callable[[Any, Any], bool]] = COMPARE

_SERVERS = {
    "contract_number": "contracts",
    "last_heard": "when a run was last heard from",
    "stalled": "stalled runs",
}
"""Fields that only servers have, and what they tell."""
_NAMED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class _Figures(NamedTuple):
    """What a metric came to; None where no point of it is there, `min` and `max` where none is finite."""

    last: float | None
    min: float | None
    max: float | None


@dataclass
class Candidate:
    """One experiment that is asked about. Its log is opened where an expression asks for more than the list tells.

    FileNotFoundError and NothingFound where it is deleted meanwhile.
    """

    directory: Path
    listed: Listed
    is_archived: bool
    _figures: dict[str, _Figures] = field(default_factory=dict)

    @functools.cached_property
    def stored(self) -> StoredExperiment:
        """What its log tells."""
        return StoredExperiment(self.directory / self.listed.id)

    def let_go(self) -> None:
        """Keep what was found out and nothing of the log: there may be ten thousand of these."""
        self.__dict__.pop("stored", None)

    @functools.cached_property
    def metric_names(self) -> frozenset[str]:
        """Its metrics, the SDK's own readings among them."""
        return frozenset(self.stored.metric_names())

    def number(self, of: Operand) -> float | None:
        """What it is as a number (a time: epoch seconds, a truth value: 1 or 0); None where it is none."""
        if of.kind == "field":
            found = self._field(of.name)
            return None if found is None or isinstance(found, str) else float(found)
        if of.kind == "param" or (of.kind == "any" and of.name in self.listed.params):
            return _number(self.listed.params.get(of.name))
        return None if of.kind == "tag" else self._metric(of)

    def text(self, of: Operand) -> str | None:
        """What it is as a text; None where it is none."""
        if of.kind == "field":
            found = self._field(of.name)
            return found if isinstance(found, str) else None
        if of.kind == "param" or (of.kind == "any" and of.name in self.listed.params):
            value = self.listed.params.get(of.name)
            return value if isinstance(value, str) else None
        if of.kind == "tag" or (of.kind == "any" and of.name not in self.metric_names):
            return self.listed.tags.get(of.name)
        return None

    def is_known(self, of: Operand) -> bool:
        """Whether it has that."""
        if of.kind == "field":
            return self._field(of.name) is not None
        if of.kind in ("param", "any") and of.name in self.listed.params:
            return True
        if of.kind in ("tag", "any") and of.name in self.listed.tags:
            return True
        if of.kind == "metric" and of.stat != "last":
            return self._metric(of) is not None
        return of.kind in ("metric", "any") and of.name in self.metric_names

    def is_nan(self, of: Operand) -> bool | None:
        """Whether a parameter, or the last value of a metric, is NaN; None where there is neither."""
        if of.kind in ("param", "any") and of.name in self.listed.params:
            value = self.listed.params[of.name]
            return value == "NaN" or (isinstance(value, float) and math.isnan(value))
        if of.kind == "param" or of.name not in self.metric_names:
            return None
        last = self._of_metric(of.name).last
        return None if last is None else math.isnan(last)

    def shown(self, of: Operand) -> Any:
        """What it is, to be shown: as it was logged; None where it has no such thing."""
        if of.kind in ("param", "any") and of.name in self.listed.params:
            return self.listed.params[of.name]
        if of.kind in ("metric", "any") and of.name in self.metric_names:
            return self._of_metric(of.name).last if of.stat == "last" else self._metric(of)
        return self.listed.tags.get(of.name) if of.kind in ("tag", "any") else None

    def _field(self, name: str) -> float | str | None:
        one = self.listed
        plain: dict[str, Callable[[], float | str | None]] = {
            "id": lambda: one.id, "name": lambda: one.name, "project": lambda: one.project,
            "status": lambda: one.status, "started": lambda: one.started, "ended": lambda: one.ended,
            "last_time": lambda: one.changed, "duration_seconds": lambda: duration_of(one),
            "last_step": lambda: one.last_step, "simulated": lambda: one.simulated,
            "archived": lambda: self.is_archived, "host": lambda: self._writer("host"),
            "user": lambda: self._writer("user"), "exit_code": lambda: _whole(self.stored.ending.get("exit_code")),
            "signal": lambda: _text(self.stored.ending.get("signal")),
            "reason": lambda: _text(self.stored.ending.get("reason")),
            "points": lambda: sum(map(self.stored.count, self.metric_names)),
        }  # fmt: skip
        return plain[name]()

    def _writer(self, name: str) -> str | None:
        about = self.stored.last.summary.about
        return None if about is None else getattr(about.writer, name)

    def _metric(self, of: Operand) -> float | None:
        """Its last value, NaN unknown, or the least or greatest of those that are finite."""
        if of.name not in self.metric_names:
            return None
        found = self._of_metric(of.name)
        if of.stat != "last":
            return found.min if of.stat == "min" else found.max
        return None if found.last is None or math.isnan(found.last) else found.last

    def _of_metric(self, name: str) -> _Figures:
        if name not in self._figures:
            values = self.stored.history(name).value
            finite = [value for value in values if math.isfinite(value)]
            self._figures[name] = _Figures(
                values[-1] if values else None, min(finite, default=None), max(finite, default=None)
            )
        return self._figures[name]


def duration_of(one: Listed) -> float | None:
    """How long it took, or how long it ran when it wrote last; None where its clocks do not tell."""
    so_far = one.changed - one.started
    return one.seconds if one.ended is not None else so_far if so_far >= 0 else None


def condition(expression: Expression, read_time: Callable[[str], float]) -> Callable[[Candidate], Answer]:
    """Whether an expression is so of an experiment. ExpressionError where an operand cannot be compared with the value.

    `read_time` understands a time as typed (UTC epoch seconds), and raises what the asker is to be told.
    """
    if isinstance(expression, Not):
        inner = condition(expression.inner, read_time)
        return lambda run: None if (found := inner(run)) is None else not found
    if isinstance(expression, Comparison):
        return _comparison(expression, read_time)
    parts = [condition(part, read_time) for part in expression.parts]
    decides = expression.word == "or"

    def joined(run: Candidate) -> Answer:
        found: Answer = not decides
        for part in parts:
            one = part(run)
            if one is decides:
                return decides
            found = None if one is None else found
        return found

    return joined


def sort_key(run: Candidate, by: Operand) -> tuple[int, float, str]:
    """By what experiments are sorted: first numbers, then texts; 2 where there is neither, which comes last."""
    number = run.number(by)
    if number is not None:
        return 0, number, ""
    text = run.text(by)
    return (2, 0.0, "") if text is None else (1, 0.0, text)


def check_fields(operands: list[Operand]) -> None:
    """ExpressionError where a field is asked for that only servers have."""
    for one in operands:
        if one.kind == "field" and one.name in _SERVERS:
            raise ExpressionError(
                one.column, f"only a server knows of {_SERVERS[one.name]}: say --server URL"
            )


def _comparison(asked: Comparison, read_time: Callable[[str], float]) -> Callable[[Candidate], Answer]:
    of, value = asked.operand, asked.value
    check_fields([of])
    if value is None:
        return lambda run: run.is_known(of) is (asked.operator != "=")
    if of.kind == "field":
        return _of_field(asked, read_time)
    if isinstance(value, str):
        if of.kind == "metric":
            raise ExpressionError(asked.column, "a metric is a number")
        return lambda run: _either(asked, run, None, value)
    if isinstance(value, float) and math.isnan(value):
        if of.stat != "last" or of.kind == "tag":
            raise ExpressionError(asked.column, f"{of.name[:40]} is never nan")
        compare = _COMPARE[asked.operator]
        return lambda run: None if (found := run.is_nan(of)) is None else compare(found, True)
    if of.kind == "tag" and asked.operator not in ("=", "!="):
        raise ExpressionError(asked.column, "tags are texts: put the value in quotes to compare letters")
    written = str(value).lower() if isinstance(value, bool) else asked.written
    return lambda run: _either(asked, run, float(value), written)


def _of_field(asked: Comparison, read_time: Callable[[str], float]) -> Callable[[Candidate], Answer]:
    of, value, shape, compare = (
        asked.operand,
        asked.value,
        FIELDS[asked.operand.name],
        _COMPARE[asked.operator],
    )
    if shape == "text":
        written = value if isinstance(value, str) else asked.written
        if of.name == "status":
            check_status(asked, written)
        return lambda run: None if (found := run.text(of)) is None else compare(found, written)
    if shape == "truth":
        if not isinstance(value, bool):
            raise ExpressionError(asked.column, f"{of.name} is true or false")
        number = float(value)
    elif shape == "time" and isinstance(value, str):
        number = read_time(value)
    elif not isinstance(value, float) or math.isnan(value):
        hint = "a time: write 2024-03-20 or -2h" if shape == "time" else "a number"
        raise ExpressionError(asked.column, f"{of.name} is {hint}")
    else:
        number = value
    return lambda run: None if (found := run.number(of)) is None else compare(found, number)


def _either(asked: Comparison, run: Candidate, number: float | None, written: str) -> Answer:
    """Against a number, or where it is a text, or the value is one, against the text as it was written.

    What is known and cannot be compared with the value (a list, a NaN) is not equal to it.
    """
    compare, has_order = _COMPARE[asked.operator], asked.operator not in ("=", "!=")
    if number is not None and (held := run.number(asked.operand)) is not None:
        return compare(held, number)
    if number is None or not has_order:
        text = run.text(asked.operand)
        if text is not None:
            return compare(text, written)
    if has_order or not run.is_known(asked.operand):
        return None
    return asked.operator == "!="


def _number(value: Any) -> float | None:
    """A parameter as a number, as servers store it: NaN and what 64 bits do not hold are none."""
    if isinstance(value, str):
        return None if value == "NaN" else _NAMED.get(value)
    if not isinstance(value, (bool, int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if math.isnan(number) else number


def _whole(value: object) -> int | None:
    """What a process may end with; None for whatever else a log says."""
    return value if type(value) is int and abs(value) < 2**63 else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
