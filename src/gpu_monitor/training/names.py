# SPDX-License-Identifier: MIT
"""Names of metrics: which are taken, and what one that is not becomes."""

from __future__ import annotations

import re

from gpu_monitor.wire.training import METRIC_NAME

LONGEST = 250
"""Characters of a metric's name."""
_OTHERS = re.compile(r"[^A-Za-z0-9_./\-: ]+")


def is_name(name: object) -> bool:
    """Whether a metric may be called so: 1 to 250 of ASCII letters, digits, `_ . / - :` and space."""
    return isinstance(name, str) and METRIC_NAME.fullmatch(name) is not None


def cleaned(name: object) -> str:
    """The nearest name that is taken: each run of other characters is one `_`, and what is too long is cut."""
    return _OTHERS.sub("_", str(name))[:LONGEST] or "_"


def complaint(name: object) -> str:
    """What is wrong with a name, in one sentence."""
    shown = repr(name if len(str(name)) <= 60 else str(name)[:57] + "...")
    if not isinstance(name, str):
        return f"the metric name {shown} is a {type(name).__name__}, not a text"
    if not name:
        return "a metric has an empty name"
    if len(name) > LONGEST:
        return f"the metric name {shown} has {len(name)} characters; {LONGEST} are taken"
    return f"the metric name {shown} holds characters other than ASCII letters, digits, _ . / - : and space"
