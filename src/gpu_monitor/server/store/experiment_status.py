"""What an experiment's status is, by what the writers of its segments said and what was seen of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LEASE_SECONDS = 60.0
"""After so long without a word from a running experiment it is stalled: a flag, not a status."""
_WORD_LETTERS = 500


@dataclass(frozen=True, slots=True)
class Word:
    """What is known of one segment's writer. `status`: its own last word; `proof`: that it was seen to be gone."""

    started: float
    rank: int | None
    parent: str | None
    status: str
    status_time: float
    more: Mapping[str, Any]
    proof: Mapping[str, Any] | None = None
    proof_time: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """An experiment's status. `ended`: UTC epoch s; None while it runs."""

    status: str
    ended: float | None = None
    exit_code: int | None = None
    signal: str | None = None
    reason: str | None = None
    proof: Mapping[str, Any] | None = None


def standing_of(words: Iterable[Word]) -> Standing:
    """The status that the segments come to.

    The process that began last decides, of those that speak for the run: rank 0 or none, and forked from nobody.
    Where there is none of these, any that began last. Its own word counts more than what was seen of it, and
    `crashed` without its own word needs proof.
    """
    held = list(words)
    speaking = [one for one in held if one.rank in (None, 0) and one.parent is None] or held
    last = max(speaking, key=lambda one: (one.started, one.status_time))
    if last.status == "running" and last.proof is None:
        return Standing("running")
    if last.status == "running" and last.proof is not None:
        cause = last.proof.get("cause")
        found = cause if isinstance(cause, Mapping) else {}
        return _ended("crashed", last.proof_time, found, last.proof)
    return _ended(last.status, last.status_time, last.more, None)


def _ended(
    status: str, ended: float | None, more: Mapping[str, Any], proof: Mapping[str, Any] | None
) -> Standing:
    code, signal, reason = (more.get(name) for name in ("exit_code", "signal", "reason"))
    return Standing(
        status,
        ended,
        code if type(code) is int and -(2**63) <= code < 2**63 else None,
        _word(signal),
        _word(reason) or _cause(more),
        proof,
    )


def _cause(more: Mapping[str, Any]) -> str | None:
    """The reason, where only its kind was said."""
    if more.get("oom") is True:
        return "out of memory"
    xid = _word(more.get("xid"))
    return None if xid is None else f"Xid {xid}"


def _word(value: Any) -> str | None:
    """A short text of what may be a text or a number."""
    is_number = type(value) in (int, float) and abs(value) < 2**63
    if isinstance(value, str) or is_number:
        return str(value)[:_WORD_LETTERS].replace("\0", "\ufffd")
    return None
