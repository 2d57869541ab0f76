"""Files of experiments: resumed, verified, one's own, never half there; and copies of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from gpu_monitor.core.errors import StorageCorrupt, StorageFull
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.experiments.blobs import (
    BlobState,
    BlobStore,
    Elsewhere,
    NotThatFile,
    OverQuota,
)
from gpu_monitor.server.store.blob_files import Files, copy_files, file_faults, missing_files
from gpu_monitor.server.store.blob_rows import take_unnamed, visible_blob
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.schema import contracts
from gpu_monitor.server.store.schema_experiments import blob_holders, blobs
from gpu_monitor.server.store.segment_write import write_work
from gpu_monitor.wire.training import Media, encode
from tests.fakes.clock import FakeClock
from tests.server.segments import header, upload

NOW = 1_710_945_000.0
WHOLE = random.Random(3).randbytes(300_000)
DIGEST = hashlib.sha256(WHOLE).hexdigest()
PIECE = 70_000


@pytest.fixture
def files(store: Store, tmp_path: Path) -> Iterator[BlobStore]:
    with store.write() as connection:
        connection.execute(insert(contracts), [{"number": "12345"}, {"number": "999"}])
    yield from opened(store, tmp_path / "blobs")


@pytest.fixture
def alone(tmp_path: Path, sqlite_template: Path) -> Iterator[BlobStore]:
    """The same on SQLite only, where the database does not matter."""
    (tmp_path / "alone.db").write_bytes(sqlite_template.read_bytes())
    with contextlib.closing(open_store(f"sqlite:///{tmp_path / 'alone.db'}")) as store:
        with store.write() as connection:
            connection.execute(insert(contracts), [{"number": "12345"}, {"number": "999"}])
        yield from opened(store, tmp_path / "blobs")


def opened(store: Store, folder: Path, **more: int) -> Iterator[BlobStore]:
    found = BlobStore(folder, store, FakeClock(NOW), reserve=0, **more)
    yield found
    found.stop()


def bring(files: BlobStore, data: bytes = WHOLE, contract: int = 1, start: int = 0) -> BlobState:
    digest = hashlib.sha256(data).hexdigest()
    held = BlobState(start, False)
    for place in range(start, len(data), PIECE):
        held = files.put(contract, digest, place, data[place : place + PIECE], None)
    return held


def test_a_file_in_pieces_is_whole_once_its_digest_is_right(files: BlobStore) -> None:
    assert files.state(1, DIGEST) == BlobState(0, False)
    assert files.put(1, DIGEST, 0, WHOLE[:PIECE], None) == BlobState(PIECE, False)
    assert files.state(1, DIGEST) == BlobState(PIECE, False)
    assert not files.path_of(DIGEST).exists()
    assert bring(files, start=PIECE) == BlobState(len(WHOLE), True)
    assert files.path_of(DIGEST).read_bytes() == WHOLE
    assert files.state(1, DIGEST) == BlobState(len(WHOLE), True)
    assert files.put(1, DIGEST, 0, WHOLE[:PIECE], None) == BlobState(len(WHOLE), True)
    assert [path.name for path in (files.folder / "incoming").glob("[0-9a-f]*")] == []
    assert files.path_of(DIGEST).stat().st_mode & 0o077 == 0


def test_repeats_overlaps_and_gaps(alone: BlobStore) -> None:
    alone.put(1, DIGEST, 0, WHOLE[:100_000], None)
    assert alone.put(1, DIGEST, 20_000, WHOLE[20_000:60_000], None).offset == 100_000
    assert alone.put(1, DIGEST, 90_000, WHOLE[90_000:150_000], None).offset == 150_000
    with pytest.raises(Elsewhere) as told:
        alone.put(1, DIGEST, 150_001, b"x", None)
    assert told.value.offset == 150_000
    # What the sender says now is taken for what it said before.
    assert alone.put(1, DIGEST, 0, b"?" * 10_000, None).offset == 10_000
    assert alone.put(1, DIGEST, 0, WHOLE[:10_000], None).offset == 10_000
    assert bring(alone, start=10_000).is_whole


def test_wrong_bytes_are_discarded_and_said_so(alone: BlobStore) -> None:
    wrong = b"\0" + WHOLE[1:]
    for size, last in ((len(WHOLE), False), (None, True)):
        with pytest.raises(NotThatFile):
            alone.put(1, DIGEST, 0, wrong, size)
            assert last
            alone.put(1, DIGEST, len(WHOLE), b"", None)
        assert alone.state(1, DIGEST) == BlobState(0, False)
    with pytest.raises(NotThatFile):
        alone.put(1, DIGEST, 0, WHOLE + b"more", len(WHOLE))
    assert bring(alone).is_whole


def test_an_empty_file(alone: BlobStore) -> None:
    assert alone.put(1, hashlib.sha256(b"").hexdigest(), 0, b"", 0) == BlobState(0, True)


def test_another_process_goes_on_with_a_file(alone: BlobStore) -> None:
    alone.put(1, DIGEST, 0, WHOLE[:PIECE], None)
    for other in opened(alone._store, alone.folder):
        assert other.state(1, DIGEST) == BlobState(PIECE, False)
        assert other.put(1, DIGEST, PIECE, WHOLE[PIECE : 2 * PIECE], None).offset == 2 * PIECE
    assert bring(alone, start=2 * PIECE).is_whole


def test_many_at_once_bring_one_file(alone: BlobStore) -> None:
    failures: list[BaseException] = []

    def run(contract: int) -> None:
        try:
            place = 0
            while not (
                held := alone.put(contract, DIGEST, place, WHOLE[place : place + PIECE], None)
            ).is_whole:
                place = held.offset
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=(1 + number % 2,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert alone.path_of(DIGEST).read_bytes() == WHOLE
    with alone._store.read() as connection:
        assert len(connection.execute(select(blob_holders)).fetchall()) == 2
        assert len(connection.execute(select(blobs)).fetchall()) == 1


def test_knowing_a_digest_gives_nobody_the_file(files: BlobStore) -> None:
    """Another contract has it only once it brought every byte, and sees it only where its experiment names it."""
    bring(files)
    assert files.state(2, DIGEST) == BlobState(0, False)
    record = encode(Media(0, None, "artifact", "stolen", {"sha256": DIGEST, "size": len(WHOLE)}))
    store = files._store
    with store.write() as connection:
        write_work(connection, [upload(header("thief") + record, experiment="thief", contract=2)], NOW)
    thief = Principal("token", "t", frozenset(("read",)), contracts=frozenset((2,)))
    owner = Principal("token", "o", frozenset(("read",)), contracts=frozenset((1,)))
    everybody = Principal("local", "l", frozenset(("read",)))
    with store.read() as connection:
        assert [visible_blob(connection, who, DIGEST) for who in (thief, owner, everybody)] == [None] * 3
    assert bring(files, contract=2).is_whole
    with store.read() as connection:
        assert visible_blob(connection, thief, DIGEST) is not None
        assert visible_blob(connection, owner, DIGEST) is None
        assert visible_blob(connection, everybody, DIGEST) is not None


def test_a_disk_without_room_takes_nothing(alone: BlobStore) -> None:
    full = BlobStore(alone.folder, alone._store, FakeClock(NOW), reserve=1 << 60)
    with pytest.raises(StorageFull, match="MiB are free"):
        full.put(1, DIGEST, 0, WHOLE, None)
    full.stop()
    assert bring(alone).is_whole


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_keeps_what_was_answered(alone: BlobStore, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", small], check=False)
    if mounted.returncode:
        pytest.skip("this root may not mount")
    try:
        for files in opened(alone._store, small / "blobs"):
            assert files.put(1, DIGEST, 0, WHOLE[:PIECE], None).offset == PIECE
            for _ in range(2):
                with pytest.raises(StorageFull):
                    files.put(1, DIGEST, PIECE, WHOLE[PIECE:], None)
                assert files.state(1, DIGEST) == BlobState(PIECE, False)
            assert files.put(1, DIGEST, PIECE, WHOLE[PIECE : PIECE + 4096], None).offset == PIECE + 4096
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_contract_has_so_much_at_most(alone: BlobStore) -> None:
    for files in opened(alone._store, alone.folder, quota=len(WHOLE) + 1000):
        assert bring(files).is_whole
        with pytest.raises(OverQuota):
            bring(files, b"x" * 2000)
        assert bring(files, b"y" * 2000, contract=2).is_whole


def test_files_that_nobody_names_go_and_others_stay(files: BlobStore) -> None:
    store = files._store
    bring(files)
    bring(files, b"named")
    digest = hashlib.sha256(b"named").hexdigest()
    record = encode(Media(0, None, "artifact", "a", {"sha256": digest, "size": 5}))
    with store.write() as connection:
        write_work(connection, [upload(header() + record)], NOW)
        week = 7 * 86400
        assert take_unnamed(connection, NOW + week - 1) == []
        assert take_unnamed(connection, NOW + 1, [digest]) == []
        assert take_unnamed(connection, NOW + week + 1) == [DIGEST]
    files.remove(digest)  # it is named
    files.remove(DIGEST)
    assert (files.path_of(digest).exists(), files.path_of(DIGEST).exists()) == (True, False)


def test_one_that_was_just_asked_for_stays(alone: BlobStore) -> None:
    bring(alone)
    alone._clock.advance(100)  # type: ignore[attr-defined]
    assert alone.state(1, DIGEST).is_whole  # somebody is about to name it
    with alone._store.write() as connection:
        assert take_unnamed(connection, NOW + 3000, [DIGEST]) == []
        assert take_unnamed(connection, NOW + 4000, [DIGEST]) == [DIGEST]


def test_uploads_that_were_given_up_go(alone: BlobStore) -> None:
    alone.put(1, DIGEST, 0, WHOLE[:PIECE], None)
    stray = alone.path_of("ab" * 32)
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"without a row")
    bring(alone, b"kept")
    kept = alone.path_of(hashlib.sha256(b"kept").hexdigest())
    for path in (*alone.folder.glob("incoming/*.1"), stray, kept):
        os.utime(path, (NOW, NOW))
    assert alone.give_up_old() == 0
    alone._clock.advance(8 * 86400)  # type: ignore[attr-defined]
    assert alone.give_up_old() == 2
    assert (alone.state(1, DIGEST).offset, stray.exists(), kept.exists()) == (0, False, True)


def test_copies_are_verified_and_only_what_is_missing_is_copied(alone: BlobStore, tmp_path: Path) -> None:
    read, target = alone._store.read, tmp_path / "copy"
    bring(alone)
    bring(alone, b"second")
    assert list(file_faults(read, alone.folder, lambda *_: None)) == []
    assert missing_files(read, target) == 2
    assert copy_files(read, alone.folder, target, lambda *_: None) == Files(2, len(WHOLE) + 6)
    assert copy_files(read, alone.folder, target, lambda *_: None) == Files(0, 0)
    assert missing_files(read, target) == 0
    alone.path_of(DIGEST).write_bytes(b"?" + WHOLE[1:])
    (fault,) = file_faults(read, alone.folder, lambda *_: None)
    assert (DIGEST in fault, "not what its digest says" in fault) == (True, True)
    with pytest.raises(StorageCorrupt):
        copy_files(read, alone.folder, tmp_path / "other", lambda *_: None)
    alone.path_of(DIGEST).unlink()
    (fault,) = file_faults(read, alone.folder, lambda *_: None)
    assert "it is not there" in fault
