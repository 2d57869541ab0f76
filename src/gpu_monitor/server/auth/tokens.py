"""API tokens: 256 random bits, kept as SHA-256; made, listed, revoked, and found again in a microsecond."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, select, update

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.auth.contracts import ensure_contract
from gpu_monitor.server.auth.principal import SCOPES, Principal
from gpu_monitor.server.auth.versions import raise_version
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import contracts, tokens

PREFIX = "gpm_"
"""By which people and secret scanners know a token of ours."""
_SHAPE = re.compile(r"gpm_[A-Za-z0-9_-]{43}")
_HELD = 20_000
"""Principals kept in memory, about 600 bytes each; above it they are all let go of."""
_UNKNOWN = 4096
_UNKNOWN_SECONDS = 1.0
"""A token that is not there is looked for once a second, however often it is shown."""


@dataclass(frozen=True)
class Grant:
    """What a new token is for. `contract` is the contract's number; None: every contract."""

    scopes: frozenset[str]
    contract: str | None = None
    node: str | None = None
    enrol: bool = False
    expires: float | None = None
    name: str | None = None
    parent: str | None = None


@dataclass(frozen=True)
class NewToken:
    """A token that was just made: the only moment at which `secret` is known."""

    id: str
    secret: str

    def __repr__(self) -> str:
        return f"NewToken(id={self.id!r})"


@dataclass(frozen=True)
class TokenRow:
    """One token as lists show it."""

    id: str
    name: str | None
    scopes: tuple[str, ...]
    contract: str | None
    node: str | None
    enrol: bool
    parent: str | None
    created: float
    expires: float | None
    revoked: float | None
    first_used: float | None
    last_used: float | None


def digest_of(secret: str) -> bytes:
    """What is stored in place of the token: a plain SHA-256 is enough for 256 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def create_token(connection: Connection, grant: Grant, now: float) -> NewToken:
    """Make a token within the caller's transaction; it counts from its commit on, in every process."""
    if not grant.scopes or not grant.scopes <= set(SCOPES):
        raise ValueError(f"scopes must be of {SCOPES}")
    made = NewToken(secrets.token_hex(6), PREFIX + secrets.token_urlsafe(32))
    connection.execute(
        tokens.insert().values(
            id=made.id,
            digest=digest_of(made.secret),
            scope=" ".join(sorted(grant.scopes)),
            contract=None if grant.contract is None else ensure_contract(connection, grant.contract),
            node=grant.node,
            enrol=grant.enrol,
            parent=grant.parent,
            name=grant.name,
            created=now,
            expires=grant.expires,
        )
    )
    return made


def check_grant(grant: Grant) -> None:
    """UsageError, saying what to do, where a token for this would make no sense."""
    if not grant.scopes or not grant.scopes <= set(SCOPES):
        raise UsageError("there is no such scope", f"Scopes are {', '.join(SCOPES)}.")
    if grant.contract is None and grant.scopes & {"report:write", "experiment:write"}:
        raise UsageError("a token that writes is for one contract", "Say --contract NUMBER.")
    if (grant.node or grant.enrol) and "report:write" not in grant.scopes:
        raise UsageError(
            "one node, and enrolling nodes, are for tokens that write reports", "Add --scope report:write."
        )
    if grant.node and grant.enrol:
        raise UsageError("a token is for one node or for enrolling nodes", "Choose one of them.")


def list_tokens(
    connection: Connection, after: str = "", limit: int = 1000, owned: Sequence[int] | None = None
) -> list[TokenRow]:
    """Tokens in the order of their ids, from the first one after `after`; revoked and expired ones, too.

    `owned`: only those of these contracts (ids).
    """
    asked = (
        select(tokens, contracts.c.number)
        .select_from(tokens.outerjoin(contracts, tokens.c.contract == contracts.c.id))
        .where(tokens.c.id > after)
        .order_by(tokens.c.id)
        .limit(limit)
    )
    rows = connection.execute(asked if owned is None else asked.where(tokens.c.contract.in_(owned)))
    return [
        TokenRow(
            row.id, row.name, tuple(row.scope.split()), row.number, row.node, row.enrol, row.parent,
            row.created, row.expires, row.revoked, row.first_used, row.last_used,
        )
        for row in rows
    ]  # fmt: skip


def revoke_tokens(
    connection: Connection, ids: Iterable[str], now: float, owned: Sequence[int] | None = None
) -> int:
    """Revoke tokens and those that enrolled through them; how many were in force. Heeded within a second.

    `owned`: only those of these contracts (ids).
    """
    named = list(ids)
    asked = (
        update(tokens)
        .where(tokens.c.id.in_(named) | tokens.c.parent.in_(named), tokens.c.revoked.is_(None))
        .values(revoked=now)
    )
    changed = connection.execute(
        asked if owned is None else asked.where(tokens.c.contract.in_(owned))
    ).rowcount
    if changed:
        raise_version(connection)
    return int(changed)


_FIND = select(
    tokens.c.id, tokens.c.scope, tokens.c.contract, tokens.c.node, tokens.c.enrol, tokens.c.expires
).where(tokens.c.digest == bindparam("shown"), tokens.c.revoked.is_(None))
"""Made once: building it anew takes longer than the question itself."""


class TokenBook:
    """Finds the principal of a token. Any thread may ask.

    What was found stays in memory until somebody says `forget` (which `server.auth.upkeep` does within a second
    of any change, whichever process made it); a token that is new is found at once.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._held: dict[bytes, tuple[Principal, float]] = {}
        self._unknown: dict[bytes, float] = {}
        self._used: set[str] = set()
        self._generation = 0

    def find(self, bearer: str) -> Principal | None:
        """Who shows this token; None where it is unknown, revoked or expired. Reads the database if it must."""
        if len(bearer) != 47:
            return None
        digest = hashlib.sha256(bearer.encode("utf-8", "replace")).digest()
        held = self._held.get(digest) or self._look_up(bearer, digest)
        if held is None or held[1] <= self._clock.now():
            return None
        self._used.add(held[0].name)
        return held[0]

    def find_held(self, bearer: str) -> Principal | None:
        """The same from memory alone; None where the database would have to be asked."""
        held = self._held.get(digest_of(bearer))
        if held is None or held[1] <= self._clock.now():
            return None
        self._used.add(held[0].name)
        return held[0]

    def holds(self, bearer: str) -> bool:
        """Whether `find` would answer from memory."""
        return digest_of(bearer) in self._held

    def forget(self) -> None:
        """Look every token up again."""
        self._generation += 1
        self._held = {}
        self._unknown = {}

    def _look_up(self, bearer: str, digest: bytes) -> tuple[Principal, float] | None:
        moment = self._clock.monotonic()
        if not _SHAPE.fullmatch(bearer) or self._unknown.get(digest, -math.inf) > moment:
            return None
        generation = self._generation
        with self._store.read() as connection:
            row = connection.execute(_FIND, {"shown": digest}).first()
        if row is None:
            if len(self._unknown) >= _UNKNOWN:
                self._unknown = {}
            self._unknown[digest] = moment + _UNKNOWN_SECONDS
            return None
        principal = Principal(
            kind="token",
            name=f"token {row.id}",
            scopes=frozenset(row.scope.split()),
            contracts=None if row.contract is None else frozenset((row.contract,)),
            node=row.node,
            enrol=row.enrol,
            token_id=row.id,
        )
        found = (principal, math.inf if row.expires is None else float(row.expires))
        # One that was revoked while we read must not stay: `forget` has counted on since then.
        if generation == self._generation:
            if len(self._held) >= _HELD:
                self._held = {}
            self._held[digest] = found
        return found

    def write_uses(self) -> None:
        """Write down, in one transaction, which tokens were used since this was last called."""
        used, self._used = self._used, set()
        if not used:
            return
        ids = [name.removeprefix("token ") for name in sorted(used)]
        now = self._clock.now()
        with self._store.write() as connection:
            for start in range(0, len(ids), 500):
                connection.execute(
                    update(tokens)
                    .where(tokens.c.id.in_(ids[start : start + 500]))
                    .values(last_used=now, first_used=func.coalesce(tokens.c.first_used, now))
                )
