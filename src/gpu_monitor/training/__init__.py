# SPDX-License-Identifier: MIT
"""The training SDK. Importing this package loads nothing: its names are loaded when they are first asked for."""

from __future__ import annotations

import importlib
from typing import Any

NAMES = {
    "TrainingMonitor": "gpu_monitor.training.monitor",
    "compare_experiments": "gpu_monitor.training.compare",
    "list_checkpoints": "gpu_monitor.training.checkpoints",
    "load_checkpoint": "gpu_monitor.training.checkpoints",
    "download_model": "gpu_monitor.training.downloads",
    "find_model": "gpu_monitor.training.models",
    "list_models": "gpu_monitor.training.models",
    "verify_model": "gpu_monitor.training.models",
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
