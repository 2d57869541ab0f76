# SPDX-License-Identifier: MIT
"""The border to code that is not ours: models, figures, tables and what they are made of may raise anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_LONGEST = 300


class ForeignError(Exception):
    """Code that is not ours failed; the text is the kind of error and its first line."""


def call_foreign(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What `function` returns; ForeignError for any Exception that it raises."""
    try:
        return function(*arguments, **named)
    except Exception as error:
        raise ForeignError(said(error)) from error


def said(error: BaseException) -> str:
    """An error in one short line: its kind and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
