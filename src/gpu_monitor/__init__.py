# SPDX-License-Identifier: MIT
"""gpu_monitor: the flight recorder and the ledger of a GPU fleet."""

import importlib
from typing import Any

__version__ = "0.1.0"

NAMES = {
    "TrainingMonitor": "gpu_monitor.training.monitor",
    **dict.fromkeys(
        ("start_monitoring", "stop_monitoring", "get_latest_metrics", "get_system_info"),
        "gpu_monitor.training.readings",
    ),
}
"""What may be imported from here beside the packages, and the module that has it; loaded when it is asked for."""


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(NAMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMES})
