"""Which value of a metric is its best one, and what differs between runs."""

from __future__ import annotations

import pytest

from gpu_monitor.core.compare import best_is, differs


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("loss", "min"),
        ("val_loss", "min"),
        ("valLoss", "min"),
        ("loss/train", "min"),
        ("error_rate/test", "min"),
        ("eval/perplexity", "min"),
        ("accuracy", "max"),
        ("top5_acc", "max"),
        ("test: F1", "max"),
        ("mAP", "max"),
        ("map-50", "max"),
        ("loss_scale", None),
        ("learning_rate", None),
        ("lossy", None),
        ("epoch", None),
        ("...", None),
        ("", None),
    ],
)
def test_a_name_tells_which_value_is_best_or_it_is_not_known(metric: str, best: str | None) -> None:
    assert best_is(metric) == best


@pytest.mark.parametrize(
    ("values", "differ"),
    [
        ([], False),
        ([1], False),
        ([1, 1.0, 1], False),
        ([1, True], True),
        ([True, 1], True),
        ([None, None], False),
        ([None, 0], True),
        (["1", 1], True),
        ([[1, {"a": 2}], [1, {"a": 2}]], False),
        ([0.1, 0.1, 0.2], True),
    ],
)
def test_what_is_not_the_same_differs(values: list[object], differ: bool) -> None:
    assert differs(values) is differ
