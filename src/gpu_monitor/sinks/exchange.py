# SPDX-License-Identifier: MIT
"""One HTTP request at a time, each over by its deadline whatever the server does. The home of requests.

The request runs in a thread of its own. When its time is over, or the agent stops, the thread's sockets
are shut down under it, so it ends at once; what it may still bring is not looked at.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.imports import StandIns, import_lean
from gpu_monitor.wire.telemetry import ANSWER_BYTES

if TYPE_CHECKING:
    import requests
    from urllib3.connection import HTTPConnection

CONNECT_SECONDS = 5.0
"""A TCP or TLS handshake that takes longer: the server counts as unreachable."""
_LOOK_SECONDS = 0.25
"""How often a running request looks whether the agent stops: SIGTERM has 5 s for everything."""
_END_SECONDS = 0.5
"""How long a thread whose sockets were shut down is waited for; it takes about a millisecond."""

_NOT_NEEDED: StandIns = {"charset_normalizer": None, "chardet": None}
"""Tables for guessing the encoding of texts: 3 MB."""


@dataclass(frozen=True)
class Request:
    """What is sent. `verify`: True for the system's authorities, else the path of a PEM file."""

    method: str
    url: str
    headers: Mapping[str, str | bytes]
    body: bytes | None
    verify: bool | str


@dataclass(frozen=True)
class Reply:
    """An answer. Names of `headers` are lower case; `data` is None where it is too long to be one."""

    status: int
    headers: Mapping[str, str]
    data: bytes | None


@dataclass(frozen=True)
class Failure:
    """No answer. `reached`: a connection had been made. `stopped`: we gave up because the agent stops."""

    text: str
    reached: bool
    stopped: bool = False


class _Twins:
    """Second handles on a session's sockets, by which another thread can shut them down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[socket.socket, HTTPConnection] = {}
        self._released: set[socket.socket] = set()
        self.made = 0
        self.is_cut = False

    def add(self, original: socket.socket, connection: HTTPConnection) -> socket.socket:
        with self._lock:
            if self.is_cut:
                # Connected after the request was given up: nothing may be sent on it any more.
                original.close()
                raise ConnectionAbortedError("the request was given up")
            twin = original.dup()
            self._live[twin] = connection
            self.made += 1
        return twin

    def release(self, twin: socket.socket) -> None:
        """The connection is given up, but an answer may still be read from it: closed by `sweep`."""
        with self._lock:
            self._live.pop(twin, None)
            self._released.add(twin)

    def close(self) -> None:
        """Close every connection. urllib3 leaves that to the garbage collector, which may come late."""
        with self._lock:
            connections = list(self._live.values())
        for connection in connections:
            connection.close()
        self.sweep()

    def sweep(self) -> None:
        with self._lock:
            over, self._released = self._released, set()
        for twin in over:
            twin.close()

    def cut(self) -> None:
        """Shut every socket down; whoever reads or writes on one gets an error now."""
        with self._lock:
            self.is_cut = True
            twins = [*self._live, *self._released]
        for twin in twins:
            # A socket that the other side has closed already cannot be shut down again.
            with suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)


class Courier:
    """Carries requests over one session, reused while it is good. One thread at a time."""

    def __init__(self, stop: threading.Event, clock: Clock | None = None) -> None:
        self._stop = stop
        self._clock = clock or SystemClock()
        self._session: requests.Session | None = None
        self._twins = _Twins()
        self._pool: _Pool | None = None

    def carry(self, request: Request, seconds: float) -> Reply | Failure:
        """The answer to `request`, or why there is none, within `seconds` (and a moment)."""
        if self._stop.is_set():
            return Failure("the agent stops", reached=False, stopped=True)
        if self._session is None:
            self._twins = _Twins()
            self._session = _open_session(self._twins)
        made_before = self._twins.made
        box: list[Reply | Failure] = []
        done = threading.Event()
        worker = threading.Thread(
            target=_work, args=(self._session, self._twins, request, seconds, box, done), daemon=True
        )
        worker.start()
        deadline = self._clock.monotonic() + seconds
        while not self._clock.wait(done, min(deadline, self._clock.monotonic() + _LOOK_SECONDS)):
            stopped = self._stop.is_set()
            if stopped or self._clock.monotonic() >= deadline:
                connected = self._twins.made > made_before or made_before > 0
                self._abandon(worker)
                return _gave_up(request, seconds, connected, stopped)
        worker.join()
        return box[0] if box else Failure("the request ended without a result", reached=True)

    def carry_lightly(self, request: Request, seconds: float) -> Reply | Failure:
        """The same at a third of the CPU, for what is not worth more: in this thread, and each wait has `seconds`.

        A server that drips may hold it for longer; `cut` ends it.
        """
        if self._stop.is_set():
            return Failure("the agent stops", reached=False, stopped=True)
        if self._session is None or self._twins.is_cut:
            self.close()
            self._twins = _Twins()
            self._session, self._pool = _open_session(self._twins), None
        if self._pool is None or self._pool.key != (request.url, request.verify):
            self._pool = _find_pool(self._session, request)
        return _exchange(self._session, self._twins, self._pool, request, seconds)

    def cut(self) -> None:
        """Have the exchange that another thread carries lightly end now."""
        self._twins.cut()

    def _abandon(self, worker: threading.Thread) -> None:
        """Make the thread that hangs in the session end; one that looks up a name ends by itself later."""
        self._twins.cut()
        worker.join(_END_SECONDS)
        if worker.is_alive():
            self._session = None
        else:
            self.close()

    def close(self) -> None:
        """Close idle connections."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
            self._twins.close()


@dataclass(frozen=True)
class _Pool:
    """The connections that lead to one address, as requests would choose them; `pool` None: requests is asked."""

    key: tuple[str, bool | str]
    pool: Any
    path: str


def _find_pool(session: requests.Session, request: Request) -> _Pool:
    """What requests works out anew for each request (proxies, authorities, the path for a proxy), once."""
    import requests

    prepared = session.prepare_request(requests.Request(request.method, request.url))
    settings = session.merge_environment_settings(request.url, {}, True, request.verify, None)
    adapter: Any = session.get_adapter(request.url)
    choose = getattr(adapter, "get_connection_with_tls_context", None)  # requests 2.32 and newer
    pool, path = None, ""
    if choose is not None:
        pool = choose(prepared, settings["verify"], settings["proxies"], None)
        path = adapter.request_url(prepared, settings["proxies"])
    key = (request.url, request.verify)
    return _Pool(key, pool, path)


def _exchange(
    session: requests.Session, twins: _Twins, found: _Pool, request: Request, seconds: float
) -> Reply | Failure:
    """One exchange in this thread."""
    import urllib3

    connect = min(CONNECT_SECONDS, seconds)
    try:
        if found.pool is None:
            return _exchange_by_requests(session, request, (connect, seconds))
        answer = found.pool.urlopen(
            request.method, found.path, request.body, dict(request.headers), retries=False, redirect=False,
            assert_same_host=False, timeout=urllib3.Timeout(connect, seconds), preload_content=False,
            decode_content=False,
        )  # fmt: skip
        data = answer.read(ANSWER_BYTES + 1)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        if len(data) > ANSWER_BYTES:
            answer.close()
            return Reply(answer.status, headers, None)
        answer.release_conn()
        return Reply(answer.status, headers, data)
    except (OSError, ValueError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
        return explain(error, request.url)
    finally:
        if twins.is_cut:
            session.close()
            twins.close()
        twins.sweep()


def _exchange_by_requests(session: requests.Session, request: Request, timeout: tuple[float, float]) -> Reply:
    with session.request(
        request.method, request.url, data=request.body, headers=dict(request.headers), timeout=timeout,
        allow_redirects=False, stream=True, verify=request.verify,
    ) as response:  # fmt: skip
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, _read(response))


def _gave_up(request: Request, seconds: float, connected: bool, stopped: bool) -> Failure:
    where = host_of(request.url)
    if stopped:
        return Failure("interrupted: the agent stops", reached=connected, stopped=True)
    if connected:
        return Failure(f"no complete answer from {where} within {seconds:g} s", reached=True)
    return Failure(f"no connection to {where} within {seconds:g} s", reached=False)


def _work(
    session: requests.Session,
    twins: _Twins,
    request: Request,
    seconds: float,
    box: list[Reply | Failure],
    done: threading.Event,
) -> None:
    # Loaded by _open_session; imported here for its names only.
    import urllib3

    try:
        with session.request(
            request.method,
            request.url,
            data=request.body,
            headers=dict(request.headers),
            timeout=(min(CONNECT_SECONDS, seconds), seconds),
            allow_redirects=False,
            stream=True,
            verify=request.verify,
        ) as response:
            data = _read(response)
            headers = {name.lower(): value for name, value in response.headers.items()}
            box.append(Reply(response.status_code, headers, data))
    # requests' own errors are OSErrors; ValueError covers URLs and headers that cannot be sent.
    except (OSError, ValueError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
        box.append(explain(error, request.url))
    finally:
        if twins.is_cut:
            session.close()
            twins.close()
        twins.sweep()
        done.set()


def _read(response: requests.Response) -> bytes | None:
    """The decoded body; None where it is longer than an answer may be."""
    data = bytearray()
    for chunk in response.iter_content(1 << 16):
        data += chunk
        if len(data) > ANSWER_BYTES:
            return None
    return bytes(data)


def _load_requests() -> None:
    # requests warns where it cannot guess the encoding of a text; answers are JSON, and are read as bytes.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import requests  # noqa: F401 (loaded here, used by _open_session)


def _open_session(twins: _Twins) -> requests.Session:
    """A session whose sockets have twins, and whose only credentials are those of each request."""
    # At the first send: requests and urllib3 add 3 MB that an agent offline never needs.
    import_lean(_load_requests, _NOT_NEEDED)
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import connection as urllib3_connection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Plain(urllib3_connection.HTTPConnection):
        _twin: socket.socket | None = None

        def _new_conn(self) -> socket.socket:
            made = super()._new_conn()
            self._twin = twins.add(made, self)
            return made

        def close(self) -> None:
            super().close()
            if self._twin is not None:
                twins.release(self._twin)
                self._twin = None

    class Secure(urllib3_connection.HTTPSConnection):
        _twin: socket.socket | None = None

        def _new_conn(self) -> socket.socket:
            made = super()._new_conn()
            self._twin = twins.add(made, self)
            return made

        def close(self) -> None:
            super().close()
            if self._twin is not None:
                twins.release(self._twin)
                self._twin = None

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    pools = {"http": PlainPool, "https": SecurePool}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *given: Any, **named: Any) -> None:
            super().init_poolmanager(*given, **named)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
            manager = super().proxy_manager_for(proxy, **named)
            if not proxy.lower().startswith("socks"):
                manager.pool_classes_by_scheme = pools
            return manager

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            # Else requests reads the whole body of a redirect, however long, even if it is not followed.
            return None

    session = Session()
    # urllib3 would log the URL with its query, where some servers want a key.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # Without this, a password for the host in ~/.netrc would take the place of our token.
    session.auth = _as_it_is
    session.mount("http://", Adapter())
    session.mount("https://", Adapter())
    return session


def _as_it_is(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
    return prepared


def host_of(url: str) -> str:
    """Host and port of a URL for messages, without user and password."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        return "the server"


def explain(error: BaseException, url: str) -> Failure:
    """What an error of requests, urllib3 or the socket means, in words without URL queries or secrets."""
    # Only called when a request was made, so both are loaded.
    import requests
    import urllib3.exceptions as broken

    where, chain = host_of(url), list(_chain(error))

    def find(*kinds: type[BaseException]) -> BaseException | None:
        return next((one for one in chain if isinstance(one, kinds)), None)

    untrusted = find(ssl.SSLCertVerificationError)
    if isinstance(untrusted, ssl.SSLCertVerificationError):
        text = f"the certificate of {where} is not trusted: {untrusted.verify_message}"
    elif find(requests.exceptions.InvalidProxyURL, broken.ProxySchemeUnknown):
        text = "the proxy of the environment has no address that can be used"
    elif find(broken.ProxyError):
        text = f"the proxy gives no connection to {where}: {_system_text(chain, 'it refused')}"
    elif find(socket.gaierror):
        text = f"the name of {where} is not known"
    elif find(broken.NewConnectionError):
        text = f"no connection to {where}: {_system_text(chain, 'it failed')}"
    elif find(broken.ConnectTimeoutError):
        text = f"no connection to {where}: timed out"
    elif find(ssl.SSLError, broken.SSLError):
        text = f"no TLS with {where}: {_system_text(chain, 'handshake failed')}"
    elif find(requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, broken.LocationParseError):
        text = f"{where} cannot be used as an address; check server.url and the proxy of the environment"
    elif find(TimeoutError, broken.ReadTimeoutError):
        return Failure(f"no answer from {where} in time", reached=True)
    else:
        reason = _system_text(chain, type(chain[-1]).__name__)
        return Failure(f"the connection to {where} broke: {reason}", reached=True)
    return Failure(text, reached=False)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, then what is wrapped in it, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        wrapped = [getattr(current, "reason", None), *current.args, current.__cause__, current.__context__]
        current = next(
            (one for one in wrapped if isinstance(one, BaseException) and id(one) not in seen), None
        )


def _system_text(chain: list[BaseException], otherwise: str) -> str:
    """The system's own words in a chain of errors."""
    for one in reversed(chain):
        if isinstance(one, ssl.SSLError) and one.reason:
            return one.reason.replace("_", " ").lower()
        if isinstance(one, OSError) and one.strerror and one.errno:
            return one.strerror
    return otherwise
