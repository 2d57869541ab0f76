"""Where the recorded logs lie: in the repository, beside it, or where GPU_MONITOR_RECORDINGS points."""

from __future__ import annotations

import os
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest

_TESTS = Path(__file__).resolve().parent
_COPIES = _TESTS / "data" / "recorded"


def recordings_folder() -> Path:
    """The folder of the large recordings; it may be absent."""
    named = os.environ.get("GPU_MONITOR_RECORDINGS")
    return Path(named) if named else _TESTS.parent.parent / "shared" / "data"


def recording(name: str) -> Path:
    """The recording `name`, for example `csv/virtualclient_8xH100.csv`; skips the test where it is absent."""
    for folder in (_COPIES, recordings_folder()):
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"the recording {name} is in neither {_COPIES} nor {recordings_folder()}")


def zone_named(name: str) -> ZoneInfo:
    """The time zone `name`; skips the test on a machine without a time zone database."""
    try:
        return ZoneInfo(name)
    except ZoneInfoNotFoundError:
        pytest.skip(f"this machine knows no time zone {name} (package tzdata)")
