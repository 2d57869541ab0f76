# SPDX-License-Identifier: MIT
"""Takes secrets out of a server's words before anybody logs or keeps them."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

LEAST = 4
"""Characters of the shortest secret, and of the shortest beginning of one, that is masked: masking less in
known text (an address, a status) would even tell it. Tokens have at least eight (`config.load`)."""
_MASK = "***"
_CUT = "…"
_BASE64 = "A-Za-z0-9+/_%=-"


def mask_tokens(text: str, tokens: Iterable[str]) -> str:
    """`text` without the tokens, wherever they stand: plain, URL-encoded, escaped, or in base64 at any offset.

    The beginning of one that a message was cut in (at its end or before "…") goes, too.
    """
    for token in tokens:
        if len(token) >= LEAST:
            text = _mask_token(text, token)
    return text


def mask_word(text: str, secret: str) -> str:
    """`text` without `secret` where it stands as a whole word; a short one (see LEAST) stays."""
    if len(secret) < LEAST:
        return text
    return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _MASK, text)


def _mask_token(text: str, token: str) -> str:
    text = re.sub(_pattern(token), _MASK, text, flags=re.IGNORECASE)
    encoded = list(_in_base64(token))
    for form in encoded:
        # The whole run goes: the characters beside the form hold a few bits of the token, too.
        text = re.sub(f"[{_BASE64}]*{_pattern(form)}[{_BASE64}]*", _MASK, text, flags=re.IGNORECASE)
    for form in (token, quote(token, safe=""), *encoded):
        text = _mask_cut(text, form)
    return text


def _pattern(secret: str) -> str:
    return "".join(_letter(letter) for letter in secret)


def _letter(letter: str) -> str:
    """A letter as itself, percent-encoded (also more than once), or escaped as JSON or HTML does."""
    number = f"{ord(letter):02x}"
    forms = {letter, html.escape(letter), json.dumps(letter)[1:-1], f"\\{letter}", f"&#{ord(letter)};"}
    shapes = [re.escape(form) for form in sorted(forms, key=len, reverse=True)]
    return f"(?:%(?:25)*{number}|\\\\u00{number}|&#x0*{number};|{'|'.join(shapes)})"


def _in_base64(token: str) -> Iterator[str]:
    """What base64 of any text with `token` in it holds: one for each place within three bytes, both alphabets."""
    for before, shared in ((0, 0), (1, 2), (2, 3)):
        content = bytes(before) + token.encode()
        whole = base64.b64encode(content).decode()[shared : len(content) * 8 // 6]
        yield whole
        other = whole.replace("+", "-").replace("/", "_")
        if other != whole:
            yield other


def _mask_cut(text: str, form: str) -> str:
    """`text` without the beginnings of `form` that it was cut in."""
    pieces = text.split(_CUT)
    for place, piece in enumerate(pieces):
        for length in range(min(len(form) - 1, len(piece)), LEAST - 1, -1):
            if piece.endswith(form[:length]):
                pieces[place] = piece[:-length] + _MASK
                break
    return _CUT.join(pieces)
