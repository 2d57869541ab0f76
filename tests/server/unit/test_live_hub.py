"""The live hub on real databases: what viewers are sent, and what they are not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

from sqlalchemy import Connection, delete, update

from gpu_monitor.server.live.hub import Hub, Pace, Viewer
from gpu_monitor.server.live.messages import Ask, Wanted
from gpu_monitor.server.live.newest import Newest
from gpu_monitor.server.live.watch import WatchList
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema import changes, facts
from tests.fakes.clock import FakeClock
from tests.server.fleet import NOW, add_contract, add_node, record_change, set_latest

FAST = Pace(turn=0.02, beat=30.0)


@asynccontextmanager
async def running(store: Store, pace: Pace = FAST, watch: WatchList | None = None) -> AsyncIterator[Hub]:
    hub = Hub(store, FakeClock(NOW + 60), Newest(), watch or WatchList(), pace)
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


def scenario(play: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(play(), 60))  # type: ignore[arg-type]


async def first(
    hub: Hub, wanted: Wanted, cursor: str | None = None, contracts: Any = None
) -> tuple[Viewer, Any]:
    viewer = hub.join(contracts)
    viewer.ask(Ask(wanted, cursor))
    return viewer, json.loads(await viewer.next())


async def following(viewer: Viewer) -> Any:
    return json.loads(await viewer.next())


ALL = Wanted(fleet=True, nodes="all", gpus="all")


def test_the_first_message_holds_everything_in_documented_units(store: Store) -> None:
    add_node(store, add_contract(store, "12345"), "node-a", 2)

    async def play() -> None:
        async with running(store) as hub:
            _, message = await first(hub, ALL)
            assert message["reset"] is True
            assert message["time"] == "2024-03-20T14:31:00+00:00"
            assert [node["id"] for node in message["nodes"]] == ["node-a"]
            gpu = message["gpus"][1]
            assert gpu["uid"] == "node-a-gpu1"
            assert (gpu["temperature"], gpu["power_usage"], gpu["gpu_utilization"]) == (61.5, 350.25, 90.5)
            assert (gpu["memory_used"], gpu["memory_total"]) == (1073741824, 85899345920)
            assert gpu["throttle_reasons"] == ["sw_power_cap"]
            assert gpu["fan_speed"] is None
            assert gpu["time"] == "2024-03-20T14:30:00+00:00"
            fleet = message["fleet"]
            assert (fleet["nodes"], fleet["gpus"], fleet["gpus_now"], fleet["silent_nodes"]) == (1, 2, 2, 0)
            assert fleet["power_usage"] == 700.5
            assert fleet["gpu_utilization"] == 90.5

    scenario(play)


def test_later_messages_hold_what_changed_and_nothing_else(store: Store) -> None:
    contract = add_contract(store, "1")
    agent = add_node(store, contract, "node-a", 3)
    add_node(store, contract, "node-b", 3)

    async def play() -> None:
        async with running(store) as hub:
            viewer, before = await first(hub, ALL)
            await asyncio.to_thread(set_latest, store, agent, 2, {"power_usage": 10000})
            message = await following(viewer)
            assert message["reset"] is False
            assert [gpu["uid"] for gpu in message["gpus"]] == ["node-a-gpu2"]
            assert message["gpus"][0]["power_usage"] == 100
            assert "nodes" not in message
            assert message["fleet"]["power_usage"] == 5 * 350.25 + 100
            assert message["cursor"] != before["cursor"]

    scenario(play)


def test_who_asks_alike_gets_the_very_same_text(store: Store) -> None:
    agent = add_node(store, add_contract(store, "1"), "node-a", 1)

    async def play() -> None:
        async with running(store) as hub:
            one, _ = await first(hub, ALL)
            two, _ = await first(hub, ALL)
            other, _ = await first(hub, Wanted(fleet=True))
            set_latest(store, agent, 0, {"temperature": 500})
            texts = await asyncio.gather(one.next(), two.next(), other.next())
            assert texts[0] is texts[1]
            assert 'gpus":[' not in texts[2]

    scenario(play)


def test_a_viewer_that_comes_late_gets_the_newest_once(store: Store) -> None:
    agent = add_node(store, add_contract(store, "1"), "node-a", 2)

    async def play() -> None:
        async with running(store) as hub:
            slow, _ = await first(hub, ALL)
            quick, _ = await first(hub, ALL)
            for temperature in (500, 510, 520, 530):
                set_latest(store, agent, 0, {"temperature": temperature})
                message = await following(quick)
                assert message["gpus"][0]["temperature"] == temperature / 10
            set_latest(store, agent, 1, {"temperature": 990})
            await following(quick)
            late = await following(slow)
            assert [(gpu["uid"], gpu["temperature"]) for gpu in late["gpus"]] == [
                ("node-a-gpu0", 53),
                ("node-a-gpu1", 99),
            ]
            assert late["reset"] is False

    scenario(play)


def test_a_cursor_goes_on_in_another_process(store: Store) -> None:
    contract = add_contract(store, "1")
    agent = add_node(store, contract, "node-a", 1)
    add_node(store, contract, "node-b", 1)

    async def play() -> None:
        async with running(store) as hub:
            _, message = await first(hub, ALL)
        set_latest(store, agent, 0, {"temperature": 333})
        async with running(store) as other:
            _, resumed = await first(other, ALL, message["cursor"])
            assert resumed["reset"] is False
            assert [gpu["uid"] for gpu in resumed["gpus"]] == ["node-a-gpu0"]
            assert resumed["gpus"][0]["temperature"] == 33.3
            assert [node["id"] for node in resumed["nodes"]] == ["node-a"]
            _, nothing = await first(other, ALL, resumed["cursor"])
            assert (nothing["reset"], nothing.get("gpus"), nothing.get("nodes")) == (False, None, None)

    scenario(play)


def test_a_cursor_that_is_unknown_too_old_or_of_another_question_gets_everything(store: Store) -> None:
    agent = add_node(store, add_contract(store, "1"), "node-a", 1)

    async def play() -> None:
        async with running(store) as hub:
            _, message = await first(hub, ALL)
            record_change(store, agent)
            record_change(store, agent)
            for cursor in ("", "nonsense", "AAAA", message["cursor"][:-4] + "AAA="):
                _, again = await first(hub, ALL, cursor)
                assert again["reset"] is True, cursor
                assert len(again["gpus"]) == 1
            _, other = await first(hub, Wanted(gpus="all"), message["cursor"])
            assert other["reset"] is True
            with store.write() as connection:  # what retention does after an hour
                connection.execute(delete(changes).where(changes.c.seq <= 2))
            _, old = await first(hub, ALL, message["cursor"])
            assert old["reset"] is True

    scenario(play)


def test_nobody_sees_nodes_of_other_contracts(store: Store) -> None:
    mine, theirs = add_contract(store, "1"), add_contract(store, "2")
    add_node(store, mine, "node-a", 1)
    agent = add_node(store, theirs, "node-b", 2)
    seen = frozenset((mine,))

    async def play() -> None:
        async with running(store) as hub:
            viewer, message = await first(hub, ALL, contracts=seen)
            assert [node["id"] for node in message["nodes"]] == ["node-a"]
            assert [gpu["uid"] for gpu in message["gpus"]] == ["node-a-gpu0"]
            assert (message["fleet"]["nodes"], message["fleet"]["gpus"]) == (1, 1)
            named = Wanted(nodes=["node-b"], gpus=["node-b", "node-b-gpu1"])
            _, nothing = await first(hub, named, contracts=seen)
            assert (nothing["nodes"], nothing["gpus"]) == ([], [])
            set_latest(store, agent, 0, {"temperature": 100})
            later = await following(viewer)
            assert later.get("gpus") is None

    scenario(play)


def test_simulated_gpus_count_only_where_that_is_asked(store: Store) -> None:
    contract = add_contract(store, "1")
    add_node(store, contract, "node-a", 1)
    add_node(store, contract, "node-s", 4, simulated=True)

    async def play() -> None:
        async with running(store) as hub:
            _, real = await first(hub, Wanted(fleet=True, gpus="all"))
            assert (real["fleet"]["nodes"], real["fleet"]["gpus"], real["fleet"]["simulated_gpus"]) == (
                1,
                1,
                4,
            )
            assert [gpu["simulated"] for gpu in real["gpus"]] == [False, True, True, True, True]
            _, all_of_them = await first(hub, Wanted(fleet=True, include="simulated"))
            assert (all_of_them["fleet"]["nodes"], all_of_them["fleet"]["gpus"]) == (2, 5)

    scenario(play)


def test_a_node_is_watched_while_somebody_looks_at_it_by_name(store: Store) -> None:
    contract = add_contract(store, "1")
    for name in ("node-a", "node-b", "node-c"):
        add_node(store, contract, name, 1)
    watch = WatchList()

    async def play() -> None:
        async with running(store, watch=watch) as hub:
            everything, _ = await first(hub, ALL)
            assert watch.here == frozenset()
            by_gpu, _ = await first(hub, Wanted(gpus=["node-b-gpu0", "unknown"]))
            by_node, _ = await first(hub, Wanted(gpus=["node-a"]))
            assert watch.here == {"node-a", "node-b"}
            assert (watch.seconds("node-a"), watch.seconds("node-c")) == (2, None)
            hub.leave(by_gpu)
            assert watch.here == {"node-a"}
            by_node.ask(Ask(Wanted(nodes=["node-c"])))
            await by_node.next()
            assert watch.here == {"node-c"}
            hub.leave(by_node)
            hub.leave(everything)
            assert watch.here == frozenset()

    scenario(play)


def test_where_nothing_changes_a_message_says_so(store: Store) -> None:
    add_node(store, add_contract(store, "1"), "node-a", 1)

    async def play() -> None:
        async with running(store, Pace(turn=0.02, beat=0.05)) as hub:
            viewer, before = await first(hub, ALL)
            beat = await following(viewer)
            assert beat == {"cursor": before["cursor"], "time": before["time"], "reset": False}

    scenario(play)


def test_a_node_that_goes_silent_changes_the_totals_though_nothing_arrives(store: Store) -> None:
    add_node(store, add_contract(store, "1"), "node-a", 1)
    clock = FakeClock(NOW + 170)

    async def play() -> None:
        hub = Hub(store, clock, Newest(), WatchList(), Pace(turn=0.02, beat=0.05))
        hub.start()
        viewer, message = await first(hub, Wanted(fleet=True))
        assert (message["fleet"]["silent_nodes"], message["fleet"]["gpus_now"]) == (0, 1)
        clock.advance(20)  # 190 s after its last live minute, which counts for 180
        while "fleet" not in (message := await following(viewer)):
            pass
        assert (message["fleet"]["silent_nodes"], message["fleet"]["gpus_now"]) == (1, 0)
        assert message["fleet"]["power_usage"] is None
        hub.stop()

    scenario(play)


def test_the_picture_is_dropped_after_the_last_viewer_and_read_again_for_the_next(store: Store) -> None:
    agent = add_node(store, add_contract(store, "1"), "node-a", 1)

    async def play() -> None:
        async with running(store, Pace(turn=0.02, linger=0.05)) as hub:
            viewer, _ = await first(hub, ALL)
            hub.leave(viewer)
            while hub.is_looking:
                await asyncio.sleep(0.01)
            set_latest(store, agent, 0, {"temperature": 444})
            _, message = await first(hub, ALL)
            assert (message["reset"], message["gpus"][0]["temperature"]) == (True, 44.4)

    scenario(play)


def test_a_viewer_that_takes_nothing_is_let_go(store: Store) -> None:
    add_node(store, add_contract(store, "1"), "node-a", 1)

    async def play() -> None:
        async with running(store, Pace(turn=0.02, beat=0.02, stuck=0.1)) as hub:
            viewer, _ = await first(hub, ALL)
            reader, _ = await first(hub, ALL)
            gone = asyncio.Event()
            viewer.let_go, viewer.sending_since = gone.set, asyncio.get_running_loop().time()
            while not gone.is_set():
                assert (await following(reader))["reset"] is False

    scenario(play)


def test_a_mig_instance_counts_with_the_gpu_it_is_part_of(store: Store) -> None:
    agent = add_node(store, add_contract(store, "12345"), "node-a", 2)
    with store.write() as connection:
        body = '{"uid":"node-a-gpu1","parent_uid":"node-a-gpu0","memory_total":85899345920,"index":1}'
        connection.execute(update(facts).where(facts.c.body.contains("node-a-gpu1")).values(body=body))
    record_change(store, agent)

    async def play() -> None:
        async with running(store) as hub:
            _, message = await first(hub, ALL)
            assert len(message["gpus"]) == 2
            fleet = message["fleet"]
            assert (fleet["gpus"], fleet["gpus_now"], fleet["power_usage"]) == (1, 1, 350.25)
            assert fleet["memory_total"] == 85899345920

    scenario(play)


class Waiting:
    """A store whose reads hold their connection until they may go on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.open = 0

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """As the store's, and slow."""
        with self._store.read() as connection:
            self.open += 1
            self.begun.set()
            assert self.may_end.wait(30)
            yield connection
        self.open -= 1


def test_a_stop_waits_for_the_read_that_is_under_way(store: Store) -> None:
    slow = Waiting(store)

    async def play() -> None:
        async with running(cast(Store, slow)) as hub:
            hub.join(None)
            await asyncio.to_thread(slow.begun.wait, 30)
            threading.Timer(0.05, slow.may_end.set).start()
        assert slow.open == 0

    scenario(play)
