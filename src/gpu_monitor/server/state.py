"""What the routes work with: one frozen record of the server's parts, reached as `request.app.state.server`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fastapi import Request

from gpu_monitor.config.server import ServerSettings
from gpu_monitor.core.clock import Clock
from gpu_monitor.server.auth.gate import RequestGate
from gpu_monitor.server.auth.local import OneTimeLink
from gpu_monitor.server.auth.passwords import PasswordDesk
from gpu_monitor.server.auth.sessions import SessionBook
from gpu_monitor.server.auth.throttle import Throttle
from gpu_monitor.server.auth.tokens import TokenBook
from gpu_monitor.server.experiments.blobs import BlobStore
from gpu_monitor.server.experiments.reading import SegmentReader
from gpu_monitor.server.experiments.upkeep import Upkeep
from gpu_monitor.server.experiments.writer import ExperimentWriter
from gpu_monitor.server.ingest.body import Arrivals
from gpu_monitor.server.ingest.writer import GroupWriter
from gpu_monitor.server.live.hub import Hub
from gpu_monitor.server.live.newest import Newest
from gpu_monitor.server.live.watch import WatchList
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.notify.office import Office
from gpu_monitor.server.readiness import Readiness
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.shape import Shaper


class Part(Protocol):
    """Something that runs beside the requests: a writer, a follower."""

    def start(self) -> None:
        """Begin; called in the event loop's thread, with the loop running, before the first request."""
        ...

    def stop(self) -> None:
        """End within a second, with everything that was answered safe; called after the last request."""
        ...


@dataclass(frozen=True)
class ServerState:
    """The server's parts. `parts` are started in order and stopped in the other."""

    settings: ServerSettings
    store: Store
    clock: Clock
    metrics: OwnMetrics
    tokens: TokenBook
    sessions: SessionBook
    passwords: PasswordDesk
    throttle: Throttle
    link: OneTimeLink
    gate: RequestGate
    readiness: Readiness
    watch: WatchList
    newest: Newest
    hub: Hub
    writer: GroupWriter
    shaper: Shaper
    arrivals: Arrivals
    experiments: ExperimentWriter
    segments: SegmentReader
    blobs: BlobStore
    removals: Upkeep
    office: Office
    parts: tuple[Part, ...]


def state_of(request: Request) -> ServerState:
    """The state, as a dependency of routes."""
    state: ServerState = request.app.state.server
    return state
