# SPDX-License-Identifier: MIT
"""What it means to compare runs: which value of a metric is its best one, and what differs. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

Best = Literal["min", "max"]

_LESS = frozenset((
    "loss", "losses", "error", "errors", "err", "mse", "rmse", "mae", "mape", "perplexity", "ppl", "nll",
    "bpc", "bpb", "wer", "cer", "fid", "eer", "latency", "duration", "seconds", "ms",
))  # fmt: skip
_MORE = frozenset((
    "accuracy", "acc", "auc", "auroc", "auprc", "f1", "fscore", "precision", "recall", "score", "map", "ap",
    "iou", "miou", "dice", "bleu", "rouge", "meteor", "psnr", "ssim", "r2", "reward", "return", "top1",
    "top5", "throughput",
))  # fmt: skip
_WHERE = frozenset((
    "train", "training", "val", "valid", "validation", "eval", "evaluation", "test", "dev", "epoch", "step",
    "batch", "mean", "avg", "total", "rate",
))  # fmt: skip
"""What stands behind the word that tells: of which data, or how it was put together."""
_WORD = re.compile(r"[a-z]+[0-9]*")


def best_is(metric: str) -> Best | None:
    """Whether the least or the greatest value of a metric is its best one, by the words of its name.

    The last word counts, behind which data or means may be named: `val_loss` and `error_rate/test` are min,
    `top5_acc` max, `loss_scale` and `learning_rate` nothing (None).
    """
    words = _WORD.findall(re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", metric).lower())
    while words and words[-1] in _WHERE:
        words.pop()
    last = words[-1] if words else ""
    return "min" if last in _LESS else "max" if last in _MORE else None


def differs(values: Sequence[Any]) -> bool:
    """Whether values are not all the same. One that is not there (None) differs from one that is; 1 is 1.0, not true."""
    first, is_truth = values[0] if values else None, bool(values) and isinstance(values[0], bool)
    return any(value != first or isinstance(value, bool) != is_truth for value in values)
