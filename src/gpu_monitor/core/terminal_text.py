# SPDX-License-Identifier: MIT
"""Text that a terminal only shows: without characters that move its cursor, ring it or turn its lines round."""

from __future__ import annotations

import re

# C0 and C1 controls, DEL, line and paragraph separators, the marks that set the direction of writing
# (Unicode's Bidi_Control), and halves of pairs, which Python makes of bytes that are no UTF-8 and cannot print.
# Joiners stay: words of some scripts need them.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` on one line without control characters; where one stood there is a space."""
    return text if text.isprintable() else CONTROLS.sub(" ", text)


def clean_lines(text: str) -> str:
    """`text` with its line breaks and without other control characters."""
    return "\n".join(clean(line) for line in text.split("\n"))


def clean_name(name: str) -> str:
    """A name without control characters and needless spaces; printable names come back as they are."""
    return name if name.isprintable() else " ".join(clean(name).split())


def escape_json(text: str) -> str:
    r"""JSON of one line with its control characters written as \uXXXX, which reads back as the same value."""
    if text.isprintable():
        return text
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
