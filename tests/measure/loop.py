"""The least that records eight GPUs each second: a loop over NVML into SQLite. A yardstick for scripts/bench."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

import pynvml

CALLS: tuple[Callable[[Any], int], ...] = (
    lambda handle: pynvml.nvmlDeviceGetTemperature(handle, 0),
    lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle).used,
    lambda handle: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
    lambda handle: pynvml.nvmlDeviceGetPowerUsage(handle),
    lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, 0),
    lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, 2),
)


def main(file: str) -> None:
    """Read and store until killed."""
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"CREATE TABLE samples (time, gpu, {', '.join(f'v{n}' for n in range(len(CALLS)))})")
    due = time.monotonic()
    while True:
        now = time.time()
        rows = [(now, gpu, *(call(handle) for call in CALLS)) for gpu, handle in enumerate(handles)]
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO samples VALUES ({', '.join('?' * (2 + len(CALLS)))})", rows)
        connection.execute("COMMIT")
        due += 1.0
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1])
