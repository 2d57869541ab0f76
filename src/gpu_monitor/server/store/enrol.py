"""Tokens of nodes: a new node gets its own with its first answer, and from its first use on needs it.

The answer may be lost, so every token that was given and never used stays good until one of them is used.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select, update

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.tokens import Grant, create_token
from gpu_monitor.server.auth.versions import raise_version
from gpu_monitor.server.store.judge import Refusal
from gpu_monitor.server.store.schema import tokens

_UNUSED = 8
"""Unused tokens of one node that are kept; an agent that never learns its token asks for another each hour."""


_OWN = Refusal(
    403, "Not allowed", "node.id",
    "this node has a token of its own, an enrolling one is for new nodes; where it has lost it: gpu_monitor token list"
    " and revoke on the server, and it may enrol again",
)  # fmt: skip


class NodeTokens:
    """Hands out tokens of nodes within the writer's transaction. One thread at a time."""

    def __init__(self) -> None:
        self._settled: set[str] = set()
        self._new: set[str] = set()
        self._given: dict[str, str] = {}

    def settle(
        self, connection: Connection, principal: Principal, uuid: str, contract_number: str, now: float
    ) -> str | Refusal | None:
        """The token that the node must learn, or why it is refused; None where there is nothing to do."""
        if principal.node is not None:
            self._note_use(connection, principal, uuid, now)
            return None
        if not principal.enrol:
            return None
        if uuid not in self._given:
            if _has_used_one(connection, uuid, now):
                return _OWN
            _drop_surplus(connection, uuid, now)
            grant = Grant(
                frozenset(("report:write",)),
                contract_number,
                node=uuid,
                name=f"node {uuid}",
                parent=principal.token_id,
            )
            self._given[uuid] = create_token(connection, grant, now).secret
        return self._given[uuid]

    def refusal(self, connection: Connection, principal: Principal, uuid: str, now: float) -> Refusal | None:
        """Why an enrolling token may not write live samples of this node; they bring no token."""
        return _OWN if principal.enrol and _has_used_one(connection, uuid, now) else None

    def keep(self) -> None:
        """The transaction was committed."""
        self._settled |= self._new
        self.undo()

    def undo(self) -> None:
        """The transaction was rolled back."""
        self._new, self._given = set(), {}

    def _note_use(self, connection: Connection, principal: Principal, uuid: str, now: float) -> None:
        """At its first use the others that were given and never used end."""
        token = principal.token_id
        if token is None or token in self._settled or token in self._new:
            return
        connection.execute(
            update(tokens)
            .where(tokens.c.id == token)
            .values(first_used=func.coalesce(tokens.c.first_used, now), last_used=now)
        )
        ended = connection.execute(
            update(tokens)
            .where(
                tokens.c.node == uuid,
                tokens.c.id != token,
                tokens.c.parent.is_not(None),
                tokens.c.first_used.is_(None),
                tokens.c.revoked.is_(None),
            )
            .values(revoked=now)
        )
        if ended.rowcount:
            raise_version(connection)
        self._new.add(token)


def _has_used_one(connection: Connection, uuid: str, now: float) -> bool:
    found = connection.execute(
        select(tokens.c.id)
        .where(
            tokens.c.node == uuid,
            tokens.c.first_used.is_not(None),
            tokens.c.revoked.is_(None),
            tokens.c.expires.is_(None) | (tokens.c.expires > now),
        )
        .limit(1)
    )
    return found.first() is not None


def _drop_surplus(connection: Connection, uuid: str, now: float) -> None:
    """Revoke the oldest of too many that were never used."""
    unused = connection.execute(
        select(tokens.c.id)
        .where(
            tokens.c.node == uuid,
            tokens.c.parent.is_not(None),
            tokens.c.first_used.is_(None),
            tokens.c.revoked.is_(None),
        )
        .order_by(tokens.c.created.desc(), tokens.c.id)
        .offset(_UNUSED - 1)
    )
    surplus = list(unused.scalars())
    if surplus:
        connection.execute(update(tokens).where(tokens.c.id.in_(surplus)).values(revoked=now))
        raise_version(connection)
