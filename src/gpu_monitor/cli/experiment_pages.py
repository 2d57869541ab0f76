"""How experiments are printed: a list, and one of them whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from gpu_monitor.cli.labels import table_width
from gpu_monitor.cli.output import json_text, table
from gpu_monitor.core.terminal_text import clean

_SIMULATED = "SIMULATED GPUs: readings of GPUs are made up."
_LONGEST = 12
"""Notes, alerts and files that are shown; --json has them all."""


def print_list(items: Sequence[Mapping[str, Any]], stream: TextIO) -> None:
    """One line for each. Names are cut to what a terminal has room for, and whole in a pipe, where they are looked for."""
    longest = max(len(one["name"]) for one in items)
    asked = list(items[0].get("values") or ())
    taken = 72 + sum(2 + max(9, len(words)) for words in asked)
    room = max(8, table_width(stream) - taken) if stream.isatty() else longest
    rows = [
        (
            _cut(one["name"], room), one["id"], one["status"] + _flags(one), _stamp(one["started"]),
            _duration(one["duration_seconds"]), one["last_step"], *(_short(one["values"].get(words)) for words in asked),
        )
        for one in items
    ]  # fmt: skip
    table(("name", "id", "status", "started (UTC)", "took", "step", *map(clean, asked)), rows, stream)
    if any(one.get("simulated") for one in items):
        stream.write("~ with SIMULATED GPUs\n")


def _flags(one: Mapping[str, Any]) -> str:
    words = [word for word in ("stalled", "archived") if one.get(word)]
    return "".join(f", {word}" for word in words) + ("~" if one.get("simulated") else "")


def print_details(found: Mapping[str, Any], stream: TextIO) -> None:
    """Everything that is known of an experiment, as far as a person reads it."""
    if found.get("simulated"):
        stream.write(f"{_SIMULATED}\n")
    stream.write(f"{clean(found['name'])}\n")
    for label, value in _facts(found):
        if value not in (None, "", "-"):
            stream.write(f"  {label.ljust(10)}  {clean(str(value))}\n")
    _section("parameters", [(name, _json(value)) for name, value in sorted(found["params"].items())], stream)
    _section("tags", [(key, value) for key, value in sorted(found["tags"].items())], stream)
    _metrics(found["metrics"], stream)
    _section("notes", [(_stamp(one["time"]), one["text"]) for one in found["notes"]], stream)
    _section(
        "alerts",
        [(_stamp(one["time"]), f"{one['level']}: {one['title']}") for one in found["alerts"]],
        stream,
    )
    files = _files(found.get("media") or [])
    _section("pictures and files", files, stream)


def _facts(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    git = (found.get("facts") or {}).get("git") or {}
    segments = found.get("segments") or []
    ended = found.get("ended")
    return [
        ("id", found["id"]), ("project", found["project"]), ("status", found["status"] + _flags(found).rstrip("~")),
        ("reason", found.get("reason")), ("started", found["started"]), ("ended", ended),
        ("took", _took(found)), ("last step", found.get("last_step")),
        ("host", found.get("host")), ("user", found.get("user")), ("GPUs", ", ".join(found.get("gpus") or [])),
        ("commit", git.get("commit")), ("segments", len(segments)), ("damaged", found.get("damaged") or None),
        ("folder", found.get("folder")),
    ]  # fmt: skip


def _files(media: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """One line for each kind and name: the newest, and how many there are. A checkpoint that a policy removed is gone."""
    removed = {_place(one) for one in media if _more(one).get("removed")}
    newest: dict[tuple[str, str], tuple[int, Mapping[str, Any]]] = {}
    for one in media:
        if one["kind"] == "checkpoint" and _place(one) in removed:
            continue
        name = "" if one["kind"] == "checkpoint" else one["name"]
        before, _ = newest.pop((one["kind"], name), (0, one))
        newest[one["kind"], name] = before + 1, one
    lines = []
    for (kind, _), (count, one) in sorted(newest.items(), key=lambda pair: pair[0]):
        step = f" @{one['step']}" if one.get("step") is not None else ""
        lines.append((kind, f"{one['name']}{step}{f', the newest of {count}' if count > 1 else ''}"))
    return lines


def _place(one: Mapping[str, Any]) -> Any:
    return _more(one).get("file") or one.get("file")


def _more(one: Mapping[str, Any]) -> Mapping[str, Any]:
    more = one.get("more")
    return more if isinstance(more, Mapping) else {}


def _metrics(metrics: Sequence[Mapping[str, Any]], stream: TextIO) -> None:
    own = [one for one in metrics if one.get("source") != "sdk"]
    if not own and not metrics:
        return
    stream.write("metrics\n")
    rows = [
        (f"  {one['name']}", one["points"], *(_point(one[kind]) for kind in ("last", "min", "max")))
        for one in own
    ]
    table(("  name", "points", "last", "least", "greatest"), rows, stream)
    if len(own) < len(metrics):
        stream.write(f"  and {len(metrics) - len(own)} that the SDK read by itself (--json shows them)\n")


def _section(title: str, rows: Sequence[tuple[str, str]], stream: TextIO) -> None:
    if not rows:
        return
    stream.write(f"{title}\n")
    width = min(32, max(len(name) for name, _ in rows[:_LONGEST]))
    for name, value in rows[:_LONGEST]:
        stream.write(f"  {clean(name).ljust(width)}  {clean(value)}\n")
    if len(rows) > _LONGEST:
        stream.write(f"  and {len(rows) - _LONGEST} more (--json shows them)\n")


def _point(told: Mapping[str, Any] | None) -> str | None:
    if told is None:
        return None
    value = told["value"]
    text = value if isinstance(value, str) else f"{value:.6g}"
    return text if told.get("step") is None else f"{text} @{told['step']}"


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def _short(value: Any) -> str | None:
    """A value in a list; None where there is none."""
    if value is None:
        return None
    return f"{value:.6g}" if isinstance(value, float) else _cut(_json(value), 24)


def _stamp(text: str | None) -> str:
    return "-" if text is None else text[:16].replace("T", " ")


def _took(found: Mapping[str, Any]) -> str:
    """How long it took, or why that is not known."""
    reason = found.get("duration_reason")
    return _duration(found.get("duration_seconds")) if reason is None else f"unknown: {reason}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
