"""Checks of the doctor on stores made by hand and on file systems made of files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from gpu_monitor import __version__
from gpu_monitor.agent import health_machine
from gpu_monitor.agent.collect import Absence
from gpu_monitor.agent.health import (
    Check,
    Level,
    check_agent,
    check_deliveries,
    check_records,
    check_sqlite,
    size_text,
)
from gpu_monitor.agent.health_files import check_files
from gpu_monitor.agent.health_machine import Place, check_kernel_log, check_nvidia, surroundings
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import NotSupported
from gpu_monitor.core.model import DeviceReading, Event, Identity, Round, Span, Status
from gpu_monitor.storage.database import Reader
from gpu_monitor.storage.locks import FileLock, agent_path
from tests.made_stores import CARD, HOUR, OTHER, PRETENDED, MadeStore

BUSY = {"gpu_utilization": 80.0}
NOW = HOUR + 86400.0


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def records(made: MadeStore, now: float = NOW) -> dict[str, Check]:
    reader = Reader(made.close())
    try:
        return by_name(check_records(reader, now))
    finally:
        reader.close()


def agent(path: Path, now: float) -> dict[str, Check]:
    reader = Reader(path)
    try:
        return by_name(check_agent(reader, now))
    finally:
        reader.close()


# ---------------------------------------------------------------- what was recorded


def test_a_day_without_a_hole(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db", interval=600, started=HOUR).minutes(HOUR, 144, {CARD: BUSY})
    found = records(made)
    assert {check.level for check in found.values()} == {Level.OK}
    assert found["coverage"].text == "100.0% of GPU time recorded in the last 24 h 0 min"


def test_a_day_with_holes(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db", interval=600, started=HOUR - 86400)
    made.minutes(HOUR, 108, {CARD: BUSY})  # 18 of 24 hours
    made.record(
        Absence(HOUR - 7200.0, HOUR + 1800.0, "agent killed"),
        Absence(HOUR + 64800.0, None, "lost", CARD.uid),
        Event(HOUR + 64800.0, "xid", "Xid 79 (GPU has fallen off the bus)", "error", CARD.uid),
        Event(HOUR + 100.0, "agent_started", "agent started", "info"),
    )
    found = records(made)
    assert found["coverage"].level is Level.WARNING
    assert found["coverage"].text == "75.0% of GPU time recorded in the last 24 h 0 min"
    assert found["gaps"].level is Level.PROBLEM
    # Only the half hour of the first gap that lies within the last 24 hours counts.
    assert found["gaps"].text == f"last 24 hours: lost ({CARD.uid}) 6 h 0 min, agent killed 30 min"
    assert found["events"].level is Level.WARNING
    assert found["events"].text == "last 24 hours: 1 xid"
    assert found["events"].advice == "Last: 2024-03-21T08:00:00+00:00 Xid 79 (GPU has fallen off the bus)"


def test_a_gap_that_is_over_is_no_problem(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db").record(Absence(NOW - 600.0, NOW - 300.0, "lost", CARD.uid))
    found = records(made)
    assert (found["gaps"].level, found["gaps"].text) == (
        Level.WARNING,
        f"last 24 hours: lost ({CARD.uid}) 5 min",
    )


def test_coverage_counts_from_the_first_start(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db", started=NOW - 3600).minutes(int(NOW) - 3600, 60, {CARD: BUSY})
    assert records(made)["coverage"].text == "100.0% of GPU time recorded in the last 60 min"


def test_coverage_of_a_machine_without_gpus_is_the_machines(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db", started=NOW - 3600)
    with made.writer.transaction() as connection:
        for minute in range(30):
            key = (int(NOW) - 3600 + minute * 60) << 20
            connection.execute("INSERT INTO hosts_raw (id, seconds) VALUES (?, 600)", (key,))
    found = records(made)["coverage"]
    assert (found.level, found.text[:18]) == (Level.WARNING, "50.0% of the machi")


def test_rows_that_the_cap_cost_are_told(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db")
    with made.writer.transaction() as connection:
        for count in (400, 80):
            connection.execute(
                "INSERT INTO losses (time, what, cause, rows) VALUES (?, 'samples', 'database.max_mb = 8', ?)",
                (HOUR, count),
            )
    found = records(made)["losses"]
    assert (found.level, found.text) == (Level.WARNING, "dropped for ever: 480 rows (database.max_mb = 8)")


def test_simulated_gpus_are_named_so(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db").minutes(HOUR, 1, {PRETENDED: BUSY})
    assert records(made)["source"].level is Level.WARNING


# ---------------------------------------------------------------- the agent


def test_an_agent_that_runs_and_stores(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    lock = FileLock(agent_path(path))
    assert lock.try_acquire()
    lock.write_text("4711\n")
    made = MadeStore(path, started=NOW - 600).minutes(int(NOW) - 60, 1, {CARD: BUSY})
    made.close()
    found = agent(path, NOW + 5)
    assert found["agent"] == Check("agent", Level.OK, "runs, pid 4711 since 2024-03-21T13:50:00+00:00")
    assert found["last collection"].text == "2024-03-21T14:00:00+00:00, 5 s ago"
    # Two intervals and a minute: from then on something is wrong.
    assert agent(path, NOW + 180)["last collection"].level is Level.OK
    assert agent(path, NOW + 181)["last collection"].level is Level.PROBLEM
    lock.close()
    stopped = agent(path, NOW + 181)
    assert stopped["agent"].level is Level.PROBLEM
    assert "the last one was killed" in stopped["agent"].text
    assert stopped["last collection"].level is Level.OK


def test_an_agent_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    made = MadeStore(path)
    with made.writer.transaction() as connection:
        connection.execute("UPDATE runs SET version = '0.0.1'")
    made.close()
    lock = FileLock(agent_path(path))
    assert lock.try_acquire()
    found = agent(path, NOW)
    lock.close()
    assert found["version"].text == f"the agent that runs is 0.0.1, installed is {__version__}"


def test_rows_of_the_future(tmp_path: Path) -> None:
    path = MadeStore(tmp_path / "s.db").minutes(HOUR, 1, {CARD: BUSY}).close()
    found = agent(path, HOUR - 600.0)["last collection"]
    assert found.level is Level.WARNING
    assert "lies in the future" in found.text


# ---------------------------------------------------------------- deliveries


def deliveries(made: MadeStore, has_server: bool = True) -> dict[str, Check]:
    reader = Reader(made.close())
    try:
        return by_name(check_deliveries(reader, NOW, has_server))
    finally:
        reader.close()


def add_report(made: MadeStore, number: int, state: str, period: float, error: str | None = None) -> None:
    with made.writer.transaction() as connection:
        connection.execute(
            "INSERT INTO reports (id, node, period, period_seconds, revision, state, changed)"
            " VALUES (?, 1, ?, 3600, 1, ?, 0)",
            (number, period, state),
        )
        if error is not None:
            connection.execute(
                "INSERT INTO attempts (report, number, started, error) VALUES (?, 1, ?, ?)",
                (number, period + 3700, error),
            )


def test_hours_that_get_through(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db")
    add_report(made, 1, "sent", NOW - 7200, "no answer in time")
    add_report(made, 2, "pending", NOW - 3600)
    add_report(made, 3, "replaced", NOW - 10800)
    found = deliveries(made)
    assert list(found) == ["deliveries"]
    assert (found["deliveries"].level, found["deliveries"].text) == (Level.OK, "1 delivered, 1 waiting")
    assert found["deliveries"].advice == "Last error: 2024-03-21T13:01:40+00:00 no answer in time"


def test_hours_that_do_not_get_through(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db")
    add_report(made, 1, "pending", NOW - 3600 * 5)
    add_report(made, 2, "rejected", NOW - 3600 * 6, "422: unknown contract")
    add_report(made, 3, "parked", NOW - 3600 * 7)
    found = deliveries(made)
    assert found["deliveries"].level is Level.WARNING
    assert found["deliveries"].text == "1 report waiting, the oldest for 4 h 0 min; 0 delivered"
    assert "422: unknown contract" in (found["deliveries"].advice or "")
    assert (found["rejected"].level, found["parked"].level) == (Level.PROBLEM, Level.PROBLEM)
    assert "gpu_monitor resend" in (found["parked"].advice or "")


def test_a_server_that_takes_nothing_is_a_problem_at_once(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db")
    add_report(made, 1, "pending", NOW - 3600, "HTTP 401: the token is unknown")
    with made.writer.transaction() as connection:
        connection.execute("UPDATE attempts SET verdict = 'refused'")
    found = deliveries(made)["deliveries"]
    assert found.level is Level.PROBLEM
    assert found.text == "0 delivered, 1 waiting: the server takes nothing from us"
    assert "HTTP 401: the token is unknown" in (found.advice or "")
    assert "server.token_file" in (found.advice or "")


def test_without_a_server_nothing_is_owed(tmp_path: Path) -> None:
    made = MadeStore(tmp_path / "s.db")
    add_report(made, 1, "pending", NOW - 86400)
    found = deliveries(made, has_server=False)["deliveries"]
    assert (found.level, found.text) == (Level.OK, "no server is configured; 1 report kept for one")


# ---------------------------------------------------------------- files


def files(path: Path) -> dict[str, Check]:
    return by_name(check_files(path, SystemClock()))


def test_a_whole_store(tmp_path: Path) -> None:
    path = MadeStore(tmp_path / "s.db").minutes(HOUR, 1, {CARD: BUSY}).close()
    found = files(path)
    assert {check.level for check in found.values()} == {Level.OK}
    assert found["store"].text == f"{path}, {size_text(path.stat().st_size)}, 0 B of it free"
    assert found["integrity"].text == "SQLite's quick check finds the file whole"


def test_a_damaged_page(tmp_path: Path) -> None:
    path = MadeStore(tmp_path / "s.db", interval=1).minutes(HOUR, 3000, {CARD: BUSY}).close()
    data = bytearray(path.read_bytes())
    assert len(data) > 30 * 4096
    data[-20 * 4096 : -4 * 4096] = b"\xa5" * (16 * 4096)
    path.write_bytes(data)
    found = files(path)["integrity"]
    assert found.level is Level.PROBLEM
    assert "damaged" in found.text


@pytest.mark.skipif(os.name == "nt", reason="modes of files mean nothing there")
def test_who_may_do_what(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    path = MadeStore(folder / "s.db").close()
    folder.chmod(0o777)
    path.chmod(0o666)
    lock = path.with_name("s.db.lock")
    lock.chmod(0o644)
    texts = [check for check in check_files(path, SystemClock()) if check.name == "permissions"]
    assert [check.advice for check in texts] == [
        f"Run: chmod o-w {folder}", f"Run: chmod go-w {path}", f"Run: chmod 600 {lock}",
    ]  # fmt: skip
    folder.chmod(0o755)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs root to give a file away")
def test_a_lock_that_the_agent_cannot_open(tmp_path: Path) -> None:
    path = MadeStore(tmp_path / "s.db").close()
    os.chown(path, 4242, -1)
    found = files(path)["ownership"]
    assert found.level is Level.PROBLEM
    assert found.text == "s.db.lock belongs to user 0, the store to user 4242"
    assert found.advice == f"The agent cannot open it. Run: sudo chown 4242 {path}.lock"


def test_sizes() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 44_859_392, 5e12)] == [
        "0 B", "999 B", "1.0 kB", "44.9 MB", "5.0 TB",
    ]  # fmt: skip


def test_sqlite_is_named_with_what_it_means() -> None:
    found = check_sqlite()
    assert found.level is Level.OK
    assert found.text[0] == "3"


# ---------------------------------------------------------------- the machine


class Answers:
    """A source that gives these devices, or none."""

    name = "nvml"

    def __init__(self, *devices: DeviceReading, paused: str | None = None, refused: bool = False) -> None:
        self.round = Round(devices, (), paused)
        self.refused = refused
        self.closed = False

    def probe(self) -> None:
        if self.refused:
            raise NotSupported("no NVIDIA driver", "Install it.")

    def read(self, now: float, span: Span) -> Round:
        return self.round

    def close(self) -> None:
        self.closed = True


def device(uid: str, status: Status = Status.OK, cause: str | None = None) -> DeviceReading:
    return DeviceReading(Identity(uid, "nvml"), status, cause=cause)


def put(root: Path, name: str, text: str = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def plug(root: Path, driver: str | None) -> None:
    """An NVIDIA card on a PCI bus made of files."""
    put(root, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    put(root, "sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    if driver is not None:
        target = root / "sys/bus/pci/drivers" / driver
        target.mkdir(parents=True)
        (root / "sys/bus/pci/devices/0000:01:00.0/driver").symlink_to(target)


def load_driver(root: Path, version: str = "550.54.15") -> None:
    text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue Mar  5 22:23:56 UTC 2024\nGCC\n"
    put(root, "proc/driver/nvidia/version", text)


def install_library(root: Path, version: str = "550.54.15") -> None:
    library = put(root, f"usr/lib64/libnvidia-ml.so.{version}")
    (library.parent / "libnvidia-ml.so.1").symlink_to(library.name)


def nvidia(root: Path, source: Answers, known: tuple[str, ...] = ()) -> dict[str, Check]:
    found = by_name(check_nvidia(Place(root, known), source))
    assert source.closed
    return found


def test_a_driver_that_works(tmp_path: Path) -> None:
    plug(tmp_path, "nvidia")
    load_driver(tmp_path)
    install_library(tmp_path)
    found = nvidia(tmp_path, Answers(device("GPU-a"), device("GPU-b", Status.ASLEEP)))
    assert found["nvidia driver"].text.startswith("NVIDIA UNIX x86_64 Kernel Module  550.54.15")
    assert found["nvidia library"].level is Level.OK
    assert (found["nvml"].level, found["nvml"].text) == (Level.OK, "1 of 2 GPUs answer, 1 asleep")
    # A driver without device nodes: nothing can talk to it.
    assert found["device nodes"].level is Level.PROBLEM


def test_a_gpu_that_is_lost(tmp_path: Path) -> None:
    found = nvidia(tmp_path, Answers(device("GPU-a"), device("GPU-b", Status.LOST, "lost")))["nvml"]
    assert (found.level, found.text) == (Level.PROBLEM, "1 of 2 GPUs answer; GPU-b: lost")


def test_a_driver_that_hangs(tmp_path: Path) -> None:
    found = nvidia(tmp_path, Answers(paused="driver hung in nvmlInit_v2"))["nvml"]
    assert (found.level, found.text) == (Level.PROBLEM, "driver hung in nvmlInit_v2")


@pytest.mark.parametrize(
    ("driver", "level", "text"),
    [
        (None, Level.PROBLEM, "1 NVIDIA GPU(s) on PCI and no driver loaded"),
        ("nouveau", Level.PROBLEM, "the open driver nouveau holds the GPU; it gives no NVML"),
    ],
)
def test_a_card_without_its_driver(tmp_path: Path, driver: str | None, level: Level, text: str) -> None:
    plug(tmp_path, driver)
    found = nvidia(tmp_path, Answers(refused=True))
    assert (found["nvidia driver"].level, found["nvidia driver"].text) == (level, text)
    assert found["nvml"].level is Level.PROBLEM


def test_a_machine_without_a_card(tmp_path: Path) -> None:
    found = nvidia(tmp_path, Answers(refused=True))
    assert {check.level for check in found.values()} == {Level.OK, Level.WARNING}
    assert found["nvml"].text == "no NVIDIA driver: the host alone is recorded"
    # The same machine after it had cards: they are gone.
    gone = nvidia(tmp_path, Answers(refused=True), (CARD.uid, OTHER.uid))["nvml"]
    assert (gone.level, gone.text) == (Level.PROBLEM, "no NVIDIA driver; this store has recorded 2 before")


def test_a_driver_upgraded_under_the_loaded_one(tmp_path: Path) -> None:
    load_driver(tmp_path, "550.54.15")
    install_library(tmp_path, "560.35.03")
    found = nvidia(tmp_path, Answers(refused=True))["nvidia library"]
    assert found.level is Level.PROBLEM
    assert "libnvidia-ml.so.1 is 560.35.03, the loaded driver is another" in found.text


def test_a_container_without_the_library(tmp_path: Path) -> None:
    load_driver(tmp_path)
    put(tmp_path, ".dockerenv")
    found = nvidia(tmp_path, Answers(refused=True))["nvidia library"]
    assert found.level is Level.PROBLEM
    assert "NVIDIA_DRIVER_CAPABILITIES" in (found.advice or "")
    assert surroundings(tmp_path).is_container


def test_windows_subsystem_for_linux(tmp_path: Path) -> None:
    put(tmp_path, "proc/version", "Linux version 5.15.90.1-microsoft-standard-WSL2\n")
    assert surroundings(tmp_path).is_wsl
    assert "Windows" in nvidia(tmp_path, Answers(device("GPU-a")))["nvidia driver"].text


def test_the_kernel_log(tmp_path: Path) -> None:
    assert check_kernel_log(True, str(put(tmp_path, "kmsg"))).text == "readable"
    assert "No such file" in check_kernel_log(True, str(tmp_path / "none")).text
    assert "not read" in check_kernel_log(False).text


def test_the_clock_is_asked_of_the_kernel() -> None:
    found = health_machine.check_clock()
    assert found.level in (Level.OK, Level.WARNING)
    assert (found.advice is None) == (found.level is Level.OK)
