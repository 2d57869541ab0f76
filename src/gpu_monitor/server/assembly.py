"""Builds the server's parts, in the order in which they need each other."""

from __future__ import annotations

from gpu_monitor.config.load import local_token_file
from gpu_monitor.config.server import ServerSettings
from gpu_monitor.core.clock import Clock
from gpu_monitor.server.auth.gate import RequestGate
from gpu_monitor.server.auth.local import LocalToken, OneTimeLink
from gpu_monitor.server.auth.passwords import PasswordDesk
from gpu_monitor.server.auth.sessions import SessionBook
from gpu_monitor.server.auth.throttle import Throttle
from gpu_monitor.server.auth.tokens import TokenBook
from gpu_monitor.server.auth.upkeep import AuthUpkeep
from gpu_monitor.server.experiments.blobs import BlobStore
from gpu_monitor.server.experiments.reading import SegmentReader
from gpu_monitor.server.experiments.upkeep import Upkeep
from gpu_monitor.server.experiments.writer import ExperimentWriter
from gpu_monitor.server.ingest.body import Arrivals
from gpu_monitor.server.ingest.writer import GroupWriter
from gpu_monitor.server.live.bell import Bell
from gpu_monitor.server.live.hub import Hub
from gpu_monitor.server.live.newest import Newest
from gpu_monitor.server.live.watch import WatchList
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.notify.office import open_office
from gpu_monitor.server.readiness import Readiness
from gpu_monitor.server.state import Part, ServerState
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.retention import Retention
from gpu_monitor.server.store.shape import Shaper


def build_state(settings: ServerSettings, store: Store, clock: Clock, address: str) -> ServerState:
    """Everything the routes need, not started yet; `address` is how this machine reaches the server."""
    metrics = OwnMetrics()
    tokens = TokenBook(store, clock)
    sessions = SessionBook(store, clock, settings.is_exposed)
    throttle, passwords, readiness = Throttle(clock), PasswordDesk(), Readiness(store, clock)
    upkeep = AuthUpkeep(store, clock, tokens, sessions)
    watch, newest = WatchList(), Newest()
    hub = Hub(store, clock, newest, watch)
    metrics.gauge("live_viewers", lambda: hub.viewers)
    writer = GroupWriter(store, clock, metrics)
    readiness.add("writer", writer.trouble)
    arrivals, experiments = Arrivals(), ExperimentWriter(store, clock, metrics)
    readiness.add("experiments", experiments.trouble)
    experiments.listen(hub.hear_runs)
    quota = None if settings.blobs_quota_gib is None else settings.blobs_quota_gib << 30
    blobs = BlobStore(settings.directory / settings.blobs_directory, store, clock, quota)
    writer.listen(lambda committed: newest.tell(committed.seq_to))
    bells: list[Bell] = []

    def told(seq: int) -> None:
        newest.tell(seq)
        for bell in bells:
            bell.ring(seq)

    office = open_office(settings, store, clock, newest, metrics, told)
    readiness.add("alerts", office.watcher.trouble)
    removals = Upkeep(store, clock, blobs, settings.metrics_retention_days)
    parts: list[Part] = [upkeep, passwords, readiness, hub, writer, experiments, blobs]
    parts += [Retention(store, clock), removals, *office.parts]
    local = local_token_file()
    if local is not None and not settings.is_exposed:
        parts.append(LocalToken(store, clock, address, local))
    if store.dialect == "postgresql":
        bell = Bell(store, newest, watch, clock)
        writer.listen(lambda committed: bell.ring(committed.seq_to))
        parts.append(bell)
        bells.append(bell)
    return ServerState(
        settings=settings,
        store=store,
        clock=clock,
        metrics=metrics,
        tokens=tokens,
        sessions=sessions,
        passwords=passwords,
        throttle=throttle,
        link=OneTimeLink(clock),
        readiness=readiness,
        gate=RequestGate(settings, tokens, sessions, throttle, metrics),
        watch=watch,
        newest=newest,
        hub=hub,
        writer=writer,
        shaper=Shaper(),
        arrivals=arrivals,
        experiments=experiments,
        segments=SegmentReader(arrivals),
        blobs=blobs,
        removals=removals,
        office=office,
        parts=tuple(parts),
    )
