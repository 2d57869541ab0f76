# SPDX-License-Identifier: MIT
"""training_monitor: the same SDK as `gpu_monitor`'s, by its own name, and the style that goes by sessions.

`from training_monitor import TrainingMonitor`, or `training_monitor.start_session(...)`, `log_metric(...)` and so on.
Everything is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

NAMES = {
    "TrainingMonitor": "gpu_monitor.training.monitor",
    **dict.fromkeys(
        (
            "start_session",
            "log_metric",
            "log_batch_metrics",
            "end_session",
            "get_active_sessions",
            "get_session_summary",
            "get_latest_metrics",
        ),
        "gpu_monitor.training.sessions",
    ),
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
