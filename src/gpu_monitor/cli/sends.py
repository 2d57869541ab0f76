"""`--list-sends` and `--search-send`: prints how delivery stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TextIO

from gpu_monitor.agent.sends import SendRow
from gpu_monitor.core.times import format_time

_HEADER = "Aggregation Time | Attempts | First Attempt | Last Attempt | Last Error | UID | Sent"


def print_list(
    rows: Sequence[SendRow], stream: TextIO, *, naive: bool = False, as_json: bool = False
) -> None:
    """One line per period, newest first; title and header stand also where there is none."""
    if as_json:
        lines = ",\n".join(json.dumps(_record(row, naive), ensure_ascii=False) for row in rows)
        stream.write(f"[\n{lines}\n]\n" if rows else "[]\n")
        return
    stream.write(f"Send Attempts:\n{_HEADER}\n")
    stream.writelines(" | ".join(_cells(row, naive)) + "\n" for row in rows)


def print_detail(row: SendRow, stream: TextIO, *, naive: bool = False, as_json: bool = False) -> None:
    """The delivery of one period, a line per column."""
    if as_json:
        stream.write(json.dumps(_record(row, naive), ensure_ascii=False) + "\n")
        return
    names = _HEADER.split(" | ")
    lines = (f"{name}: {cell}\n" for name, cell in zip(names, _cells(row, naive), strict=True))
    stream.write("Send Attempt Details:\n" + "".join(lines))


def _cells(row: SendRow, naive: bool) -> list[str]:
    return [
        format_time(row.period, naive),
        str(row.attempts),
        str(_time(row.first_attempt, naive)),
        str(_time(row.last_attempt, naive)),
        # One line a period: what a server wrote into its answer must not look like a row or a column.
        " ".join(str(row.last_error).replace("|", "/").split()),
        str(row.uid).replace("|", "/"),
        "1" if row.sent else "0",
    ]


def _time(epoch: float | None, naive: bool) -> str | None:
    """Whole seconds, as they can be typed back."""
    return None if epoch is None else format_time(int(epoch), naive)


def _record(row: SendRow, naive: bool) -> dict[str, Any]:
    return {
        "aggregation_time": format_time(row.period, naive),
        "period_seconds": row.period_seconds,
        "attempts": row.attempts,
        "first_attempt": _time(row.first_attempt, naive),
        "last_attempt": _time(row.last_attempt, naive),
        "last_error": row.last_error,
        "uid": row.uid,
        "sent": int(row.sent),
        "state": row.state,
        "revision": row.revision,
        "proof": row.proof,
    }
