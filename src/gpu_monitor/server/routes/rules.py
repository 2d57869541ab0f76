"""The rules by which alerts arise."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.alerts.builtin import BUILTIN
from gpu_monitor.server.alerts.kinds import AnySpec, convert_spec, name_of
from gpu_monitor.server.alerts.rule import Rule, check_id
from gpu_monitor.server.answers import json_answer, missing
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.contracts import contract_numbers
from gpu_monitor.server.auth.gate import client_address
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.explain import by_kind, refuse_faults, settings_schema
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Reader, State, refuse_unknown
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.changing import Somebody, contract_id
from gpu_monitor.server.routes.kind_body import OfAKind
from gpu_monitor.server.store.alerts import delete_rule, find_rule, list_rules, put_rule
from gpu_monitor.server.store.values import stamp

router = APIRouter(prefix="/api/rules", tags=["watching"], dependencies=[Depends(refuse_unknown)])
Id = Annotated[str, Field(min_length=1, max_length=64)]
_LARGEST = 1000
"""Rules on one server: each one is judged for every GPU."""


_KINDS = by_kind(AnySpec)


class RuleRow(msgspec.Struct, frozen=True, kw_only=True):
    """A rule. `settings` are its kind's; `builtin` ones can be switched off but not removed."""

    id: str
    kind: str
    settings: dict[str, Any]
    severity: str
    enabled: bool
    builtin: bool
    advice: str | None
    contract_number: str | None
    changed: str


class RulePage(msgspec.Struct, frozen=True):
    """Every rule that the asker may see, by id."""

    items: list[RuleRow]
    next: None = None


class WantedRule(OfAKind):
    """A rule as it is to be. `settings` that are left out have their defaults; null takes an advice away."""

    kind: str = Field(json_schema_extra={"enum": list(_KINDS)})
    settings: dict[str, Any] = Field({}, json_schema_extra=settings_schema(_KINDS))
    severity: Literal["info", "warning", "error", "critical"] = "warning"
    enabled: bool = True
    advice: Annotated[str | None, Field(max_length=2000, pattern=r"^[^\x00]*$")] = None
    contract_number: Annotated[str | None, Field(min_length=1, max_length=100)] = Field(
        None, description="only nodes of this contract; null: every node, for administrators"
    )


class ChangedRule(BaseModel, extra="forbid"):
    """What is to change of a rule; what is left out stays."""

    enabled: bool | None = None
    severity: Literal["info", "warning", "error", "critical"] | None = None


@router.get("", summary="Every rule", **answers(RulePage, "The rules"))
def rules(state: State, who: Reader) -> Response:
    """The rules for every contract, and those of the contracts that the asker may see."""
    with state.store.read() as connection:
        found = [rule for rule in list_rules(connection) if _is_seen(who, rule)]
        numbers = contract_numbers(connection)
    return json_answer(RulePage([_row(rule, numbers) for rule in found]))


@router.get("/{rule}", summary="One rule", **answers(RuleRow, "The rule"))
def one(state: State, who: Reader, rule: Id) -> Response:
    """One rule."""
    with state.store.read() as connection:
        found = find_rule(connection, rule)
        numbers = contract_numbers(connection)
    if found is None or not _is_seen(who, found):
        raise missing("rule", rule)
    return json_answer(_row(found, numbers))


@router.put("/{rule}", summary="Make or replace a rule", status_code=204)
def put(request: Request, state: State, who: Somebody, rule: Id, wanted: WantedRule) -> Response:
    """Make the rule, or put it in place of the one with this id; every server process judges by it within seconds."""
    now = state.clock.now()
    refuse_faults(_KINDS, wanted.kind, wanted.settings)
    try:
        check_id(rule)
        spec = convert_spec({**wanted.settings, "kind": wanted.kind})
    except UsageError as error:
        detail = f"{error.message}. {error.hint}" if error.hint else error.message
        raise Problem(422, "The request is not valid", detail) from None
    with state.store.write() as connection:
        held = find_rule(connection, rule)
        contract = contract_id(connection, wanted.contract_number)
        _refuse_other(who, contract)
        if held is not None:
            _refuse_other(who, held.contract)
        elif len(list_rules(connection)) >= _LARGEST:
            raise Problem(409, "Too many rules", f"There are {_LARGEST}: remove one first.")
        is_builtin = any(one.id == rule for one in BUILTIN)
        put_rule(
            connection,
            Rule(rule, spec, wanted.severity, wanted.advice, wanted.enabled, is_builtin, contract, now),
        )
        record(connection, now, who.name, "rule.put", rule, client_address(request), {"kind": wanted.kind})
    return Response(status_code=204)


@router.patch("/{rule}", summary="Switch a rule on or off", status_code=204)
def change(request: Request, state: State, who: Somebody, rule: Id, wanted: ChangedRule) -> Response:
    """Switch a rule on or off, or change its severity; alerts of a rule that is off end."""
    now = state.clock.now()
    with state.store.write() as connection:
        held = find_rule(connection, rule)
        if held is None or not _is_seen(who, held):
            raise missing("rule", rule)
        _refuse_other(who, held.contract)
        enabled = held.enabled if wanted.enabled is None else wanted.enabled
        severity = wanted.severity or held.severity
        put_rule(
            connection,
            Rule(rule, held.spec, severity, held.advice, enabled, held.builtin, held.contract, now),
        )
        detail = wanted.model_dump(exclude_none=True)
        record(connection, now, who.name, "rule.change", rule, client_address(request), detail)
    return Response(status_code=204)


@router.delete("/{rule}", summary="Remove a rule", status_code=204)
def remove(request: Request, state: State, who: Somebody, rule: Id) -> Response:
    """Remove a rule; its alerts end. A built-in one can only be switched off."""
    with state.store.write() as connection:
        held = find_rule(connection, rule)
        if held is None or not _is_seen(who, held):
            raise missing("rule", rule)
        _refuse_other(who, held.contract)
        if held.builtin:
            raise Problem(409, "Built in", 'It can be switched off: PATCH {"enabled": false}.')
        delete_rule(connection, rule)
        record(connection, state.clock.now(), who.name, "rule.delete", rule, client_address(request))
    return Response(status_code=204)


def _is_seen(who: Principal, rule: Rule) -> bool:
    return rule.contract is None or who.covers(rule.contract)


def _refuse_other(who: Principal, contract: int | None) -> None:
    """Problem 403 for who does not administer the contract (None: all of them)."""
    if not who.is_admin and (contract is None or not who.has_role("admin", contract)):
        raise Problem(403, "Not allowed", "Rules are the administrators' business.")


def _row(rule: Rule, numbers: dict[int, str]) -> RuleRow:
    settings = msgspec.to_builtins(rule.spec)
    settings.pop("kind")
    return RuleRow(
        id=rule.id,
        kind=name_of(rule.spec),
        settings=settings,
        severity=rule.severity,
        enabled=rule.enabled,
        builtin=rule.builtin,
        advice=rule.advice,
        contract_number=None if rule.contract is None else numbers.get(rule.contract),
        changed=stamp(round(rule.changed, 3)) or "",
    )
