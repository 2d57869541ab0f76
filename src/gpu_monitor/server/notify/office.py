"""What alerts and notifications need of the server, put together: the engine with its thread, and the postman."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.config.server import ServerSettings
from gpu_monitor.core.clock import Clock
from gpu_monitor.server.alerts.engine import Engine, Setting
from gpu_monitor.server.alerts.seed import read_rules_file
from gpu_monitor.server.alerts.watcher import Watcher
from gpu_monitor.server.alerts.window import DiskUse
from gpu_monitor.server.live.newest import Newest
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.notify.channels import Channel, audience, fixed_channels
from gpu_monitor.server.notify.client import Client
from gpu_monitor.server.notify.postman import Postman
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.leader import Leadership

_PAUSE_SECONDS = 2.0
_BUSY_REPORTS = 64
"""Reports in the writer's queue: more than one group of the usual size."""
_BREATH_SECONDS = 0.0005
"""A thread that computes holds the interpreter for 5 ms against one that asks; one that sleeps lets it go at once."""


@dataclass(frozen=True)
class Office:
    """The two parts, and the channels of the settings. `parts` run beside the requests."""

    watcher: Watcher
    postman: Postman
    fixed: tuple[Channel, ...]
    is_on: bool

    @property
    def parts(self) -> tuple[Watcher | Postman, ...]:
        """What is to be started, in order; without notifications nobody delivers."""
        return (self.watcher, self.postman) if self.is_on else (self.watcher,)


def open_office(
    settings: ServerSettings,
    store: Store,
    clock: Clock,
    newest: Newest,
    metrics: OwnMetrics,
    told: Callable[[int], None],
) -> Office:
    """Everything, not started yet. `told` hears of changes that the engine made. ConfigError for a bad rules file."""
    lead = Leadership(store)
    fixed = fixed_channels(settings)
    postman = Postman(store, clock, lead, Client(clock, settings.notify_networks), fixed, metrics)

    def written(seq: int | None) -> None:
        postman.wake()
        if seq is not None:
            told(seq)

    def pause() -> None:
        """Reports that wait to be stored go first, for a while: an alert may be some seconds late, an answer not."""
        until = clock.monotonic() + _PAUSE_SECONDS
        while metrics.snapshot().gauges.get(("queue_reports", ()), 0.0) > _BUSY_REPORTS:
            if clock.monotonic() >= until:
                return
            clock.wait(never, clock.monotonic() + 0.1)

    def breathe() -> None:
        clock.wait(never, clock.monotonic() + _BREATH_SECONDS)

    never = threading.Event()
    is_on = settings.enable_notifications
    seeds = () if settings.rules_file is None else read_rules_file(settings.directory / settings.rules_file)
    setting = Setting(
        lambda connection: audience(connection, fixed, is_on),
        lambda: server_disks(settings, store),
        written,
        seeds,
        pause,
        breathe,
    )
    engine = Engine(store, clock, lead, setting, metrics)
    return Office(Watcher(engine, lead, clock, newest), postman, fixed, is_on)


def server_disks(settings: ServerSettings, store: Store) -> list[DiskUse]:
    """The disks of the server's directory and of a SQLite database; one that cannot be looked at is left out."""
    folders = {settings.directory: "its directory"}
    if store.dialect == "sqlite":
        folders[Path(str(store.url.database)).absolute().parent] = "the database"
    found = []
    for folder, name in folders.items():
        try:
            use = shutil.disk_usage(folder)
        except OSError:
            continue
        # As df counts: what only root may use is not free.
        found.append(DiskUse(f"{name} ({folder})", float(use.used), float(use.used + use.free)))
    return found
