"""Who asks, and what they may: the principal of a request, and the dependency that demands a scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from starlette.requests import HTTPConnection

from gpu_monitor.server.problems import Problem

SCOPES = ("report:write", "experiment:write", "read", "admin")
"""What a token may be for. `admin` implies `read` of everything and every change, but no writing of reports."""
ROLES = ("viewer", "member", "admin")
"""What a user may do in a contract (or a project), each one including those before it."""
Kind = Literal["token", "session", "local", "anonymous"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `contracts` None: every contract; `node` set: writes only that node's rows.

    `roles` are a user's memberships: (contract, project, role), with an empty project for the whole contract.
    """

    kind: Kind
    name: str
    scopes: frozenset[str]
    contracts: frozenset[int] | None = None
    node: str | None = None
    enrol: bool = False
    token_id: str | None = None
    roles: tuple[tuple[int, str, str], ...] = ()
    csrf: str | None = field(default=None, repr=False)
    user_id: int | None = None

    @property
    def is_admin(self) -> bool:
        """Whether they may change anything: users, tokens, rules of every contract."""
        return "admin" in self.scopes

    def covers(self, contract: int | None) -> bool:
        """Whether rows of `contract` are theirs to see; None stands for what belongs to every contract."""
        return self.contracts is None or contract in self.contracts

    def has_role(self, role: str, contract: int | None, project: str = "") -> bool:
        """Whether they hold at least `role` in the contract (None: in all), or in that project of it."""
        if self.is_admin:
            return True
        least = ROLES.index(role)
        return any(
            held == contract and of in ("", project) and ROLES.index(given) >= least
            for held, of, given in self.roles
        )


ANONYMOUS = Principal("anonymous", "anonymous", frozenset(("read",)))
"""Anybody on this machine, where the server is bound to loopback: may read."""


class Gate(Protocol):
    """What tells who asks; the server's state has one."""

    async def identify(self, connection: HTTPConnection) -> Principal:
        """The principal of a request or WebSocket; Problem 401, 403 or 429 where there is none."""
        ...


def require(scope: str) -> Callable[[HTTPConnection], Awaitable[Principal]]:
    """A dependency that gives the principal, who has `scope`; else it raises Problem 401, 403 or 429."""

    async def principal_of(connection: HTTPConnection) -> Principal:
        gate: Gate = connection.app.state.server.gate
        principal = await gate.identify(connection)
        check_scope(principal, scope)
        return principal

    return principal_of


def check_scope(principal: Principal, scope: str) -> None:
    """Problem 401 or 403 where the principal has not the scope."""
    if scope in principal.scopes or (scope == "read" and principal.is_admin):
        return
    if principal.kind == "anonymous":
        raise unauthorised("This needs a token or a login.")
    raise Problem(
        403, "Not allowed", f"This needs the scope {scope}; {principal.name} has {_scopes(principal)}."
    )


def _scopes(principal: Principal) -> str:
    return " ".join(sorted(principal.scopes)) or "none"


def unauthorised(detail: str) -> Problem:
    """The answer to somebody who is not known: the same words whatever was wrong with what they showed."""
    return Problem(401, "Not authorised", detail, headers={"WWW-Authenticate": "Bearer"})
