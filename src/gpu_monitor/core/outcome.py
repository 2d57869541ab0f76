# SPDX-License-Identifier: MIT
"""What came of one attempt to deliver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What the agent does next (the table of design section 7)."""

    ACKNOWLEDGED = "acknowledged"
    REJECTED = "rejected"
    REFUSED = "refused"
    """The server is not taking anything from us (401, 403, 404 ...): keep all, at most every 10 min."""
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    WAIT = "wait"
    """The server said when to come back: `after` seconds."""
    RETRY = "retry"
    """Something passing: back off with jitter."""
    UNREACHABLE = "unreachable"
    """No answer at all: one report probes, the others burn no attempts."""
    UNCOMPRESSED = "uncompressed"
    """415 to a compressed body: again plain, at once."""
    SPLIT = "split"
    """The batch as a whole was not taken and says nothing about its reports: again in smaller ones, at once."""
    INTERRUPTED = "interrupted"
    """We stopped, or died, before an answer came: sent again, and not counted against the report."""


@dataclass(frozen=True)
class Parcel:
    """One report as it goes out: its id and the exact JSON bytes that the id names."""

    report_id: str
    body: bytes


@dataclass(frozen=True)
class Room:
    """How much one `send` may carry now: a number of reports, and their bytes together."""

    reports: int
    bytes: int


@dataclass(frozen=True)
class Outcome:
    """One attempt. `uid` is the server's; `proof` is digest, echo or unverified; `error` for people.

    `after`: seconds to wait. `outcome`: stored, repeated or superseded, as the server says. `revision`:
    the highest it holds for the period. `note`: something people should know of an acknowledged report.
    """

    verdict: Verdict
    status: int | None = None
    uid: str | None = None
    proof: str | None = None
    error: str | None = None
    after: float | None = None
    outcome: str | None = None
    revision: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class LiveTerms:
    """Whether a server takes live samples, and the pace (s) that somebody who looks at the node asks for."""

    is_wanted: bool
    watch_seconds: float | None
