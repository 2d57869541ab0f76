"""Silences: alerts about which nobody is to be told for a while."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from sqlalchemy import Connection
from starlette.responses import Response

from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.times import format_time
from gpu_monitor.server.answers import json_answer, missing
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.contracts import contract_numbers, find_contract
from gpu_monitor.server.auth.gate import client_address
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.explain import Fault, choose, fault, refuse
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Reader, State, read_moment, refuse_unknown
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.changing import Somebody
from gpu_monitor.server.store.alert_runs import RUN_SUBJECT
from gpu_monitor.server.store.alerts import (
    Silence,
    end_silence,
    insert_silence,
    list_rules,
    list_silences,
    new_id,
)
from gpu_monitor.server.store.nodes import node_ids
from gpu_monitor.server.store.values import stamp

router = APIRouter(prefix="/api/silences", tags=["watching"], dependencies=[Depends(refuse_unknown)])
_NODE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SUBJECTS = "a node's id, an id with / and a GPU's uid, experiment/ and an experiment's id, or server"
_LONGEST = 366 * 86_400.0
_MOST = 1000
Line = Annotated[str | None, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f]+$")]


class SilenceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A silence. `subject`: a node's id (its GPUs too), `node/GPU`, `experiment/` and an id, or `server`; null: all."""

    id: str
    rule: str | None
    subject: str | None
    contract_number: str | None
    start: str
    end: str
    active: bool
    reason: str | None
    author: str


class SilencePage(msgspec.Struct, frozen=True):
    """Silences that have not ended (all: of the last year), the newest first."""

    items: list[SilenceRow]
    next: None = None


class WantedSilence(BaseModel, extra="forbid"):
    """A silence to be made; it begins now unless it says when. What is left out is every one."""

    rule: Line = None
    subject: Line = Field(None, description=_SUBJECTS)
    contract_number: Annotated[str | None, Field(min_length=1, max_length=100)] = None
    start: Annotated[str | None, Field(max_length=40)] = None
    end: Annotated[str | None, Field(max_length=40)] = None
    seconds: Annotated[float | None, Field(gt=0, le=_LONGEST)] = Field(None, description="instead of an end")
    reason: Line = None


@router.get("", summary="Silences", **answers(SilencePage, "The silences"))
def silences(state: State, who: Reader, all: bool = False) -> Response:
    """Those that have not ended."""
    now = state.clock.now()
    with state.store.read() as connection:
        found = list_silences(connection, None if all else now)
        numbers = contract_numbers(connection)
    seen = [one for one in found if one.contract is None or who.covers(one.contract)][:_MOST]
    return json_answer(SilencePage([_row(one, numbers, now) for one in seen]))


@router.post("", summary="Make a silence", status_code=201, **answers(SilenceRow, "The silence"))
def make(request: Request, state: State, who: Somebody, wanted: WantedSilence) -> Response:
    """Tell nobody of these alerts until its end; those that still fire then are told. For members of the contract."""
    now = state.clock.now()
    wrong: list[Fault] = []
    start, stop = _times(wanted, now, wrong)
    with state.store.write() as connection:
        contract = None
        if wanted.contract_number is not None:
            contract = find_contract(connection, wanted.contract_number)
            if contract is None:
                wrong.append(fault("contract_number", "no node reports under it"))
        if contract is not None or wanted.contract_number is None:
            _refuse_other(who, contract)
        wrong += _faults_of_what(connection, who, wanted)
        refuse(wrong)
        if len(list_silences(connection, now)) >= _MOST:
            raise Problem(409, "Too many silences", f"There are {_MOST}: end one first.")
        made = Silence(new_id(), wanted.rule, wanted.subject, start, stop, wanted.reason, who.name, contract)
        insert_silence(connection, made)
        detail = {"rule": wanted.rule, "subject": wanted.subject, "end": stamp(round(stop))}
        record(connection, now, who.name, "silence.create", made.id, client_address(request), detail)
        numbers = contract_numbers(connection)
    response = json_answer(_row(made, numbers, now))
    response.status_code = 201
    return response


@router.delete("/{silence}", summary="End a silence", status_code=204)
def end(request: Request, state: State, who: Somebody, silence: str) -> Response:
    """End it now: alerts that fire are told."""
    now = state.clock.now()
    with state.store.write() as connection:
        held = next((one for one in list_silences(connection, now) if one.id == silence), None)
        if held is None or not (held.contract is None or who.covers(held.contract)):
            raise missing("silence", silence)
        _refuse_other(who, held.contract)
        end_silence(connection, silence, now)
        record(connection, now, who.name, "silence.end", silence, client_address(request))
    return Response(status_code=204)


def _times(wanted: WantedSilence, now: float, wrong: list[Fault]) -> tuple[float, float]:
    """Start and end, UTC epoch s; what is wrong with them goes to `wrong`."""
    before = len(wrong)
    start = _time("start", wanted.start, now, wrong)
    stop = _time("end", wanted.end, now, wrong) if wanted.seconds is None else start + wanted.seconds
    if wanted.end is None and wanted.seconds is None:
        wrong.append(fault("end", "missing; end or seconds says when it ends"))
    elif wanted.end is not None and wanted.seconds is not None:
        wrong.append(fault("end", "either end or seconds, not both"))
    elif len(wrong) == before:
        field = "end" if wanted.seconds is None else "seconds"
        if stop <= now:
            wrong.append(fault(field, f"it would be over: it is {format_time(int(now))} now"))
        elif stop > now + _LONGEST:
            wrong.append(fault(field, f"at most {_LONGEST / 86_400:g} days from now"))
        elif start >= stop:
            wrong.append(fault("start", "not before the end"))
    return start, stop


def _time(field: str, text: str | None, now: float, wrong: list[Fault]) -> float:
    try:
        return now if text is None else read_moment(text, now)
    except UsageError as error:
        wrong.append(fault(field, error.message))
        return now


def _faults_of_what(connection: Connection, who: Principal, wanted: WantedSilence) -> list[Fault]:
    """A rule or subject that nothing will ever have; choices are only what the asker may see."""
    wrong: list[Fault] = []
    rules = list_rules(connection)
    if wanted.rule is not None and all(rule.id != wanted.rule for rule in rules):
        seen = [rule.id for rule in rules if rule.contract is None or who.covers(rule.contract)]
        wrong.append(fault("rule", choose(wanted.rule, seen)))
    node = (wanted.subject or "").partition("/")[0]
    is_run = (wanted.subject or "").startswith(RUN_SUBJECT)
    if not is_run and wanted.subject not in (None, "server") and not _NODE_ID.fullmatch(node):
        ids = node_ids(connection, who, node)
        hint = f"; {node} is {' and '.join(ids)}" if ids else ""
        wrong.append(fault("subject", f"{_SUBJECTS}{hint}"))
    return wrong


def _refuse_other(who: Principal, contract: int | None) -> None:
    """Problem 403 for who is no member of the contract (None: no administrator)."""
    if not who.is_admin and (contract is None or not who.has_role("member", contract)):
        raise Problem(
            403, "Not allowed", "Name a contract of which you are a member; of all, it is for administrators."
        )


def _row(one: Silence, numbers: dict[int, str], now: float) -> SilenceRow:
    return SilenceRow(
        id=one.id,
        rule=one.rule,
        subject=one.subject,
        contract_number=None if one.contract is None else numbers.get(one.contract),
        start=stamp(round(one.start, 3)) or "",
        end=stamp(round(one.stop, 3)) or "",
        active=one.start <= now < one.stop,
        reason=one.reason,
        author=one.author,
    )
