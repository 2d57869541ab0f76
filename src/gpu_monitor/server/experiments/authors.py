"""For which contract somebody writes experiments, if they may."""

from __future__ import annotations

from collections.abc import Collection

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from gpu_monitor.server.auth.contracts import find_contract
from gpu_monitor.server.auth.principal import Principal, check_scope
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.state import ServerState
from gpu_monitor.server.store.experiment_gpus import LOCAL
from gpu_monitor.server.store.segment_write import Author

SCOPE = "experiment:write"
_HEADER = "x-contract-number"
_LETTERS = 64


async def author_of(request: Request, state: ServerState, scopes: Collection[str] = (SCOPE,)) -> Author:
    """Who writes, and for which contract; Problem 401, 403, 422 or 429.

    A token has one of `scopes`, and writes for its own contract; where it is for every one, to an experiment wherever it
    is, and a new one to that in X-Contract-Number. Who is logged in names a contract of which they are a member.
    """
    principal = await state.gate.identify(request)
    number = request.headers.get(_HEADER)
    if number is not None and not (1 <= len(number) <= _LETTERS and number.isprintable()):
        raise Problem(422, "The request is not valid", "X-Contract-Number: not the number of a contract.")
    if principal.kind == "session" and number is not None:
        return Author(principal.name, await run_in_threadpool(_membership, state, principal, number), number)
    held = [scope for scope in scopes if scope in principal.scopes]
    check_scope(principal, held[0] if held else SCOPE)
    if principal.contracts is None:
        return Author(principal.name, None, number or LOCAL)
    if len(principal.contracts) != 1:
        raise Problem(403, "Not allowed", "Experiments are written with a token of one contract.")
    (contract,) = principal.contracts
    if number is not None and await run_in_threadpool(_known, state, number) != contract:
        raise Problem(403, "Not allowed", "X-Contract-Number: not the contract of the token.")
    return Author(principal.name, contract, number or "")


def _known(state: ServerState, number: str) -> int | None:
    """The contract's id; None where the server has not heard of it."""
    with state.store.read() as connection:
        return find_contract(connection, number)


def _membership(state: ServerState, principal: Principal, number: str) -> int:
    contract = _known(state, number)
    if contract is None or not principal.has_role("member", contract):
        raise Problem(403, "Not allowed", "X-Contract-Number: not a contract of which you are a member.")
    return contract
