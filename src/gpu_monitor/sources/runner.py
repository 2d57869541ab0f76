"""What every source needs and none should write: isolation of its errors, and how long its rounds take."""

from __future__ import annotations

import logging

from gpu_monitor.core.clock import process_seconds
from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.core.model import Round, Span
from gpu_monitor.core.ports import Source

_LOG = logging.getLogger("source")


class SourceRunner:
    """Reads a source; whatever it raises becomes a round without readings that says why.

    `rounds`, `failures`: counts since the start. `seconds`, `longest_seconds`: what rounds took, waiting
    included. One thread.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.rounds = 0
        self.failures = 0
        self.seconds = 0.0
        self.longest_seconds = 0.0
        self._said: str | None = None
        self._repeated = 0

    @property
    def name(self) -> str:
        """The source's name."""
        return self._source.name

    def probe(self) -> None:
        """Raise SourceUnavailable where no reading can be had at all."""
        self._source.probe()

    def read(self, now: float, span: Span) -> Round:
        """One round for the moment `now` (UTC epoch). Never raises an Exception."""
        began = process_seconds()
        try:
            found = self._source.read(now, span)
        except Exception as error:  # noqa: BLE001 (the border: a source's fault must not end the agent)
            found = Round((), (), self._failed(error))
        else:
            self._fine()
        took = process_seconds() - began
        self.rounds += 1
        self.seconds += took
        self.longest_seconds = max(self.longest_seconds, took)
        return found

    def _failed(self, error: Exception) -> str:
        """Count the error, log it the first time, and name the cause."""
        self.failures += 1
        text = error.message if isinstance(error, GpuMonitorError) else f"{type(error).__name__}: {error}"
        if text == self._said:
            self._repeated += 1
        else:
            self._fine()
            self._said = text
            _LOG.error("the %s source failed: %s", self.name, text, exc_info=error)
        return f"{self.name} source failed: {text}"

    def _fine(self) -> None:
        if self._repeated:
            _LOG.error("the %s source failed %d more times: %s", self.name, self._repeated, self._said)
        self._said, self._repeated = None, 0

    def close(self) -> None:
        """Let go of what the source holds."""
        self._source.close()
