# SPDX-License-Identifier: MIT
"""Whether the process that writes a segment is still there, as far as this machine can know."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gpu_monitor.training.identity import find_process, start_ticks
from gpu_monitor.wire.training import Writer

if sys.platform != "win32":
    import fcntl


def is_gone(log: Path, writer: Writer | None) -> bool:
    """Whether there is proof that a segment's writer is no more; False where nobody knows.

    The writer holds a lock on its log for as long as it lives, in whatever container; and no process of this
    machine has its pid and start, or the machine was started anew since.
    """
    if sys.platform == "win32" or writer is None or writer.boot_id is None or writer.start_ticks is None:
        return False
    here = find_process()
    if here.boot_id is None:
        return False
    if here.boot_id == writer.boot_id and start_ticks(writer.pid) == writer.start_ticks:
        return False
    return _is_free(log)


def _is_free(log: Path) -> bool:
    """Whether nobody holds the lock of a log."""
    try:
        file = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True
