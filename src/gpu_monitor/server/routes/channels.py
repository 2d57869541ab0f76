"""Where alerts are told: channels, a test of each, and the log of what was delivered. For administrators."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from gpu_monitor.core.errors import GpuMonitorError, UsageError
from gpu_monitor.core.times import format_time
from gpu_monitor.server.answers import answer, invalid, json_answer, missing
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.gate import client_address
from gpu_monitor.server.auth.principal import Principal, require
from gpu_monitor.server.explain import by_kind, refuse_faults, settings_schema
from gpu_monitor.server.notify.address import Refused, refuse_literal
from gpu_monitor.server.notify.channels import Channel, all_channels
from gpu_monitor.server.notify.client import Client
from gpu_monitor.server.notify.kinds import AnyChannel, convert_channel, host_of, is_checked, kind_name, shown
from gpu_monitor.server.notify.notice import Notice
from gpu_monitor.server.notify.send import send
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Cursor, Format, Limit, State, Text, refuse_unknown
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.kind_body import OfAKind
from gpu_monitor.server.state import ServerState
from gpu_monitor.server.store.alerts import new_id
from gpu_monitor.server.store.deliveries import (
    ChannelRow,
    delete_channel,
    list_channels,
    list_deliveries,
    log_delivery,
    put_channel,
)
from gpu_monitor.server.store.values import stamp

router = APIRouter(prefix="/api", tags=["watching"], dependencies=[Depends(refuse_unknown)])
Admin = Annotated[Principal, Depends(require("admin"))]
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MOST = 50
_KINDS = by_kind(AnyChannel)


class ChannelShown(msgspec.Struct, frozen=True, kw_only=True):
    """A channel; secrets are shown as ***. `address_checked`: it only goes to the open internet and NOTIFY_ALLOW."""

    name: str
    kind: str
    settings: dict[str, Any]
    enabled: bool
    address_checked: bool
    from_settings: bool
    changed: str | None


class ChannelPage(msgspec.Struct, frozen=True):
    """Every channel. `notifications`: whether ENABLE_NOTIFICATIONS is on; without it nothing is sent."""

    items: list[ChannelShown]
    notifications: bool
    next: None = None


class WantedChannel(OfAKind):
    """A channel to be made or replaced, with its secrets. `settings` are the kind's."""

    kind: str = Field(json_schema_extra={"enum": list(_KINDS)})
    settings: dict[str, Any] = Field(json_schema_extra=settings_schema(_KINDS))
    enabled: bool = True


class ChangedChannel(BaseModel, extra="forbid"):
    """Whether the channel is on."""

    enabled: bool


class Tested(msgspec.Struct, frozen=True):
    """How a test ended, in the other side's words or ours."""

    ok: bool
    status: str


class DeliveryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One try to deliver one notice. `alert` and `moment` are null for a test."""

    id: int
    time: str
    channel: str
    ok: bool
    status: str
    alert: str | None
    moment: str | None


class DeliveryPage(msgspec.Struct, frozen=True):
    """Tries, the newest first."""

    items: list[DeliveryRow]
    next: str | None


@router.get("/channels", summary="Every channel", **answers(ChannelPage, "The channels"))
def channels(state: State, admin: Admin) -> Response:
    """Channels of the settings and those made here; never a secret."""
    with state.store.read() as connection:
        found = all_channels(connection, state.office.fixed)
    rows = [_shown(found[name]) for name in sorted(found)]
    return json_answer(ChannelPage(rows, state.office.is_on))


@router.put("/channels/{channel}", summary="Make or replace a channel", status_code=204)
def put(request: Request, state: State, admin: Admin, channel: str, wanted: WantedChannel) -> Response:
    """Make the channel, or put it in place of the one of this name."""
    if not _NAME.fullmatch(channel) or len(channel) > 64:
        raise Problem(
            422, "The request is not valid", "A name has small letters, digits and single -, up to 64."
        )
    refuse_faults(_KINDS, wanted.kind, wanted.settings)
    try:
        spec = convert_channel({**wanted.settings, "kind": wanted.kind})
        refuse_literal(host_of(spec), state.settings.notify_networks)
    except (UsageError, Refused) as error:
        detail = f"{error.message}. {error.hint}" if error.hint else error.message
        raise Problem(422, "The request is not valid", detail) from None
    _refuse_fixed(state, channel)
    now = state.clock.now()
    with state.store.write() as connection:
        held = {row.name for row in list_channels(connection)}
        if channel not in held and len(held) >= _MOST:
            raise Problem(409, "Too many channels", f"There are {_MOST}: remove one first.")
        text = msgspec.json.encode(spec).decode()
        put_channel(connection, ChannelRow(channel, wanted.kind, text, wanted.enabled, now))
        detail_of = {"kind": wanted.kind, "enabled": wanted.enabled}
        record(connection, now, admin.name, "channel.put", channel, client_address(request), detail_of)
    return Response(status_code=204)


@router.patch("/channels/{channel}", summary="Switch a channel on or off", status_code=204)
def change(request: Request, state: State, admin: Admin, channel: str, wanted: ChangedChannel) -> Response:
    """Switch it on or off; what waits for a channel that is off is given up."""
    _refuse_fixed(state, channel)
    now = state.clock.now()
    with state.store.write() as connection:
        held = next((row for row in list_channels(connection) if row.name == channel), None)
        if held is None:
            raise missing("channel", channel)
        put_channel(connection, ChannelRow(channel, held.kind, held.settings, wanted.enabled, now))
        detail = {"enabled": wanted.enabled}
        record(connection, now, admin.name, "channel.change", channel, client_address(request), detail)
    return Response(status_code=204)


@router.delete("/channels/{channel}", summary="Remove a channel", status_code=204)
def remove(request: Request, state: State, admin: Admin, channel: str) -> Response:
    """Remove it; what waits for it is given up."""
    _refuse_fixed(state, channel)
    with state.store.write() as connection:
        if not delete_channel(connection, channel):
            raise missing("channel", channel)
        record(connection, state.clock.now(), admin.name, "channel.delete", channel, client_address(request))
    return Response(status_code=204)


@router.post("/channels/{channel}/test", summary="Try a channel", **answers(Tested, "How it ended"))
def test(request: Request, state: State, admin: Admin, channel: str) -> Response:
    """Send a notice that says it is a test, now; the answer tells what the other side said."""
    if not state.office.is_on:
        raise Problem(
            409, "Switched off", "Notifications are off. Set ENABLE_NOTIFICATIONS=true and start anew."
        )
    with state.store.read() as connection:
        found = all_channels(connection, state.office.fixed).get(channel)
    if found is None:
        raise missing("channel", channel)
    now = state.clock.now()
    client = Client(state.clock, state.settings.notify_networks)
    try:
        ended = Tested(True, send(client, found.spec, [_trial(now)], now))
    except GpuMonitorError as error:
        ended = Tested(
            False, f"{error.message}. {error.hint}" if isinstance(error, Refused) else error.message
        )
    with state.store.write() as connection:
        log_delivery(connection, 0, channel, now, ended.ok, f"test: {ended.status}")
        detail = {"ok": ended.ok}
        record(connection, now, admin.name, "channel.test", channel, client_address(request), detail)
    return json_answer(ended)


@router.get("/deliveries", summary="What was delivered", **answers(DeliveryPage, "A page of tries", csv=True))
def deliveries(
    request: Request,
    state: State,
    admin: Admin,
    channel: Text = None,
    alert: Text = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """Every try to deliver a notice, with what came of it."""
    if cursor is not None and not (cursor.isdecimal() and 0 < int(cursor) < 2**31):
        raise invalid("cursor", "not a cursor of this list; take it unchanged from `next`")
    with state.store.read() as connection:
        found = list_deliveries(
            connection, channel, alert, None if cursor is None else int(cursor), limit + 1
        )
    rows = [
        DeliveryRow(
            id=one.id, time=stamp(round(one.time, 3)) or "", channel=one.channel, ok=one.ok, status=one.status,
            alert=one.alert, moment=one.moment,
        )
        for one in found[:limit]
    ]  # fmt: skip
    next = str(rows[-1].id) if len(found) > limit else None
    return answer(request, DeliveryPage(rows, next), rows, DeliveryRow, format, next)


def _trial(now: float) -> Notice:
    time = format_time(int(now))
    return Notice(
        id=new_id(), moment="fired", rule="test", severity="info", node=None, hostname=None, gpu=None, gpu_name=None,
        contract_number=None, message="This is a test of the channel. Nothing is wrong.", advice=None, value=None,
        since=time, fired=time, resolved=None, simulated=False, test=True,
    )  # fmt: skip


def _refuse_fixed(state: ServerState, name: str) -> None:
    """Problem 409 for a channel of the settings."""
    if any(channel.name == name for channel in state.office.fixed):
        raise Problem(
            409, "From the settings", "This channel comes from the server's settings: change it there."
        )


def _shown(channel: Channel) -> ChannelShown:
    return ChannelShown(
        name=channel.name,
        kind=kind_name(channel.spec),
        settings=shown(channel.spec),
        enabled=channel.enabled,
        address_checked=is_checked(channel.spec),
        from_settings=channel.is_fixed,
        changed=stamp(None if channel.changed is None else round(channel.changed, 3)),
    )
