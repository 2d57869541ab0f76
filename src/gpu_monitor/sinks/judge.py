# SPDX-License-Identifier: MIT
"""One answer, one action: what each answer of a server means (the table of design section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from gpu_monitor.core.outcome import Outcome, Verdict
from gpu_monitor.sinks.exchange import Failure, Reply, host_of
from gpu_monitor.wire.answer import one_line, prove, read_object, reason_of

LONGEST_WAIT = 6 * 3600.0
"""A longer Retry-After is cut to this: as often as a parked report is revived, a word from far ahead (a
proxy's maintenance page, a wrong date) must not silence a node for weeks."""
_SHORTEST_WAIT = 1.0
"""`Retry-After: 0` must not burn ten attempts within one second."""

_VERDICTS = {
    400: Verdict.REJECTED, 422: Verdict.REJECTED,
    409: Verdict.CONFLICT, 413: Verdict.TOO_LARGE,
    408: Verdict.RETRY, 425: Verdict.RETRY, 429: Verdict.RETRY,
}  # fmt: skip
_TELLS_WHEN = (429, 503)


def judge(reply: Reply, body: bytes, url: str, now: float, *, is_compressed: bool) -> Outcome:
    """What the answer to one report means; `body` is its exact JSON, `now` the wall clock (UTC epoch)."""
    status = reply.status
    if reply.data is None and 200 <= status < 300:
        return Outcome(Verdict.RETRY, status, error=f"{shown(url)} answered with too much to be an answer")
    data = reply.data or b""
    answer = read_object(data)
    if 200 <= status < 300:
        return acknowledge(status, answer, body, url)
    if 300 <= status < 400:
        to = _host(url, reply.headers.get("location", ""))
        text = f"{shown(url)} redirects to {to}; it was not followed (check server.url)"
        return Outcome(Verdict.RETRY, status, error=f"HTTP {status}: {text}")
    after = retry_after(reply.headers, now) if status in _TELLS_WHEN else None
    return refuse(status, answer, data, url, len(body), after=after, is_compressed=is_compressed)


def acknowledge(status: int, answer: Mapping[str, Any] | None, body: bytes, url: str) -> Outcome:
    """A 2xx is an acknowledgement only with a uid and, where it gives one, the right digest or echo."""
    if answer is None:
        return Outcome(
            Verdict.RETRY, status, error=f"HTTP {status} from {shown(url)}, but the answer is no JSON object"
        )
    proof = prove(answer, body)
    if proof.kind is None:
        text = f"HTTP {status} from {shown(url)}, but {proof.problem}: not an acknowledgement"
        return Outcome(Verdict.RETRY, status, uid=proof.uid, error=text)
    outcome, revision = answer.get("outcome"), answer.get("revision")
    return Outcome(
        Verdict.ACKNOWLEDGED,
        status,
        uid=proof.uid,
        proof=proof.kind,
        outcome=outcome if isinstance(outcome, str) else None,
        revision=_revision(revision),
        note=_quarantined(answer.get("quarantined")),
    )


def refuse(
    status: int,
    answer: Mapping[str, Any] | None,
    data: bytes,
    url: str,
    size: int,
    *,
    after: float | None,
    is_compressed: bool,
) -> Outcome:
    """What an answer of 400 and above means."""
    reason = reason_of(answer, data)
    text = f"HTTP {status} from {shown(url)}" + (f": {reason}" if reason else "")
    if after is not None:
        return Outcome(Verdict.WAIT, status, error=f"{text} (told to wait {after:.0f} s)", after=after)
    if status == 415 and is_compressed:
        return Outcome(Verdict.UNCOMPRESSED, status, error=text)
    if status == 413:
        text += f" (the report has {size} bytes)"
    verdict = _VERDICTS.get(status, Verdict.REFUSED if 400 <= status < 500 else Verdict.RETRY)
    revision = _revision(answer.get("revision")) if answer is not None else None
    return Outcome(verdict, status, error=text, revision=revision)


def judge_failure(failure: Failure) -> Outcome:
    """What it means that there was no answer."""
    text = one_line(failure.text)
    if failure.stopped:
        return Outcome(Verdict.INTERRUPTED, error=text)
    return Outcome(Verdict.RETRY if failure.reached else Verdict.UNREACHABLE, error=text)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, from 1 s to 6 h; None where the header is missing or cannot be read.

    A date is held against the server's own clock (its Date header) where it tells it.
    """
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        seconds = float(text[:12])
    else:
        moment, their_now = _epoch(text), _epoch(headers.get("date", ""))
        if moment is None:
            return None
        seconds = moment - (now if their_now is None else their_now)
    return min(max(seconds, _SHORTEST_WAIT), LONGEST_WAIT)


def _host(url: str, location: str) -> str:
    """The host that a redirect names, for people."""
    try:
        return one_line(urlsplit(urljoin(url, location)).hostname or "nowhere")
    except ValueError:
        return "an address that cannot be read"


def _epoch(text: str) -> float | None:
    try:
        stamp = parsedate_to_datetime(text)
        return stamp.replace(tzinfo=stamp.tzinfo or timezone.utc).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _revision(value: Any) -> int | None:
    """A revision number one may count on; None for anything else."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and 0 <= value < 2**31 else None


def _quarantined(value: Any) -> str | None:
    if not isinstance(value, list) or not value:
        return None
    return f"the server set {len(value)} entries aside: " + one_line(", ".join(map(str, value[:8])))


def shown(url: str) -> str:
    """A URL for messages: without user, query or fragment, which may hold secrets."""
    parts = urlsplit(url)
    return one_line(f"{parts.scheme}://{host_of(url)}{parts.path}")
