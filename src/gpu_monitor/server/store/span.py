"""A stretch of time that a question is about. Pure."""

from __future__ import annotations

from dataclasses import dataclass

HOUR, DAY = 3600, 86400


@dataclass(frozen=True)
class Span:
    """[since, until), UTC epoch seconds."""

    since: float
    until: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.until - self.since

    @property
    def first_hour(self) -> int:
        """The first hour that begins in it."""
        return int(-(-self.since // HOUR))

    @property
    def end_hour(self) -> int:
        """The first hour that begins at its end or later."""
        return int(-(-self.until // HOUR))
