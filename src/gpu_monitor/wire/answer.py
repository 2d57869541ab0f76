# SPDX-License-Identifier: MIT
"""What a central server answers: read without trust, and held against what was sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gpu_monitor.wire.telemetry import digest

FASTEST_WATCH, SLOWEST_WATCH = 2.0, 60.0
"""Seconds between a watched node's readings: no server has an agent sample faster, or slower than its minute."""
_REASON_LENGTH = 300
"""Enough for a sentence of a validator; it is kept once per attempt and shown in one line."""
_REASON_KEYS = ("error", "detail", "message", "reason", "reasons", "errors", "title")


@dataclass(frozen=True)
class Accepts:
    """What the server says it takes beside plain single reports; URLs are relative to the report's.

    `samples`: where live samples go; `experiments`: below which the ends of runs are told.
    `watch_seconds`: the pace that somebody who looks at this node asks for.
    """

    encodings: frozenset[str] = frozenset()
    batch: str | None = None
    samples: str | None = None
    watch_seconds: float | None = None
    experiments: str | None = None


@dataclass(frozen=True)
class Proof:
    """Whether an answer proves that the server holds our exact bytes.

    `kind`: digest, echo or unverified (a uid with neither); None where it proves nothing, and `problem`
    says why.
    """

    uid: str | None
    kind: str | None
    problem: str | None = None


def read_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`; None where it is anything else."""
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_accepts(answer: Mapping[str, Any]) -> Accepts | None:
    """What `accepts` says; None where there is none. Parts of a wrong type count as absent."""
    found = answer.get("accepts")
    if not isinstance(found, dict):
        return None
    encodings = found.get("encodings")
    known = [one for one in encodings if isinstance(one, str)] if isinstance(encodings, list) else []
    return Accepts(
        frozenset(known),
        _place(found.get("batch")),
        _place(found.get("samples")),
        _pace(found.get("watch_seconds")),
        _place(found.get("experiments")),
    )


def _place(found: object) -> str | None:
    return found if isinstance(found, str) and found else None


def _pace(found: object) -> float | None:
    """Seconds between 2 and 60; None where nobody looks, or where it is no such number."""
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 < found <= SLOWEST_WATCH:
        return None
    return max(float(found), FASTEST_WATCH)


def read_answers(answer: Mapping[str, Any]) -> list[dict[str, Any] | None] | None:
    """The answers of a batch, in order (None for one that is no object); None where there are none."""
    found = answer.get("answers")
    if not isinstance(found, list):
        return None
    return [one if isinstance(one, dict) else None for one in found]


def prove(answer: Mapping[str, Any], body: bytes) -> Proof:
    """Hold an answer against the exact JSON bytes that were sent."""
    uid = answer.get("uid")
    if isinstance(uid, int) and not isinstance(uid, bool):
        uid = str(uid)
    if not isinstance(uid, str) or not uid:
        return Proof(None, None, "the answer has no uid")
    uid, kind = one_line(uid), "unverified"
    if answer.get("sha256") is not None:
        if answer["sha256"] != digest(body):
            return Proof(uid, None, "the answer's sha256 is not that of the report")
        kind = "digest"
    if answer.get("params") is not None:
        if not _same(answer["params"], msgspec.json.decode(body)):
            return Proof(uid, None, "the answer's echo differs from the report")
        kind = "echo" if kind == "unverified" else kind
    return Proof(uid, kind)


def _same(left: Any, right: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are the same number, true and 1 are not the same."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def reason_of(answer: Mapping[str, Any] | None, data: bytes) -> str:
    """The server's own words for people, one line; empty where it gives none."""
    if answer is None:
        text = data[: 4 * _REASON_LENGTH].decode("utf-8", errors="replace").strip()
        return "" if text.startswith("<") else one_line(text)
    for key in _REASON_KEYS:
        if answer.get(key):
            found = answer[key]
            return one_line(found if isinstance(found, str) else _compact(found))
    return ""


def _compact(value: Any) -> str:
    """JSON text of what a server sent; empty where that nests too deep to print."""
    try:
        return msgspec.json.encode(value).decode()
    except (ValueError, RecursionError):
        return ""


def one_line(text: str) -> str:
    """`text` as one printable line of at most 300 characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1] + "…"
