"""NVIDIA GPUs through NVML, called in a child process that the agent can lose (see ../../README.md)."""

from gpu_monitor.sources.gpu.nvml.settings import NvmlSettings
from gpu_monitor.sources.gpu.nvml.source import NvmlSource, open_nvml

__all__ = ["NvmlSettings", "NvmlSource", "open_nvml"]
