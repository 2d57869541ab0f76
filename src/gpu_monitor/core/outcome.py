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


@dataclass(frozen=True)
class Outcome:
    """One attempt. `uid` is the server's; `proof` is digest, echo or unverified; `error` for people."""

    verdict: Verdict
    status: int | None = None
    uid: str | None = None
    proof: str | None = None
    error: str | None = None
    after: float | None = None
    outcome: str | None = None
