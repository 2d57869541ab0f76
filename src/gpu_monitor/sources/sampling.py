"""A small process that reads the machine, one process tree and the GPUs for somebody else; started through `child.Child`.

It answers `open` and `read` until its input closes or its parent is gone.
"""

from __future__ import annotations

import gc
import os
import select
import sys
from pathlib import Path
from typing import Any

from gpu_monitor.core.catalogue import METRICS, Kind
from gpu_monitor.core.clock import process_seconds
from gpu_monitor.core.errors import SourceUnavailable
from gpu_monitor.core.model import DeviceReading, Span, Spread
from gpu_monitor.core.ports import HostSource, Source
from gpu_monitor.sources.frames import Inbox, pack
from gpu_monitor.sources.gpu.nvml.settings import NvmlSettings
from gpu_monitor.sources.gpu.nvml.source import open_nvml
from gpu_monitor.sources.host.reading import open_host
from gpu_monitor.sources.host.tree import Tree
from gpu_monitor.sources.lifeline import die_with, private_output, write_frame
from gpu_monitor.sources.runner import SourceRunner
from gpu_monitor.storage.locks import agent_path, is_held

_LOOK_SECONDS = 5.0
"""How often it looks whether its parent lives: a process forked from that may hold the pipes open."""
_COUNTERS = frozenset(metric.name for metric in METRICS if metric.kind in (Kind.TOTAL, Kind.RATE))
_NICE = 19
"""Who is watched goes before who watches: with other priorities the training lost its core for 4 ms now and then."""
AGENT = "an agent on this machine records them"

Message = dict[str, Any]


class Sampling:
    """What the parent asked to be read."""

    def __init__(self) -> None:
        self._host: HostSource | None = None
        self._tree: Tree | None = None
        self._source: Source | None = None
        self._runner: SourceRunner | None = None
        self._stores: list[Path] = []
        self._registry: str | None = None
        self._span = Span.FAST
        self._reason: str | None = None

    def answer(self, request: Message) -> Message:
        """The answer to `open` or `read`."""
        return self._open(request) if request["do"] == "open" else self._read(request)

    def _open(self, request: Message) -> Message:
        """Open what is to be read: `host` (a path on the disk to report, None: not the host), `pid`, `gpus`.

        `gpus`: `never`, `real`, `auto` (simulated where there are none) or `always` (simulated). `stores`: of agents
        that would record the GPUs already. `parent`: whose end is ours. Says which `source` there is, and the `reason`
        where there is none.
        """
        if request.get("host") is not None:
            self._host = open_host(request["host"])
        if request.get("pid") is not None:
            self._tree = Tree(request["pid"])
        self._stores = [Path(store) for store in request.get("stores", ())]
        self._registry = request.get("registry")
        self._span = Span(request.get("span", Span.FAST))
        self._open_gpus(request["gpus"])
        return {"source": None if self._source is None else self._source.name, "reason": self._reason}

    def _open_gpus(self, mode: str) -> None:
        if mode in ("real", "auto") and not self._is_agent_here():
            source: Source = open_nvml(NvmlSettings())
            try:
                source.probe()
            except SourceUnavailable as error:
                source.close()
                self._reason = error.message
            else:
                self._take(source)
        if mode == "always" or (mode == "auto" and self._source is None):
            self._take(_simulated())

    def _take(self, source: Source) -> None:
        self._source, self._runner, self._reason = source, SourceRunner(source), None

    def _is_agent_here(self) -> bool:
        """Whether an agent records this machine's GPUs: its lock is held, or may not be looked at beside its folder."""
        for store in self._stores:
            held = is_held(agent_path(store))
            if held or (held is None and self._registry is not None and Path(self._registry).is_dir()):
                self._reason = AGENT
                return True
        return False

    def _read(self, request: Message) -> Message:
        """One reading at `now` (UTC epoch): what is unknown is absent, and has a reason."""
        said: Message = {}
        if self._host is not None:
            said["host"] = dict(self._host.read().values)
        if self._tree is not None and (use := self._tree.read(process_seconds())) is not None:
            said["process"] = {"cores": use.cores, "memory": use.memory, "processes": use.processes}
        said["gpus"] = self._read_gpus(request["now"])
        said["reason"] = self._reason
        return said

    def _read_gpus(self, now: float) -> list[Message]:
        if self._runner is None or self._source is None:
            return []
        if self._stores and self._is_agent_here():
            self._runner.close()
            self._source = self._runner = None
            return []
        found = self._runner.read(now, self._span)
        self._reason = found.paused
        return [_device(reading) for reading in found.devices]


def _simulated() -> Source:
    """One simulated card. Imported here: it is a megabyte that nobody else needs."""
    import importlib  # beside the only use

    module = importlib.import_module("gpu_monitor.sources.gpu.simulated")
    source: Source = module.SimulatedSource(1)
    return source


def _device(reading: DeviceReading) -> Message:
    identity = reading.identity
    values = {
        name: value.mean if isinstance(value, Spread) else value for name, value in reading.values.items()
    }
    return {
        "uid": identity.uid,
        "source": identity.source,
        "index": identity.index,
        "name": identity.name,
        "pci_bus_id": identity.pci_bus_id,
        "memory_total": identity.memory_total,
        "parent_uid": identity.parent_uid,
        "mig_instance": identity.mig_instance,
        "status": reading.status.value,
        "cause": reading.cause,
        "values": values,
        "reasons": dict(reading.reasons),
    }


def main(_board: str, lifeline: str) -> None:
    """Serve requests until the input closes or the parent is gone, then end."""
    output = private_output()
    die_with(int(lifeline))
    if sys.platform != "win32":
        os.nice(_NICE)
    parent: int | None = None
    sampling, inbox = Sampling(), Inbox()
    gc.freeze()
    while True:
        if not _has_input(parent):
            continue
        piece = os.read(0, 65536)
        if not piece:
            os._exit(0)
        inbox.add(piece)
        while (found := inbox.take()) is not None:
            request: Any = found[0]
            # Not what getppid says at the start: the parent may be gone by then.
            parent = request.get("parent", parent)
            write_frame(output, pack(sampling.answer(request)))


def _has_input(parent: int | None) -> bool:
    """Whether there is something to read; ends this process where its parent is gone."""
    if sys.platform == "win32":
        return True
    else:  # noqa: RET505 (mypy reads only one of the two)
        if parent is not None and os.getppid() != parent:
            os._exit(0)
        return bool(select.select([0], [], [], _LOOK_SECONDS)[0])
