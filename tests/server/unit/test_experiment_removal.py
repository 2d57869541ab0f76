"""Deleted experiments go wholly and nothing else does; old points go, but for the ones that are kept; the check sees faults."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, update

from gpu_monitor.server.experiments.blobs import BlobStore
from gpu_monitor.server.experiments.upkeep import Upkeep
from gpu_monitor.server.store.check import check
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.experiment_removal import finish_removals, mark_removed, thin_finished
from gpu_monitor.server.store.schema import contracts
from gpu_monitor.server.store.schema_experiments import (
    blobs,
    captures,
    experiments,
    media,
    models,
    notes,
    params,
    points,
    run_alerts,
    segment_chunks,
    segments,
    series,
    tags,
    texts,
)
from gpu_monitor.server.store.segment_write import Held, write_work
from gpu_monitor.wire.training import (
    Alert,
    Capture,
    Media,
    Note,
    Params,
    Points,
    Status,
    Tag,
    Text,
    Value,
    encode,
)
from tests.fakes.clock import FakeClock
from tests.server.segments import STARTED, header, names, upload

DAY = 86400
NOW = STARTED + 100
OWN = (segments, series, params, tags, notes, captures, run_alerts, texts, media, models)


@pytest.fixture
def files(store: Store, tmp_path: Path) -> Iterator[BlobStore]:
    with store.write() as connection:
        connection.execute(insert(contracts).values(number="12345"))
    found = BlobStore(tmp_path / "blobs", store, FakeClock(NOW), reserve=0)
    yield found
    found.stop()


def make_run(files: BlobStore, name: str, *blobs_named: bytes, count: int = 50) -> bytes:
    """An experiment with something of everything; its bytes."""
    said: list[Any] = [
        Params(0, {"lr": 0.1}), Tag(0, "a", "b"), Note(0, "n"), Text(0, "stdout", "t"), Alert(0, "info", "a", ""),
        Capture(0, {"git": {}}), Media(0, 1, "model", "resnet", {}),
    ]  # fmt: skip
    for data in blobs_named:
        digest = hashlib.sha256(data).hexdigest()
        files.put(1, digest, 0, data, len(data))
        said.append(Media(0, None, "artifact", digest[:8], {"sha256": digest, "size": len(data)}))
    draw = random.Random(name)
    values: list[list[Value]] = [
        [draw.uniform(-1, 1), "NaN" if step == 3 else float(step)] for step in range(count)
    ]
    said += [Points(1000 * step, step, 0, both) for step, both in enumerate(values)]
    data = header(name, name=name) + names("loss", "x") + b"".join(map(encode, said))
    data += encode(Status(60_000, "completed", {}))
    with files._store.write() as connection:
        (outcome,) = write_work(connection, [upload(data, experiment=name)], NOW).outcomes
    assert isinstance(outcome, Held)
    return data


def count_of(store: Store) -> dict[str, int]:
    with store.read() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (*OWN, points, segment_chunks, blobs)
        }


def number_of(store: Store, name: str) -> int:
    with store.read() as connection:
        return int(connection.execute(select(experiments.c.id).where(experiments.c.uid == name)).scalar_one())


def test_a_deleted_experiment_goes_with_the_files_that_nobody_else_names(
    store: Store, files: BlobStore
) -> None:
    make_run(files, "stays", b"shared", b"its own")
    before = count_of(store)
    make_run(files, "goes", b"shared", b"other", count=300)
    with store.write() as connection:
        mark_removed(connection, number_of(store, "goes"), NOW)
    upkeep = Upkeep(store, FakeClock(NOW), files, None)
    upkeep.take_out()
    assert count_of(store) == {**before, "models": 1}
    there = {
        data: files.path_of(hashlib.sha256(data).hexdigest()).exists()
        for data in (b"shared", b"its own", b"other")
    }
    assert there == {b"shared": True, b"its own": True, b"other": False}
    with store.read() as connection:
        kept = connection.execute(select(experiments.c.uid, experiments.c.removed)).fetchall()
    assert sorted(map(tuple, kept)) == [("goes", NOW), ("stays", None)]
    assert check(store.read, FakeClock(NOW)).count == 0
    assert finish_removals(store, NOW) == []


def test_a_removal_that_was_broken_off_is_finished(store: Store, files: BlobStore) -> None:
    """Stopped after each batch in turn."""
    make_run(files, "goes", b"other", count=200)
    with store.write() as connection:
        mark_removed(connection, number_of(store, "goes"), NOW)

    class After(threading.Event):
        """Set once it was asked so many times."""

        def __init__(self, times: int) -> None:
            super().__init__()
            self.left = times

        def is_set(self) -> bool:
            self.left -= 1
            return self.left < 0

    gone: list[str] = []
    rounds = 0
    while count_of(store)["segments"]:
        gone += finish_removals(store, NOW, After(3 + 2 * rounds), batch=50)
        rounds += 1
        assert rounds < 100
    assert rounds > 2
    assert gone == [hashlib.sha256(b"other").hexdigest()]
    assert set(count_of(store).values()) == {0}


def test_old_points_go_but_for_first_last_least_and_greatest(store: Store, files: BlobStore) -> None:
    make_run(files, "old", count=400)
    with store.read() as connection:
        asked = select(series.c.name, points).join(points, points.c.series == series.c.id)
        before = connection.execute(asked).fetchall()
    wanted = set()
    for name in ("loss", "x"):
        mine = sorted((row for row in before if row.name == name), key=lambda row: row.ordinal)
        finite = [row for row in mine if row.value is not None]
        for one in (
            mine[0], mine[-1], min(finite, key=lambda row: row.value), max(finite, key=lambda row: row.value),
        ):  # fmt: skip
            wanted.add((name, one.ordinal))
    assert thin_finished(store, STARTED + 60 + 30 * DAY - 1, 30) == 0
    assert thin_finished(store, STARTED + 60 + 30 * DAY + 1, 30) == 1
    assert thin_finished(store, STARTED + 60 + 31 * DAY, 30) == 0
    with store.read() as connection:
        left = {(row.name, row.ordinal) for row in connection.execute(asked)}
        taken = connection.execute(select(experiments.c.points, experiments.c.thinned)).one()
    assert left == wanted
    assert tuple(taken) == (800, STARTED + 60 + 30 * DAY + 1)
    assert count_of(store)["segment_chunks"] == 0
    assert check(store.read, FakeClock(NOW)).count == 0


def test_a_run_that_was_thinned_is_taken_up_again(store: Store, files: BlobStore) -> None:
    data = make_run(files, "old", count=20)
    thin_finished(store, STARTED + 60 + 31 * DAY, 30)
    more = encode(Points(90_000, 20, 0, [1.0, 2.0]))
    with store.write() as connection:
        outcomes = write_work(
            connection,
            [upload(data, experiment="old"), upload(more, len(data), experiment="old")],
            NOW,
        ).outcomes
    assert [one.offset for one in outcomes] == [len(data), len(data) + len(more)]
    assert check(store.read, FakeClock(NOW)).count == 0


def test_running_ones_keep_their_points(store: Store, files: BlobStore) -> None:
    data = header("runs") + names("loss", "x") + encode(Points(0, 1, 0, [1.0, 2.0])) * 1
    with store.write() as connection:
        write_work(connection, [upload(data, experiment="runs")], NOW)
    assert thin_finished(store, NOW + 1000 * DAY, 30) == 0


def test_the_check_sees_what_is_not_as_it_came(store: Store, files: BlobStore) -> None:
    make_run(files, "one")
    report = check(store.read, FakeClock(NOW))
    assert (report.segments, report.count) == (1, 0)

    def faults(statement: Any) -> list[str]:
        with store.write() as connection:
            connection.execute(statement)
        return [found.what for found in check(store.read, FakeClock(NOW)).differences]

    (what,) = faults(delete(points).where(points.c.step == 5, points.c.value == 5.0))
    assert "metric x of experiment one: 49 points are there, 50 were taken" in what
    _, what = faults(update(experiments).values(points=99)), ""
    told = faults(update(segment_chunks).values(digest=b"\0" * 32))
    assert any("are not what their digest says" in one for one in told)
    assert any("its metrics have 100 points, 99 were taken" in one for one in told)
    told = faults(delete(segment_chunks))
    assert any("0 bytes are there" in one for one in told)
