"""Stores destroyed in every way that could be thought of, and what comes out of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_monitor.agent.store import Store
from gpu_monitor.core.buckets import PeriodPlan
from gpu_monitor.core.errors import StorageCorrupt, StorageError, StorageForeign
from gpu_monitor.storage.database import Reader, Writer
from gpu_monitor.storage.salvage import find_damage, open_store, recover
from gpu_monitor.storage.tables import APPLICATION_ID, sample_key
from tests.fakes.clock import FakeClock
from tests.fakes.stores import START, fill, make_store, sample_row

PAGE = 4096
INTERVALS, GPUS = 3000, 3
ROWS = INTERVALS * GPUS
NOW = START + INTERVALS * 60 + 600.0
STAMP = "20260322T121000Z"
"""NOW, as it stands in the name of the kept file."""
SMALL = {"nodes": 1, "runs": 1, "gpus": GPUS, "states": GPUS, "periods": 50, "aggregates": 50 * GPUS,
         "reports": 50, "attempts": 50}  # fmt: skip

Hurt = Callable[[Path], None]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was closed properly."""
    return make_store(tmp_path_factory.mktemp("sound") / "gpu_metrics.db", INTERVALS, GPUS)


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    shutil.copy(sound, tmp_path / "gpu_metrics.db")
    (tmp_path / "gpu_metrics.db.lock").touch()
    return tmp_path / "gpu_metrics.db"


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def noise(size: int) -> bytes:
    return random.Random(20260320).randbytes(size)


def pages_of(path: Path, table: str) -> list[int]:
    """Numbers (from 1) of the pages that a table or index has, its root first, as SQLite's dbstat-free way: by walking."""
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
    connection.close()
    data = path.read_bytes()
    found, waiting = [], [root]
    while waiting:
        number = waiting.pop(0)
        found.append(number)
        page = data[(number - 1) * PAGE : number * PAGE]
        if page[0] in (2, 5):
            count = int.from_bytes(page[3:5], "big")
            cells = [int.from_bytes(page[12 + 2 * n : 14 + 2 * n], "big") for n in range(count)]
            waiting += [int.from_bytes(page[cell : cell + 4], "big") for cell in cells]
            waiting.append(int.from_bytes(page[8:12], "big"))
    return found


def leaves(table: str, *places: float) -> Hurt:
    """Overwrite the pages of `table` that lie at `places` (0 to 1) among its pages."""

    def hurt(path: Path) -> None:
        pages = pages_of(path, table)
        for place in places:
            overwrite(path, (pages[round(place * (len(pages) - 1))] - 1) * PAGE, noise(PAGE))

    return hurt


def truncated(part: float, odd: int = 0) -> Hurt:
    return lambda path: os.truncate(path, int(path.stat().st_size * part) // PAGE * PAGE + odd)


def salvaged(path: Path) -> tuple[Writer, dict[str, int]]:
    writer = open_store(path, FakeClock(NOW), look_seconds=30)
    tables = [row[0] for row in writer.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return writer, {name: writer.value(f"SELECT count(*) FROM {name}") for name in tables}


def check_rows_are_true(writer: Writer) -> set[int]:
    """Every row that is there is one that was written; returns the keys."""
    keys = set()
    for row in writer.rows("SELECT * FROM samples_raw"):
        assert row == sample_row(row[0] >> 20, row[0] & 0xFFFF)
        keys.add(row[0])
    return keys


def check_record(writer: Writer, path: Path, lost_rows: int) -> dict[str, object]:
    """The event, the losses, the kept file; returns the event's detail."""
    (event,) = writer.rows("SELECT time, severity, detail FROM events WHERE kind = 'store_salvaged'")
    assert event[:2] == (NOW, "error")
    detail: dict[str, object] = json.loads(event[2])
    assert detail["kept"] == f"{path.name}.corrupt-{STAMP}"
    assert detail["rows_samples_raw"] == ROWS - lost_rows
    assert path.with_name(str(detail["kept"])).exists()
    losses = writer.rows("SELECT time, what, cause, rows FROM losses")
    assert losses
    assert {row[0] for row in losses} == {NOW}
    assert all("store damaged" in row[2] for row in losses)
    left = {name for name in os.listdir(path.parent) if "salvag" in name}
    assert left == set()
    assert writer.rows("PRAGMA integrity_check") == [("ok",)]
    return detail


def check_holes_are_named(writer: Writer) -> None:
    """Every minute without a row lies in exactly one gap, and no gap has rows."""
    present = {row[0] for row in writer.rows("SELECT DISTINCT id >> 20 FROM samples_raw")}
    gaps = writer.rows("SELECT start, \"end\" FROM gaps WHERE uid IS NULL AND cause = 'store damaged'")
    for minute in range(START, START + INTERVALS * 60, 60):
        holding = [gap for gap in gaps if gap[0] <= minute and minute + 60 <= gap[1]]
        assert len(holding) == (minute not in present), minute


WHOLE: dict[str, Hurt] = {
    "header": lambda path: overwrite(path, 0, noise(100)),
    "magic": lambda path: overwrite(path, 0, b"\0" * 16),
    "first page zero": lambda path: overwrite(path, 0, bytes(PAGE)),
    "first page noise": lambda path: overwrite(path, 0, noise(PAGE)),
    "map of pages": lambda path: overwrite(path, PAGE, noise(PAGE)),
    "root of samples": lambda path: overwrite(
        path, (pages_of(path, "samples_raw")[0] - 1) * PAGE, noise(PAGE)
    ),
    "index": leaves("gpus_uid", 0),
    "index of events": leaves("events_time", 0.5),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_sample_survives(store: Path, name: str) -> None:
    WHOLE[name](store)
    before = store.read_bytes()
    writer, counts = salvaged(store)
    check_record(writer, store, 0)
    assert len(check_rows_are_true(writer)) == ROWS
    assert {table: counts[table] for table in SMALL} == SMALL
    assert counts["events"] == 51
    assert writer.value("SELECT value FROM meta WHERE key = 'data_end'") == START + INTERVALS * 60
    check_holes_are_named(writer)
    writer.close()
    assert store.with_name(f"{store.name}.corrupt-{STAMP}").read_bytes() == before
    # Sound from here on: the next start finds nothing to do.
    writer, again = salvaged(store)
    writer.close()
    assert again == counts
    assert len(list(store.parent.glob("*.corrupt-*"))) == 1


PARTLY: dict[str, tuple[Hurt, int, int]] = {
    # What was hurt; rows that may be lost at least and at most: a page holds 20 to 40 rows of this store.
    "a page in the middle": (leaves("samples_raw", 0.5), 20, 40),
    "first and last page": (leaves("samples_raw", 0.004, 1), 2, 80),
    "three pages": (leaves("samples_raw", 0.3, 0.5, 0.9), 60, 120),
    "cut to two thirds": (truncated(0.67), 1500, 4500),
    "cut in the middle of a page": (truncated(0.67, 1234), 1500, 4500),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTLY)
def test_what_can_be_read_survives_and_the_rest_is_named(store: Path, name: str) -> None:
    hurt, least, most = PARTLY[name]
    hurt(store)
    writer, counts = salvaged(store)
    lost = ROWS - counts["samples_raw"]
    assert least <= lost <= most
    check_record(writer, store, lost)
    keys = check_rows_are_true(writer)
    assert len(keys) == counts["samples_raw"]
    check_holes_are_named(writer)
    estimate = writer.value("SELECT rows FROM losses WHERE what = 'samples'")
    assert abs(estimate - lost) <= max(2, lost * 0.05)
    assert counts["gpus"] == GPUS
    writer.close()


def test_gpus_keep_their_numbers_when_their_table_is_lost(store: Path) -> None:
    leaves("gpus", 0)(store)
    writer, counts = salvaged(store)
    assert counts["samples_raw"] == ROWS
    assert writer.rows("SELECT id, node, uid, source FROM gpus ORDER BY id") == [
        (number, 1, f"GPU-{number:04d}", "nvml") for number in range(1, GPUS + 1)
    ]
    writer.close()
    shutil.copy(store.with_name(f"{store.name}.corrupt-{STAMP}"), store)
    leaves("gpus_uid", 0)(store)
    writer, _ = salvaged(store)
    assert writer.rows("SELECT id, uid, source FROM gpus ORDER BY id") == [
        (number, f"LOST-{number}", "unknown") for number in range(1, GPUS + 1)
    ]
    writer.close()


def test_lost_hours_are_rolled_up_again_from_their_minutes(store: Path) -> None:
    pages = pages_of(store, "aggregates")
    overwrite(store, (pages[0] - 1) * PAGE, noise(PAGE))
    overwrite(store, (pages_of(store, "periods")[0] - 1) * PAGE, noise(PAGE))
    writer, counts = salvaged(store)
    assert counts["aggregates"] + counts["periods"] == 0
    Store(writer, PeriodPlan())
    first, last = START // 3600 * 3600, (START + INTERVALS * 60 - 1) // 3600 * 3600
    assert writer.rows("SELECT start, seconds, dirty FROM periods ORDER BY start") == [
        (hour, 3600, 1) for hour in range(first, last + 1, 3600)
    ]
    # Once only: the mark that asks for it is gone.
    with writer.transaction() as connection:
        connection.execute("DELETE FROM periods")
    Store(writer, PeriodPlan())
    assert writer.value("SELECT count(*) FROM periods") == 0
    writer.close()


def test_a_page_of_another_place_is_not_believed(store: Path) -> None:
    """A write that went astray: a sound page of the same table lies where another should."""
    pages = sorted(pages_of(store, "samples_raw")[1:])
    data = store.read_bytes()
    source, place = pages[10], pages[60]
    overwrite(store, (place - 1) * PAGE, data[(source - 1) * PAGE : source * PAGE])
    writer, counts = salvaged(store)
    assert ROWS - 60 <= counts["samples_raw"] < ROWS
    check_rows_are_true(writer)
    writer.close()


def leave_log(path: Path, minutes: int) -> None:
    """Write `minutes` more as an agent would, and be killed: they are in the log only."""
    pid = os.fork()
    if pid == 0:
        writer = Writer(path)
        fill(writer, minutes, GPUS, START + INTERVALS * 60, batch=1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_rows_in_the_log_are_salvaged_too(store: Path) -> None:
    leave_log(store, 30)
    assert store.with_name(store.name + "-wal").stat().st_size > 0
    overwrite(store, 0, noise(100))
    log = store.with_name(store.name + "-wal").read_bytes()
    writer, counts = salvaged(store)
    assert counts["samples_raw"] == ROWS + 30 * GPUS
    check_rows_are_true(writer)
    writer.close()
    kept = store.with_name(f"{store.name}.corrupt-{STAMP}")
    assert kept.with_name(kept.name + "-wal").read_bytes() == log


def test_a_log_of_noise_leaves_what_the_file_holds(store: Path) -> None:
    store.with_name(store.name + "-wal").write_bytes(noise(50_000))
    writer, counts = salvaged(store)
    assert counts["samples_raw"] == ROWS
    check_rows_are_true(writer)
    assert writer.rows("PRAGMA integrity_check") == [("ok",)]
    assert writer.value("SELECT count(*) FROM events WHERE kind = 'store_log_damaged'") == 1
    assert writer.value("SELECT count(*) FROM losses") == 1
    writer.close()
    assert store.with_name(f"{store.name}-wal.corrupt-{STAMP}").read_bytes() == noise(50_000)
    overwrite(store, 0, noise(100))
    store.with_name(store.name + "-wal").write_bytes(noise(50_000))
    writer, counts = salvaged(store)
    assert counts["samples_raw"] == ROWS
    writer.close()


def frames(path: Path) -> int:
    return (path.stat().st_size - 32) // (24 + PAGE)


@pytest.mark.parametrize(("place", "is_told"), [(0.0, True), (0.5, True), (1.0, False)])
def test_a_bad_frame_of_the_log_is_told(store: Path, place: float, is_told: bool) -> None:
    """The last commit may be cut short by the kill itself; a bad place before it costs what was committed after it."""
    leave_log(store, 10)
    log = store.with_name(store.name + "-wal")
    frame = round((frames(log) - 1) * place)
    overwrite(log, 32 + frame * (24 + PAGE) + 24 + 100, noise(8))
    torn = log.read_bytes()
    writer, counts = salvaged(store)
    assert counts["samples_raw"] >= ROWS
    assert writer.value("SELECT count(*) FROM events WHERE kind = 'store_log_damaged'") == is_told
    writer.close()
    kept = list(store.parent.glob("*-wal.corrupt-*"))
    assert [path.read_bytes() for path in kept] == ([torn] if is_told else [])


def test_a_whole_log_is_nothing_to_tell(store: Path) -> None:
    leave_log(store, 50)
    writer, counts = salvaged(store)
    assert counts["samples_raw"] == ROWS + 50 * GPUS
    assert counts["losses"] == 0
    writer.close()


def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    path = tmp_path / "gpu_metrics.db"
    path.touch()
    writer, counts = salvaged(path)
    writer.close()
    assert {name for name, count in counts.items() if count} == {"meta"}
    assert [name for name in os.listdir(tmp_path) if "corrupt" in name] == []


def test_a_file_of_zeros_where_a_store_was_is_moved_aside(store: Path) -> None:
    store.write_bytes(bytes(300_000))
    writer, counts = salvaged(store)
    assert counts["samples_raw"] == 0
    assert writer.value("SELECT count(*) FROM events WHERE kind = 'store_salvaged'") == 1
    writer.close()
    assert store.with_name(f"{store.name}.corrupt-{STAMP}").stat().st_size == 300_000


def sqlite_file(path: Path, application: int = 0, version: int = 0, log: bool = False) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    if log:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA application_id = {application}")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("CREATE TABLE theirs (x)")
    connection.execute("INSERT INTO theirs VALUES (1)")
    if log:
        copies = {suffix: path.with_name(path.name + suffix).read_bytes() for suffix in ("", "-wal", "-shm")}
        connection.close()
        for suffix, content in copies.items():
            path.with_name(path.name + suffix).write_bytes(content)
    else:
        connection.close()


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a text": lambda path: path.write_text("CREATE TABLE samples_raw (id INTEGER PRIMARY KEY);\n" * 500),
    "an image": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + noise(20_000)),
    "a zero and a text": lambda path: path.write_bytes(bytes(100) + b"hello" * 2000),
    "another database": lambda path: sqlite_file(path),
    "another program's database": lambda path: sqlite_file(path, application=1234),
    "another database with a log": lambda path: sqlite_file(path, log=True),
    "a newer schema": lambda path: sqlite_file(path, APPLICATION_ID, 9999),
    "a newer schema in the log": lambda path: sqlite_file(path, APPLICATION_ID, 9999, log=True),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("with_lock", [False, True])
def test_what_is_not_ours_is_refused_untouched(tmp_path: Path, name: str, with_lock: bool) -> None:
    path = tmp_path / "gpu_metrics.db"
    FOREIGN[name](path)
    if with_lock:
        (tmp_path / "gpu_metrics.db.lock").touch()
        (tmp_path / "gpu_metrics.db.agent").touch()
    before = {entry: (tmp_path / entry).read_bytes() for entry in os.listdir(tmp_path)}
    for _ in range(2):
        with pytest.raises(StorageForeign) as refused:
            open_store(path, FakeClock(NOW))
        assert str(path) in refused.value.message
        assert refused.value.hint
        with pytest.raises(StorageForeign):
            Writer(path)
        with pytest.raises(StorageError):
            Reader(path)
    after = {entry: (tmp_path / entry).read_bytes() for entry in os.listdir(tmp_path)}
    shared = {
        entry for entry in before if entry.endswith("-shm")
    }  # SQLite's scratch file, made by every reader
    assert {entry: after[entry] for entry in after if entry not in shared} == {
        entry: before[entry] for entry in before if entry not in shared
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from gpu_monitor.storage import salvage

path, step = Path(sys.argv[1]), int(sys.argv[2])
sys.path.insert(0, sys.argv[3])
from tests.fakes.clock import FakeClock

count = 0
def seen(event, arguments):
    global count
    if event in ("open", "os.rename", "os.remove", "os.link", "os.truncate", "sqlite3.connect"):
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(seen)
salvage.open_store(path, FakeClock(float(sys.argv[4]))).close()
"""


def test_killed_at_every_step_it_is_done_again_once(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    sound = make_store(tmp_path / "sound.db", 300, GPUS)
    kills = 0
    for step in range(1, 200):
        folder = tmp_path / str(step)
        folder.mkdir()
        path = folder / "gpu_metrics.db"
        shutil.copy(sound, path)
        (folder / "gpu_metrics.db.lock").touch()
        leaves("samples_raw", 0.5)(path)
        overwrite(path, 0, noise(100))
        damaged = path.read_bytes()
        command = [sys.executable, "-c", KILLED, str(path), str(step), str(root), str(NOW)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        kills += done.returncode != 0
        writer, counts = salvaged(path)
        assert 300 * GPUS - 40 <= counts["samples_raw"] < 300 * GPUS
        assert writer.value("SELECT count(*) FROM events WHERE kind = 'store_salvaged'") == 1
        assert writer.value("SELECT count(*) FROM losses") == 1
        check_rows_are_true(writer)
        writer.close()
        (kept,) = folder.glob("*.corrupt-*")
        assert kept.read_bytes() == damaged
        assert [name for name in os.listdir(folder) if "salvag" in name] == []
        shutil.rmtree(folder)
        if done.returncode == 0:
            break
    assert kills >= 15
    assert done.returncode == 0


def test_damage_met_while_running_is_mended_in_place(store: Path) -> None:
    clock = FakeClock(NOW)
    writer = open_store(store, clock)
    agent_store = Store(writer, PeriodPlan())
    writer.maintain("PRAGMA wal_checkpoint(TRUNCATE)")
    leaves("samples_raw", 0.5)(store)
    assert find_damage(store) is not None
    middle = sample_key(START + INTERVALS * 30, 0, 1)
    with pytest.raises(StorageCorrupt), writer.transaction() as connection:
        connection.execute("SELECT count(*) FROM samples_raw NOT INDEXED").fetchone()
        connection.execute("DELETE FROM samples_raw WHERE id BETWEEN ? AND ?", (middle - (1 << 34), middle))
    account = recover(writer, clock)
    assert account is not None
    agent_store.reload()
    assert find_damage(store) is None
    assert ROWS - 40 <= writer.value("SELECT count(*) FROM samples_raw") < ROWS
    with writer.transaction() as connection:
        connection.execute("INSERT INTO meta VALUES ('after', 1)")
    assert writer.get_meta("after") == 1
    assert recover(writer, clock) is None
    assert writer.get_meta("after") == 1
    writer.close()


def test_a_store_removed_under_the_agent_is_begun_anew(store: Path) -> None:
    clock = FakeClock(NOW)
    writer = open_store(store, clock)
    for suffix in ("", "-wal", "-shm"):
        store.with_name(store.name + suffix).unlink(missing_ok=True)
    with pytest.raises(StorageCorrupt):
        writer.set_meta("lost", 1)
    assert recover(writer, clock) is None
    writer.set_meta("kept", 1)
    writer.close()
    reader = Reader(store)
    assert reader.rows("SELECT key FROM meta") == [("kept",)]
    reader.close()


def test_reading_stops_in_time_and_says_what_it_left(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(FakeClock):
        """Every look at the clock takes twelve seconds."""

        def monotonic(self) -> float:
            self.advance(12.0)
            return super().monotonic()

    overwrite(store, 0, noise(100))
    writer = open_store(store, Slow(NOW))
    kept = writer.value("SELECT count(*) FROM samples_raw")
    assert 0 < kept < ROWS
    assert writer.value("SELECT rows FROM losses WHERE what = 'samples'") > 0
    assert writer.value("SELECT count(*) FROM gaps WHERE cause = 'store damaged'") == 1
    writer.close()
