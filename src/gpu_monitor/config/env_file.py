# SPDX-License-Identifier: MIT
"""The lines of a `.env` file: `NAME=value`, with `export` before and quotes around the value if wanted."""

from __future__ import annotations

import re
from pathlib import Path

from gpu_monitor.core.errors import ConfigError

ENV_FILE = ".env"
_LARGEST = 100_000
"""Bytes of a `.env`; one with every setting takes under 4,000."""
_LINE = re.compile(
    r"""(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<value>"[^"]*"|'[^']*'|[^'"#\s]\S*(?:\s+[^\s#]\S*)*|)(?:\s+\#.*|\s*)"""
)


def env_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are neither empty nor comments, with their numbers; none where there is no such file.

    ConfigError where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST).decode("utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", "It must be UTF-8 text that this user may read."
        ) from error
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def env_pair(line: str) -> tuple[str, str] | None:
    """Name and value of one line, without the value's quotes; None where it is no `NAME=value`."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    value = match["value"]
    return match["name"], value[1:-1] if value[:1] in ("'", '"') else value
