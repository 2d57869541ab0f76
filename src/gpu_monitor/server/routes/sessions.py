"""Logging in and out, and who one is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.gate import client_address, cookie_name, too_many
from gpu_monitor.server.auth.passwords import LONGEST, NOBODY, check_new_password
from gpu_monitor.server.auth.principal import Principal, require, unauthorised
from gpu_monitor.server.auth.sessions import LIFE_SECONDS, NewSession, begin_session, end_session
from gpu_monitor.server.auth.throttle import ACCOUNT, ADDRESS, PAIR, address_key
from gpu_monitor.server.auth.users import change_user
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.state import ServerState, state_of
from gpu_monitor.server.store.schema import contracts, users

router = APIRouter(tags=["access"])
State = Annotated[ServerState, Depends(state_of)]


class Login(BaseModel):
    """A name and its password."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]+$")]  # no NUL in PostgreSQL
    password: Annotated[str, Field(min_length=1, max_length=LONGEST)]


class Role(BaseModel):
    """A role in a contract, or in one project of it."""

    contract_number: str
    project: str | None = Field(description="null: the whole contract")
    role: str


class Me(BaseModel):
    """Who asks."""

    kind: str = Field(description="session, local (by the one-time link), token or anonymous")
    name: str
    scopes: list[str]
    contracts: list[str] | None = Field(description="null: all of them")
    roles: list[Role]
    csrf: str | None = Field(description="to be sent as X-CSRF-Token with every change a page makes")


class NewPassword(BaseModel):
    """The password in force, and the next one."""

    old: Annotated[str, Field(max_length=LONGEST)]
    new: Annotated[str, Field(max_length=LONGEST)]


@router.get("/api/session", summary="Who I am")
async def who(state: State, principal: Annotated[Principal, Depends(require("read"))]) -> Me:
    """The user, token or session that asks, and what it may see."""
    return await run_in_threadpool(_me, state, principal)


@router.post("/api/session", summary="Log in")
async def login(state: State, request: Request, response: Response, body: Login) -> Me:
    """Begin a session: sets a cookie, and answers with the word that changes must carry.

    The answer is the same whether the account is missing, disabled or the password wrong; after some failures
    each further try must wait (429).
    """
    address = address_key(client_address(request))
    account = body.name.lower()
    pair, one, other = ("pair", account, address), ("account", account), ("address", address)
    throttle = state.throttle
    wait = max(throttle.wait(pair, PAIR), throttle.wait(one, ACCOUNT), throttle.wait(other, ADDRESS))
    if wait > 0:
        state.metrics.count("refused_total", reason="throttled")
        raise too_many(wait)
    found = await run_in_threadpool(_account, state, body.name)
    is_right = await state.passwords.check(found[1] if found else NOBODY, body.password)
    if found is None or not is_right:
        throttle.failed(pair, one, other)
        state.metrics.count("refused_total", reason="password")
        await run_in_threadpool(_note, state, body.name, "session.refused", address)
        raise unauthorised("Name or password is wrong.")
    throttle.succeeded(pair, other)
    made = await run_in_threadpool(_begin, state, found[0], body.name, address)
    _set_cookie(request, response, made)
    principal = await run_in_threadpool(state.sessions.find, made.cookie)
    if principal is None:
        raise unauthorised("Name or password is wrong.")
    return await run_in_threadpool(_me, state, principal)


@router.delete("/api/session", summary="Log out", status_code=204)
async def logout(
    state: State, request: Request, principal: Annotated[Principal, Depends(require("read"))]
) -> Response:
    """End the session and take its cookie away; nothing happens where there is none."""
    response = Response(status_code=204)
    cookie = request.cookies.get(cookie_name(request))
    if cookie is not None and principal.kind in ("session", "local"):
        await run_in_threadpool(_end, state, cookie, principal.name, address_key(client_address(request)))
        state.sessions.forget()
        response.delete_cookie(cookie_name(request), path="/", secure=_is_secure(request), httponly=True)
    return response


@router.post("/api/session/password", summary="Change my password", status_code=204)
async def change_password(
    state: State,
    request: Request,
    body: NewPassword,
    principal: Annotated[Principal, Depends(require("read"))],
) -> Response:
    """Change the password of the user who asks; all of the user's sessions end, this one too."""
    if principal.kind != "session":
        raise Problem(403, "Not allowed", "Only a user who is logged in has a password here.")
    found = await run_in_threadpool(_account, state, principal.name)
    key = ("pair", principal.name.lower(), address_key(client_address(request)))
    if (wait := state.throttle.wait(key, PAIR)) > 0:
        raise too_many(wait)
    if found is None or not await state.passwords.check(found[1], body.old):
        state.throttle.failed(key)
        raise Problem(403, "Not allowed", "The password in force is another one.")
    try:
        check_new_password(body.new, principal.name)
    except UsageError as error:
        raise Problem(422, "The request is not valid", str(error)) from None
    hashed = await state.passwords.hash(body.new)
    await run_in_threadpool(_change, state, principal.name, hashed, key[2])
    state.sessions.forget()
    return Response(status_code=204)


@router.get("/open", summary="Open the pages with the one-time link", status_code=303)
async def open_link(state: State, request: Request, code: str) -> Response:
    """Begin a session as the person who started the server on this machine; the link works once."""
    if not state.link.take(code):
        raise unauthorised("This link was used or is over. Start the server again for a new one.")
    made = await run_in_threadpool(_begin, state, None, "local", client_address(request))
    response = RedirectResponse("/", status_code=303)
    _set_cookie(request, response, made)
    return response


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https"


def _set_cookie(request: Request, response: Response, made: NewSession) -> None:
    response.set_cookie(
        cookie_name(request),
        made.cookie,
        max_age=int(LIFE_SECONDS),
        path="/",
        secure=_is_secure(request),
        httponly=True,
        samesite="strict",
    )


def _account(state: ServerState, name: str) -> tuple[int, str] | None:
    """Id and password hash of a user who may log in."""
    with state.store.read() as connection:
        asked = select(users.c.id, users.c.password).where(users.c.name == name, ~users.c.disabled)
        row = connection.execute(asked).first()
    return None if row is None else (row.id, row.password)


def _begin(state: ServerState, user: int | None, name: str, address: str) -> NewSession:
    now = state.clock.now()
    with state.store.write() as connection:
        record(connection, now, name, "session.begin", address=address)
        return begin_session(connection, user, now)


def _end(state: ServerState, cookie: str, name: str, address: str) -> None:
    with state.store.write() as connection:
        end_session(connection, cookie)
        record(connection, state.clock.now(), name, "session.end", address=address)


def _change(state: ServerState, name: str, hashed: str, address: str) -> None:
    with state.store.write() as connection:
        change_user(connection, name, password_hash=hashed)
        record(connection, state.clock.now(), name, "user.password", name, address)


def _note(state: ServerState, name: str, action: str, address: str) -> None:
    """A refused login; the name may be a password typed into the wrong field, so only a known one is written."""
    with state.store.write() as connection:
        known = connection.execute(select(users.c.name).where(users.c.name == name)).scalar()
        record(connection, state.clock.now(), "anonymous", action, known, address)


def _me(state: ServerState, principal: Principal) -> Me:
    with state.store.read() as connection:
        numbers = {row.id: row.number for row in connection.execute(select(contracts))}
    return Me(
        kind=principal.kind,
        name=principal.name,
        scopes=sorted(principal.scopes),
        contracts=None
        if principal.contracts is None
        else sorted(numbers[one] for one in principal.contracts if one in numbers),
        roles=[
            Role(contract_number=numbers[one], project=project or None, role=role)
            for one, project, role in principal.roles
            if one in numbers
        ],
        csrf=principal.csrf,
    )
