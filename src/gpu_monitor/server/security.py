"""What every request and answer passes: who may be addressed, from which pages, and the headers that bind browsers."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_monitor.config.server import ServerSettings
from gpu_monitor.server.problems import MEDIA_TYPE, problem_body

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Nothing from elsewhere, nothing inline. An answer that needs another policy sets its own."""
_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"cache-control", b"no-store"),
)
_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
_SAFE = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")


class Doorkeeper:
    """Refuses a name that is not ours (a page elsewhere whose name was pointed here) and other pages' writes."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._names = settings.names
        own = settings.host.lower()
        self._hosts = {*_LOOPBACK, own, *settings.names}
        # Reading is open to anybody on loopback only: elsewhere a foreign name brings no rights with it.
        self._any_name = settings.is_exposed and not settings.names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it; add the headers to its answer."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host = origin = site = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        refused = self._refusal(scope, host, origin, site)
        if refused is not None:
            await _refuse(scope, receive, send, *refused)
            return
        await self._app(scope, receive, _with_headers(send, scope["scheme"]) if kind == "http" else send)

    def _refusal(
        self, scope: Scope, host: bytes | None, origin: bytes | None, site: bytes | None
    ) -> tuple[int, str, str] | None:
        text = (host or b"").decode("latin-1")
        if not self._is_ours(text):
            detail = f"This server does not answer to the name {text[:100]!r}. Name it in ALLOWED_HOSTS if it is yours."
            return 421, "Not this server", detail
        writes = scope["type"] == "websocket" or scope["method"] not in _SAFE
        if not writes:
            return None
        if origin is not None and not self._is_same(origin.decode("latin-1"), text):
            return 403, "Not from this page", "Pages of other origins cannot write here."
        if origin is None and site is not None and site not in (b"same-origin", b"none"):
            return 403, "Not from this page", "Pages of other origins cannot write here."
        return None

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        if self._any_name or name in self._hosts:
            return True
        try:
            ip_address(name)  # a page cannot make its own name look like an address
        except ValueError:
            return False
        return True

    def _is_same(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            name = (parts.hostname or "").lower()
        except ValueError:
            return False
        return bool(name) and (parts.netloc.lower() == host.lower() or name in self._names)


def _with_headers(send: Send, scheme: str) -> Send:
    """A `send` that adds the headers the answer has not set itself."""

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            given = {name for name, _ in headers}
            headers += [pair for pair in _HEADERS if pair[0] not in given]
            if scheme == "https":
                headers.append(_TRANSPORT)
            message["headers"] = headers
        await send(message)

    return sender


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, title: str, detail: str) -> None:
    if scope["type"] == "websocket":
        await receive()  # the connect message; closing before the accept answers 403
        await send({"type": "websocket.close", "code": 1008, "reason": title})
        return
    body = problem_body(status, title, detail)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
