# SPDX-License-Identifier: MIT
"""One lean HTTP/1.1 connection to one server, for a thread inside somebody else's program.

It costs the process 50 ms and 4 MB at `prepare`, once, and 0.2 to 2 ms of CPU a request (of nothing, of 1 MiB), most
of it where other threads run. (requests takes 100 ms to import, in pieces of up to 9 ms in which no other thread
runs, changes logging for all, and takes 0.8 ms a request: right for an agent, not for a training script.)
"""

from __future__ import annotations

import base64
import http.client
import io
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import certifi

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.sinks.exchange import CONNECT_SECONDS, Failure, Reply, host_of
from gpu_monitor.wire.telemetry import ANSWER_BYTES

_PORTS = {"http": 80, "https": 443}


class Connection:
    """Requests to the server at `base`, one at a time, in the caller's thread. `cut` may come from any thread.

    Redirects are not followed, netrc is not read: the credentials are those of each request. `https_proxy`,
    `http_proxy` and `no_proxy` are respected. Certificates are held against the system's authorities, certifi's
    and `ca_file`.
    """

    def __init__(self, base: str, ca_file: Path | None = None, clock: Clock | None = None) -> None:
        self.base = base.rstrip("/")
        parts = urlsplit(self.base)
        self._scheme, self._host = parts.scheme.lower(), parts.hostname or ""
        self._port = parts.port or _PORTS[self._scheme]
        self._prefix = parts.path
        self._netloc = parts.netloc
        self._ca_file = ca_file
        self._clock = clock or SystemClock()
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._line: http.client.HTTPConnection | None = None
        self._is_cut = False
        self._is_prepared = False
        self._is_proxied = False
        self._for_proxy: Mapping[str, str] = {}
        self._line_was_made = False
        self._deadline = 0.0

    def prepare(self) -> None:
        """Do now what takes long the first time, in pieces in which no other thread runs: reading authorities takes
        50 ms, the tables for names and headers 5.

        OSError where `ca_file` cannot be read.
        """
        if self._is_prepared:
            return
        with suppress(UnicodeError):  # no name of a host, which the first exchange says
            self._host.encode("idna")
        http.client.parse_headers(io.BytesIO(b"A: b\r\n\r\n"))
        urllib.request.getproxies()
        if self._scheme == "https":
            context = ssl.create_default_context()
            context.load_verify_locations(certifi.where())
            if self._ca_file is not None:
                context.load_verify_locations(self._ca_file)
            self._context = context
        self._is_prepared = True

    def exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, seconds: float
    ) -> Reply | Failure:
        """The answer to a request, or why there is none, within `seconds` of sending and as many of the answer.

        A connection that the server closed while it was idle is opened anew, once: whatever is sent here may be
        sent twice.
        """
        self._deadline = self._clock.monotonic() + seconds
        while True:
            was_open = self._line_was_made = self._line is not None
            try:
                return self._try(method, path, headers, body)
            except (OSError, ValueError, http.client.HTTPException) as error:
                self._line_was_made = self._line_was_made or self._line is not None
                self.close()
                is_stale = was_open and isinstance(error, (ConnectionError, ssl.SSLError))
                if is_stale and not self._is_cut and self._clock.monotonic() < self._deadline:
                    continue
                return self._failure(error, seconds, was_open)

    def cut(self) -> None:
        """Have the exchange that another thread carries end now, and all later ones fail."""
        with self._lock:
            self._is_cut = True
            line = self._line
        sock = line.sock if line is not None else None
        if sock is not None:
            # One that the other side has closed already cannot be shut down again.
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next exchange opens a new one."""
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            line.close()

    def _try(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        line = self._line or self._open()
        response = self._sent(
            line, method, self._target(path), {"Host": self._netloc, **self._for_proxy, **headers}, body
        )
        try:
            data = response.read(ANSWER_BYTES + 1)
            found = {name.lower(): value for name, value in response.getheaders()}
            is_whole = len(data) <= ANSWER_BYTES
            if is_whole and response.length:
                raise http.client.IncompleteRead(data, response.length)  # `read` with a size does not say so
            if not is_whole or response.will_close:
                self.close()
            return Reply(response.status, found, data if is_whole else None)
        finally:
            response.close()

    def _sent(
        self,
        line: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> http.client.HTTPResponse:
        line.sock.settimeout(self._left())
        try:
            line.request(method, target, body, headers)
        except (BrokenPipeError, ConnectionResetError):
            # A server may refuse by the headers alone, and close: its answer may still be there.
            return line.getresponse()
        return line.getresponse()

    def _target(self, path: str) -> str:
        """What stands in the request's first line: through a proxy for plain HTTP the whole address."""
        whole = self._prefix + path
        return f"http://{self._netloc}{whole}" if self._is_proxied else whole

    def _open(self) -> http.client.HTTPConnection:
        self.prepare()
        proxy = _proxy_for(self._scheme, self._netloc)
        self._is_proxied = proxy is not None and self._scheme == "http"
        self._for_proxy = proxy.headers if proxy is not None and self._is_proxied else {}
        host, port = (proxy.host, proxy.port) if proxy is not None else (self._host, self._port)
        seconds = min(CONNECT_SECONDS, self._left())
        line: http.client.HTTPConnection
        if self._scheme == "https":
            line = http.client.HTTPSConnection(host, port, timeout=seconds, context=self._context)
        else:
            line = http.client.HTTPConnection(host, port, timeout=seconds)
        if proxy is not None and self._scheme == "https":
            line.set_tunnel(self._host, self._port, proxy.headers)
        line.response_class = self._response  # type: ignore[assignment]  # called as the class would be
        try:
            line.connect()
        except BaseException:
            line.close()
            raise
        with self._lock:
            if self._is_cut:
                line.close()
                raise ConnectionAbortedError("the request was given up")
            self._line = line
        return line

    def _response(self, sock: Any, *given: Any, **named: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(_Bounded(sock, self._left), *given, **named)  # type: ignore[arg-type]

    def _left(self) -> float:
        """Seconds until the deadline; a moment where it is over, so that a wait ends at once."""
        return max(0.001, self._deadline - self._clock.monotonic())

    def _failure(self, error: Exception, seconds: float, was_open: bool) -> Failure:
        where = host_of(self.base)
        if self._is_cut:
            return Failure("the request was given up", reached=True, stopped=True)
        if isinstance(error, ssl.SSLCertVerificationError):
            return Failure(
                f"the certificate of {where} is not trusted: {error.verify_message}", reached=False
            )
        if isinstance(error, ssl.SSLError):
            return Failure(f"no TLS with {where}: {(error.reason or 'it failed').lower()}", reached=False)
        if isinstance(error, socket.gaierror):
            return Failure(f"the name of {where} is not known", reached=False)
        if isinstance(error, TimeoutError):
            reached = was_open or self._line_was_made
            text = (
                f"no complete answer from {where} within {seconds:g} s"
                if reached
                else f"no connection to {where}"
            )
            return Failure(text, reached=reached)
        words = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
        if not self._line_was_made:
            return Failure(f"no connection to {where}: {words}", reached=False)
        return Failure(f"the connection to {where} broke: {words}", reached=True)


class _Bounded:
    """A socket as HTTPResponse wants it, whose every read has what is left of the time: a server that drips ends, too."""

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock = sock
        self._left = left

    def makefile(self, mode: str) -> io.BufferedReader:
        """The stream that the answer is read from."""
        return io.BufferedReader(_Reading(self._sock, self._left))


class _Reading(io.RawIOBase):
    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._left = left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


@dataclass(frozen=True)
class _Proxy:
    """Where a proxy listens, and what it wants to be told."""

    host: str
    port: int
    headers: Mapping[str, str]


def _proxy_for(scheme: str, netloc: str) -> _Proxy | None:
    """The proxy that the environment names for a server; None where it names none. OSError where it cannot be used."""
    named = urllib.request.getproxies().get(scheme)
    if not named or urllib.request.proxy_bypass(netloc):
        return None
    try:
        parts = urlsplit(named if "://" in named else f"http://{named}")
        port = parts.port or 8080
    except ValueError:
        raise OSError("the proxy of the environment has no address that can be used") from None
    if parts.scheme != "http" or not parts.hostname:
        raise OSError("the proxy of the environment is of a kind that cannot be used here")
    headers = {}
    if parts.username is not None:
        word = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(word.encode()).decode()}"
    return _Proxy(parts.hostname, port, headers)
