# SPDX-License-Identifier: MIT
"""Names of artifacts: relative paths with slashes that mean the same to every system, browser and server."""

from __future__ import annotations

import re

from gpu_monitor.core.errors import GpuMonitorError

_LONGEST, _LONGEST_PART = 512, 255
"""Bytes of UTF-8, of a whole name and of one part of it."""
_ENCODED = re.compile(r"%(?:2e|2f|5c|00)", re.IGNORECASE)
"""A dot, a slash, a backslash or a NUL that something on the way may decode."""


class NameRefused(GpuMonitorError):
    """A name that an artifact cannot have."""


def check_name(name: str) -> str:
    """The name itself; NameRefused, saying why, for one that leads elsewhere or that is not text for all."""
    problem = _problem(name)
    if problem is not None:
        shown = name.encode("utf-8", "backslashreplace").decode()[:100]
        raise NameRefused(
            f"{shown!r} cannot name an artifact: it {problem}",
            "Use a relative path with slashes, such as data/train.csv.",
        )
    return name


def _problem(name: str) -> str | None:
    """What is wrong with a name; None where nothing is."""
    parts = name.split("/")
    try:
        encoded = [part.encode() for part in parts]
    except UnicodeEncodeError:
        return "is not valid Unicode"
    found = (
        (not name, "is empty"),
        (name.startswith("/"), "is absolute"),
        (re.match(r"[A-Za-z]:", name), "begins with a drive"),
        ("\\" in name, "holds a backslash"),
        (any(ord(letter) < 32 or ord(letter) == 127 for letter in name), "holds a control character"),
        (_ENCODED.search(name), "holds an encoded dot, slash, backslash or NUL"),
        (any(part in (".", "..") for part in parts), "holds a part that is . or .."),
        (not all(parts), "holds an empty part"),
        (len(name.encode("utf-8", "replace")) > _LONGEST, f"is longer than {_LONGEST} bytes"),
        (
            any(len(part) > _LONGEST_PART for part in encoded),
            f"holds a part longer than {_LONGEST_PART} bytes",
        ),
    )
    return next((why for is_wrong, why in found if is_wrong), None)
