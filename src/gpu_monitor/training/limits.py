# SPDX-License-Identifier: MIT
"""Records made to fit what the format takes (docs/segments.md): one that does not would hold up all that follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from gpu_monitor.wire.training import (
    KEY_LETTERS,
    NAME_LETTERS,
    TAG_LETTERS,
    Alert,
    AnyRecord,
    Media,
    Params,
    Tag,
)

_SHOWN = 40
_Kind = TypeVar("_Kind", Tag, Alert, Media)


@dataclass(frozen=True)
class Fitted:
    """A record as the format takes it; None where nothing is left of it. `complaint`: what was changed, or None."""

    record: AnyRecord | None
    complaint: str | None = None


def fit(record: AnyRecord) -> Fitted:
    """The record with names that are neither empty nor too long, and texts that are not too long."""
    if isinstance(record, Params):
        return _params(record)
    if isinstance(record, Tag):
        if not record.key:
            return Fitted(None, "a tag without a key is left out")
        keyed, said = _cut(record, "key", KEY_LETTERS, "the key of a tag")
        tag, more = _cut(keyed, "value", TAG_LETTERS, f"the tag {record.key[:_SHOWN]}")
        return Fitted(tag, said or more)
    if isinstance(record, Alert):
        return Fitted(*_cut(record, "title", NAME_LETTERS, "the title of an alert"))
    if isinstance(record, Media):
        if not record.name:
            return Fitted(None, f"a {record.kind} without a name is left out")
        return Fitted(*_cut(record, "name", NAME_LETTERS, f"the name of a {record.kind}"))
    return Fitted(record)


def halves(record: AnyRecord) -> tuple[Params, Params] | None:
    """Parameters that are too many for one record, as two; None where a record cannot be parted."""
    if not isinstance(record, Params) or len(record.params) < 2:
        return None
    items = list(record.params.items())
    middle = len(items) // 2
    return Params(record.at, dict(items[:middle])), Params(record.at, dict(items[middle:]))


def _params(record: Params) -> Fitted:
    if all(0 < len(name) <= NAME_LETTERS for name in record.params):
        return Fitted(record)
    kept = {_shortened(name, NAME_LETTERS): value for name, value in record.params.items() if name}
    said = "the name of a parameter has 1 to 500 letters: one without is left out, a longer one is cut"
    return Fitted(Params(record.at, kept) if kept else None, said)


def _cut(record: _Kind, field: str, letters: int, what: str) -> tuple[_Kind, str | None]:
    text = getattr(record, field)
    if text is None or len(text) <= letters:
        return record, None
    said = f"{what} has {len(text):,} letters; {letters:,} are kept"
    return msgspec.structs.replace(record, **{field: _shortened(text, letters)}), said


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
