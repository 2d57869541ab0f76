# SPDX-License-Identifier: MIT
"""Callbacks for frameworks. Nothing is imported until a name is asked for, and then only that framework."""

from __future__ import annotations

import importlib
from typing import Any

NAMES = {
    "KerasMonitor": "gpu_monitor.training.frameworks.keras",
    "LightningLogger": "gpu_monitor.training.frameworks.lightning",
    "TransformersMonitor": "gpu_monitor.training.frameworks.transformers",
    "log_cross_validation": "gpu_monitor.training.frameworks.sklearn",
    "log_estimator": "gpu_monitor.training.frameworks.sklearn",
    "log_search": "gpu_monitor.training.frameworks.sklearn",
    "sklearn_run": "gpu_monitor.training.frameworks.sklearn",
}
"""What may be imported from here, and the module that has it."""
__all__ = sorted(NAMES)


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(NAMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMES})
