# SPDX-License-Identifier: MIT
"""Which checkpoints stay: `all`, `last:N` or `best:N:METRIC:min` (or `max`). Pure; nothing is read or removed here.

Several processes may judge at once, each by what it sees. That is safe because every policy ranks by one order
that all share: what is not among the first N of some is not among the first N of more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.wire.training import METRIC_NAME

_HINT = 'Write keep="all", "last:2", or "best:3:val_loss:min" (or max).'


class KeepRefused(GpuMonitorError):
    """A `keep` that is none."""


@dataclass(frozen=True)
class Standing:
    """What a policy judges a checkpoint by. `order` grows with each save; `name` decides where two have the same."""

    name: str
    order: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Keep:
    """A policy. `count` None: all stay. `metric` None: the last stay."""

    count: int | None = None
    metric: str | None = None
    is_max: bool = False

    @property
    def text(self) -> str:
        """As it is written."""
        if self.count is None:
            return "all"
        if self.metric is None:
            return f"last:{self.count}"
        return f"best:{self.count}:{self.metric}:{'max' if self.is_max else 'min'}"

    def rules(self, other: Keep) -> bool:
        """Whether this policy judges a checkpoint saved under `other`: the same one, whatever its number."""
        return self.count is not None and other.count is not None and self.family == other.family

    @property
    def family(self) -> tuple[str | None, bool]:
        """What it ranks by."""
        return self.metric, self.is_max

    def rank(self, standing: Standing) -> tuple[float, float, int, str]:
        """Smaller is better. A metric that is missing, or not a number, comes after all that are numbers."""
        if self.metric is None:
            return 0.0, 0.0, -standing.order, standing.name
        value = standing.metrics.get(self.metric, math.nan)
        if math.isnan(value):
            return 1.0, 0.0, -standing.order, standing.name
        return 0.0, -value if self.is_max else value, -standing.order, standing.name


_Kept = TypeVar("_Kept")


def surplus(keep: Keep, found: Iterable[tuple[Standing, _Kept]]) -> list[_Kept]:
    """What goes of `found`, all of which are there and saved under this policy: all after the first N."""
    if keep.count is None:
        return []
    ranked = sorted(found, key=lambda pair: keep.rank(pair[0]))
    return [kept for _, kept in ranked[keep.count :]]


def parse_keep(text: str) -> Keep:
    """The policy that a text names; KeepRefused with an example where it names none."""
    kind, _, rest = text.partition(":")
    if kind == "all" and not rest:
        return Keep()
    count, _, ranked = rest.partition(":")
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        raise KeepRefused(f"keep={text!r} names no policy", _HINT)
    if kind == "last" and not ranked:
        return Keep(int(count))
    metric, _, mode = ranked.rpartition(":")
    if kind == "best" and mode in ("min", "max") and METRIC_NAME.fullmatch(metric):
        return Keep(int(count), metric, mode == "max")
    raise KeepRefused(f"keep={text!r} names no policy", _HINT)
