"""API tokens over HTTP: made, listed, revoked."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from gpu_monitor.core.errors import UsageError
from gpu_monitor.core.times import format_time
from gpu_monitor.server.auth.audit import record
from gpu_monitor.server.auth.contracts import find_contract
from gpu_monitor.server.auth.gate import client_address
from gpu_monitor.server.auth.principal import SCOPES, Principal, require
from gpu_monitor.server.auth.tokens import (
    Grant,
    NewToken,
    TokenRow,
    check_grant,
    create_token,
    list_tokens,
    revoke_tokens,
)
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.state import ServerState, state_of

router = APIRouter(prefix="/api/tokens", tags=["access"])
State = Annotated[ServerState, Depends(state_of)]
Asker = Annotated[Principal, Depends(require("read"))]
Scope = Literal["report:write", "experiment:write", "read", "admin"]
TokenId = Annotated[str, Path(max_length=64, pattern="^[0-9a-f]+$")]


class Token(BaseModel):
    """A token as lists show it; times are UTC."""

    id: str
    name: str | None
    scopes: list[str]
    contract_number: str | None = Field(description="null: every contract")
    node: str | None = Field(description="the one node whose rows it writes")
    enrol: bool = Field(description="a new node that shows it gets a token of its own")
    parent: str | None = Field(description="the token through which a node enrolled")
    created: str
    expires: str | None
    revoked: str | None
    first_used: str | None
    last_used: str | None


class Tokens(BaseModel):
    """A page of tokens."""

    items: list[Token]
    next: str | None


class Wanted(BaseModel):
    """What a new token is for."""

    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(SCOPES))] = ["report:write"]
    contract_number: Annotated[
        str | None, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")
    ] = None
    node: UUID | None = None
    enrol: bool = False
    expires_seconds: Annotated[float | None, Field(gt=0, le=3.2e9)] = None
    name: Annotated[str | None, Field(max_length=100, pattern=r"^[^\x00-\x1f]*$")] = None


class Made(BaseModel):
    """A token that was just made; this is the only answer that holds it."""

    id: str
    token: str


@router.get("", summary="Every token")
async def tokens(
    state: State,
    asker: Asker,
    cursor: Annotated[str, Query(max_length=64, pattern="^[0-9a-f]*$")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Tokens:
    """Tokens of the contracts that the asker administers, revoked and expired ones too; never their secret."""
    _refuse_other(asker)
    rows = await run_in_threadpool(_page, state, asker, cursor, limit)
    return Tokens(
        items=[_token(row) for row in rows[:limit]], next=rows[limit - 1].id if len(rows) > limit else None
    )


@router.post("", summary="Make a token", status_code=201)
async def make(state: State, asker: Asker, request: Request, wanted: Wanted) -> Made:
    """Make a token for a contract that the asker administers; it counts at once."""
    _refuse_other(asker)
    expires = None if wanted.expires_seconds is None else state.clock.now() + wanted.expires_seconds
    node = None if wanted.node is None else str(wanted.node)
    grant = Grant(frozenset(wanted.scopes), wanted.contract_number, node, wanted.enrol, expires, wanted.name)
    try:
        check_grant(grant)
    except UsageError as error:
        raise Problem(422, "The request is not valid", error.message) from None
    made = await run_in_threadpool(_make, state, asker, grant, client_address(request))
    return Made(id=made.id, token=made.secret)


@router.delete("/{token}", summary="Revoke a token", status_code=204)
async def revoke(state: State, asker: Asker, request: Request, token: TokenId) -> Response:
    """Refuse the token, and those that enrolled through it, from now on (other processes: within a second)."""
    _refuse_other(asker)
    await run_in_threadpool(_revoke, state, asker, token, client_address(request))
    state.tokens.forget()
    return Response(status_code=204)


def _refuse_other(asker: Principal) -> None:
    """Problem 403 for who administers nothing."""
    if not asker.is_admin and not any(role == "admin" and not project for _, project, role in asker.roles):
        raise Problem(403, "Not allowed", "Tokens are the administrators' business.")


def _page(state: ServerState, asker: Principal, after: str, limit: int) -> list[TokenRow]:
    owned = (
        None
        if asker.is_admin
        else [of for of, project, role in asker.roles if role == "admin" and not project]
    )
    with state.store.read() as connection:
        return list_tokens(connection, after, limit + 1, owned)


def _make(state: ServerState, asker: Principal, grant: Grant, address: str) -> NewToken:
    now = state.clock.now()
    with state.store.write() as connection:
        _refuse_beyond(
            asker, grant, None if grant.contract is None else find_contract(connection, grant.contract)
        )
        made = create_token(connection, grant, now)
        detail = {"scopes": sorted(grant.scopes), "contract_number": grant.contract, "node": grant.node}
        record(connection, now, asker.name, "token.create", made.id, address, detail)
    return made


def _refuse_beyond(asker: Principal, grant: Grant, contract: int | None) -> None:
    """Problem 403 where somebody would give more than they have."""
    if asker.is_admin:
        return
    if contract is None or not asker.has_role("admin", contract) or "admin" in grant.scopes:
        raise Problem(403, "Not allowed", "That reaches beyond the contracts you administer.")


def _revoke(state: ServerState, asker: Principal, token: str, address: str) -> None:
    now = state.clock.now()
    with state.store.write() as connection:
        owned = (
            None
            if asker.is_admin
            else [of for of, project, role in asker.roles if role == "admin" and not project]
        )
        if not revoke_tokens(connection, [token], now, owned):
            raise Problem(404, "Not found", "No such token is in force, or it is not yours.")
        record(connection, now, asker.name, "token.revoke", token, address)


def _token(row: TokenRow) -> Token:
    def moment(epoch: float | None) -> str | None:
        return None if epoch is None else format_time(int(epoch))

    return Token(
        id=row.id,
        name=row.name,
        scopes=list(row.scopes),
        contract_number=row.contract,
        node=row.node,
        enrol=row.enrol,
        parent=row.parent,
        created=format_time(int(row.created)),
        expires=moment(row.expires),
        revoked=moment(row.revoked),
        first_used=moment(row.first_used),
        last_used=moment(row.last_used),
    )
