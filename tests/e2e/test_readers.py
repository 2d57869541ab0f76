"""Readers beside a real writer: as another user, with it stopped, running and killed; nothing is changed by reading."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_monitor.storage.database import Reader, Writer
from tests.fakes.stores import START, fill

ROOT = Path(__file__).parents[2]
NOBODY = 65534
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="LOUD: reading as another user needs root, not tested",
)

WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from gpu_monitor.storage.database import Writer
from gpu_monitor.storage.locks import FileLock, agent_path
from tests.fakes.stores import START, fill, sample_row, COLUMNS
from gpu_monitor.storage.database import insert_sql

path = Path(sys.argv[1])
lock = FileLock(agent_path(path))
lock.acquire(5)
writer = Writer(path)
minute = writer.value("SELECT count(*) FROM samples_raw WHERE id & 65535 = 1")
print("open", flush=True)
for line in sys.stdin:
    if line == "close\\n":
        break
    for _ in range(int(line)):
        with writer.transaction() as connection:
            rows = [sample_row(START + minute * 60, gpu) for gpu in (1, 2)]
            connection.executemany(insert_sql("samples_raw", COLUMNS), rows)
        minute += 1
    print(minute, flush=True)
writer.close()
lock.close()
print("closed", flush=True)
"""

READER = """
import json, os, sys
from pathlib import Path
from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.storage.database import Reader

uid = int(sys.argv[2])
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
path = Path(sys.argv[1])
for line in sys.stdin:
    try:
        reader = Reader(path)
        rows = reader.rows("SELECT count(*), max(start), count(DISTINCT uid) FROM samples")
        answer = {"rows": rows[0], "immutable": reader.immutable, "uid": os.getuid()}
        reader.close()
    except GpuMonitorError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Talker:
    """A process that answers a line with a line."""

    def __init__(self, code: str, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()

    def kill(self) -> None:
        """SIGKILL, or only the last rites where it is dead already."""
        self.process.kill()
        self.process.wait(timeout=30)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may read and only its owner may write (the tests' own are closed to others)."""
    with tempfile.TemporaryDirectory(prefix="gpu_monitor_readers_") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def store(folder: Path) -> Path:
    writer = Writer(folder / "gpu_metrics.db")
    fill(writer, 100, 2)
    writer.close()
    return folder / "gpu_metrics.db"


@pytest.fixture
def talkers() -> Iterator[list[Talker]]:
    started: list[Talker] = []
    yield started
    for talker in started:
        talker.kill()


@pytest.fixture(params=[0, pytest.param(NOBODY, marks=as_root)], ids=["same user", "another user"])
def reader(request: pytest.FixtureRequest, store: Path, talkers: list[Talker]) -> Talker:
    talkers.append(Talker(READER, str(store), str(request.param)))
    return talkers[-1]


@pytest.fixture
def writer(store: Path, talkers: list[Talker]) -> Talker:
    talkers.append(Talker(WRITER, str(store), str(ROOT)))
    assert talkers[-1].hear() == "open"
    return talkers[-1]


def look(folder: Path) -> dict[str, Any]:
    """Names and bytes of everything in a folder; of SQLite's scratch file (-shm) the name only."""
    return {
        entry.name: None if entry.name.endswith("-shm") else (entry.read_bytes(), entry.stat().st_mtime_ns)
        for entry in folder.iterdir()
    }


def answer(reader: Talker) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reader.ask("read"))
    return found


def test_stopped(reader: Talker, folder: Path) -> None:
    before = look(folder)
    assert {name for name in before if "wal" in name or "shm" in name} == set()
    for _ in range(3):
        found = answer(reader)
        assert found["rows"] == [200, START + 99 * 60, 2]
        assert found["immutable"] is True
    assert look(folder) == before


def test_running(reader: Talker, writer: Talker, folder: Path) -> None:
    """Each row that was committed is seen at once, and reading adds no file."""
    for count in range(1, 30):
        assert writer.ask("1") == str(100 + count)
        before = look(folder)
        assert answer(reader)["rows"] == [2 * (100 + count), START + (99 + count) * 60, 2]
        assert look(folder) == before
    assert writer.ask("close") == "closed"
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "gpu_metrics.db", "gpu_metrics.db.agent", "gpu_metrics.db.lock",
    ]  # fmt: skip
    before = look(folder)
    assert answer(reader)["rows"] == [258, START + 128 * 60, 2]
    assert look(folder) == before


def test_answers_while_the_agent_writes(reader: Talker, writer: Talker) -> None:
    """2,000 transactions with their checkpoints meanwhile: no answer is late, none goes back, none is an error."""
    assert writer.process.stdin is not None
    writer.process.stdin.write("2000\nclose\n")
    writer.process.stdin.flush()
    seen = [answer(reader) for _ in range(150)]
    assert all("error" not in found for found in seen), seen
    counts = [found["rows"][0] for found in seen]
    assert counts == sorted(counts)
    assert all(count % 2 == 0 for count in counts)  # a transaction holds both GPUs or none
    assert writer.hear() == "2100"
    assert writer.hear() == "closed"
    assert answer(reader)["rows"][0] == 4200


def test_killed(reader: Talker, writer: Talker, folder: Path) -> None:
    assert writer.ask("7") == "107"
    writer.kill()
    before = look(folder)
    assert "gpu_metrics.db-wal" in before
    for _ in range(3):
        assert answer(reader)["rows"] == [214, START + 106 * 60, 2]
        assert look(folder) == before


def test_killed_and_the_shared_index_is_gone(reader: Talker, writer: Talker, folder: Path) -> None:
    """After a power cut, say: the log is there, its index is not, and the folder cannot be written."""
    assert writer.ask("7") == "107"
    writer.kill()
    (folder / "gpu_metrics.db-shm").unlink()
    before = look(folder)
    for _ in range(3):
        found = answer(reader)
        assert found["rows"] == [214, START + 106 * 60, 2]
        assert found["immutable"] is True
        assert look(folder) == before


def test_killed_with_a_log_of_nothing(reader: Talker, writer: Talker, folder: Path) -> None:
    writer.kill()
    (folder / "gpu_metrics.db-shm").unlink(missing_ok=True)
    for content in (b"", b"x" * 100, b"x" * 20_000):
        (folder / "gpu_metrics.db-wal").write_bytes(content)
        before = look(folder)
        assert answer(reader)["rows"] == [200, START + 99 * 60, 2]
        assert look(folder) == before


@as_root
def test_a_store_that_one_may_not_read_is_said_so(store: Path, writer: Talker, talkers: list[Talker]) -> None:
    reader = Talker(READER, str(store), str(NOBODY))
    talkers.append(reader)
    assert writer.ask("1") == "101"
    (store.parent / "gpu_metrics.db-shm").chmod(0o600)
    (store.parent / "gpu_metrics.db-wal").chmod(0o600)
    assert "right to read" in answer(reader)["error"]
    store.chmod(0o600)
    error = answer(reader)["error"]
    assert "cannot read" in error
    assert "owner and mode" in error


@as_root
def test_the_lock_files_are_closed_to_others(store: Path, writer: Talker) -> None:
    for suffix in (".lock", ".agent"):
        path = store.with_name(store.name + suffix)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_writer_that_appears_half_way_is_noticed(store: Path, talkers: list[Talker]) -> None:
    """A stream begun on a quiet store ends with the rows that were written meanwhile, each batch of one state."""
    reader = Reader(store)
    assert reader.immutable
    sql = "SELECT id, seconds FROM samples_raw WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
    stream = reader.stream(sql, 0, 1 << 62, batch=20)
    keys = [row[0] for row in next(stream)]
    writer = Talker(WRITER, str(store), str(ROOT))
    talkers.append(writer)
    assert writer.hear() == "open"
    assert writer.ask("50") == "150"
    keys += [row[0] for row in next(stream)]
    assert not reader.immutable
    assert writer.ask("50") == "200"
    assert writer.ask("close") == "closed"
    for batch in stream:
        keys += [row[0] for row in batch]
    assert keys == sorted(set(keys))
    assert len(keys) == 400
    reader.close()


def test_a_quiet_store_that_is_written_and_left_between_two_reads(store: Path, talkers: list[Talker]) -> None:
    reader = Reader(store)
    count = "SELECT count(*) FROM samples_raw"
    assert reader.value(count) == 200
    for expected in (202, 204, 206):
        writer = Talker(WRITER, str(store), str(ROOT))
        talkers.append(writer)
        assert writer.hear() == "open"
        writer.ask("1")
        assert writer.ask("close") == "closed"
        assert reader.immutable
        assert reader.value(count) == expected
    reader.close()


def test_a_reader_that_is_open_when_the_agent_stops_loses_nothing(
    store: Path, writer: Talker, talkers: list[Talker], folder: Path
) -> None:
    assert writer.ask("3") == "103"
    reader = Reader(store)
    assert not reader.immutable
    assert reader.value("SELECT count(*) FROM samples_raw") == 206
    assert writer.ask("close") == "closed"
    assert reader.value("SELECT count(*) FROM samples_raw") == 206
    reader.close()
    # The reader was the last to close, and may not tidy up: what is left is empty, and the file is complete.
    assert (folder / "gpu_metrics.db-wal").stat().st_size == 0
    before = look(folder)
    late = Reader(store)
    assert late.immutable
    assert late.value("SELECT count(*) FROM samples_raw") == 206
    late.close()
    assert look(folder) == before
