"""Expressions about experiments as conditions in SQL; every name and value of theirs is a bound parameter.

What is not known is neither true nor false: `lr < 1` and `not lr < 1` both leave out an experiment without `lr`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    and_,
    case,
    cast,
    false,
    func,
    literal,
    null,
    or_,
    select,
    true,
)

from gpu_monitor.server.store.schema import contracts
from gpu_monitor.server.store.schema_experiments import (
    INFINITY,
    MINUS_INFINITY,
    NAN,
    experiments,
    params,
    projects,
    series,
    tags,
)
from gpu_monitor.wire.expressions import (
    COMPARE,
    FIELDS,
    Comparison,
    Expression,
    ExpressionError,
    Not,
    Operand,
    Operator,
    Shape,
    check_status,
)

Column = ColumnElement[Any]
_COMPARE: Mapping[Operator, Callable[[Any, Any], ColumnElement[bool]]] = COMPARE


@dataclass(frozen=True)
class Terms:
    """Makes SQL of expressions, for queries over `experiments` with `projects` and `contracts` beside it.

    `now`: UTC epoch seconds; `read_time` understands a time as typed, and raises what the asker is to be told.
    """

    now: float
    read_time: Callable[[str], float]

    def condition(self, expression: Expression) -> ColumnElement[bool]:
        """The condition for WHERE; ExpressionError where an operand cannot be compared with the value."""
        if isinstance(expression, Not):
            return ~self.condition(expression.inner)
        if isinstance(expression, Comparison):
            return self._comparison(expression)
        parts = [self.condition(part) for part in expression.parts]
        return and_(*parts) if expression.word == "and" else or_(*parts)

    def number(self, operand: Operand) -> Column | None:
        """What it is as a number (a time: epoch seconds, a truth value: 1 or 0); None where it never is one."""
        if operand.kind == "tag":
            return None
        if operand.kind == "param":
            return _of_param(_PARAM_NUMBER, operand.name)
        if operand.kind == "metric":
            return _of_metric(_METRIC_NUMBER[operand.stat], operand.name)
        if operand.kind == "field":
            return None if FIELDS[operand.name] == "text" else cast(self.field(operand.name), Double)
        return case(
            (_has_param(operand.name), _of_param(_PARAM_NUMBER, operand.name)),
            else_=_of_metric(_METRIC_NUMBER["last"], operand.name),
        )

    def text(self, operand: Operand) -> Column | None:
        """What it is as a text; None where it never is one."""
        if operand.kind == "metric":
            return None
        if operand.kind == "param":
            return _of_param(params.c.text, operand.name)
        if operand.kind == "tag":
            return _of_tag(operand.name)
        if operand.kind == "field":
            return self.field(operand.name) if FIELDS[operand.name] == "text" else None
        return case(
            (_has_param(operand.name), _of_param(params.c.text, operand.name)),
            (_has_metric(operand.name), null()),
            else_=_of_tag(operand.name),
        )

    def field(self, name: str) -> Column:
        """A field of FIELDS; truth values are 1 and 0."""
        special: dict[str, Column] = {
            "id": experiments.c.uid,
            "project": projects.c.name,
            "contract_number": contracts.c.number,
            "duration_seconds": DURATION,
            "simulated": cast(experiments.c.simulated, Integer),
            "archived": case((experiments.c.archived.is_not(None), 1), else_=0),
            "stalled": case((is_stalled(self.now), 1), else_=0),
        }
        return special[name] if name in special else experiments.c[name]

    def is_known(self, operand: Operand) -> ColumnElement[bool]:
        """Whether an experiment has it."""
        name = operand.name
        if operand.kind == "field":
            return self.field(name).is_not(None)
        if operand.kind == "param":
            return _has_param(name)
        if operand.kind == "tag":
            return _of_tag(name).is_not(None)
        if operand.kind == "metric" and operand.stat != "last":
            return _of_metric(_METRIC_NUMBER[operand.stat], name).is_not(None)
        if operand.kind == "metric":
            return _has_metric(name)
        return or_(_has_param(name), _has_metric(name), _of_tag(name).is_not(None))

    def _comparison(self, asked: Comparison) -> ColumnElement[bool]:
        if asked.value is None:
            found = self.is_known(asked.operand)
            return ~found if asked.operator == "=" else found
        if asked.operand.kind == "field":
            return self._of_field(asked, FIELDS[asked.operand.name])
        if isinstance(asked.value, bool):
            return self._of_number(asked, float(asked.value), str(asked.value).lower())
        if isinstance(asked.value, str):
            return self._of_text(asked, asked.value)
        if math.isnan(asked.value):
            return self._of_nan(asked)
        return self._of_number(asked, asked.value, asked.written)

    def _of_field(self, asked: Comparison, shape: Shape) -> ColumnElement[bool]:
        name, value, column = asked.operand.name, asked.value, self.field(asked.operand.name)
        compare = _COMPARE[asked.operator]
        if shape == "truth":
            if not isinstance(value, bool):
                raise ExpressionError(asked.column, f"{name} is true or false")
            return compare(column, int(value))
        if shape == "time" and isinstance(value, str):
            return compare(column, self.read_time(value))
        if shape == "text":
            written = value if isinstance(value, str) else asked.written
            if name == "status":
                check_status(asked, written)
            return compare(column, written)
        if not isinstance(value, float) or math.isnan(value):
            hint = "a time: write 2024-03-20 or -2h" if shape == "time" else "a number"
            raise ExpressionError(asked.column, f"{name} is {hint}")
        return compare(column, literal(value, Double))

    def _of_number(self, asked: Comparison, value: float, written: str) -> ColumnElement[bool]:
        """Against a number; where there is none but a text, for = and != against the text as it was written."""
        number, text = self.number(asked.operand), self.text(asked.operand)
        compare = _COMPARE[asked.operator]
        has_order = asked.operator not in ("=", "!=")
        if number is None:
            if has_order:
                raise ExpressionError(
                    asked.column, "tags are texts: put the value in quotes to compare letters"
                )
            return compare(text, written)
        if has_order:
            return compare(number, literal(value, Double))
        whens = [(number.is_not(None), compare(number, literal(value, Double)))]
        if text is not None:
            whens.append((text.is_not(None), compare(text, written)))
        return case(*whens, *self._of_another_kind(asked))

    def _of_text(self, asked: Comparison, value: str) -> ColumnElement[bool]:
        text = self.text(asked.operand)
        if text is None:
            raise ExpressionError(asked.column, "a metric is a number")
        compared = _COMPARE[asked.operator](text, value)
        if asked.operator not in ("=", "!="):
            return compared
        return case((text.is_not(None), compared), *self._of_another_kind(asked))

    def _of_another_kind(self, asked: Comparison) -> list[tuple[ColumnElement[bool], ColumnElement[bool]]]:
        """What is known and cannot be compared with the value (a list, a NaN) is not equal to it."""
        return [(self.is_known(asked.operand), true() if asked.operator == "!=" else false())]

    def _of_nan(self, asked: Comparison) -> ColumnElement[bool]:
        """Whether the last value is NaN; the least and greatest of a metric never are."""
        name, kind = asked.operand.name, asked.operand.kind
        if asked.operand.stat != "last" or kind == "tag":
            raise ExpressionError(asked.column, f"{name[:40]} is never nan")
        of_param = _of_param(case((params.c.text == "NaN", 1), else_=0), name)
        of_metric = _of_metric(case((series.c.last_special == NAN, 1), else_=0), name)
        found: Column = of_param if kind == "param" else of_metric
        if kind == "any":
            found = case((_has_param(name), of_param), else_=of_metric)
        return _COMPARE[asked.operator](found, 1)


_LASTED: Column = func.coalesce(experiments.c.ended, experiments.c.last_time) - experiments.c.started
DURATION: Column = case((_LASTED >= 0, _LASTED), else_=None)
"""Seconds from the start to the end, of one that runs to its newest record; NULL before there is one, and where the
clock was set back so far that nobody knows."""


def is_stalled(now: float) -> ColumnElement[bool]:
    """Whether an experiment runs and was not heard from in time."""
    return and_(experiments.c.status == "running", experiments.c.lease < now)


_PARAM_NUMBER: Column = case(
    (params.c.text == "Infinity", literal(math.inf, Double)),
    (params.c.text == "-Infinity", literal(-math.inf, Double)),
    else_=params.c.number,
)
_METRIC_NUMBER: dict[str, Column] = {
    "last": case(
        (series.c.last_special == INFINITY, literal(math.inf, Double)),
        (series.c.last_special == MINUS_INFINITY, literal(-math.inf, Double)),
        else_=series.c.last_value,
    ),
    "min": series.c.min_value,
    "max": series.c.max_value,
}


def _of_param(column: Column, name: str) -> Column:
    query = select(column).where(params.c.experiment == experiments.c.id, params.c.name == name)
    return query.correlate(experiments).scalar_subquery()


def _of_metric(column: Column, name: str) -> Column:
    query = select(column).where(series.c.experiment == experiments.c.id, series.c.name == name)
    return query.correlate(experiments).scalar_subquery()


def _of_tag(name: str) -> Column:
    query = select(tags.c.value).where(tags.c.experiment == experiments.c.id, tags.c.key == name)
    return query.correlate(experiments).scalar_subquery()


def _has_param(name: str) -> ColumnElement[bool]:
    query = select(literal(1)).where(params.c.experiment == experiments.c.id, params.c.name == name)
    return query.correlate(experiments).exists()


def _has_metric(name: str) -> ColumnElement[bool]:
    query = select(literal(1)).where(series.c.experiment == experiments.c.id, series.c.name == name)
    return query.correlate(experiments).exists()
