"""Hands the newest state to everybody who watches: one message a second at most, encoded once for all who ask alike.

Nothing waits in queues. Each viewer has the turn up to which it has seen; its next message is made, or shared,
when it can take one, and holds what changed since.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.errors import StorageError
from gpu_monitor.core.times import format_time
from gpu_monitor.server.live.messages import (
    ALL_GPUS,
    Ask,
    Cursor,
    Parts,
    Subscription,
    compose,
    read_cursor,
    refusal,
    subscription,
    write_cursor,
)
from gpu_monitor.server.live.newest import Newest
from gpu_monitor.server.live.picture import Picture, Totals, fleet_body
from gpu_monitor.server.live.rows import Mark, NodeRow, changed_since, is_mark, load, newest_mark
from gpu_monitor.server.live.runs import Reader, RunNews, Runs
from gpu_monitor.server.live.watch import WatchList
from gpu_monitor.server.store.engine import Store

_LOG = logging.getLogger("live")
_T = TypeVar("_T")
VIEWERS = 2_000
"""At most so many in one process: twice what the bar asks for."""
_AT_ONCE = 64
"""Viewers that are woken before other work gets its turn."""
_END_SECONDS = 1.0
"""For a read that is under way when the hub stops: one takes milliseconds, unless the database does not answer."""


@dataclass(frozen=True)
class Pace:
    """Seconds. A message goes out at most every `turn`; where nothing changes, one every `beat` says so. Those who
    watch experiments are told of them every `runs`, so that a point is seen within a second of its log call.

    The picture is kept for `linger` after the last viewer left: a page that is loaded again finds it. A viewer
    that takes no message for `stuck` is let go.
    """

    turn: float = 1.0
    runs: float = 0.25
    beat: float = 5.0
    linger: float = 60.0
    stuck: float = 30.0


class TooMany(Exception):
    """There are as many viewers as this process takes."""


@dataclass(frozen=True)
class _Fresh:
    """What was read: all nodes where `is_whole`, else those that changed."""

    mark: Mark
    rows: list[NodeRow]
    is_whole: bool
    runs: list[RunNews]


class _Group:
    """The viewers of one subscription, and the messages of this turn by the turn they go on from."""

    def __init__(self, wanted: Subscription) -> None:
        self.wanted = wanted
        self.digest = wanted.digest
        self.viewers = 0
        self.turn = -1
        self.texts: dict[int, str] = {}


class Viewer:
    """One client. Only the thread of the event loop touches it."""

    def __init__(self, hub: Hub, contracts: frozenset[int] | None) -> None:
        self._hub = hub
        self.contracts = contracts
        self.wake = asyncio.Event()
        self.group: _Group | None = None
        self.since = -1
        self.sending_since: float | None = None
        self.let_go: Callable[[], object] | None = None
        self.was_asked = False
        self._ask: Ask | None = None
        self._complaint: str | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing was asked for yet."""
        return self.group is None and self._ask is None

    def ask(self, ask: Ask) -> None:
        """Ask for something else from now on; of several asks the last one counts."""
        self._ask = ask
        self.wake.set()

    def complain(self, text: str) -> None:
        """Have the client told that its last message could not be served."""
        self._complaint = text
        self.wake.set()

    async def next(self) -> str:
        """The next message, as soon as there is one; `was_asked` tells whether it answers the client."""
        self.was_asked = True
        while True:
            if self._complaint is not None:
                complaint, self._complaint = self._complaint, None
                return refusal(complaint)
            if self._ask is not None:
                ask, self._ask = self._ask, None
                return await self._hub.begin(self, ask)
            await self.wake.wait()
            self.wake.clear()
            if self.group is not None and self._ask is None and self._complaint is None:
                text = self._hub.message(self)
                if text is not None:
                    self.was_asked = False
                    return text


class Hub:
    """The viewers of this process, and the picture that they see while there are any."""

    def __init__(
        self, store: Store, clock: Clock, newest: Newest, watch: WatchList, pace: Pace | None = None
    ) -> None:
        self._store, self._clock, self._newest, self._watch = store, clock, newest, watch
        self._pace = pace or Pace()
        self._viewers: set[Viewer] = set()
        self._groups: dict[Subscription, _Group] = {}
        self._picture = Picture()
        self._runs, self._reader = Runs(), Reader()
        self._mark: Mark | None = None
        self._turn = 0
        self._floor = 0
        self._fleets: dict[tuple[frozenset[int] | None, bool], tuple[bytes, int]] = {}
        self._totals: dict[tuple[int, bool], Totals] = {}
        self._totals_turn = -1
        self._last_message = self._last_brief = 0.0
        self._task: asyncio.Task[None] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._reads: set[Future[Any]] = set()
        self._is_failing = False
        self.messages = 0

    # --- as a part of the server ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take viewers, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._ready, self._changed = asyncio.Event(), asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="live")
        self._newest.listen(self._hear)

    def stop(self) -> None:
        """Read no more; a read under way has ended, so that its connection is back before the database closes."""
        if self._task is not None:
            self._task.cancel()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
            wait(list(self._reads), _END_SECONDS)

    def _hear(self, _seq: int) -> None:
        if self._executor is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    def hear_runs(self, changed: frozenset[int]) -> None:
        """Experiments (their numbers) changed; any thread. Those of other processes are found by asking."""
        if self._executor is not None and not changed.isdisjoint(self._runs.numbers):
            self._hear(0)

    # --- viewers -------------------------------------------------------------------------------------------

    @property
    def viewers(self) -> int:
        """How many there are."""
        return len(self._viewers)

    @property
    def is_looking(self) -> bool:
        """Whether the picture is kept up to date."""
        return self._task is not None and not self._task.done()

    def join(self, contracts: frozenset[int] | None) -> Viewer:
        """A new viewer, who may see `contracts` (None: all); TooMany where there is no place."""
        if len(self._viewers) >= VIEWERS:
            raise TooMany(f"{VIEWERS} live pages are open on this server process")
        viewer = Viewer(self, contracts)
        self._viewers.add(viewer)
        if not self.is_looking:
            self._task = self._loop.create_task(self._run())
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """The viewer is gone."""
        self._viewers.discard(viewer)
        self._enter(viewer, None)
        self._look()

    def _enter(self, viewer: Viewer, group: _Group | None) -> None:
        old, viewer.group = viewer.group, group
        if group is not None:
            group.viewers += 1
        if old is not None:
            old.viewers -= 1
            if old.viewers == 0:
                self._groups.pop(old.wanted, None)

    def _look(self) -> None:
        """Say which nodes are looked at by name."""
        self._watch.look(
            uuid for group in self._groups.values() for uuid in self._picture.watched(group.wanted)
        )

    async def begin(self, viewer: Viewer, ask: Ask) -> str:
        """The first message of a subscription: what changed since its cursor, else everything."""
        await self._ready.wait()
        wanted = subscription(ask.subscribe, viewer.contracts)
        if wanted.gpus is None and (count := self._picture.count_gpus(wanted)) > ALL_GPUS:
            return refusal(f"{count} GPUs in one subscription; the most are {ALL_GPUS}: name nodes or GPUs")
        group = self._groups.setdefault(wanted, _Group(wanted))
        self._enter(viewer, group)
        self._look()
        agents = await self._resumed(ask.cursor, group.digest) if ask.cursor is not None else None
        viewer.since = self._turn
        self.messages += 1
        if wanted.experiments:
            self._changed.set()  # those that nobody watched yet are asked for now
        if agents is None:
            return self._text(group, -1)
        return compose(
            self._parts(
                group,
                reset=False,
                fleet=self._fleet(wanted)[0] if wanted.fleet else None,
                nodes=self._picture.node_bodies(wanted, -1, agents),
                gpus=self._picture.gpu_bodies(wanted, -1, agents),
                experiments=self._runs.bodies(wanted, -1),
            )
        )

    async def _resumed(self, text: str, digest: bytes) -> frozenset[int] | None:
        """The nodes that changed since a cursor; None where it is unknown, too old, or of another subscription."""
        cursor = read_cursor(text)
        if cursor is None or cursor.digest != digest:
            return None

        def read() -> frozenset[int] | None:
            with self._store.read() as connection:
                if not is_mark(connection, Mark(cursor.seq, cursor.time)):
                    return None
                return frozenset(changed_since(connection, cursor.seq))

        try:
            return await self._in_thread(read)
        except StorageError as error:
            self._say_failing(error)
            return None

    async def _in_thread(self, read: Callable[[], _T]) -> _T:
        assert self._executor is not None  # start() came before any viewer
        future = self._executor.submit(read)
        self._reads.add(future)
        future.add_done_callback(self._reads.discard)
        return await asyncio.wrap_future(future)

    # --- messages ------------------------------------------------------------------------------------------

    def message(self, viewer: Viewer) -> str | None:
        """What a viewer has not seen yet; None where it has seen this turn."""
        group = viewer.group
        if group is None or viewer.since >= self._turn:
            return None
        since = viewer.since if viewer.since >= self._floor else -1
        viewer.since = self._turn
        self.messages += 1
        return self._text(group, since)

    def _text(self, group: _Group, since: int) -> str:
        """The message of this turn for those who have seen `since` (-1: nothing), made once."""
        if group.turn != self._turn:
            group.turn = self._turn
            group.texts.clear()
        text = group.texts.get(since)
        if text is None:
            wanted, fleet = group.wanted, None
            if wanted.fleet:
                body, turn = self._fleet(wanted)
                fleet = body if turn > since else None
            nodes, gpus = self._picture.node_bodies(wanted, since), self._picture.gpu_bodies(wanted, since)
            runs = self._runs.bodies(wanted, since)
            parts = self._parts(group, reset=since < 0, fleet=fleet, nodes=nodes, gpus=gpus, experiments=runs)
            text = compose(parts)
            group.texts[since] = text
        return text

    def _parts(
        self,
        group: _Group,
        *,
        reset: bool,
        fleet: bytes | None,
        nodes: list[bytes],
        gpus: list[bytes],
        experiments: list[bytes],
    ) -> Parts:
        assert self._mark is not None  # nobody is in a group before the first picture
        cursor = write_cursor(Cursor(self._mark.seq, self._mark.time, group.digest))
        return Parts(cursor, format_time(self._clock.now()), reset, fleet, nodes, gpus, experiments)

    def _fleet(self, wanted: Subscription) -> tuple[bytes, int]:
        """The totals, and the turn in which they last changed."""
        if self._totals_turn != self._turn:
            self._totals = self._picture.totals(self._clock.now())
            self._totals_turn = self._turn
            self._fleets = {
                key: (body, turn) for key, (body, turn) in self._fleets.items() if self._is_asked(key)
            }
        key = (wanted.contracts, wanted.simulated)
        body = fleet_body(self._totals, wanted)
        held = self._fleets.get(key)
        if held is None or held[0] != body:
            held = self._fleets[key] = (body, self._turn)
        return held

    def _is_asked(self, key: tuple[frozenset[int] | None, bool]) -> bool:
        return any((wanted.contracts, wanted.simulated) == key for wanted in self._groups)

    # --- turns ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Take turns while there are viewers, and a while longer."""
        left_at: float | None = None
        while True:
            if self._viewers:
                left_at = None
            elif left_at is None:
                left_at = self._loop.time()
            elif self._loop.time() - left_at > self._pace.linger:
                break
            await self._take_turn()
            await self._rest()
        self._picture, self._mark = Picture(), None
        self._runs, self._reader = Runs(), Reader()
        self._floor = self._turn + 1
        self._ready.clear()

    async def _rest(self) -> None:
        """Wait for news, a turn at most; and, after a message, for a turn at least."""
        wanted = self._wanted_runs()
        try:
            await asyncio.wait_for(self._changed.wait(), self._pace.runs if wanted else self._pace.turn)
        except asyncio.TimeoutError:
            self._changed.clear()
        early = self._last_message + self._pace.turn - self._loop.time()
        if wanted:
            early = min(early, self._last_brief + self._pace.runs - self._loop.time())
        if early > 0:
            await asyncio.sleep(early)
        self._changed.clear()

    def _wanted_runs(self) -> frozenset[str]:
        return frozenset(uid for group in self._groups.values() for uid in group.wanted.experiments)

    async def _take_turn(self) -> None:
        fresh: _Fresh | None = None
        wanted = self._wanted_runs()
        is_early = self._loop.time() < self._last_message + self._pace.turn
        is_brief = bool(wanted) and self._mark is not None and is_early
        try:
            fresh = await self._in_thread(lambda: self._read(wanted, is_brief))
        except StorageError as error:
            self._say_failing(error)
        else:
            self._is_failing = False
        if fresh is not None:
            self._turn += 1
            if fresh.is_whole:
                self._picture, self._floor = Picture(), self._turn
            self._picture.take(fresh.rows, self._turn)
            self._runs.take(fresh.runs, wanted, self._turn)
            self._mark = fresh.mark
            self._ready.set()
            self._look()
        elif self._loop.time() - self._last_message >= self._pace.beat and not self._is_failing:
            # While the database cannot be read nothing is said: a page sees that the signs of life have ended.
            self._turn += 1
        else:
            return
        self._last_brief = self._loop.time()
        if not is_brief:
            self._last_message = self._last_brief
        await self._wake_all(is_brief)

    def _read(self, wanted: frozenset[str], is_brief: bool) -> _Fresh | None:
        """What changed since the picture was taken, and of the experiments `wanted` (`is_brief`: only of them); None
        where nothing did."""
        mark = self._mark
        try:
            with self._store.read() as connection:
                newest = mark if is_brief and mark is not None else newest_mark(connection)
                runs = self._reader.read(connection, wanted, self._clock.now())
                if mark == newest:
                    return _Fresh(newest, [], is_whole=False, runs=runs) if runs else None
                if mark is None or not is_mark(connection, mark):
                    return _Fresh(newest, load(connection, None), is_whole=True, runs=runs)
                changed = load(connection, changed_since(connection, mark.seq))
                return _Fresh(newest, changed, is_whole=False, runs=runs)
        except StorageError:
            self._reader = Reader()  # what it has read and nobody was told is read again, whole
            raise

    def _say_failing(self, error: StorageError) -> None:
        if not self._is_failing:
            _LOG.error("live pages stand still: %s", error)
        self._is_failing = True

    async def _wake_all(self, is_brief: bool) -> None:
        """Wake all viewers, or only those who watch experiments."""
        now = self._loop.time()
        for number, viewer in enumerate(list(self._viewers), 1):
            if is_brief and (viewer.group is None or not viewer.group.wanted.experiments):
                continue
            if viewer.sending_since is not None and now - viewer.sending_since > self._pace.stuck:
                if viewer.let_go is not None:
                    viewer.let_go()
                continue
            viewer.wake.set()
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
