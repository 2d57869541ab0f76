# SPDX-License-Identifier: MIT
"""What runs beside the recorder while an experiment is open: one line each, started in this order, closed in reverse."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol

from gpu_monitor.config.training import TrainingSettings
from gpu_monitor.training.border import ForeignError, call_foreign
from gpu_monitor.training.recorder import Recorder
from gpu_monitor.training.topics import TOPICS, Choice, UnknownTopics, wanted_topics

STARTS: tuple[tuple[str, str], ...] = (
    ("upload", "gpu_monitor.training.delivery"),  # closed last: it sends what the others say at the end
    ("registration", "gpu_monitor.training.register"),
    ("console", "gpu_monitor.training.console"),
    ("capture", "gpu_monitor.training.capture"),
    ("sampler", "gpu_monitor.training.sampler"),
)
"""Name and module of each part. The module's `start(recorder, options)` returns a Part, or None where it has nothing
to do; it must not block, and is loaded only then. A part that fails is told of once, and the training goes on."""


@dataclass(frozen=True)
class Options:
    """What parts go by. `wanted`: what is recorded by itself (topics.wanted_topics)."""

    settings: TrainingSettings
    wanted: frozenset[str] = frozenset(TOPICS)

    def wants(self, name: str) -> bool:
        """Whether something that records by itself is switched on."""
        return name in self.wanted


def options_of(recorder: Recorder, settings: TrainingSettings, capture: Choice) -> Options:
    """The options that a `capture=` means; names that mean nothing are refused, and the others hold."""
    try:
        return Options(settings, wanted_topics(capture))
    except UnknownTopics as error:
        recorder.refuse("capture", str(error))
        return Options(settings, error.wanted)


class Part(Protocol):
    """Something at work beside the training."""

    def close(self, timeout: float) -> str | None:
        """End the work, in `timeout` seconds; what is still only on this machine, in words, or None."""
        ...


class Parts:
    """The parts of one recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._running: list[tuple[str, Part]] = []

    def start(self, options: Options) -> None:
        """Start all parts that have something to do."""
        for name, module in STARTS:
            try:
                part = call_foreign(_start, module, self._recorder, options)
            except ForeignError as error:  # whatever it is, the training matters more
                self._recorder.warn_once(f"part:{name}", f"{name} cannot start: {error}")
                continue
            if part is not None:
                self._running.append((name, part))

    def close(self, timeout: float) -> list[str]:
        """Close all parts, the last one first; what each says is still only here."""
        running, self._running = self._running, []
        said = []
        for name, part in reversed(running):
            try:
                words = call_foreign(part.close, timeout)
            except ForeignError as error:
                self._recorder.warn_once(f"end:{name}", f"{name} cannot be closed: {error}")
                continue
            if words:
                said.append(words)
        return said

    def forget(self) -> None:
        """In a forked child: the parts are the parent's."""
        self._running = []


def _start(module: str, recorder: Recorder, options: Options) -> Part | None:
    part: Part | None = importlib.import_module(module).start(recorder, options)
    return part
