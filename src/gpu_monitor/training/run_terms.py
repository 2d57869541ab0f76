# SPDX-License-Identifier: MIT
"""What is asked of experiments, here or on a server, and what lists of them are."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from gpu_monitor.wire.expressions import (
    FIELDS,
    ExpressionError,
    Operand,
    operands_of,
    parse_expression,
    parse_operand,
    words_of,
)


@dataclass(frozen=True)
class Wanted:
    """Which experiments: None and empty do not restrict. `tags`: `key` or `key=value`; `archived` None: both kinds."""

    project: str | None = None
    tags: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    text: str | None = None
    where: str | None = None
    archived: bool | None = False
    sort: str | None = None
    limit: int = 50
    order: str | None = None


def columns_of(wanted: Wanted) -> dict[str, Operand]:
    """What is shown of experiments beside their fields: what they are picked and sorted by, as it is written.

    Empty of what cannot be understood: whoever is asked says why.
    """
    found: list[Operand] = []
    with contextlib.suppress(ExpressionError):
        found += [] if wanted.where is None else operands_of(parse_expression(wanted.where, FIELDS))
        found += [] if wanted.sort is None else [parse_operand(wanted.sort, FIELDS)]
    return {words_of(one): one for one in found if one.kind != "field"}


@dataclass(frozen=True)
class Listing:
    """Experiments as JSON objects; `has_more`: there are others behind them; `hint`: why there is none, where known."""

    items: list[dict[str, Any]]
    has_more: bool
    hint: str | None = None


@dataclass(frozen=True)
class Point:
    """One value of a metric. `time`: UTC epoch seconds, None where it is not known."""

    metric: str
    step: int
    time: float | None
    value: float
