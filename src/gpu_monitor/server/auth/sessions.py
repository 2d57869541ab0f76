"""Sessions of browsers: a random cookie kept as SHA-256, and a second word that only our own pages can send."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from gpu_monitor.core.clock import Clock
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.tokens import digest_of
from gpu_monitor.server.auth.versions import raise_version
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import memberships, sessions, users

LIFE_SECONDS = 7 * 86400.0
"""After a week one logs in again, however busy the page was."""
_HELD = 5000


@dataclass(frozen=True)
class NewSession:
    """A session that was just begun: the only moment at which `cookie` is known."""

    cookie: str
    csrf: str

    def __repr__(self) -> str:
        return "NewSession()"


def begin_session(connection: Connection, user: int | None, now: float) -> NewSession:
    """Begin a session of a user (None: whoever opened the one-time link), within the caller's transaction."""
    made = NewSession(secrets.token_urlsafe(32), secrets.token_urlsafe(32))
    connection.execute(
        sessions.insert().values(
            digest=digest_of(made.cookie), user=user, csrf=made.csrf, created=now, expires=now + LIFE_SECONDS
        )
    )
    return made


def end_session(connection: Connection, cookie: str) -> None:
    """End a session; heeded within a second by every process."""
    if connection.execute(delete(sessions).where(sessions.c.digest == digest_of(cookie))).rowcount:
        raise_version(connection)


class SessionBook:
    """Finds the principal of a session's cookie. Any thread may ask; see TokenBook for what is held."""

    def __init__(self, store: Store, clock: Clock, is_exposed: bool) -> None:
        self._store, self._clock = store, clock
        self._has_local = not is_exposed
        self._held: dict[bytes, tuple[Principal, float]] = {}
        self._generation = 0

    def find(self, cookie: str) -> Principal | None:
        """Whose session it is; None where it is unknown, over, or of a user who may not log in."""
        if not 20 <= len(cookie) <= 100:
            return None
        digest = digest_of(cookie)
        held = self._held.get(digest) or self._look_up(digest)
        return held[0] if held is not None and held[1] > self._clock.now() else None

    def forget(self) -> None:
        """Look every session up again."""
        self._generation += 1
        self._held = {}

    def purge(self) -> None:
        """Delete sessions that are over."""
        with self._store.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.expires <= self._clock.now()))

    def _look_up(self, digest: bytes) -> tuple[Principal, float] | None:
        generation = self._generation
        with self._store.read() as connection:
            row = connection.execute(select(sessions).where(sessions.c.digest == digest)).first()
            principal = None if row is None else self._principal(connection, row.user, row.csrf)
        if row is None or principal is None:
            return None
        found = (principal, float(row.expires))
        if generation == self._generation:
            if len(self._held) >= _HELD:
                self._held = {}
            self._held[digest] = found
        return found

    def _principal(self, connection: Connection, user_id: int | None, csrf: str) -> Principal | None:
        if user_id is None:
            # By the one-time link, which is printed on loopback only: the person who started the server.
            if not self._has_local:
                return None
            return Principal("local", "local", frozenset(("read", "admin")), csrf=csrf)
        user = connection.execute(select(users).where(users.c.id == user_id, ~users.c.disabled)).first()
        if user is None:
            return None
        asked = select(memberships).where(memberships.c.user == user_id)
        roles = tuple((row.contract, row.project, row.role) for row in connection.execute(asked))
        return Principal(
            kind="session",
            name=user.name,
            scopes=frozenset(("read", "admin") if user.admin else ("read",)),
            contracts=None if user.admin else frozenset(of for of, project, _ in roles if not project),
            roles=roles,
            csrf=csrf,
            user_id=user.id,
        )
