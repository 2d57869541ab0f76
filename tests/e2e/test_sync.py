"""`gpu_monitor sync`: what lies on this machine is on the server afterwards, exactly once, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.program import PROGRAM, ask, environment, kill_after
from tests.e2e.waiting import until
from tests.fakes.experiments import Fault, Shelf
from tests.fakes.segments import add_blob, line, make, points

TRAINER = """
import sys
from gpu_monitor.training.monitor import TrainingMonitor
monitor = TrainingMonitor("killed", capture=False, **({"server": sys.argv[1]} if len(sys.argv) > 1 else {}))
step = 0
while True:
    monitor.log_metrics({"loss": step / 7, "rate": 0.1}, step=step)
    print(step, flush=True)
    step += 1
"""


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as started:
        yield started


def all_held(shelf: Shelf, directory: Path) -> bool:
    """Whether the server holds each segment of a directory as far as its whole lines go."""
    paths = list(directory.glob("*/seg-*.log"))
    return bool(paths) and all(
        shelf.held(path.parent.name, path.stem) == path.read_bytes()[: path.read_bytes().rfind(b"\n") + 1]
        for path in paths
    )


def killed_after(steps: int, home: Path, *words: str, **more: str) -> int:
    """Start a training, SIGKILL it after so many steps; the last step whose call returned."""
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, *words], cwd=home, env=environment(home, **more), stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    return kill_after(trainer, steps)


def steps_of(data: bytes) -> list[int]:
    """The steps of all points in a segment."""
    return [json.loads(line)[2] for line in data.splitlines() if line.startswith(b'["p"')]


def test_a_killed_training_is_on_the_server_after_a_sync_exactly_once(shelf: Shelf, tmp_path: Path) -> None:
    last = killed_after(3000, tmp_path)
    done = ask(tmp_path, "sync", "--server", shelf.url)
    assert (done.returncode, all_held(shelf, tmp_path / "experiments")) == (0, True), done.stderr
    (data,) = (bytes(held) for held in shelf.segments.values())
    assert steps_of(data)[: last + 1] == list(range(last + 1))
    before = len(shelf.asked)
    again = ask(tmp_path, "sync", "--server", shelf.url)
    # Whether the server still holds it is asked for with its last line alone.
    assert (again.returncode, again.stdout, len(shelf.asked)) == (0, "", before + 1)
    assert "it holds everything" in again.stderr


@pytest.mark.parametrize("round_", range(4))
def test_killed_while_uploading_with_a_bad_server(round_: int, shelf: Shelf, tmp_path: Path) -> None:
    faults = [["lost", "reset"], ["lost"] * 3, [Fault("status", status=500), "lost"], ["hang"]]
    shelf.behave(*faults[round_])
    last = killed_after(5000 + 1500 * round_, tmp_path, shelf.url)
    shelf.release.set()
    done = ask(tmp_path, "sync", "--server", shelf.url, "--json")
    assert (done.returncode, all_held(shelf, tmp_path / "experiments")) == (0, True), done.stdout
    (data,) = (bytes(held) for held in shelf.segments.values())
    assert steps_of(data)[: last + 1] == list(range(last + 1))


def test_the_next_start_uploads_what_the_killed_one_left(shelf: Shelf, tmp_path: Path) -> None:
    killed_after(500, tmp_path)
    killed_after(500, tmp_path)
    code = (
        "import sys, time\nfrom gpu_monitor.training.monitor import TrainingMonitor\n"
        f"monitor = TrainingMonitor('next', capture=False, server={shelf.url!r})\nsys.stdin.readline()\nmonitor.finish()\n"
    )
    next_one = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path), stdin=subprocess.PIPE
    )
    until(lambda: len(shelf.segments) == 3 and all_held(shelf, tmp_path / "experiments"), "all are there")
    killed = {path.stem for path in segments_of(tmp_path) if b'"completed"' not in path.read_bytes()}
    until(lambda: len(shelf.ended) == 2, "it tells of both that vanished")
    next_one.communicate(b"\n", timeout=60)
    assert next_one.returncode == 0
    assert {body["segment"] for _, body in shelf.ended} <= killed
    assert {body["by"] for _, body in shelf.ended} == {"sdk"}


def segments_of(home: Path) -> list[Path]:
    """The segments of all trainings of a home."""
    return sorted((home / "experiments").glob("*/seg-*.log"))


def records_of(path: Path) -> list[list[Any]]:
    """The records of whole lines, each with its check."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.mark.skipif(sys.platform != "linux", reason="that a process is gone is told from /proc of Linux")
def test_the_server_is_told_that_a_killed_training_is_gone_once(shelf: Shelf, tmp_path: Path) -> None:
    killed_after(500, tmp_path)
    done = ask(tmp_path, "sync", "--server", shelf.url)
    (path,) = segments_of(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith(" uploaded, crashed")
    ((experiment, body),) = shelf.ended
    header, *rest = records_of(path)
    writer = header[2]["writer"]
    last = [record for record in rest if record[0] == "p"][-1]
    assert experiment == path.parent.name
    assert body == {
        "segment": path.stem, "boot_id": writer["boot_id"], "start_ticks": writer["start_ticks"],
        "ns_pid": writer["ns_pid"], "time": pytest.approx(header[2]["started"] + last[1] / 1000, abs=0.001), "by": "sync",
    }  # fmt: skip
    again = ask(tmp_path, "sync", "--server", shelf.url)
    assert (again.returncode, again.stdout, len(shelf.ended)) == (0, "", 1)
    shelf.segments.clear()  # the server lost its database, and what it was told
    assert ask(tmp_path, "sync", "--server", shelf.url).returncode == 0
    assert len(shelf.ended) == 2
    told = ask(tmp_path, "sync", "--server", shelf.url, "--again", "--json")
    assert [one["crashed"] for one in json.loads(told.stdout)["experiments"]] == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="that a process is gone is told from /proc of Linux")
@pytest.mark.parametrize("status", [404, 405, 409, 410, 422])
def test_a_server_that_takes_no_ends_has_everything_all_the_same(
    status: int, shelf: Shelf, tmp_path: Path
) -> None:
    killed_after(50, tmp_path)
    shelf.ended_status = status
    done = ask(tmp_path, "sync", "--server", shelf.url)
    assert (done.returncode, all_held(shelf, tmp_path / "experiments")) == (0, True), done.stderr
    assert "crashed" not in done.stdout + done.stderr
    assert shelf.count("POST", "/ended") == 1
    shelf.ended_status = None  # it learned to
    later = ask(tmp_path, "sync", "--server", shelf.url)
    assert (later.returncode, len(shelf.ended)) == (0, 1)
    assert later.stdout.rstrip().endswith("  killed: crashed")


@pytest.mark.skipif(sys.platform != "linux", reason="that a process is gone is told from /proc of Linux")
def test_only_writers_that_are_known_to_be_gone_are_told_of(shelf: Shelf, tmp_path: Path) -> None:
    ours, runs = os.uname().nodename, tmp_path / "experiments"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    before = "00000000-0000-4000-8000-000000000000"
    # No process has the pid 4194304 (the largest is one less), and none began at tick 1 with ours.
    process = {"pid": 1 << 22, "start_ticks": 1, "ns_pid": 1 << 22}

    def left(name: str, said: tuple[str, ...] = (), parent: str | None = None, **writer: Any) -> None:
        more = {} if parent is None else {"parent": parent}
        path = make(runs, name, writer={"host": ours, **process, **writer}, **more)
        with path.open("ab") as out:
            out.writelines(line("z", 20 + at, status, {}) for at, status in enumerate(said))

    left("gone", boot_id=boot)
    left("gone-and-said-it-ran", ("running",), boot_id=boot)
    left("restarted-machine", boot_id=before)
    left("completed", ("running", "completed"), boot_id=boot)
    left("stopped", ("stopped",), boot_id=boot)
    left("elsewhere", boot_id=before, host="another-machine")
    left("unknown-boot")
    left("child", parent="seg-b0000000", boot_id=boot)
    left("alive", boot_id=boot, pid=os.getpid(), start_ticks=_ticks(os.getpid()))
    left("resumed", boot_id=boot)
    with make(runs, "resumed", "seg-b0000000", started=1.7e9 + 60, writer={"host": ours, "pid": 1}).open(
        "ab"
    ) as out:
        out.write(line("z", 30, "completed", {}))
    done = ask(tmp_path, "sync", "--server", shelf.url)
    assert done.returncode == 0, done.stdout
    ends = dict(shelf.ended)
    assert set(ends) == {"gone", "gone-and-said-it-ran", "restarted-machine", "resumed"}
    # The last point is 9 ms after the start; the status is 20 ms after it.
    assert ends["gone"]["time"] == 1_700_000_000.009
    assert ends["gone-and-said-it-ran"]["time"] == 1_700_000_000.02
    told = [one.path for one in shelf.asked]
    assert told.index("/api/experiments/resumed/segments/seg-b0000000") < told.index(
        "/api/experiments/resumed/ended"
    ), "the segment that says how it ended goes before the end of the one before"


def _ticks(pid: int) -> int:
    """When a process began, in ticks of this boot."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_settings_of_the_environment_hold(shelf: Shelf, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere")
    shelf.token = "a-token-of-mine"
    (tmp_path / "token").write_text("a-token-of-mine\n")
    (tmp_path / "token").chmod(0o600)
    names = {
        "GPU_MONITOR_SERVER": shelf.url,
        "GPU_MONITOR_DIR": "elsewhere",
        "GPU_MONITOR_TOKEN_FILE": "token",
    }
    done = ask(tmp_path, "sync", **names)
    assert (done.returncode, all_held(shelf, tmp_path / "elsewhere")) == (0, True), done.stderr


def test_it_says_what_became_of_each_experiment(shelf: Shelf, tmp_path: Path) -> None:
    good = make(tmp_path / "runs", "good", name="resnet")
    add_blob(good, b"picture" * 1000)
    torn = make(tmp_path / "runs", "torn")
    torn.write_bytes(torn.read_bytes() + b'["p",')
    other = make(tmp_path / "runs", "other")
    shelf.segments["other", "seg-a0000000"] = bytearray(other.read_bytes()[:-40] + b"x" * 40)
    done = ask(tmp_path, "sync", "runs", "--server", shelf.url, "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    found = {one["id"]: one for one in said["experiments"]}
    size = good.stat().st_size
    assert found["good"] == {
        "id": "good", "name": "resnet", "folder": str(tmp_path / "runs/good"), "uploaded_bytes": size + 7000,
        "uploaded_files": 1, "local_bytes": 0, "local_files": 0, "torn_bytes": 0, "reasons": [], "written": False,
        "crashed": False, "refused": False, "more_bytes_there": 0,
    }  # fmt: skip
    assert (found["torn"]["torn_bytes"], found["torn"]["local_bytes"]) == (5, 0)
    assert found["other"]["local_bytes"] == other.stat().st_size
    assert "differs from what is held" in found["other"]["reasons"][0]
    shown = ask(tmp_path, "sync", "runs", "--server", shelf.url)
    assert shown.returncode == 1
    assert shown.stdout.startswith("other  resnet: ")
    assert "\x1b" not in shown.stdout + shown.stderr, "no bar in a pipe"
    assert "\r" not in shown.stdout + shown.stderr


def test_what_cannot_be_done_has_its_exit_code(shelf: Shelf, tmp_path: Path) -> None:
    assert ask(tmp_path, "sync").returncode == 78
    nothing = ask(tmp_path, "sync", "--server", shelf.url)
    assert (nothing.returncode, "experiments" in nothing.stderr) == (3, True)
    (tmp_path / "empty").mkdir()
    assert ask(tmp_path, "sync", "empty", "--server", shelf.url).returncode == 3
    assert ask(tmp_path, "sync", "--server", "nonsense").returncode == 78
    assert ask(tmp_path, "sync", "--watch", "0").returncode == 2


def test_a_refused_token_ends_it_at_once_and_is_not_shown(shelf: Shelf, tmp_path: Path) -> None:
    for number in range(5):
        make(tmp_path / "experiments", f"e{number}")
    shelf.token = "the-right-token"
    done = ask(tmp_path, "sync", "--server", shelf.url, GPU_MONITOR_TOKEN="a-wrong-token")
    assert done.returncode == 1
    assert len(shelf.asked) == 1
    assert "a-wrong-token" not in done.stdout + done.stderr
    assert done.stdout.count("HTTP 401") == 5


def test_a_dead_server_leaves_everything_where_it_is(shelf: Shelf, tmp_path: Path) -> None:
    path = make(tmp_path / "experiments")
    shelf.stop()
    done = ask(tmp_path, "sync", "--server", shelf.url)
    assert done.returncode == 1
    assert "Connection refused" in done.stdout
    assert "Nothing is lost" in done.stderr
    assert path.exists()


def test_ctrl_c_leaves_everything_safe_and_the_same_command_goes_on(shelf: Shelf, tmp_path: Path) -> None:
    for number in range(30):
        make(tmp_path / "experiments", f"e{number:02}", count=100)
    shelf.behave(*["good"] * 10, then="hang")
    running = subprocess.Popen(
        [*PROGRAM, "sync", "--server", shelf.url], cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout is not None
    out = "".join(running.stdout.readline() for _ in range(10))  # what was uploaded has been told
    running.send_signal(signal.SIGINT)
    rest, err = running.communicate(timeout=60)
    out += rest
    assert (running.returncode, "Traceback" in err, "the same command goes on" in err) == (1, False, True), (
        err
    )
    assert out.count("uploaded") == 10
    shelf.release.set()
    shelf.behave()
    assert ask(tmp_path, "sync", "--server", shelf.url).returncode == 0
    assert all_held(shelf, tmp_path / "experiments")


def test_what_a_server_lost_is_sent_again(shelf: Shelf, tmp_path: Path) -> None:
    make(tmp_path / "experiments")
    assert ask(tmp_path, "sync", "--server", shelf.url).returncode == 0
    (held,) = shelf.segments.values()
    whole = bytes(held)
    shelf.segments.clear()  # the server lost its database
    again = ask(tmp_path, "sync", "--server", shelf.url)
    assert again.returncode == 0
    assert f"{len(whole)} B uploaded" in again.stdout
    (held,) = shelf.segments.values()
    assert bytes(held) == whole
    # Restored to an earlier moment: it holds the first two lines.
    two = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    del held[two:]
    assert ask(tmp_path, "sync", "--server", shelf.url).returncode == 0
    assert bytes(next(iter(shelf.segments.values()))) == whole
    assert ask(tmp_path, "sync", "--server", shelf.url, "--again").returncode == 0
    assert bytes(next(iter(shelf.segments.values()))) == whole


def test_what_was_deleted_on_the_server_is_owed_to_nobody(shelf: Shelf, tmp_path: Path) -> None:
    make(tmp_path / "experiments")
    shelf.behave(then=Fault("status", status=410, body='{"detail": "it was deleted"}'))
    told = ask(tmp_path, "sync", "--server", shelf.url)
    assert told.returncode == 0, told.stderr
    assert "it was deleted" in told.stdout
    assert "it holds everything but what was deleted there" in told.stderr


def test_watching_takes_up_what_comes_later(shelf: Shelf, tmp_path: Path) -> None:
    running = subprocess.Popen(
        [*PROGRAM, "sync", "--server", shelf.url, "--watch", "1"], cwd=tmp_path, env=environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path = make(tmp_path / "experiments")
    until(lambda: all_held(shelf, tmp_path / "experiments"), "it is there")
    with path.open("ab") as more:
        more.write(points(10, 10))
    until(lambda: all_held(shelf, tmp_path / "experiments"), "the rest is there")
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, "Traceback" in err) == (0, False)


def test_a_terminal_has_a_bar(shelf: Shelf, tmp_path: Path) -> None:
    make(tmp_path / "experiments", count=100_000)
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [*PROGRAM, "sync", "--server", shelf.url], cwd=tmp_path, env=environment(tmp_path, COLUMNS="80"),
        stdout=subprocess.PIPE, stderr=theirs, text=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # its last user is gone
            break
        said += piece
    os.close(ours)
    running.communicate(timeout=60)
    assert running.returncode == 0
    assert b"%  " in said
    assert b"[####" in said
    assert said.rstrip().endswith(b"it holds everything")


def test_a_file_for_which_there_was_no_room_goes_when_there_is(shelf: Shelf, tmp_path: Path) -> None:
    path = make(tmp_path / "experiments")
    sha256 = add_blob(path, b"weights" * 1000, kind="artifact")
    with path.open("ab") as more:
        more.write(points(5, 10))
    full = Fault("status", status=507, body='{"detail": "no room"}')
    # The records, then the file; each time it is asked again where the records stand, and the file is tried again.
    for faults in (["good", full], ["good", full], ["good", full]):
        shelf.behave(*faults)
        done = ask(tmp_path, "sync", "--server", shelf.url)
        assert (done.returncode, "1 file not uploaded" in done.stdout) == (1, True), done.stdout + done.stderr
        assert "no room" in done.stdout
        assert "it holds everything" not in done.stderr
        assert all_held(shelf, tmp_path / "experiments"), "the records do not wait for it"
    shelf.behave()
    done = ask(tmp_path, "sync", "--server", shelf.url)
    assert (done.returncode, bytes(shelf.blobs[sha256])) == (0, b"weights" * 1000), done.stdout
    # What it lost meanwhile is found where everything is gone through.
    for words in (["--again"], []):
        del shelf.blobs[sha256]
        shelf.whole.clear()
        if not words:
            path.with_suffix(".sent").unlink()
        assert ask(tmp_path, "sync", *words, "--server", shelf.url).returncode == 0
        assert bytes(shelf.blobs[sha256]) == b"weights" * 1000


def test_the_next_start_sends_a_file_that_is_owed(shelf: Shelf, tmp_path: Path) -> None:
    path = make(tmp_path / "experiments")
    sha256 = add_blob(path, b"weights" * 1000, kind="artifact")
    shelf.behave("good", Fault("status", status=507))
    assert ask(tmp_path, "sync", "--server", shelf.url).returncode == 1
    shelf.behave()
    code = (
        "import sys\nfrom gpu_monitor.training.monitor import TrainingMonitor\n"
        f"monitor = TrainingMonitor('next', capture=False, server={shelf.url!r})\nsys.stdin.readline()\nmonitor.finish()\n"
    )
    next_one = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path), stdin=subprocess.PIPE
    )
    until(lambda: sha256 in shelf.whole, "it is there")
    next_one.communicate(b"\n", timeout=60)
    assert next_one.returncode == 0
