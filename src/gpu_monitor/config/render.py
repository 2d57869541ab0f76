"""Writes `config.example.json` and the settings table of the docs from the typed sections."""

from __future__ import annotations

import json
from typing import Any, get_args, get_type_hints

import msgspec

from gpu_monitor.config.model import SECTIONS


def example_json() -> str:
    """Every key with its default, and the documented example server."""
    whole: dict[str, dict[str, Any]] = {name: msgspec.to_builtins(kind()) for name, kind in SECTIONS.items()}
    whole["server"].update(url="https://example.com/api/metrics", contract_number="12345")
    return json.dumps(whole, indent=2) + "\n"


def _type_text(hint: Any) -> tuple[str, str]:
    """(type and bounds, description) of one annotated setting."""
    base, meta = get_args(hint)[0], get_args(hint)[1]
    names = {"int": "integer", "str": "text", "float": "number", "bool": "true/false", "NoneType": "null"}
    values = [
        value for value in get_args(base) if isinstance(value, (str, int)) and not isinstance(value, type)
    ]
    if values:
        text = ", ".join(json.dumps(value) for value in values)
    elif get_args(base):
        text = " or ".join(names[kind.__name__] for kind in get_args(base))
    else:
        text = names[base.__name__]
    low = meta.ge if meta.ge is not None else meta.gt
    bounds = [f"from {low:g}" if low is not None else "", f"to {meta.le:g}" if meta.le is not None else ""]
    return " ".join(part for part in (text, *bounds) if part), meta.description


def settings_table() -> str:
    """A Markdown table of all keys: name, type, default, meaning."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for section, kind in SECTIONS.items():
        defaults, hints = kind(), get_type_hints(kind, include_extras=True)
        for name in kind.__struct_fields__:
            text, meaning = _type_text(hints[name])
            lines.append(
                f"| `{section}.{name}` | {text} | `{json.dumps(getattr(defaults, name))}` | {meaning} |"
            )
    return "\n".join(lines) + "\n"
