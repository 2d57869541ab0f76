"""Locks between real processes: who is refused, who comes next, and what a killed holder leaves."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpu_monitor.core.errors import StorageBusy
from gpu_monitor.storage.database import Reader, Writer
from gpu_monitor.storage.locks import FileLock, agent_path, holder, is_held, lock_path
from gpu_monitor.storage.tenure import Tenure
from gpu_monitor.storage.turn import Turn
from tests.fakes.clock import FakeClock

ROOT = Path(__file__).parents[2]

HOLD = """
import sys
from pathlib import Path
from gpu_monitor.storage.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
lock.acquire(5)
lock.write_text(f"{__import__('os').getpid()}\\n")
print("held", flush=True)
sys.stdin.read()
"""

COUNT = """
import sys
from pathlib import Path
from gpu_monitor.storage.database import Writer
writer = Writer(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    with writer.transaction() as connection:
        value = connection.execute("SELECT value FROM meta WHERE key = 'count'").fetchone()[0]
        connection.execute("UPDATE meta SET value = ? WHERE key = 'count'", (value + 1,))
writer.close()
"""


def start(code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=60)
    return process.returncode


def test_a_holder_is_known_and_a_killed_one_has_let_go(tmp_path: Path) -> None:
    path = agent_path(tmp_path / "s.db")
    assert is_held(path) is False
    process = start(HOLD, str(path))
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        assert is_held(path) is True
        assert holder(path) == str(process.pid)
        lock = FileLock(path, FakeClock())
        assert not lock.try_acquire()
        with pytest.raises(StorageBusy):
            lock.acquire(3.0)
    finally:
        process.send_signal(signal.SIGKILL)
        end(process)
    assert holder(path) == str(process.pid)  # the text is stale, the lock is not
    assert is_held(path) is False
    lock.acquire(0.0)
    lock.close()


def test_the_lock_is_for_the_owner_only_and_the_same_through_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    (folder / "s.db").touch()
    (tmp_path / "s.db").symlink_to(folder / "s.db")
    assert lock_path(tmp_path / "link" / "s.db") == lock_path(tmp_path / "s.db") == folder / "s.db.lock"
    lock = FileLock(lock_path(tmp_path / "s.db"))
    lock.acquire(0.0)
    assert (folder / "s.db.lock").stat().st_mode & 0o777 == 0o600
    lock.close()


def test_a_lock_file_that_was_removed_protects_again(tmp_path: Path) -> None:
    path = tmp_path / "s.db.lock"
    first, second = FileLock(path), FileLock(path)
    first.acquire(0.0)
    path.unlink()
    second.acquire(0.0)  # nobody can know of the first one any more
    first.release()
    assert not first.try_acquire()
    second.release()
    assert first.try_acquire()
    assert not second.try_acquire()
    first.close()
    second.close()


def test_a_second_agent_is_told_of_the_first_in_a_third_of_a_second(tmp_path: Path) -> None:
    first, clock = Tenure(tmp_path / "s.db"), FakeClock()
    first.take()
    began = clock.monotonic()
    with pytest.raises(StorageBusy, match=f"pid {os.getpid()}"):
        Tenure(tmp_path / "s.db", clock).take()
    assert clock.monotonic() - began <= 0.35
    first.close()
    second = Tenure(tmp_path / "s.db")
    second.take()
    second.close()


def test_an_agent_whose_lock_file_was_removed_has_it_again_unless_another_was_quicker(tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    first, second = Tenure(store, FakeClock()), Tenure(store, FakeClock())
    first.take()
    agent_path(store).unlink()
    assert first.rival() is None
    assert is_held(agent_path(store)) is True
    assert holder(agent_path(store)) == str(os.getpid())
    agent_path(store).unlink()
    second.take()
    agent_path(store).write_text("4711\n")
    assert first.rival() == "4711"
    second.close()
    assert first.rival() == "4711"  # it had its turn: what it wrote is not ours
    assert is_held(agent_path(store)) is False
    first.close()


def test_two_who_look_do_not_take_each_other_for_a_holder(tmp_path: Path) -> None:
    path = tmp_path / "s.db.agent"
    FileLock(path).write_text("1")
    wrong: list[bool | None] = []

    def look() -> None:
        wrong.extend(found for found in (is_held(path) for _ in range(2000)) if found is not False)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_processes_lose_no_update(tmp_path: Path) -> None:
    path, each = tmp_path / "s.db", 1000
    writer = Writer(path)
    writer.set_meta("count", 0)
    others = [start(COUNT, str(path), str(each)) for _ in range(2)]
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
    for other in others:
        assert other.stdin is not None
        other.stdin.write("go\n")
        other.stdin.flush()
    waits = []
    while any(other.poll() is None for other in others):
        writer.set_meta("beside", len(waits))  # a third one, in between
        waits.append(1)
    assert [end(other) for other in others] == [0, 0]
    assert writer.get_meta("count") == 2 * each
    assert len(waits) > 10
    assert writer.rows("PRAGMA integrity_check") == [("ok",)]
    writer.close()


def test_every_checkpoint_happens_under_the_lock(tmp_path: Path) -> None:
    """A change of the main file is a checkpoint: while another holds the lock there is none, whoever closes last."""
    path = tmp_path / "s.db"
    writer = Writer(path)
    lock = FileLock(lock_path(path))
    with writer.transaction() as connection:
        connection.execute("CREATE TABLE heap (x)")
        connection.executemany("INSERT INTO heap VALUES (zeroblob(1000))", [()] * 300)
    lock.acquire(5.0)
    before = path.stat().st_mtime_ns, path.stat().st_size
    second = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    assert second.execute("SELECT count(*) FROM heap").fetchone() == (300,)
    second.close()
    reader = Reader(path)
    assert reader.value("SELECT count(*) FROM heap") == 300
    reader.close()
    done = threading.Event()

    def close() -> None:
        writer.close()
        done.set()

    closing = threading.Thread(target=close)
    closing.start()
    assert not done.wait(0.3)
    assert (path.stat().st_mtime_ns, path.stat().st_size) == before
    lock.close()
    closing.join(30)
    assert not path.with_name("s.db-wal").exists()
    assert path.stat().st_mtime_ns != before[0]


def test_a_writer_that_was_forgotten_closes_under_the_lock(tmp_path: Path) -> None:
    """Neither the collector nor the end of the program checkpoints beside another writer."""
    path = tmp_path / "s.db"
    keeper = FileLock(lock_path(path))
    code = """
import sys
from pathlib import Path
from gpu_monitor.storage.database import Writer
writer = Writer(Path(sys.argv[1]))
with writer.transaction() as connection:
    connection.execute("CREATE TABLE heap (x)")
    connection.executemany("INSERT INTO heap VALUES (zeroblob(1000))", [()] * 300)
print("written", flush=True)
sys.stdin.readline()
"""
    process = start(code, str(path))
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "written\n"
    keeper.acquire(5.0)
    before = path.stat().st_mtime_ns
    process.stdin.write("end\n")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
    assert path.stat().st_mtime_ns == before
    keeper.close()
    assert end(process) == 0
    assert not path.with_name("s.db-wal").exists()


def test_the_turn_is_fair() -> None:
    """Who lets go and asks again at once comes after one that was waiting."""
    turn, order = Turn(), list[str]()

    def wait_for_it() -> None:
        with turn:
            order.append("waited")

    for _ in range(100):
        order.clear()
        with turn:
            other = threading.Thread(target=wait_for_it)
            other.start()
            while turn._next.acquire(blocking=False):  # until the other one stands in line
                turn._next.release()
        with turn, turn:
            order.append("again")
        other.join(30)
        assert order == ["waited", "again"]


def test_a_signal_handler_may_enter(tmp_path: Path) -> None:
    """A handler runs in the middle of anything the main thread does, also while it waits for another thread."""
    turn, count, stop = Turn(), [0], threading.Event()

    def handle(number: int, frame: object) -> None:
        with turn:
            count[0] += 1

    def other() -> None:
        while not stop.is_set():
            with turn:
                pass

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    thread = threading.Thread(target=other)
    thread.start()
    try:
        for _ in range(3000):
            with turn, turn:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert count[0] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the locks of another process")
def test_raw_looks_do_not_cost_the_writer_its_locks(tmp_path: Path) -> None:
    """Closing any descriptor of a file drops the process's POSIX locks on it: a second look must not open it."""
    path = tmp_path / "s.db"
    writer = Writer(path)
    writer.set_meta("a", 1)
    Reader(path).close()
    Writer(path).close()
    # SQLite's shared range of bytes (os_unix.c: PENDING_BYTE + 2, 510 bytes): asked by another process.
    code = """
import fcntl, os, struct, sys
handle = os.open(sys.argv[1], os.O_RDWR)
asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0x40000002, 510, 0)
print(struct.unpack("h", fcntl.fcntl(handle, fcntl.F_GETLK, asked)[:2])[0] != fcntl.F_UNLCK)
"""
    held = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert held.stdout == "True\n"
    writer.close()
