"""The writer's thread: answers after the commit, turns away what is too much, lives through a full disk and bad rows."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from sqlalchemy import func, select

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.ingest import writer as writing
from gpu_monitor.server.ingest.writer import Failed, GroupWriter, Overloaded
from gpu_monitor.server.metrics import OwnMetrics
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.schema import nodes, quarantine, receipts
from gpu_monitor.server.store.shape import Shaper
from gpu_monitor.server.store.write import Answer, Committed, Submission
from gpu_monitor.wire.intake import Malformed, read_report
from tests.fakes.clock import FakeClock
from tests.server.posts import HOUR, encode, iso, make_report

LOCAL = Principal("local", "the local token", frozenset(("report:write",)))
_T = TypeVar("_T")


def submit(report: dict[str, Any], *, is_early: bool = False) -> Submission:
    body = encode(report)
    return Submission(Shaper().shape(read_report(body)), LOCAL, 0.0, body=body if is_early else None)


def with_writer(store: Store, work: Callable[[GroupWriter], Awaitable[_T]], clock: Any = None) -> _T:
    """Run `work` in an event loop with a writer that is started before and stopped after."""

    async def run() -> _T:
        writer = GroupWriter(store, clock or SystemClock(), OwnMetrics())
        writer.start()
        try:
            return await work(writer)
        finally:
            await asyncio.to_thread(writer.stop)

    return asyncio.run(run())


def count(store: Store) -> int:
    with store.read() as connection:
        return int(connection.execute(select(func.count()).select_from(receipts)).scalar_one())


def test_answers_come_after_the_commit_and_listeners_hear_of_it(store: Store) -> None:
    heard: list[Committed] = []
    seen: list[int] = []

    async def work(writer: GroupWriter) -> list[Any]:
        writer.listen(heard.append)

        async def one(hour: int) -> Any:
            answers = await writer.write([submit(make_report(hour=hour))], 1000)
            seen.append(count(store))
            return answers[0]

        return await asyncio.gather(*(one(HOUR + number) for number in range(20)))

    answers = with_writer(store, work)
    assert {one.outcome for one in answers if isinstance(one, Answer)} == {"stored"}
    assert seen[-1] == 20
    assert min(seen) >= 1
    assert sum(len(one.touched) for one in heard) == 20
    # The numbers follow on each other without a hole.
    assert all(after.seq_from == before.seq_to + 1 for before, after in itertools.pairwise(heard))


def test_what_cannot_be_read_is_refused_and_the_others_of_its_group_are_stored(store: Store) -> None:
    def broken() -> Submission:
        raise Malformed("node.id", "missing")

    def wrong() -> Submission:
        raise TypeError("a mistake of ours")

    async def work(writer: GroupWriter) -> list[Any]:
        good = [
            writer.read_and_write(lambda hour=hour: submit(make_report(hour=hour)), 1000)  # type: ignore[misc]
            for hour in (HOUR, HOUR + 1)
        ]
        bad = [writer.read_and_write(broken, 1000), writer.read_and_write(wrong, 1000)]
        first = await asyncio.gather(good[0], *bad, good[1], return_exceptions=True)
        alone = await asyncio.gather(writer.read_and_write(broken, 1000), return_exceptions=True)
        return [*first, *alone, writer.trouble()]

    stored, malformed, mistake, also_stored, alone, trouble = with_writer(store, work)
    for submission, answer in (stored, also_stored):
        assert answer.outcome == "stored"
        assert answer.report_id == submission.shaped.intake.report_id
    for refused in (malformed, alone):
        assert isinstance(refused, Malformed)
        assert (refused.field, refused.reason) == ("node.id", "missing")
    assert isinstance(mistake, TypeError)
    assert trouble is None
    assert count(store) == 2


def test_what_waits_unread_counts_and_is_turned_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "QUEUED", 2)

    async def work(writer: GroupWriter) -> list[Any]:
        asked = [
            writer.read_and_write(lambda hour=hour: submit(make_report(hour=hour)), 1000)  # type: ignore[misc]
            for hour in range(HOUR, HOUR + 3)
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = with_writer(store, work)
    assert sum(isinstance(answer, Overloaded) for answer in answers) == 1
    assert count(store) == 2


def test_what_is_too_much_is_told_when_to_come_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "QUEUED", 10)

    async def work(writer: GroupWriter) -> list[Any]:
        jobs = [writer.write([submit(make_report(hour=HOUR + number))], 1000) for number in range(60)]
        first = await asyncio.gather(*jobs, return_exceptions=True)
        # Once it is written there is room again.
        return [*first, (await writer.write([submit(make_report(hour=HOUR + 100))], 1000))[0]]

    *first, last = with_writer(store, work)
    turned_away = [one for one in first if isinstance(one, Overloaded)]
    assert len(turned_away) == 50
    assert all(1 <= one.seconds <= 31 for one in turned_away)
    assert last.outcome == "stored"
    assert count(store) == 11


def test_one_that_cannot_be_written_spoils_no_other(store: Store) -> None:
    good, bad = (submit(make_report(hour=HOUR + number)) for number in range(2))
    shaped = msgspec.structs.replace(bad.shaped, gaps=[(None, 0.0, 1.0, None, None)])  # a gap without a cause
    bad = msgspec.structs.replace(bad, shaped=shaped)

    async def work(writer: GroupWriter) -> list[Any]:
        return await asyncio.gather(
            writer.write([good], 1000), writer.write([bad], 1000), return_exceptions=True
        )

    first, second = with_writer(store, work)
    assert first[0].outcome == "stored"
    assert isinstance(second, Failed)
    assert second.status == 500
    assert count(store) == 1


def test_a_full_disk_is_told_and_survived(tmp_path: Path) -> None:
    """SQLite's own page limit stands for the disk: it gives the same error."""
    store = open_store(f"sqlite:///{tmp_path / 'server.db'}")
    room = 40

    def limit(pages: int) -> None:
        with store.write() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    with store.read() as connection:
        pages = int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())
    limit(pages + room)

    async def work(writer: GroupWriter) -> tuple[int, Any]:
        hour = HOUR
        while True:
            try:
                await writer.write([submit(make_report(hour=hour, gpus=8))], 1000)
            except Failed as error:
                assert error.status == 507
                break
            hour += 1
        limit(1 << 30)
        return hour, (await writer.write([submit(make_report(hour=hour, gpus=8))], 1000))[0]

    hour, answer = with_writer(store, work)
    assert hour > HOUR
    assert answer.outcome == "stored"
    assert count(store) == hour - HOUR + 1
    store.close()


def test_early_reports_are_taken_up_when_they_are_due(store: Store) -> None:
    clock = FakeClock(float(HOUR * 3600))

    async def bring(writer: GroupWriter) -> None:
        await writer.write([submit(make_report(hour=HOUR + 5), is_early=True)], 1000)

    with_writer(store, bring, clock)
    assert count(store) == 0
    later = FakeClock(float((HOUR + 6) * 3600 - 600))
    heard: list[Committed] = []

    async def wait(writer: GroupWriter) -> None:
        taken = asyncio.Event()
        loop = asyncio.get_running_loop()
        writer.listen(heard.append)
        writer.listen(lambda _: loop.call_soon_threadsafe(taken.set))
        await asyncio.wait_for(taken.wait(), 30)

    async def started() -> None:
        writer = GroupWriter(store, later, OwnMetrics())
        waiting = asyncio.ensure_future(wait(writer))
        await asyncio.sleep(0)
        writer.start()
        await waiting
        await asyncio.to_thread(writer.stop)

    asyncio.run(started())
    assert [(one.kind, one.hour) for one in heard[0].touched] == [("report", HOUR + 5)]
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(quarantine)).scalar_one() == 0
        # It was heard of when it came, not when it was taken up.
        assert connection.execute(select(nodes.c.last_report, nodes.c.last_hour)).all() == [(0.0, HOUR + 5)]


def heavy(number: int, rows: int = 3000) -> Submission:
    start = (HOUR + number) * 3600
    gap = {"uid": None, "start": iso(start), "end": iso(start + 60), "seconds": 60, "cause": "x"}
    return submit(make_report(hour=HOUR + number, gaps=[gap] * rows))


def test_a_light_report_waits_for_one_heavy_one_at_most(store: Store) -> None:
    """Six heavy ones are there first; in between two of them whatever is light is written."""

    async def work(writer: GroupWriter) -> list[list[int]]:
        commits: list[list[int]] = []
        writer.listen(
            lambda one: commits.append(sorted((touched.hour or 0) - HOUR for touched in one.touched))
        )
        jobs = [writer.write([heavy(number)], 1000) for number in range(6)]
        jobs += [writer.write([submit(make_report(hour=HOUR + 10 + number))], 1000) for number in range(4)]
        answers = await asyncio.gather(*jobs)
        assert [one.outcome for (one,) in answers if isinstance(one, Answer)] == ["stored"] * 10
        return commits

    commits = with_writer(store, work)
    places = {hour: place for place, commit in enumerate(commits) for hour in commit}
    assert [commits[places[number]] for number in range(6)] == [[number] for number in range(6)]
    # The writer may have taken the first heavy one before the light ones came, and one more is its turn.
    assert max(places[10 + number] for number in range(4)) <= 2


def test_what_waits_is_counted_by_the_rows_it_holds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "QUEUED_BYTES", 2 * 3010 * 1200)

    async def work(writer: GroupWriter) -> list[Any]:
        jobs = [writer.write([heavy(number)], 1000) for number in range(4)]
        first = await asyncio.gather(*jobs, return_exceptions=True)
        # One that is larger than all that may wait is taken where nothing else does.
        return [*first, *await writer.write([heavy(9, 7000)], 1000)]

    *first, last = with_writer(store, work)
    assert [isinstance(one, Overloaded) for one in first] == [False, False, True, True]
    assert last.outcome == "stored"
