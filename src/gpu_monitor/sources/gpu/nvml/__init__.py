"""NVIDIA GPUs through NVML, called in a child process that the agent can lose (see ../../README.md)."""
