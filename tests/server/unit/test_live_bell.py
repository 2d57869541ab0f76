"""News between server processes on one PostgreSQL: real cluster, real notifications."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.server.live.bell import CHANNEL, Bell
from gpu_monitor.server.live.newest import Newest
from gpu_monitor.server.live.watch import WatchList
from gpu_monitor.server.store.engine import Store, open_store
from tests.server.fleet import record_change
from tests.server.postgres import WHY_NOT, Cluster, running_cluster

PATIENCE = 20.0


class Process:
    """One server process, as far as the bell knows it."""

    def __init__(self, store: Store) -> None:
        self.newest, self.watch = Newest(), WatchList()
        self.bell = Bell(store, self.newest, self.watch, SystemClock())
        self._heard = threading.Condition()
        self.newest.listen(self._wake)

    def _wake(self, _seq: int) -> None:
        with self._heard:
            self._heard.notify_all()

    def hears(self, seq: int) -> bool:
        """Whether this number comes in time."""
        with self._heard:
            return self._heard.wait_for(lambda: self.newest.seq >= seq, PATIENCE)

    def sees(self, condition: Callable[[], bool]) -> bool:
        """Whether something comes true in time; looked at with each poll."""
        asked = threading.Event()
        for _ in range(int(PATIENCE / 0.05)):
            if condition():
                return True
            asked.wait(0.05)
        return condition()


@contextmanager
def process(store: Store) -> Iterator[Process]:
    made = Process(store)
    made.bell.start()
    try:
        yield made
    finally:
        made.bell.stop()


@pytest.fixture
def dialect() -> str:
    return "postgresql"


def test_one_process_tells_the_others_what_it_committed(store: Store) -> None:
    with process(store) as one, process(store) as two:
        record_change(store, 1)
        assert two.hears(1)  # by asking, which it does once it listens
        # No row of `changes` has this number: only the notification can bring it.
        one.bell.ring(4711)
        assert two.hears(4711)


def test_what_no_notification_told_of_is_found_by_asking(store: Store) -> None:
    with process(store) as one:
        assert record_change(store, 1) == 1
        assert one.hears(1)


def test_of_many_commits_at_most_five_a_second_are_told_the_newest_always(
    store: Store, database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as listener, process(store) as one:
        listener.execute(f"LISTEN {CHANNEL}")
        pause = threading.Event()
        for seq in range(1, 101):
            one.bell.ring(seq)
            pause.wait(0.01)
        told = [int(note.payload) for note in listener.notifies(timeout=1.0)]
    assert told[-1] == 100
    assert told == sorted(set(told))
    # A second and a bit of ringing: one at once, then one each 0.2 s; slower machines ring for longer.
    assert len(told) < 30


def test_a_node_watched_in_one_process_is_watched_in_all(store: Store) -> None:
    with process(store) as two:
        with process(store) as one:
            one.watch.look(["node-a", "node-b"])
            assert two.sees(lambda: two.watch.seconds("node-a") == 2)
            assert two.watch.seconds("node-c") is None
            one.watch.look(["node-b"])
            assert two.sees(lambda: two.watch.seconds("node-a") is None)
            assert two.watch.seconds("node-b") == 2
        # Its process has ended.
        assert two.sees(lambda: two.watch.seconds("node-b") is None)


def test_a_process_that_died_watches_for_a_few_seconds_only(store: Store) -> None:
    with store.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO watches VALUES ('dead', 'node-a', extract(epoch FROM clock_timestamp()) + 2.5)"
        )
    with process(store) as one:
        assert one.sees(lambda: one.watch.seconds("node-a") == 2)
        assert one.sees(lambda: one.watch.seconds("node-a") is None)


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with running_cluster() as made:
        yield made


def test_a_database_that_went_away_is_listened_to_again(own_cluster: Cluster) -> None:
    store = open_store(own_cluster.create())
    with process(store) as one:
        one.bell.ring(1)
        record_change(store, 1)
        assert one.hears(1)
        own_cluster.stop()
        own_cluster.start()
        store.close()  # its pooled connections are of the old server
        record_change(store, 1)
        assert one.hears(2)
    store.close()
