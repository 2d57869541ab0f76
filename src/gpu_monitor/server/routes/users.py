"""Users, their roles, and the audit log; all for administrators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from gpu_monitor.core.errors import NothingFound, UsageError
from gpu_monitor.core.times import format_time
from gpu_monitor.server.auth.audit import list_deeds, record
from gpu_monitor.server.auth.gate import client_address
from gpu_monitor.server.auth.passwords import LONGEST, SHORTEST, check_new_password
from gpu_monitor.server.auth.principal import Principal, require
from gpu_monitor.server.auth.users import (
    NAME_PATTERN,
    add_user,
    change_user,
    grant_role,
    list_users,
    take_role,
)
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.state import ServerState, state_of

router = APIRouter(prefix="/api", tags=["access"])
State = Annotated[ServerState, Depends(state_of)]
Admin = Annotated[Principal, Depends(require("admin"))]
Contract = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]
Project = Annotated[str | None, Field(max_length=100, pattern=r"^[^\x00-\x1f]*$")]


class Membership(BaseModel):
    """A role in a contract, or in one project of it."""

    contract_number: str
    project: str | None = Field(description="null: the whole contract")
    role: str


class UserRow(BaseModel):
    """A user as lists show it."""

    name: str
    admin: bool
    disabled: bool
    created: str
    memberships: list[Membership]


class Users(BaseModel):
    """Every user."""

    items: list[UserRow]
    next: None = None


class NewUser(BaseModel):
    """A user to be made."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    password: Annotated[str, Field(min_length=SHORTEST, max_length=LONGEST)]
    admin: bool = False


class Change(BaseModel):
    """What is to change; what is left out stays."""

    password: Annotated[str | None, Field(min_length=SHORTEST, max_length=LONGEST)] = None
    admin: bool | None = None
    disabled: bool | None = None


class Grant(BaseModel):
    """A role to be given; null takes it away."""

    contract_number: Contract
    project: Project = None
    role: Literal["viewer", "member", "admin"] | None


class DeedRow(BaseModel):
    """One entry of the audit log."""

    id: int
    time: str
    actor: str
    action: str
    subject: str | None
    address: str | None
    detail: dict[str, object] | None


class Deeds(BaseModel):
    """A page of the audit log."""

    items: list[DeedRow]
    next: str | None


@router.get("/users", summary="Every user")
async def users(state: State, admin: Admin) -> Users:
    """Users and their roles, by name."""

    def ask() -> Users:
        with state.store.read() as connection:
            found = list_users(connection)
        return Users(
            items=[
                UserRow(
                    name=user.name,
                    admin=user.admin,
                    disabled=user.disabled,
                    created=format_time(int(user.created)),
                    memberships=[
                        Membership(contract_number=one.contract, project=one.project or None, role=one.role)
                        for one in user.memberships
                    ],
                )
                for user in found
            ]
        )

    return await run_in_threadpool(ask)


@router.post("/users", summary="Make a user", status_code=201)
async def make(state: State, admin: Admin, request: Request, wanted: NewUser) -> Response:
    """Make a user, who sees nothing before a role is given (an administrator: everything)."""
    hashed = await _hash(state, wanted.password, wanted.name)
    now = state.clock.now()
    await _do(
        state, request, admin, "user.add", wanted.name,
        lambda connection: add_user(connection, wanted.name, hashed, wanted.admin, now),
        {"admin": wanted.admin},
    )  # fmt: skip
    return Response(status_code=201)


@router.patch("/users/{name}", summary="Change a user", status_code=204)
async def change(state: State, admin: Admin, request: Request, name: str, wanted: Change) -> Response:
    """Change password, administration or access; the user's sessions end."""
    hashed = None if wanted.password is None else await _hash(state, wanted.password, name)
    detail = {
        "password": hashed is not None,
        **{
            key: value
            for key, value in (("admin", wanted.admin), ("disabled", wanted.disabled))
            if value is not None
        },
    }
    await _do(
        state, request, admin, "user.change", name,
        lambda connection: change_user(connection, name, hashed, wanted.admin, wanted.disabled), detail,
    )  # fmt: skip
    state.sessions.forget()
    return Response(status_code=204)


@router.put("/users/{name}/roles", summary="Give or take a role", status_code=204)
async def give(state: State, admin: Admin, request: Request, name: str, wanted: Grant) -> Response:
    """Give a role in a contract (or one project of it) in place of the one held, or take it away."""
    project = wanted.project or ""

    def work(connection: Connection) -> None:
        if wanted.role is None:
            take_role(connection, name, wanted.contract_number, project)
        else:
            grant_role(connection, name, wanted.contract_number, wanted.role, project)

    await _do(state, request, admin, "user.role", name, work, wanted.model_dump())
    state.sessions.forget()
    return Response(status_code=204)


@router.get("/audit", summary="Who changed what")
async def deeds(
    state: State,
    admin: Admin,
    cursor: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Deeds:
    """The audit log, newest first."""

    def ask() -> Deeds:
        with state.store.read() as connection:
            found = list_deeds(connection, cursor, limit + 1)
        items = [
            DeedRow(
                id=deed.id, time=format_time(round(deed.time, 3)), actor=deed.actor, action=deed.action,
                subject=deed.subject, address=deed.address, detail=deed.detail,
            )
            for deed in found[:limit]
        ]  # fmt: skip
        return Deeds(items=items, next=str(items[-1].id) if len(found) > limit else None)

    return await run_in_threadpool(ask)


async def _hash(state: ServerState, password: str, name: str) -> str:
    with _refusals():
        check_new_password(password, name)
    return await state.passwords.hash(password)


async def _do(
    state: ServerState,
    request: Request,
    admin: Principal,
    action: str,
    subject: str,
    work: Callable[[Connection], None],
    detail: Mapping[str, object],
) -> None:
    """Change something and write down who did, in one transaction."""
    address = client_address(request)

    def act() -> None:
        with _refusals(), state.store.write() as connection:
            work(connection)
            record(connection, state.clock.now(), admin.name, action, subject, address, detail)

    await run_in_threadpool(act)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the rules of users refuse, as answers."""
    try:
        yield
    except NothingFound as error:
        raise Problem(404, "Not found", error.message) from None
    except UsageError as error:
        raise Problem(422, "The request is not valid", error.message) from None
