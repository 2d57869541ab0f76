# SPDX-License-Identifier: MIT
"""The language in which experiments are asked for: `val_loss < 0.3 and (lr = 0.001 or tags.model = resnet)`. Pure.

    expression = and-part { or and-part }            not binds closest, then and, then or
    comparison = operand  =|==|!=|<>|<|<=|>|>=  value
    operand    = name | params.name | metrics.name | tags.name | min(name) | max(name) | last(name)
    name       = a word, or anything in double quotes: "val loss", metrics."val loss"
    value      = a number | nan | inf | true | false | null | 'text' | "text" | a word, which is text

A bare word that names a field of every experiment (`status`) means that; in double quotes it never does.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from gpu_monitor.wire.training import STATUSES

LONGEST = 2000
"""Characters of an expression."""
DEEPEST = 32
"""Parentheses and nots inside each other."""
MOST = 40
"""Comparisons of one expression: each one is a look at a table for every experiment."""

Kind = Literal["field", "param", "metric", "tag", "any"]
Stat = Literal["last", "min", "max"]
Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Value = float | str | bool | None
Shape = Literal["text", "number", "time", "truth"]

FIELDS: Mapping[str, Shape] = {
    "id": "text", "name": "text", "project": "text", "contract_number": "text", "status": "text", "host": "text",
    "user": "text", "signal": "text", "reason": "text",
    "started": "time", "ended": "time", "last_heard": "time", "last_time": "time",
    "duration_seconds": "number", "last_step": "number", "points": "number", "exit_code": "number",
    "simulated": "truth", "archived": "truth", "stalled": "truth",
}  # fmt: skip
"""What every experiment has a field for, by the name in answers, and what that is."""

_STATS: dict[str, Stat] = {"last": "last", "min": "min", "max": "max"}
_PREFIXES: dict[str, Kind] = {
    "params": "param",
    "param": "param",
    "metrics": "metric",
    "metric": "metric",
    "tags": "tag",
    "tag": "tag",
}
_OPERATORS: dict[str, Operator] = {
    "=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=",
}  # fmt: skip
COMPARE: Mapping[Operator, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
"""What an operator does, with values as with whatever stands for them in a query."""
_WORDS: dict[str, Value] = {
    "true": True, "false": False, "null": None, "nan": math.nan,
    "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf,
}  # fmt: skip
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<open>\()|(?P<close>\))|(?P<operator>[<>=!]+)"
    r"""|(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>[\w./:+\-@%]+)"""
)
_PLAIN = re.compile(r"[A-Za-z_][\w/\-]*", re.ASCII)
_RESERVED = {"and", "or", "not", *_STATS}
_SAID: dict[Kind, str] = {
    "any": "parameter, metric or tag", "param": "parameter", "metric": "metric", "tag": "tag", "field": "field",
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


class ExpressionError(ValueError):
    """What of an expression cannot be understood; `column` counts its characters from 1."""

    def __init__(self, column: int, reason: str) -> None:
        super().__init__(f"column {column}: {reason}")
        self.column, self.reason = column, reason


@dataclass(frozen=True)
class Operand:
    """What is compared or sorted by. `any`: the parameter, else the metric's last value, else the tag of this name."""

    kind: Kind
    name: str
    stat: Stat = "last"
    column: int = 1


@dataclass(frozen=True)
class Comparison:
    """An operand against a value; None asks whether it is unknown. `column` is the value's, `written` its text."""

    operand: Operand
    operator: Operator
    value: Value
    column: int = 1
    written: str = field(default="", compare=False)


@dataclass(frozen=True)
class Not:
    """The opposite."""

    inner: Expression


@dataclass(frozen=True)
class Joined:
    """All (and) or any (or) of two parts or more."""

    word: Literal["and", "or"]
    parts: tuple[Expression, ...]


Expression = Comparison | Not | Joined


def operands_of(expression: Expression) -> Iterator[Operand]:
    """What is compared in an expression, in the order in which it is written."""
    if isinstance(expression, Comparison):
        yield expression.operand
    elif isinstance(expression, Not):
        yield from operands_of(expression.inner)
    else:
        for part in expression.parts:
            yield from operands_of(part)


def words_of(operand: Operand) -> str:
    """An operand as it is written in an expression."""
    name = operand.name
    if operand.kind == "field":
        return name
    is_bare = operand.kind == "any" or operand.stat != "last"
    if not _PLAIN.fullmatch(name) or (is_bare and (name in FIELDS or name.lower() in _RESERVED)):
        escaped = re.sub(r'(["\\])', r"\\\1", name)
        name = f'"{escaped}"'
    if operand.kind == "any":
        return name
    return f"{operand.kind}s.{name}" if operand.stat == "last" else f"{operand.stat}({name})"


def said_unknown(operand: Operand, names: Collection[str]) -> str:
    """A sentence about a name that no experiment has; `names`: those among which the nearest one is looked for."""
    said = f"no experiment has a {_SAID[operand.kind]} called {operand.name[:100]}"
    near = difflib.get_close_matches(operand.name, names, 1)
    return f"{said}; did you mean {near[0]}?" if near else said


def check_status(comparison: Comparison, written: str) -> None:
    """ExpressionError where a comparison with the field `status` holds it against what is no status."""
    if written == "stalled":
        raise ExpressionError(comparison.column, "stalled is no status but a flag: write stalled = true")
    if written not in STATUSES:
        raise ExpressionError(comparison.column, f"a status is one of {', '.join(STATUSES)}")


def parse_expression(text: str, fields: Collection[str]) -> Expression:
    """The expression in `text`; ExpressionError where it is none. `fields` are the names of every experiment."""
    return _Parser(text, fields).whole()


def parse_operand(text: str, fields: Collection[str]) -> Operand:
    """The one operand in `text`, to sort by; ExpressionError where it is none."""
    return _Parser(text, fields).lone_operand()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    column: int

    @property
    def shown(self) -> str:
        return (
            "the end" if self.kind == "end" else self.text if len(self.text) <= 40 else f"{self.text[:40]}..."
        )

    @property
    def word(self) -> str:
        """The keyword it may be; empty where it can be none."""
        return self.text.lower() if self.kind == "word" else ""

    @property
    def end(self) -> int:
        return self.column + len(self.text)


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            if text[place] in "\"'":
                raise ExpressionError(place + 1, f"the quote {text[place]} is not closed")
            hint = "; write and, or" if text[place] in "&|" else ""
            raise ExpressionError(place + 1, f"{text[place]!r} means nothing here{hint}")
        kind = found.lastgroup or ""
        if kind != "space":
            yield _Token(kind, found.group(), place + 1)
        place = found.end()
    yield _Token("end", "", len(text) + 1)


class _Parser:
    """One pass over the tokens, one method for each rule of the grammar."""

    def __init__(self, text: str, fields: Collection[str]) -> None:
        if len(text) > LONGEST:
            raise ExpressionError(LONGEST + 1, f"longer than {LONGEST} characters")
        self._tokens = list(_tokens(text))
        self._fields = fields
        self._place = self._depth = self._comparisons = 0

    def whole(self) -> Expression:
        found = self._joined("or")
        token = self._next
        if token.kind == "close":
            raise ExpressionError(token.column, "this parenthesis was never opened")
        if token.kind != "end":
            self._expected("and, or, or the end")
        return found

    def lone_operand(self) -> Operand:
        found = self._operand()
        if self._next.kind != "end":
            self._expected("the end")
        return found

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    @property
    def _after(self) -> _Token:
        """The token after the next one; the end again at the end."""
        return self._tokens[min(self._place + 1, len(self._tokens) - 1)]

    def _take(self) -> _Token:
        token = self._next
        self._place += 1
        return token

    def _expected(self, what: str) -> NoReturn:
        raise ExpressionError(self._next.column, f"expected {what}, found {self._next.shown}")

    def _joined(self, word: Literal["and", "or"]) -> Expression:
        parts = [self._joined("and") if word == "or" else self._inverted()]
        while self._next.word == word:
            self._take()
            parts.append(self._joined("and") if word == "or" else self._inverted())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _inverted(self) -> Expression:
        token = self._next
        if token.word != "not" and token.kind != "open":
            return self._comparison()
        self._depth += 1
        if self._depth > DEEPEST:
            raise ExpressionError(token.column, f"more than {DEEPEST} parentheses and nots inside each other")
        self._take()
        found: Expression
        if token.kind == "open":
            found = self._joined("or")
            if self._next.kind != "close":
                self._expected(f"and, or, or ) for the parenthesis at column {token.column}")
            self._take()
        else:
            found = Not(self._inverted())
        self._depth -= 1
        return found

    def _comparison(self) -> Comparison:
        operand = self._operand()
        self._comparisons += 1
        if self._comparisons > MOST:
            raise ExpressionError(operand.column, f"more than {MOST} comparisons")
        token = self._next
        operator = _OPERATORS.get(token.text)
        if operator is None:
            self._expected(f"one of = != < <= > >= after {operand.name[:40]}")
        self._take()
        written = self._next
        value = self._value()
        if operator not in ("=", "!=") and not _has_order(value):
            raise ExpressionError(written.column, f"{written.shown} has no order: use = or !=")
        return Comparison(operand, operator, value, written.column, written.text)

    def _value(self) -> Value:
        token = self._next
        if token.kind == "quoted":
            return _unquoted(self._take())
        if token.kind != "word" or token.word in ("and", "or", "not"):
            self._expected("a number or a text")
        self._take()
        if token.word in _WORDS:
            return _WORDS[token.word]
        if _NUMBER.fullmatch(token.text):
            number = float(token.text)
            if math.isinf(number):
                raise ExpressionError(token.column, "a number beyond what 64 bits hold")
            return number
        return token.text

    def _operand(self) -> Operand:
        token = self._next
        if token.word not in _STATS or self._after.kind != "open":
            return self._plain_operand()
        self._take()
        opened = self._take()
        inner = self._plain_operand()
        if inner.kind in ("param", "tag"):
            raise ExpressionError(inner.column, f"{token.text} takes the name of a metric")
        if self._next.kind != "close":
            self._expected(f") for the parenthesis at column {opened.column}")
        self._take()
        return Operand("metric", inner.name, _STATS[token.word], token.column)

    def _plain_operand(self) -> Operand:
        """An operand that is no function of one."""
        token = self._next
        if token.kind == "quoted" and token.text[0] == '"':
            return Operand("any", self._name(self._take()), column=token.column)
        if token.kind == "quoted":
            reason = "a name stands before the comparison; quote names with double quotes"
            raise ExpressionError(token.column, reason)
        if token.kind != "word" or token.word in ("and", "or", "not"):
            self._expected("a name")
        if _NUMBER.fullmatch(token.text):
            raise ExpressionError(token.column, f"the name comes first: loss < {token.text[:20]}")
        if self._after.kind == "open":
            raise ExpressionError(
                token.column, f"{token.shown} is no function here; min, max, last take a name"
            )
        return self._named(self._take())

    def _named(self, token: _Token) -> Operand:
        """A word as the name that it is, with its prefix; a quoted name may follow the prefix's full stop."""
        prefix, stop, rest = token.text.partition(".")
        kind = _PREFIXES.get(prefix.lower())
        if kind is None or not stop:
            return Operand("field" if token.text in self._fields else "any", token.text, column=token.column)
        if not rest:
            quoted = self._next
            if quoted.kind != "quoted" or quoted.column != token.end:
                raise ExpressionError(token.end, f"expected a name right after {token.text}")
            rest = self._name(self._take())
        return Operand(kind, rest, column=token.column)

    def _name(self, token: _Token) -> str:
        name = _unquoted(token)
        if not name:
            raise ExpressionError(token.column, "an empty name")
        return name


def _has_order(value: Value) -> bool:
    return isinstance(value, str) or (isinstance(value, float) and not math.isnan(value))


def _unquoted(token: _Token) -> str:
    text = re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
    if "\x00" in text:
        raise ExpressionError(token.column, "a text with U+0000")
    return text
