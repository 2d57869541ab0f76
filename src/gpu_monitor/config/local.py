# SPDX-License-Identifier: MIT
"""The token of a server on this machine, which agent, SDK and commands of the same user pick up.

The file `local.token` in the user's state directory has one line for each running server: its address and the
token that it made at its start. It is readable by its owner only.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from gpu_monitor.core.errors import ConfigError

LOCAL_FILE = "local.token"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def state_home(variables: Mapping[str, str]) -> Path:
    """The user's state directory of this program."""
    if sys.platform == "win32":
        root = variables.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        return Path(root) / "gpu_monitor"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "gpu_monitor"
    return Path(variables.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "gpu_monitor"


def local_origin(url: str) -> str | None:
    """Scheme and port of an address on loopback, as `http:8000`; None where it is another machine's."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return f"{parts.scheme}:{port}" if (parts.hostname or "").lower() in _LOOPBACK else None


def read_lines(path: Path) -> dict[str, str]:
    """Every server's address and token in the file; none where there is no file.

    ConfigError where it belongs to another user, can be read by others, or cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            held = os.fstat(file.fileno())
            text = file.read(100_000)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", "Correct its mode, or delete it.") from error
    if sys.platform != "win32" and (stat.S_IMODE(held.st_mode) & 0o077 or held.st_uid != os.geteuid()):
        raise ConfigError(
            f"{path} can be read by other users, or is another's", "Delete it and start the server again."
        )
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def local_token(path: Path, url: str) -> str | None:
    """The token for the server at `url`, where that is on loopback and this user runs it."""
    origin = local_origin(url)
    if origin is None:
        return None
    return next(
        (token for address, token in read_lines(path).items() if local_origin(address) == origin), None
    )
