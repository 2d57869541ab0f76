"""Writes `config.example.json` and the settings table of the docs from the typed sections."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from gpu_monitor.config.model import SECTIONS


def example_json() -> str:
    """Every key with its default, and the documented example server."""
    whole: dict[str, dict[str, Any]] = {name: msgspec.to_builtins(kind()) for name, kind in SECTIONS.items()}
    whole["server"].update(url="https://example.com/api/metrics", contract_number="12345")
    return json.dumps(whole, indent=2) + "\n"


_NAMES = {"int": "integer", "str": "text", "float": "number", "bool": "true/false", "NoneType": "null"}


def _type_text(hint: Any) -> str:
    """Type and bounds of one annotated setting, in words."""
    if get_origin(hint) is Annotated:
        base, *metas = get_args(hint)
        low = [meta.ge for meta in metas if meta.ge is not None] + [
            meta.gt for meta in metas if meta.gt is not None
        ]
        high = [meta.le for meta in metas if meta.le is not None]
        bounds = [f" from {low[0]:g}" if low else "", f" to {high[0]:g}" if high else ""]
        return _type_text(base) + "".join(bounds)
    if get_origin(hint) is Literal:
        return ", ".join(json.dumps(value) for value in get_args(hint))
    if get_args(hint):
        return " or ".join(_type_text(kind) for kind in get_args(hint))
    return _NAMES[hint.__name__]


def settings_table() -> str:
    """A Markdown table of all keys: name, type, default, meaning."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for section, kind in SECTIONS.items():
        defaults, hints = kind(), get_type_hints(kind, include_extras=True)
        for name in kind.__struct_fields__:
            meaning = get_args(hints[name])[1].description
            default = json.dumps(getattr(defaults, name))
            lines.append(f"| `{section}.{name}` | {_type_text(hints[name])} | `{default}` | {meaning} |")
    return "\n".join(lines) + "\n"
