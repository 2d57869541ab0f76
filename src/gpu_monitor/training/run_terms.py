# SPDX-License-Identifier: MIT
"""What is asked of experiments, here or on a server, and what lists of them are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
