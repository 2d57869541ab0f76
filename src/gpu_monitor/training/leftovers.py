# SPDX-License-Identifier: MIT
"""What of the experiments in a directory a server does not hold yet, as far as is known here."""

from __future__ import annotations

import heapq
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from gpu_monitor.sinks.blobs import open_plain
from gpu_monitor.sinks.segments import segment_files, size_of
from gpu_monitor.sinks.sent import read_sent
from gpu_monitor.wire.training import EXPERIMENT_ID

if sys.platform != "win32":
    import fcntl


def experiment_folders(directory: Path, most: int | None = None) -> list[Path]:
    """The folders of experiments in a directory, the newest ids first; `most` of them. OSError as of listing it."""
    with os.scandir(directory) as entries:
        names = (
            entry.name
            for entry in entries
            if EXPERIMENT_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        )
        chosen = sorted(names, reverse=True) if most is None else heapq.nlargest(most, names)
    return [directory / name for name in chosen]


def find_leftovers(directory: Path, base: str, most: int, but: Collection[str] = ()) -> Iterator[list[Path]]:
    """Segments of earlier runs that the server at `base` is not known to hold whole, of the `most` newest experiments.

    Together those of one experiment. Experiments in `but`, and segments that a living process writes, are left out.
    """
    try:
        folders = experiment_folders(directory, most)
    except OSError:
        return
    for folder in folders:
        if folder.name in but:
            continue
        found = [path for path in segment_files(folder) if is_owed(path, base) and not is_being_written(path)]
        if found:
            yield found


def is_owed(path: Path, base: str) -> bool:
    """Whether a server is not known to hold all of a segment and of the files that it names."""
    sent = read_sent(path).get(base)
    return sent is None or bool(sent.owed) or size_of(path) > sent.offset


def is_being_written(path: Path) -> bool:
    """Whether a living process of this machine writes a segment: it holds its lock. False where nobody can tell."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = open_plain(path)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
