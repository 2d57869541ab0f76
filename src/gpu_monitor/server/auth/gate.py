"""Tells who asks: by a token, by a session's cookie, or by being on this machine."""

from __future__ import annotations

import hmac

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from gpu_monitor.config.server import ServerSettings
from gpu_monitor.server.auth.principal import ANONYMOUS, Principal, unauthorised
from gpu_monitor.server.auth.sessions import SessionBook
from gpu_monitor.server.auth.throttle import TOKENS, Throttle, address_key
from gpu_monitor.server.auth.tokens import TokenBook
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.problems import Problem

_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_SAFE = ("GET", "HEAD", "OPTIONS")
PRINCIPAL_KEY = "gpu_monitor.principal"
"""Where the scope of a connection keeps who it is; without it the gate looks again."""
CSRF_HEADER = "x-csrf-token"


def cookie_name(connection: HTTPConnection) -> str:
    """The session's cookie: under TLS browsers let no other host and no plain page set one of this name."""
    return "__Host-gpu_monitor" if connection.url.scheme in ("https", "wss") else "gpu_monitor"


def client_address(connection: HTTPConnection) -> str:
    """Where the request came from, the proxy's word for it where that is trusted."""
    return connection.client.host if connection.client else "unknown"


class RequestGate:
    """The gate of a server."""

    def __init__(
        self,
        settings: ServerSettings,
        tokens: TokenBook,
        sessions: SessionBook,
        throttle: Throttle,
        metrics: OwnMetrics,
    ) -> None:
        self._is_exposed = settings.is_exposed
        self._is_proxied = bool(settings.proxies)
        self._tokens, self._sessions = tokens, sessions
        self._throttle, self._metrics = throttle, metrics

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
            return await self.by_token(header, client_address(connection))
        cookie = connection.cookies.get(cookie_name(connection))
        if cookie is not None:
            found = await run_in_threadpool(self._sessions.find, cookie)
            if found is not None:
                _check_csrf(connection, found)
                return found
        return self._anybody(connection)

    def _anybody(self, connection: HTTPConnection) -> Principal:
        if self._is_exposed:
            raise unauthorised("This needs a token or a login.")
        if any(name in connection.headers for name in _FORWARDED):
            raise unauthorised(
                "This request came through a proxy, and the server was started without --behind-proxy:"
                " who is on this machine cannot be told."
            )
        return ANONYMOUS

    async def by_token(self, header: str, address: str) -> Principal:
        """The principal of an Authorization header; Problem 401, or 429 after very many unknown tokens."""
        scheme, _, bearer = header.partition(" ")
        if scheme.lower() != "bearer":
            raise unauthorised("Authorization takes Bearer and a token.")
        bearer = bearer.strip()
        if self._tokens.holds(bearer):
            found = self._tokens.find(bearer)
        else:
            key = ("token", address_key(address))
            wait = self._throttle.wait(key, TOKENS)
            if wait > 0:
                raise too_many(wait)
            found = await run_in_threadpool(self._tokens.find, bearer)
            if found is None:
                self._throttle.failed(key)
        if found is None:
            self._metrics.count("refused_total", reason="token")
            raise unauthorised("The token is not known here, was revoked, or has expired.")
        return found


def too_many(wait: float) -> Problem:
    """The answer to somebody who guesses; the same whether the account is there or not."""
    seconds = str(max(1, round(wait + 0.5)))
    return Problem(429, "Too many failures", f"Try again in {seconds} s.", headers={"Retry-After": seconds})


def _check_csrf(connection: HTTPConnection, principal: Principal) -> None:
    """Problem 403 where a change comes with the cookie alone, which a browser adds by itself."""
    if connection.scope["type"] != "http" or connection.scope["method"] in _SAFE:
        return
    sent = connection.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(sent.encode(), (principal.csrf or "").encode()):
        raise Problem(403, "Not from this page", f"A change needs the header {CSRF_HEADER} of this session.")
