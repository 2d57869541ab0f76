"""Where rules come from besides the API: the built-in ones, and a TOML file's."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection

from gpu_monitor.core.errors import ConfigError, UsageError
from gpu_monitor.server.alerts.builtin import BUILTIN
from gpu_monitor.server.alerts.kinds import convert_spec
from gpu_monitor.server.alerts.rule import SEVERITIES, Rule, check_id
from gpu_monitor.server.store.alerts import list_rules, put_rule, read_state, unreadable_rules, write_state

_SEEDS = "seeds"
_LARGEST = 1 << 20
_FIELDS = ("severity", "advice", "enabled")


def read_rules_file(path: Path) -> tuple[Rule, ...]:
    """The rules in a TOML file, one table each: `[gpu-hot]`, `kind = "threshold"`, `severity`, its settings.

    ConfigError names the file, the rule and what is wrong with it.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # imported here, because only a server with a rules file needs it
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            tables = tomllib.loads(file.read(_LARGEST).decode())
    except OSError as error:
        raise ConfigError(f"cannot read the rules in {path}: {error.strerror}", "Correct --rules.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", "docs/alerts.md shows a rules file.") from error
    return tuple(_rule(name, table, path) for name, table in tables.items())


def _rule(name: str, table: object, path: Path) -> Rule:
    try:
        check_id(name)
        if not isinstance(table, dict):
            raise UsageError("a table was expected", f"Write [{name}] above its settings.")
        severity: Any = table.get("severity", "warning")
        advice, enabled = table.get("advice"), table.get("enabled", True)
        if severity not in SEVERITIES:
            raise UsageError(f"severity: {severity!r}", f"One of {', '.join(SEVERITIES)}.")
        if not isinstance(enabled, bool) or not isinstance(advice, (str, type(None))):
            raise UsageError("enabled must be true or false, advice a text")
        spec = convert_spec({key: value for key, value in table.items() if key not in _FIELDS})
    except UsageError as error:
        raise ConfigError(f"{path}: rule {name}: {error.message}", error.hint) from error
    return Rule(name, spec, severity, advice, enabled)


def plant(connection: Connection, seeds: tuple[Rule, ...], now: float) -> None:
    """Add the built-in rules that are missing, and the file's that are new or changed in the file since last time.

    A rule that was changed over the API stays as it is until the file says something new about it.
    """
    held = {rule.id: rule for rule in list_rules(connection)}
    unreadable = {name for name, _ in unreadable_rules(connection)}
    for rule in BUILTIN:
        if rule.id not in held and rule.id not in unreadable:
            put_rule(connection, _made(rule, True, now))
    text = read_state(connection, _SEEDS)
    known = msgspec.json.decode(text, type=dict[str, str]) if text is not None else {}
    marks = {rule.id: _mark(rule) for rule in seeds}
    builtin = {rule.id: rule for rule in BUILTIN}
    for rule in seeds:
        if known.get(rule.id) != marks[rule.id]:
            usual = builtin.get(rule.id)
            if usual is not None and rule.advice is None:
                rule = replace(rule, advice=usual.advice)
            put_rule(connection, _made(rule, usual is not None, now))
    if marks != known:
        write_state(connection, _SEEDS, msgspec.json.encode(marks).decode())


def _made(rule: Rule, is_builtin: bool, now: float) -> Rule:
    return Rule(rule.id, rule.spec, rule.severity, rule.advice, rule.enabled, is_builtin, rule.contract, now)


def _mark(rule: Rule) -> str:
    """Changes with anything the file says of a rule."""
    whole = [msgspec.to_builtins(rule.spec), rule.severity, rule.advice, rule.enabled]
    return hashlib.sha256(msgspec.json.encode(whole)).hexdigest()
