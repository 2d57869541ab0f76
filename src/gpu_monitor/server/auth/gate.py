"""Tells who asks: by a token, by a session's cookie, or by being on this machine."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from gpu_monitor.config.server import ServerSettings
from gpu_monitor.server.auth.principal import ANONYMOUS, Principal, unauthorised
from gpu_monitor.server.auth.tokens import TokenBook

_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
PRINCIPAL_KEY = "gpu_monitor.principal"
"""Where the scope of a connection keeps who it is; without it the gate looks again."""


class RequestGate:
    """The gate of a server."""

    def __init__(self, settings: ServerSettings, tokens: TokenBook) -> None:
        self._is_exposed = settings.is_exposed
        self._tokens = tokens

    async def identify(self, connection: HTTPConnection) -> Principal:
        """The principal of a request or WebSocket, found once; Problem 401, 403 or 429 where there is none."""
        known: Principal | None = connection.scope.get(PRINCIPAL_KEY)
        if known is None:
            known = await self._find(connection)
            connection.scope[PRINCIPAL_KEY] = known
        return known

    async def _find(self, connection: HTTPConnection) -> Principal:
        header = connection.headers.get("authorization")
        if header is not None:
            return await self._by_token(header)
        if self._is_exposed:
            raise unauthorised("This needs a token or a login.")
        if any(name in connection.headers for name in _FORWARDED):
            raise unauthorised(
                "This request came through a proxy, and the server was started without --behind-proxy:"
                " who is on this machine cannot be told."
            )
        return ANONYMOUS

    async def _by_token(self, header: str) -> Principal:
        scheme, _, bearer = header.partition(" ")
        if scheme.lower() != "bearer":
            raise unauthorised("Authorization takes Bearer and a token.")
        bearer = bearer.strip()
        if self._tokens.holds(bearer):
            found = self._tokens.find(bearer)
        else:
            found = await run_in_threadpool(self._tokens.find, bearer)
        if found is None:
            raise unauthorised("The token is not known here, was revoked, or has expired.")
        return found
