"""Silences: alerts about which nobody is to be told for a while."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from gpu_monitor.server.answers import json_answer, missing
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.contracts import contract_numbers
from gpu_monitor.server.auth.gate import client_address
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Reader, State, moment, refuse_unknown
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.changing import Somebody, contract_id
from gpu_monitor.server.store.alerts import Silence, end_silence, insert_silence, list_silences, new_id
from gpu_monitor.server.store.values import stamp

router = APIRouter(prefix="/api/silences", tags=["watching"], dependencies=[Depends(refuse_unknown)])
_LONGEST = 366 * 86_400.0
_MOST = 1000
Line = Annotated[str | None, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f]+$")]


class SilenceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A silence. `subject`: a node's id (its GPUs too), `node/GPU`, or `server`; null: all."""

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
    subject: Line = None
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
    start = now if wanted.start is None else moment(wanted.start, "start", now)
    if (wanted.end is None) == (wanted.seconds is None):
        raise Problem(422, "The request is not valid", "One of end and seconds says when it ends.")
    stop = start + (wanted.seconds or 0.0) if wanted.end is None else moment(wanted.end, "end", now)
    if not now < stop <= now + _LONGEST or start >= stop:
        raise Problem(
            422, "The request is not valid", "It must end in the future, within a year, after its start."
        )
    with state.store.write() as connection:
        contract = contract_id(connection, wanted.contract_number)
        _refuse_other(who, contract)
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
