"""What is wrong with settings of a kind, every field at once, in words for people; and what they may be."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import msgspec

from gpu_monitor.server.problems import Problem

Fault = dict[str, str]
"""A field, and the reason why it is wrong."""


def by_kind(union: Any) -> dict[str, type[msgspec.Struct]]:
    """The structs of a tagged union by their tag."""
    return {str(one.__struct_config__.tag): one for one in get_args(union)}


def refuse_faults(kinds: Mapping[str, type[msgspec.Struct]], kind: str, given: Mapping[str, Any]) -> None:
    """Problem 422 that names every fault of the settings `given` for a kind; no value of theirs is repeated."""
    refuse(_faults(kinds, kind, given))


def refuse(wrong: Sequence[Fault]) -> None:
    """Problem 422 that names every fault, where there is one."""
    if wrong:
        detail = "; ".join(f"{one['field']}: {one['reason']}" for one in wrong[:5])
        raise Problem(422, "The request is not valid", detail, errors=wrong)


def fault(field: str, reason: str) -> Fault:
    """What is wrong with a field."""
    return {"field": field, "reason": reason}


def settings_schema(kinds: Mapping[str, type[msgspec.Struct]]) -> dict[str, Any]:
    """A JSON schema of settings, one choice for each kind, without the kind itself."""
    each = []
    for name, kind in kinds.items():
        shape = msgspec.json.schema(kind)["$defs"][kind.__name__]
        shape["properties"].pop("kind")
        shape["required"] = [field for field in shape.get("required", ()) if field != "kind"]
        each.append({**shape, "title": f"settings of {name}"})
    return {"anyOf": each}


def _faults(kinds: Mapping[str, type[msgspec.Struct]], kind: str, given: Mapping[str, Any]) -> list[Fault]:
    if kind not in kinds:
        return [fault("kind", choose(kind, kinds))]
    fields = {field.name: field for field in msgspec.structs.fields(kinds[kind])}
    wrong = [
        fault(f"settings.{name}", f"missing; {kind} needs it")
        for name, field in fields.items()
        if field.required and name not in given
    ]
    for name, value in given.items():
        if name in fields:
            reason = _fault(value, fields[name].type)
        else:
            reason = f"no setting of {kind}; {choose(name, fields)}"
        if name != "kind" and reason is not None:
            wrong.append(fault(f"settings.{name[:40]}", reason))
    return wrong


def _fault(value: Any, kind: Any) -> str | None:
    """What is wrong with one value; None where nothing is."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if get_origin(kind) is Literal:
            return choose(value, get_args(kind))
        return str(error).replace("`", "").replace(" - at $", ", at ").replace("Expected", "expected")
    return None


def choose(value: Any, known: Collection[str]) -> str:
    """The choices, and the nearest where one is near."""
    names = [str(one) for one in known]
    near = difflib.get_close_matches(str(value)[:40], names, 1)
    said = f"one of {', '.join(names)}"
    return f"{said}; did you mean {near[0]}?" if near else said
