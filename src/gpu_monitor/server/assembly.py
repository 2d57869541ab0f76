"""Builds the server's parts, in the order in which they need each other."""

from __future__ import annotations

from gpu_monitor.config.server import ServerSettings
from gpu_monitor.core.clock import Clock
from gpu_monitor.server.auth.gate import RequestGate
from gpu_monitor.server.auth.tokens import TokenBook
from gpu_monitor.server.auth.upkeep import AuthUpkeep
from gpu_monitor.server.live.bell import Bell
from gpu_monitor.server.live.hub import Hub
from gpu_monitor.server.live.newest import Newest
from gpu_monitor.server.live.watch import WatchList
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.state import Part, ServerState
from gpu_monitor.server.store.engine import Store


def build_state(settings: ServerSettings, store: Store, clock: Clock) -> ServerState:
    """Everything the routes need, not started yet."""
    metrics = OwnMetrics()
    tokens = TokenBook(store, clock)
    upkeep = AuthUpkeep(store, clock, tokens, tokens.forget, lambda: None)
    watch, newest = WatchList(), Newest()
    hub = Hub(store, clock, newest, watch)
    metrics.gauge("live_viewers", lambda: hub.viewers)
    parts: list[Part] = [upkeep, hub]
    if store.dialect == "postgresql":
        parts.append(Bell(store, newest, watch, clock))
    return ServerState(
        settings=settings,
        store=store,
        clock=clock,
        metrics=metrics,
        tokens=tokens,
        gate=RequestGate(settings, tokens),
        watch=watch,
        newest=newest,
        hub=hub,
        parts=tuple(parts),
    )
