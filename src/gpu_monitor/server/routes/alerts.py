"""Alerts: what is wrong, and what was."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from gpu_monitor.server.answers import answer, json_answer, missing, read_cursor, write_cursor
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.gate import client_address
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import (
    Cursor,
    Format,
    From,
    Limit,
    Node,
    Reader,
    State,
    Text,
    To,
    moment,
    refuse_unknown,
)
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.changing import Somebody
from gpu_monitor.server.store.alert_list import (
    AlertFilter,
    AlertRow,
    acknowledge,
    contract_of,
    list_alerts,
    one_alert,
)

router = APIRouter(prefix="/api/alerts", tags=["watching"], dependencies=[Depends(refuse_unknown)])


class AlertPage(msgspec.Struct, frozen=True):
    """Alerts, the newest first."""

    items: list[AlertRow]
    next: str | None


class Acknowledged(BaseModel):
    """Whether somebody looks after the alert."""

    acknowledged: bool = True


@router.get("", summary="Alerts", **answers(AlertPage, "A page of alerts", csv=True))
def alerts(
    request: Request,
    state: State,
    who: Reader,
    status: Annotated[
        Literal["active", "pending", "firing", "resolved"] | None,
        Query(alias="state", description="active: pending and firing"),
    ] = None,
    severity: Literal["info", "warning", "error", "critical"] | None = None,
    rule: Text = None,
    node: Node = None,
    gpu: Text = None,
    simulated: bool | None = None,
    start: From = None,
    to: To = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """Alerts by the time their condition began. Those of simulated GPUs say so; `past` ones were never notified."""
    now = state.clock.now()
    wanted = AlertFilter(
        status, severity, rule, node, gpu, simulated,
        None if start is None else moment(start, "from", now),
        None if to is None else moment(to, "to", now),
    )  # fmt: skip
    after = read_cursor(cursor, tuple[float, str])
    with state.store.read() as connection:
        found, last = list_alerts(connection, who, wanted, after, limit)
    next = None if last is None else write_cursor(*last)
    return answer(request, AlertPage(found, next), found, AlertRow, format, next)


@router.get("/{alert}", summary="One alert", **answers(AlertRow, "The alert"))
def one(state: State, who: Reader, alert: str) -> Response:
    """One alert."""
    with state.store.read() as connection:
        found = one_alert(connection, who, alert)
    if found is None:
        raise missing("alert", alert)
    return json_answer(found)


@router.put("/{alert}/acknowledged", summary="Say that somebody looks after it", status_code=204)
def acknowledged(request: Request, state: State, who: Somebody, alert: str, wanted: Acknowledged) -> Response:
    """Note on the alert who looks after it, or take the note away. It changes nothing else. For members."""
    now = state.clock.now()
    with state.store.write() as connection:
        if one_alert(connection, who, alert) is None:
            raise missing("alert", alert)
        if not who.has_role("member", contract_of(connection, alert)):
            raise Problem(403, "Not allowed", "This is for members of the alert's contract.")
        acknowledge(connection, alert, who.name if wanted.acknowledged else None, now)
        detail = {"acknowledged": wanted.acknowledged}
        record(connection, now, who.name, "alert.acknowledge", alert, client_address(request), detail)
    return Response(status_code=204)
