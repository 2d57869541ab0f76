"""Watches the trainings that have registered on this machine, and tells the server of those that vanish.

While none is registered it costs a few `stat` calls every five seconds. The registration itself is the queue of what
is still to be told: it lies on disk, and goes only when the server has taken note. So an agent that is restarted or
killed, and a server that is away for days, lose nothing.
"""

from __future__ import annotations

import json
import logging
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpu_monitor.agent.run_uploads import RunUpload, open_upload
from gpu_monitor.agent.ship_backoff import PACE_SECONDS, wait_seconds
from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.model import Event, Round
from gpu_monitor.core.outcome import Outcome, Verdict
from gpu_monitor.core.xid import EVENT_KIND
from gpu_monitor.sinks.experiments import ExperimentServer
from gpu_monitor.sources.host.kernel_log import KernelLog
from gpu_monitor.sources.host.lives import Life, Lives
from gpu_monitor.sources.host.registrations import (
    Registration,
    RegistrationFolders,
    is_still_there,
    remove_registration,
)

_LOG = logging.getLogger("runs")
LOOK_SECONDS = 5.0
_REAP_MS = 500
"""So long a parent may take to note a child's end: only then does the kernel say how it ended."""
_REAP_TOGETHER_MS = 2000
_XID_SECONDS = 120.0
"""An Xid so long before the end of a process on its GPU may be why."""
_KEPT_XIDS = 64
_FORGET_SECONDS = 86_400.0
"""A server that does not know a run for a day will not learn of it from us."""
_UNKNOWN, _NEVER = (404, 409), (400, 410, 413, 422)
_END_SECONDS = 1.0


class Endings(Protocol):
    """Where ends are told (`sinks.endings`)."""

    def is_wanted(self) -> bool | None:
        """Whether the other side takes them; None: no answer."""
        ...

    def send(self, experiment_id: str, body: bytes, node: str) -> Outcome:
        """Try once."""
        ...

    def cut(self) -> None:
        """Have the exchange that is under way end now."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass
class _Run:
    """One registration. `life` while it runs; from `gone_at` (UTC epoch s) on its end is to be told."""

    about: Registration
    life: Life | None = None
    pid: int | None = None
    gone_at: float | None = None
    cause: dict[str, Any] = field(default_factory=dict)
    is_told: bool = False
    upload: RunUpload | None = None
    was_uploaded: bool = False
    failures: int = 0
    not_before: float = float("-inf")


class RunWatch:
    """The watch of one agent, in a thread of its own. `seen` is for the beat's thread and never waits.

    `open_endings` and `open_server` give where ends and segments go; None: nowhere, then what vanished runs left in
    the registry is only removed. `node`: this node's id.
    """

    def __init__(
        self,
        places: tuple[str, ...],
        open_endings: Callable[[], Endings | None],
        open_server: Callable[[], ExperimentServer | None],
        node: Callable[[], str],
        clock: Clock | None = None,
        lives: Lives | None = None,
        open_log: Callable[[], KernelLog | None] = lambda: None,
    ) -> None:
        self._folders = RegistrationFolders(places)
        self._open_endings, self._open_server, self._node = open_endings, open_server, node
        self._clock = clock or SystemClock()
        self._lives = lives or Lives()
        self._open_log = open_log
        self._log: KernelLog | None = None
        self._killed: deque[int] = deque(maxlen=1024)
        self._runs: dict[str, _Run] = {}
        self._xids: deque[Event] = deque(maxlen=_KEPT_XIDS)
        self._users: dict[str, frozenset[int]] = {}
        self._endings: Endings | None = None
        self._is_open = self._is_over = False
        self._not_before = float("-inf")
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="runs", daemon=True)
        self._ears, self._bell = os.pipe()
        os.set_blocking(self._bell, False)

    # --- for the beat -----------------------------------------------------------------------------------------

    def seen(self, found: Round, at: float) -> None:
        """The GPUs were read at `at`: remember Xids, and which processes each GPU had."""
        for event in found.events:
            if event.kind == EVENT_KIND:
                self._xids.append(event)
        for device in found.devices:
            if device.processes is not None:
                self._users[device.identity.uid] = frozenset(one.pid for one in device.processes)

    # --- as a part of the agent -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not told yet is told by the next start."""
        self._is_over = True
        self._ring()
        if self._endings is not None:
            self._endings.cut()
        if self._thread.is_alive():
            self._thread.join(_END_SECONDS)

    def change(self) -> None:
        """The settings were read again: another server may be meant, and whatever held it back is over."""
        self._is_open = False
        self._not_before = float("-inf")
        self._ring()

    # --- the thread -------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._bell, b"!")

    def _run(self) -> None:
        while not self._is_over:
            self._look()
            self._deliver()
            self._wait()
        for run in self._runs.values():
            self._release(run)
        self._close_log()
        if self._endings is not None:
            self._endings.close()

    def _wait(self) -> None:
        """Until a watched process ends, something is due, or five seconds have passed."""
        now = self._clock.monotonic()
        times = [
            max(run.not_before, self._not_before) for run in self._runs.values() if run.gone_at is not None
        ]
        seconds = min([LOOK_SECONDS, *(max(0.05, time - now) for time in times)])
        waiting = select.poll()
        waiting.register(self._ears, select.POLLIN)
        for run in self._runs.values():
            if run.gone_at is None and run.life is not None and run.life.pidfd is not None:
                waiting.register(run.life.pidfd, select.POLLIN)
        for descriptor, _ in waiting.poll(seconds * 1000):
            if descriptor == self._ears:
                os.read(self._ears, 64)

    def _look(self) -> None:
        """Take in what is registered, and see who has vanished."""
        there = {str(one.path): one for one in self._folders.look(self._clock.now())}
        if not there and not self._runs:
            return
        self._lives.begin_look()
        for name in [name for name, run in self._runs.items() if there.get(name) != run.about]:
            self._release(
                self._runs.pop(name)
            )  # its owner took it away, or begins another one under that name
        patience = _REAP_TOGETHER_MS
        for name, one in there.items():
            run = self._runs.get(name)
            if run is None:
                run = self._runs[name] = _Run(one)
            if run.gone_at is None:
                patience -= self._look_at(run, min(patience, _REAP_MS))
        if self._runs and self._log is None:
            self._log = self._open_log()
        elif not self._runs:
            self._close_log()

    def _look_at(self, run: _Run, patience_ms: int) -> int:
        """Whether a run lives; milliseconds that were waited."""
        if run.life is None:
            run.life = self._lives.find(run.about)
            if run.life is not None:
                run.pid = run.life.pid
                _LOG.info("run %s (pid %d) is watched", run.about.experiment_id, run.pid)
            elif self._lives.is_gone_for_sure(run.about):
                self._gone(run, {})
            return 0
        if self._lives.is_alive(run.life):
            self._lives.watch_memory(run.life)
            return 0
        cause = self._lives.cause(run.life, patience_ms)
        self._gone(run, cause)
        return patience_ms

    def _gone(self, run: _Run, cause: dict[str, Any]) -> None:
        """A run has vanished, unless it took its registration away before it ended."""
        self._release(run)
        if not is_still_there(run.about):
            self._runs.pop(str(run.about.path), None)
            return
        run.gone_at = now = self._clock.now()
        if run.pid is None:  # it was gone before anybody looked: it wrote until then
            run.gone_at = min(now, _last_written(run.about) or now)
        run.cause = cause | self._more_causes(run.pid, run.gone_at)
        told = ", ".join(f"{name} {value}" for name, value in run.cause.items()) or "nobody knows why"
        _LOG.info("run %s (pid %d) has vanished: %s", run.about.experiment_id, run.pid or run.about.pid, told)

    def _more_causes(self, pid: int | None, now: float) -> dict[str, Any]:
        """What others than its own exit status tell of an end: the kernel log, and Xids of its GPUs."""
        found: dict[str, Any] = {}
        if pid is None:
            return found
        if self._log is not None:
            self._killed.extend(self._log.read_killed())
            if pid in self._killed:
                found["oom"] = True
        for event in reversed(tuple(self._xids)):
            if not now - _XID_SECONDS <= event.time <= now + 1.0:
                continue
            named = event.detail.get("pid")
            is_its_gpu = event.uid is not None and pid in self._users.get(event.uid, ())
            if named == pid or (named is None and is_its_gpu):
                found["xid"] = event.detail.get("xid")
                break
        return found

    # --- telling ----------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Tell of every end that is due; one request for each run."""
        gone = [run for run in self._runs.values() if run.gone_at is not None]
        if not gone:
            return
        if not self._is_open:
            self._reopen()
        now = self._clock.monotonic()
        if now < self._not_before:
            return
        is_wanted = self._endings.is_wanted() if self._endings is not None else False
        if is_wanted is None:
            self._hold_all(Outcome(Verdict.UNREACHABLE, error="the server does not answer"))
            return
        for run in _due(gone, now):
            if self._is_over:
                return
            if not is_wanted:
                self._done(run)
            elif run.upload is not None:
                self._upload(run)
            elif not self._tell(run):
                return
        if self._endings is not None:
            self._endings.close()

    def _reopen(self) -> None:
        if self._endings is not None:
            self._endings.close()
        self._endings, self._is_open, self._failures = self._open_endings(), True, 0
        for run in self._runs.values():
            run.failures, run.not_before = 0, float("-inf")

    def _tell(self, run: _Run) -> bool:
        """Tell of one end; False where nothing else can be told now either."""
        assert self._endings is not None
        outcome = self._endings.send(run.about.experiment_id, _body(run), self._node())
        if outcome.verdict in (Verdict.UNCOMPRESSED, Verdict.INTERRUPTED):
            return True
        if outcome.verdict is Verdict.ACKNOWLEDGED:
            if self._failures:
                _LOG.info("the ends of runs are taken again")
            self._failures, run.is_told = 0, True
            self._after(run)
        elif outcome.status in _NEVER:
            _LOG.info("the end of run %s is not taken: %s", run.about.experiment_id, outcome.error)
            self._done(run)
        elif outcome.status in _UNKNOWN:
            self._hold_unknown(run)
        else:
            self._hold_all(outcome)
            return False
        return True

    def _after(self, run: _Run) -> None:
        """What is left once the end is told (or the run is not known there): its segments, then nothing."""
        if not run.was_uploaded:
            run.was_uploaded = True
            run.upload = open_upload(run.about, self._open_server)
            run.not_before = float("-inf")
        if run.upload is None and run.is_told:
            self._done(run)

    def _upload(self, run: _Run) -> None:
        assert run.upload is not None
        pause = run.upload.step()
        if pause is not None:
            run.not_before = self._clock.monotonic() + pause
            return
        run.upload, run.not_before = None, float("-inf")
        if run.is_told:
            self._done(run)

    def _hold_unknown(self, run: _Run) -> None:
        """The server does not know the run yet: it may learn of it, from us where it is our own user's."""
        if run.gone_at is not None and self._clock.now() - run.gone_at > _FORGET_SECONDS:
            self._done(run)
            return
        self._after(run)
        if run.upload is None:
            run.failures += 1
            run.not_before = self._clock.monotonic() + wait_seconds(run.failures)

    def _hold_all(self, outcome: Outcome) -> None:
        self._failures += 1
        if self._failures == 1:
            _LOG.info("the ends of runs cannot be told yet: %s; they are kept", outcome.error)
        if outcome.after is not None:
            wait = outcome.after
        elif outcome.verdict is Verdict.REFUSED:
            wait = PACE_SECONDS
        else:
            wait = wait_seconds(self._failures)
        self._not_before = self._clock.monotonic() + wait

    def _done(self, run: _Run) -> None:
        """Nothing more is to be told of it: its registration goes."""
        if not remove_registration(run.about):
            # It is not ours to remove: it is remembered as long as this agent runs, and told once more by the next.
            run.not_before = float("inf")
            return
        self._release(run)
        self._runs.pop(str(run.about.path), None)

    def _release(self, run: _Run) -> None:
        if run.life is not None:
            self._lives.release(run.life)
            run.life = None

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def _due(runs: Iterable[_Run], now: float) -> list[_Run]:
    return [run for run in runs if run.not_before <= now]


def _body(run: _Run) -> bytes:
    """What is told (docs/segments.md)."""
    about = run.about
    named = {"segment": about.segment, "boot_id": about.boot_id, "start_ticks": about.start_ticks}
    named |= {"ns_pid": about.ns_pid} if about.ns_pid is not None else {"pid": about.pid}
    said = {**named, "time": round(run.gone_at or 0.0, 3), "cause": run.cause, "by": "agent"}
    return json.dumps({name: value for name, value in said.items() if value is not None}).encode()


def _last_written(about: Registration) -> float | None:
    """When the segment that a registration names was written last, UTC epoch s; None where its user has no such file."""
    if about.folder is None or about.segment is None:
        return None
    try:
        found = (Path(about.folder) / f"{about.segment}.log").lstat()
    except (OSError, ValueError):
        return None
    return found.st_mtime if stat.S_ISREG(found.st_mode) and found.st_uid == about.owner else None
