# SPDX-License-Identifier: MIT
"""Values as cells of a CSV that people open in a spreadsheet. Pure."""

from __future__ import annotations

import json
from typing import Any

from gpu_monitor.core.terminal_text import clean, escape_json

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(value: Any) -> Any:
    """One CSV cell: null is empty, lists are joined, control characters of a text become spaces.

    A text that a spreadsheet would run gets a leading apostrophe.
    """
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        flat = all(not isinstance(one, (dict, list)) for one in value)
        return cell(
            ";".join(str(one) for one in value)
            if flat
            else escape_json(json.dumps(value, ensure_ascii=False))
        )
    if isinstance(value, dict):
        return cell(escape_json(json.dumps(value, ensure_ascii=False)) if value else None)
    if isinstance(value, str):
        shown = clean(value)
        return "'" + shown if value.startswith(_FORMULA) else shown
    return value
