"""A rule: one kind's settings with a name, a severity and the advice what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.alerts.kinds import AnySpec

Severity = Literal["info", "warning", "error", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error", "critical")
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
ID_LENGTH = 64


@dataclass(frozen=True)
class Rule:
    """One rule. `contract`: only nodes of that contract; None: of every one. `changed` in UTC epoch seconds."""

    id: str
    spec: AnySpec
    severity: Severity
    advice: str | None = None
    enabled: bool = True
    builtin: bool = False
    contract: int | None = None
    changed: float = 0.0


def check_id(text: str) -> str:
    """The id; UsageError where it is none."""
    if not _ID.fullmatch(text) or len(text) > ID_LENGTH:
        raise UsageError(
            f"{text!r} is no id of a rule",
            f"Small letters, digits and single -, up to {ID_LENGTH}: gpu-lost.",
        )
    return text
