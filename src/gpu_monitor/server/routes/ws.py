"""The live socket: `/ws/live`, and `/ws/monitoring` for those who look for it under that name."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import APIRouter
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from gpu_monitor.server.auth.gate import PRINCIPAL_KEY
from gpu_monitor.server.auth.principal import Principal, check_scope
from gpu_monitor.server.live.hub import TooMany, Viewer
from gpu_monitor.server.live.messages import DEFAULT, MESSAGE_BYTES, Ask, AskError, read_ask
from gpu_monitor.server.problems import Problem, problem_response
from gpu_monitor.server.state import ServerState

router = APIRouter()
_DEFAULT_SECONDS = 1.0
"""Who has asked for nothing by then sees the fleet."""
_ASK_SECONDS = 1.0
"""Asks are served at most this often: each may cost a whole snapshot."""
_RIGHTS_SECONDS = 30.0
"""A token may be revoked while a page is open."""
_TOO_BIG, _NOT_ALLOWED, _NOT_TEXT = 1009, 1008, 1003
"""Close codes of RFC 6455, section 7.4.1."""


@router.websocket("/ws/live")
@router.websocket("/ws/monitoring")
async def live(socket: WebSocket) -> None:
    """Send what the client asked for, as docs/live.md tells, until one of both ends it."""
    state: ServerState = socket.app.state.server
    try:
        principal = await _reader(socket, state)
        viewer = state.hub.join(principal.contracts)
    except Problem as problem:
        await socket.send_denial_response(problem_response(problem))
        return
    except TooMany as error:
        await socket.send_denial_response(Response(str(error), 503, {"Retry-After": "30"}))
        return
    try:
        await socket.accept()
        await _serve(socket, state, viewer, principal)
    finally:
        state.hub.leave(viewer)


async def _reader(connection: HTTPConnection, state: ServerState) -> Principal:
    principal = await state.gate.identify(connection)
    check_scope(principal, "read")
    return principal


async def _serve(socket: WebSocket, state: ServerState, viewer: Viewer, principal: Principal) -> None:
    """Hear and tell at once, until one of both is over."""
    telling = asyncio.ensure_future(_tell(socket, state, viewer, principal))
    hearing = asyncio.ensure_future(_hear(socket, viewer))
    viewer.let_go = telling.cancel
    both = (telling, hearing)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in both:
            task.cancel()
        ended = await asyncio.gather(*both, return_exceptions=True)
    for error in ended:
        # Both are cancelled here, and either may find that the client has gone.
        if isinstance(error, Exception) and not isinstance(error, (WebSocketDisconnect, OSError)):
            raise error


async def _hear(socket: WebSocket, viewer: Viewer) -> None:
    """Take what the client asks for; it never waits for what is sent to it."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        if text is None:
            await socket.close(_NOT_TEXT, "send JSON as text")
            return
        if len(text) > MESSAGE_BYTES:
            await socket.close(_TOO_BIG, f"a message may have {MESSAGE_BYTES} bytes")
            return
        try:
            viewer.ask(read_ask(text))
        except AskError as error:
            viewer.complain(str(error))


async def _tell(socket: WebSocket, state: ServerState, viewer: Viewer, principal: Principal) -> None:
    """Send each message once the client has taken the one before."""
    loop = asyncio.get_running_loop()
    default = loop.call_later(_DEFAULT_SECONDS, _ask_default, viewer)
    checked = loop.time()
    try:
        while True:
            text = await viewer.next()
            viewer.sending_since = loop.time()
            await socket.send_text(text)
            viewer.sending_since = None
            if loop.time() - checked > _RIGHTS_SECONDS:
                checked = loop.time()
                if not await _may_still(socket, state, principal):
                    await socket.close(_NOT_ALLOWED, "what you may see has changed: connect again")
                    return
            if viewer.was_asked:
                await asyncio.sleep(_ASK_SECONDS)
    finally:
        default.cancel()


def _ask_default(viewer: Viewer) -> None:
    if viewer.is_idle:
        viewer.ask(Ask(DEFAULT))


async def _may_still(socket: WebSocket, state: ServerState, principal: Principal) -> bool:
    """Whether who asked may see the same now."""
    scope = {name: value for name, value in socket.scope.items() if name != PRINCIPAL_KEY}
    with suppress(Problem):
        return (await _reader(HTTPConnection(scope), state)).contracts == principal.contracts
    return False
