"""A real card, where there is one; without one the tests here are skipped and say why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpu_monitor.core.errors import SourceUnavailable
from gpu_monitor.sources.gpu.nvml import NvmlSettings, NvmlSource


@pytest.fixture
def card() -> Iterator[NvmlSource]:
    """The NVML source of this machine's own GPUs, never let to sleep meanwhile."""
    source = NvmlSource(NvmlSettings(idle_release_seconds=0))
    try:
        try:
            source.probe()
        except SourceUnavailable as reason:
            pytest.skip(f"NO REAL GPU IS TESTED HERE: {reason.message}")
        yield source
    finally:
        source.close()
