"""Puts the agent together: lock, store, identity, source, shipping; and takes it apart again."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_monitor import __version__
from gpu_monitor.agent.ask import load_plan, plan_text
from gpu_monitor.agent.identity import establish, reporting_ids
from gpu_monitor.agent.ledger import Ledger, refresh
from gpu_monitor.agent.live import Live, Origin
from gpu_monitor.agent.recovery import Machine
from gpu_monitor.agent.retain import Limits, Retention
from gpu_monitor.agent.rollup import Rollup
from gpu_monitor.agent.run_watch import RunWatch
from gpu_monitor.agent.service import Parts
from gpu_monitor.agent.ship import Shipper, SinkFactory
from gpu_monitor.agent.store import LOCAL_NODE, Store
from gpu_monitor.agent.waiting import Queue
from gpu_monitor.agent.xids import XidWatch
from gpu_monitor.cli.clocks import choose_clock
from gpu_monitor.cli.sources import Chosen, choose_source, is_played
from gpu_monitor.config.load import Loaded, read_token, service_environment
from gpu_monitor.config.model import Settings
from gpu_monitor.config.training import base_address, registries
from gpu_monitor.core.buckets import PeriodPlan
from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import ConfigError
from gpu_monitor.core.model import Identity, Round, Span
from gpu_monitor.core.ports import HostSource, ProcessLookup
from gpu_monitor.service.notify import Notifier
from gpu_monitor.sinks.endings import HttpEndings
from gpu_monitor.sinks.experiments import ExperimentServer
from gpu_monitor.sinks.http import HttpSink
from gpu_monitor.sinks.line import Peer, Target
from gpu_monitor.sinks.live import HttpLiveSink
from gpu_monitor.sinks.tokens import NodeTokens, token_path
from gpu_monitor.sources.host.kernel_log import KernelLog
from gpu_monitor.sources.host.machine import boot_id, boot_time, machine_id
from gpu_monitor.sources.host.processes import ProcessDirectory
from gpu_monitor.sources.host.reading import open_host
from gpu_monitor.sources.runner import SourceRunner
from gpu_monitor.storage.ballast import Ballast
from gpu_monitor.storage.database import Writer
from gpu_monitor.storage.salvage import open_store
from gpu_monitor.storage.tables import GPU_FIELDS
from gpu_monitor.storage.tenure import Tenure

_LOG = logging.getLogger("agent")


@dataclass
class Assembly:
    """A built agent. `apply` takes over new settings while it runs."""

    parts: Parts
    describe: str
    stop: threading.Event
    notifier: Notifier
    apply: Callable[[Loaded], None]

    def ready(self) -> None:
        """Tell the service manager that the agent samples."""
        _say_ready(self.notifier, self.describe)

    def reloading(self) -> None:
        """Tell the service manager that the configuration is being read."""
        self.notifier.reloading()

    def stopping(self) -> None:
        """Tell the service manager that the agent stops."""
        self.notifier.stopping()


def _say_ready(notifier: Notifier, describe: str) -> None:
    notifier.ready()
    notifier.status(describe)


@contextlib.contextmanager
def assemble(args: argparse.Namespace, loaded: Loaded) -> Iterator[Assembly]:
    """The agent that flags and settings ask for; everything is let go of at the end."""
    path = loaded.store
    if not path.parent.is_dir():
        raise ConfigError(
            f"the folder {path.parent} of database.file does not exist", f"Run: mkdir -p {path.parent}"
        )
    with contextlib.ExitStack() as stack:
        tenure = stack.enter_context(contextlib.closing(Tenure(path)))
        tenure.take()
        writer = open_store(path)
        stack.callback(writer.close)
        played = is_played(args)
        _refuse_mixture(writer, played, path)
        data_end = writer.get_meta("data_end")
        clock = choose_clock(args, played, path, None if data_end is None else float(data_end))
        chosen = choose_source(args, loaded, clock.now(), known_gpus(writer))
        stack.callback(chosen.source.close)
        if chosen.warning:
            _LOG.warning("recording the host only; GPUs are taken up as soon as they answer")
        assembly = _build(args, loaded, writer, clock, chosen, stack)
        yield replace(assembly, parts=replace(assembly.parts, rival=tenure.rival))


def known_gpus(writer: Writer) -> tuple[Identity, ...]:
    """The GPUs that earlier runs recorded here, each once with its newest identity."""
    names = ", ".join(GPU_FIELDS)
    rows = writer.rows(
        f"SELECT {names} FROM gpus WHERE node = ? AND source = 'nvml' ORDER BY id", (LOCAL_NODE,)
    )
    return tuple({row[0]: Identity(*row) for row in rows}.values())


def _refuse_mixture(writer: Writer, played: bool, path: Path) -> None:
    """Simulated and real rows never share a store."""
    other = "NOT IN ('unknown'," if played else "IN ("  # of a GPU whose name a damage took, neither is known
    found = writer.value(
        f"SELECT source FROM gpus WHERE node = ? AND source {other} 'simulated', 'replay') LIMIT 1",
        (LOCAL_NODE,),
    )
    if found is not None:
        kind = "real" if played else f"{found}"
        raise ConfigError(
            f"the store {path} holds {kind} rows; simulated and real rows never share a store",
            "Set another database.file in the configuration (see --config).",
        )


def _build(
    args: argparse.Namespace,
    loaded: Loaded,
    writer: Writer,
    clock: Clock,
    chosen: Chosen,
    stack: contextlib.ExitStack,
) -> Assembly:
    settings, stop, played = loaded.settings, threading.Event(), is_played(args)
    name_node(writer, _name(settings))
    node = [establish(writer, machine_id(), clock.now())]
    store = Store(writer, keep_plan(writer, settings.collection.aggregation_interval_hours, clock.now()))
    retention = Retention(writer, _limits(settings))
    current, peers = [loaded], [Peer()]
    given = NodeTokens(token_path(loaded.store))
    given.retain(reporting_ids(writer))
    shipper = _shipper(args, current, peers, given, writer, clock, stop, stack)
    live = None if args.offline else _live(current, peers, given, node, clock, stop)
    runs = None if played or sys.platform != "linux" else _runs(args, current, peers, given, node, stop)
    ballast = Ballast(loaded.store, settings.database.ballast_mb)
    ballast.lay()
    notifier = Notifier.from_environment(service_environment(), os.getpid())
    xids = _xid_watch(settings, played)
    stack.callback(xids.close)
    host, lookup = (None, None) if played else _machine_readers(loaded)

    def settle_again() -> None:
        node[0] = settle(writer, store, current[0].settings, clock)

    parts = Parts(
        store=store, read=_reading(SourceRunner(chosen.source).read, current), host=host, processes=lookup,
        rollup=Rollup(writer, refresh, store.rolled_up), retention=retention,
        ship=shipper.run_once if shipper is not None else None, clock=clock, machine=_machine(settings),
        queue=Queue(settings.database.queue_intervals),
        ballast=lambda down: ballast.lay() if down else ballast.give_up(),
        xids=xids, watchdog=notifier.watchdog, ready=lambda: _say_ready(notifier, chosen.describe),
        alive_seconds=notifier.watchdog_seconds / 3 if notifier.watchdog_seconds else None,
        settle=settle_again, live=live, runs=runs,
    )  # fmt: skip

    def apply(fresh: Loaded) -> None:
        before, current[0], peers[0] = current[0].settings.server.url, fresh, Peer()
        if shipper is not None:
            shipper.change(_ledger(writer, current), _sink_factory(current, peers, given, stop))
            _say_target(before, fresh.settings.server.url)
        if live is not None:
            live.change()
        if runs is not None:
            runs.change()
        retention.limits = _limits(fresh.settings)
        store.plan = keep_plan(writer, fresh.settings.collection.aggregation_interval_hours, clock.now())

    return Assembly(parts, chosen.describe, stop, notifier, apply)


def _say_target(before: str | None, now: str | None) -> None:
    if before is not None and now is None:
        _LOG.info("server.url was removed: no report is sent any more, the hours are kept as ever")
    elif now is not None and now != before:
        _LOG.info("reports go to %s from now on", now)


def _reading(read: Callable[[float, Span], Round], current: list[Loaded]) -> Callable[[float, Span], Round]:
    """`read`, without the processes on the GPUs while the settings in force say that they are not recorded."""

    def read_allowed(now: float, span: Span) -> Round:
        found = read(now, span)
        if current[0].settings.collection.processes != "off":
            return found
        return replace(found, devices=tuple(replace(device, processes=None) for device in found.devices))

    return read_allowed


def _machine(settings: Settings) -> Machine:
    return Machine(boot_id(), boot_time(), _name(settings), platform.platform(terse=True))


def _name(settings: Settings) -> str:
    """What this node is called, here and in reports: `node.name`, else the host name."""
    return settings.node.name or socket.gethostname()


def _machine_readers(loaded: Loaded) -> tuple[HostSource | None, ProcessLookup | None]:
    collection = loaded.settings.collection
    host = open_host(str(loaded.store.parent)) if collection.host else None
    return host, ProcessDirectory(mode=collection.processes, registries=registries("{uid}"))


def _xid_watch(settings: Settings, played: bool) -> XidWatch:
    if played or not settings.collection.kernel_log:
        return XidWatch(None)
    log = KernelLog()
    if log.reason:
        _LOG.info("Xid errors come from the driver only: %s", log.reason)
    return XidWatch(log)


def _limits(settings: Settings) -> Limits:
    database = settings.database
    return Limits(
        database.raw_days, database.aggregate_days, database.max_mb, settings.server.url is not None
    )


def _shipper(
    args: argparse.Namespace,
    current: list[Loaded],
    peers: list[Peer],
    given: NodeTokens,
    writer: Writer,
    clock: Clock,
    stop: threading.Event,
    stack: contextlib.ExitStack,
) -> Shipper | None:
    """What ships the ledger, None where --offline forbids it. `current` and `peers` hold what is in force."""
    if args.offline:
        return None
    shipper = Shipper(
        writer, _ledger(writer, current), _sink_factory(current, peers, given, stop), clock, stop
    )
    stack.callback(shipper.close)
    return shipper


def _ledger(writer: Writer, current: list[Loaded]) -> Ledger:
    server = current[0].settings.server
    return Ledger(writer, str(server.contract_number), server.spread_seconds)


def _sink_factory(
    current: list[Loaded], peers: list[Peer], given: NodeTokens, stop: threading.Event
) -> SinkFactory | None:
    """Makes a sink for the settings in force at that time; None while they name no server."""
    if current[0].settings.server.url is None:
        return None
    return lambda: HttpSink(
        _target(current[0]), lambda: read_token(current[0]), stop, peer=peers[0], given=given
    )


def _target(loaded: Loaded) -> Target:
    server = loaded.settings.server
    ca_file = loaded.resolve(server.ca_file) if server.ca_file else None
    return Target(server.url or "", str(server.contract_number), ca_file, server.timeout_seconds)


def _live(
    current: list[Loaded],
    peers: list[Peer],
    given: NodeTokens,
    node: list[str],
    clock: Clock,
    stop: threading.Event,
) -> Live:
    """What tells the server in force of the present; where there is none, or it is switched off, nobody is told."""
    system = platform.platform(terse=True)

    def open_sink() -> HttpLiveSink | None:
        server = current[0].settings.server
        if server.url is None or not server.live:
            return None
        return HttpLiveSink(_target(current[0]), lambda: read_token(current[0]), stop, peers[0], given=given)

    def origin() -> Origin:
        settings = current[0].settings
        return Origin(
            node[0],
            _name(settings),
            system,
            __version__,
            str(settings.server.contract_number),
            settings.collection.interval_seconds,
        )

    return Live(open_sink, origin, clock)


def _runs(
    args: argparse.Namespace,
    current: list[Loaded],
    peers: list[Peer],
    given: NodeTokens,
    node: list[str],
    stop: threading.Event,
) -> RunWatch:
    """What watches the trainings that registered on this machine."""

    def has_server() -> bool:
        return current[0].settings.server.url is not None and not args.offline

    def open_endings() -> HttpEndings | None:
        if not has_server():
            return None
        return HttpEndings(_target(current[0]), lambda: read_token(current[0]), stop, peers[0], given=given)

    def open_server() -> ExperimentServer | None:
        if not has_server():
            return None
        target = _target(current[0])
        return ExperimentServer(base_address(target.url), lambda: read_token(current[0]), target.ca_file)

    def open_log() -> KernelLog | None:
        return KernelLog() if current[0].settings.collection.kernel_log else None

    return RunWatch(registries(), open_endings, open_server, lambda: node[0], open_log=open_log)


def settle(writer: Writer, store: Store, settings: Settings, clock: Clock) -> str:
    """Write what every start sees to: the node's name, its identity (which is returned), the periods."""
    name_node(writer, _name(settings))
    node = establish(writer, machine_id(), clock.now())
    store.plan = keep_plan(writer, settings.collection.aggregation_interval_hours, clock.now())
    return node


def name_node(writer: Writer, name: str) -> None:
    """Keep the local node's name."""
    with writer.transaction() as connection:
        connection.execute(
            "INSERT INTO nodes (id, name, kind) VALUES (?, ?, 'local') ON CONFLICT (id) DO UPDATE SET name = excluded.name"
            " WHERE name <> excluded.name",
            (LOCAL_NODE, name),
        )


def keep_plan(writer: Writer, hours: int, now: float) -> PeriodPlan:
    """The periods that hold: a changed length takes effect at the next boundary common to both."""
    kept = writer.get_meta("period_plan")
    plan = load_plan(writer).change(hours, now) if kept else PeriodPlan(((0, hours),))
    if plan_text(plan) != kept:
        writer.set_meta("period_plan", plan_text(plan))
    return plan
