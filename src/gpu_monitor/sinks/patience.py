# SPDX-License-Identifier: MIT
"""How long to wait before a server is asked again."""

from __future__ import annotations

import random
from collections.abc import Callable

from gpu_monitor.sinks.experiments import Meaning, Told

_FIRST, _LONGEST = 1.0, 60.0
_FOR_PEOPLE = 60.0
"""A token or a missing place is mended by a person; looked at again after so many seconds, ten times that at most."""


class Patience:
    """Doubles from 1 s to 60 s (where a person is needed, from 1 to 10 minutes), less up to half, by chance."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self.failures = 0

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures = 0

    def failed(self, told: Told) -> float:
        """Seconds to wait after this answer; never less than the server asked for."""
        self.failures += 1
        needs_person = told.meaning in (Meaning.UNAUTHORISED, Meaning.ABSENT)
        first, longest = (_FOR_PEOPLE, 10 * _FOR_PEOPLE) if needs_person else (_FIRST, _LONGEST)
        seconds = min(longest, first * 2.0 ** min(self.failures - 1, 16))
        return max(seconds * (0.5 + self._chance() / 2), told.after or 0.0)
