"""Runs the server: opens the database, listens, says that it is ready, stops in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

if sys.platform != "win32":
    import resource

from gpu_monitor.config.server import ServerSettings
from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_FAILED, ConfigError, GpuMonitorError
from gpu_monitor.server.app import create_app
from gpu_monitor.server.assembly import build_state
from gpu_monitor.server.auth.users import has_admin
from gpu_monitor.server.connection import PatientConnection
from gpu_monitor.server.memory import settle, share_one_heap
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.slow import watch_slow
from gpu_monitor.server.store.url import parse_url

_LOG = logging.getLogger("server")
_BACKLOG = 4096
"""A fleet may knock in the same second; the system's own limit (net.core.somaxconn) is 4,096 on Linux."""
_GRACE_SECONDS = 3
"""For requests that are under way when a stop is asked for; with the parts' own end it stays under 5 s."""
_KEEP_ALIVE_SECONDS = 65
"""Longer than proxies keep idle connections (60 s), so that they never send into one that is closing."""
_UNTAKEN_MILLISECONDS = 60_000
"""Linux ends a connection whose other side takes no byte for so long: closing one waits for what is in its buffer."""
_OPEN_FILES = 65_536
_LARGEST_MESSAGE = 64 * 1024
"""Bytes of a WebSocket message from a client: subscriptions are small."""


@dataclass(frozen=True)
class Starter:
    """Who started the server: a person, to whom `say` speaks, or a service manager, who hears the other two.

    `wants_link`: on loopback, say a link that opens the pages once (no log may keep it).
    """

    say: Callable[[str], None]
    ready: Callable[[], None]
    stopping: Callable[[], None]
    wants_link: bool


def run_server(settings: ServerSettings, clock: Clock, starter: Starter) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    _refuse_open(settings)
    _raise_limits()
    share_one_heap()
    watch_slow()
    url = parse_url(settings.database_url, settings.directory)
    listener = _listen(settings)
    with contextlib.closing(listener), contextlib.closing(open_store(url, alone=True)) as store:
        _refuse_unguarded(settings, store)
        address = base_url(settings, listener)
        state = build_state(settings, store, clock, address)

        def ready() -> None:
            settle()
            starter.say(f"gpu_monitor serves on {address} (database {store})")
            if starter.wants_link and not settings.is_exposed:
                starter.say(f"open the pages as administrator, once: {address}/open?code={state.link.make()}")
            starter.ready()

        server = _Server(_configure(create_app(state), settings), ready, starter.stopping)
        _run(server.serve(sockets=[listener]))
    return EXIT_DONE if server.was_ready else EXIT_FAILED


def _refuse_open(settings: ServerSettings) -> None:
    """ConfigError where others could listen in: bound elsewhere than loopback with nothing that encrypts."""
    if settings.is_loopback or settings.tls_cert or settings.proxies:
        return
    raise ConfigError(
        f"{settings.host} can be reached from other machines, and tokens would pass in clear",
        "Give --tls-cert and --tls-key; or --behind-proxy with the network of the proxy that ends TLS; or leave"
        " --host out to serve this machine only.",
    )


def _refuse_unguarded(settings: ServerSettings, store: Store) -> None:
    """ConfigError where others can reach the server and nobody could let them in."""
    if not settings.is_exposed:
        return
    with store.read() as connection:
        if has_admin(connection):
            return
    raise ConfigError(
        "others than this machine's users can reach this server, and it has no administrator",
        "Make one first, in the same directory: gpu_monitor user add NAME --admin",
    )


def base_url(settings: ServerSettings, listener: socket.socket) -> str:
    """How this machine reaches the server."""
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"


def _listen(settings: ServerSettings) -> socket.socket:
    """The socket; ConfigError where the address is taken or not this machine's."""
    host = "127.0.0.1" if settings.host.lower() == "localhost" else settings.host
    try:
        family, _, _, _, address = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"cannot listen on {settings.host}: {error.strerror}", "Correct --host.") from error
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNTAKEN_MILLISECONDS)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise GpuMonitorError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}",
            "Another program may have it: choose another one with --port.",
        ) from error
    return listener


def _raise_limits() -> None:
    """As many open connections as the system lets this process have, instead of the customary 1,024."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _configure(app: object, settings: ServerSettings) -> uvicorn.Config:
    proxies = [str(network) for network in settings.proxies]
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=PatientConnection,
        ws="websockets-sansio",
        ws_max_size=_LARGEST_MESSAGE,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        ssl_certfile=_file(settings, settings.tls_cert, "--tls-cert"),
        ssl_keyfile=_file(settings, settings.tls_key, "--tls-key"),
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"the certificate {settings.tls_cert} and key {settings.tls_key} cannot be used: {error}",
            "Both are PEM files; the key must be the certificate's own and have no passphrase.",
        ) from error
    return config


def _file(settings: ServerSettings, name: str | None, option: str) -> Path | None:
    """The absolute path of a file in the settings; ConfigError where it cannot be read."""
    if name is None:
        return None
    path = settings.directory / Path(name).expanduser()
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", f"Correct {option}.") from error


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is there (it is not on Windows)."""
    try:
        import uvloop  # a C library that only the server loads
    except ImportError:
        asyncio.run(work)
        return
    make_runner = getattr(asyncio, "Runner", None)
    if make_runner is None:  # Python 3.10
        uvloop.install()
        asyncio.run(work)
        return
    with make_runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready and ends with exit code 0 when it was asked to end."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], stopping: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._ready, self._stopping = ready, stopping
        self.was_ready = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self.was_ready = True
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end the server; what they did before comes back after."""
        wanted = [signal.SIGTERM, signal.SIGINT]
        wanted += [getattr(signal, name) for name in ("SIGBREAK",) if hasattr(signal, name)]
        before = {number: signal.signal(number, self._end) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, number: int, _frame: FrameType | None) -> None:
        _LOG.info("stopping (%s)", signal.Signals(number).name)
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True
        self._stopping()
