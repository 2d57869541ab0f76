"""Writes `config.example.json`, `.env.example` and the settings tables of the docs from the typed settings."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from gpu_monitor.config.model import SECTIONS
from gpu_monitor.config.server import NAMES, SECRET, ServerSettings


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


_EXAMPLES = {
    "HOST": "0.0.0.0",
    "DATABASE_URL": "postgresql://gpu_monitor:PASSWORD@localhost:5432/gpu_monitor",
    "METRICS_RETENTION_DAYS": "90",
    "SLACK_WEBHOOK_URL": "https://hooks.slack.com/services/...",
    "SMTP_HOST": "smtp.example.com",
    "SMTP_USER": "gpu-monitor",
    "BLOBS_QUOTA_GIB": "500",
    "SMTP_PASSWORD": "...",
    "SMTP_FROM": "gpu-monitor@example.com",
    "SMTP_TO": "ops@example.com, oncall@example.com",
    "TLS_CERT": "fullchain.pem",
    "TLS_KEY": "privkey.pem",
    "BEHIND_PROXY": "127.0.0.1, 10.0.0.0/8",
    "ALLOWED_HOSTS": "gpus.example.com",
}
"""What `.env.example` shows where a default says nothing."""


def env_example() -> str:
    """Every setting of the server as a comment, with its meaning and default: a `.env` to begin with."""
    defaults, hints = ServerSettings(), get_type_hints(ServerSettings, include_extras=True)
    lines = [
        "# Settings of gpu_monitor serve. Copy this to .env in the server's directory and take away the # of what",
        "# you change. Options of the command line come first, then the environment, then this file.",
        "# It may hold passwords: chmod 600 .env",
    ]
    for name, field in NAMES.items():
        value = getattr(defaults, field)
        shown = _EXAMPLES.get(name, "") if value is None else _env_text(value)
        default = "unset" if value is None else shown
        lines += ["", f"# {_meaning(hints[field])} (default: {default})", f"#{name}={shown}"]
        if value is not None and name in _EXAMPLES:
            lines.append(f"#{name}={_EXAMPLES[name]}")
    return "\n".join(lines) + "\n"


def server_table() -> str:
    """A Markdown table of the server's settings: variable, type, default, meaning."""
    defaults, hints = ServerSettings(), get_type_hints(ServerSettings, include_extras=True)
    lines = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for name, field in NAMES.items():
        value = getattr(defaults, field)
        default = "" if value is None else f"`{_env_text(value)}`"
        kind = _server_type(hints[field])
        secret = "; never shown" if field in SECRET else ""
        lines.append(f"| `{name}` | {kind} | {default} | {_meaning(hints[field])}{secret} |")
    return "\n".join(lines) + "\n"


def _env_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _meaning(hint: Any) -> str:
    return next(str(meta.description) for meta in get_args(hint)[1:] if meta.description)


def _server_type(hint: Any) -> str:
    if any(meta.pattern for meta in get_args(hint)[1:]):
        return "text, json"
    return _type_text(hint).replace(" or null", "").replace('"', "")
