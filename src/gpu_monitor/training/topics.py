# SPDX-License-Identifier: MIT
"""What a run records by itself, by name, and which of it is wanted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

FACTS = ("command", "python", "host", "slurm", "cuda", "git", "packages")
"""Recorded once, at the start."""
CONSOLE, SYSTEM, GPU = "console", "system", "gpu"
"""Output, readings of the machine and the process, readings of GPUs: recorded all the time."""
DIFF = "git diff"
"""The name under which what was changed since the commit is recorded, as a text."""
TOPICS = (*FACTS, CONSOLE, SYSTEM, GPU)
Choice = bool | Iterable[str] | Mapping[str, bool] | None
"""True or None: everything. False: nothing. Names: these alone. A mapping: everything but what is False in it."""


class UnknownTopics(ValueError):
    """A choice names what nothing is recorded under; `wanted` holds what it means without that."""

    def __init__(self, text: str, wanted: frozenset[str]) -> None:
        super().__init__(text)
        self.wanted = wanted


def wanted_topics(choice: Choice) -> frozenset[str]:
    """The topics that a choice means. Raises UnknownTopics for names that are none."""
    if choice is None or choice is True:
        return frozenset(TOPICS)
    if choice is False:
        return frozenset()
    if isinstance(choice, Mapping):
        named = {str(name) for name in choice}
        wanted = frozenset(TOPICS) - {str(name) for name, is_wanted in choice.items() if not is_wanted}
    elif not isinstance(choice, Iterable):
        raise UnknownTopics(
            f"capture= is True, False, names of topics or a mapping, not {choice!r:.40}", frozenset(TOPICS)
        )
    else:
        named = {choice} if isinstance(choice, str) else {str(name) for name in choice}
        wanted = frozenset(named & set(TOPICS))
    unknown = sorted(named - set(TOPICS))
    if unknown:
        near = difflib.get_close_matches(unknown[0], TOPICS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TOPICS)}"
        raise UnknownTopics(f"capture= names {unknown[0]!r}, which nothing is recorded under; {hint}", wanted)
    return wanted
