# SPDX-License-Identifier: MIT
"""Where experiments lie: their ids, their folders, the segments in them, and what a name means."""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone
from pathlib import Path

from gpu_monitor.core.errors import UsageError
from gpu_monitor.wire.training import EXPERIMENT_ID, SEGMENT

LOG, INDEX = ".log", ".idx"
_RANDOM_BYTES = 4
_SEGMENT_BYTES = 8


def new_id(now: float, key: str | None = None) -> str:
    """An id for an experiment that begins at `now` (UTC epoch seconds): the stamp and a random part.

    `key` (hexadecimal) takes the place of both: processes that share it get the same id.
    """
    if key is not None:
        return f"r{key[:24]}"
    stamp = datetime.fromtimestamp(now, timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return f"{stamp}-{os.urandom(_RANDOM_BYTES).hex()}"


def new_segment() -> str:
    """A name for a segment that nobody else has."""
    return f"seg-{os.urandom(_SEGMENT_BYTES).hex()}"


def is_id(text: str) -> bool:
    """Whether an experiment may have this id."""
    return EXPERIMENT_ID.fullmatch(text) is not None


def folder_of(directory: Path, experiment_id: str) -> Path:
    """The folder of an experiment. UsageError for what is no id: nothing ever leaves the directory."""
    if not is_id(experiment_id):
        raise UsageError(
            f"{experiment_id[:130]!r} is no experiment's id",
            "Ids are up to 128 letters, digits and . _ -, and begin with a letter or digit.",
        )
    return directory / experiment_id


def segments_in(folder: Path) -> list[Path]:
    """The segments of an experiment by name; none where there is no such folder."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 (a Path for each entry takes ten times as long)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if name.endswith(LOG) and SEGMENT.fullmatch(name[: -len(LOG)])]


def split_name(text: str) -> tuple[str, int]:
    """A name and how many experiments of that name back are meant: `name~2` is the one before the newest.

    `name` and `name~1` are the newest.
    """
    match = re.fullmatch(r"(.+)~([1-9][0-9]{0,8})", text, re.DOTALL)
    return (match[1], int(match[2])) if match else (text, 1)
