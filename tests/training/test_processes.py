"""Many processes, forks and ends without a word: every call that returned is on disk, and nobody disturbs anybody."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_monitor.training.reading import list_experiments, open_experiment
from gpu_monitor.training.stored import StoredExperiment
from tests.e2e.waiting import until
from tests.training.runs import environment, last_status, logs, of_kind, points, records, run, running, start

TELLING = """
monitor = TrainingMonitor("killed", {quiet})
told = os.open("told-" + str(os.getpid()), os.O_WRONLY | os.O_CREAT, 0o644)
print("go")
step = 0
while True:
    monitor.log_metrics({"loss": step / 7, "accuracy": step / 11}, step)
    os.pwrite(told, b"%12d" % step, 0)  # this call returned
    step += 1
"""


def told_by(folder: Path, pid: int) -> int:
    """The last step whose call returned in a process."""
    text = (folder / f"told-{pid}").read_bytes()
    return int(text) if text else -1


@pytest.mark.parametrize("number", range(20))
def test_a_killed_training_has_every_call_that_returned(tmp_path: Path, number: int) -> None:
    with running(TELLING, tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=random.Random(number).random() * 0.15)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    last = told_by(tmp_path, process.pid)
    (log,) = logs(tmp_path)
    found = points(log)
    # The one that was under way may be there, too.
    assert len(found) - 1 in (last, last + 1)
    assert found == [(step, {"loss": step / 7, "accuracy": step / 11}) for step in range(len(found))]
    stored = StoredExperiment(log.parent)
    # The kernel ends a write between two pages where its process is killed: of the call that did not return.
    torn = int(not log.read_bytes().endswith(b"\n"))
    assert (stored.status, stored.last_step, stored.damaged) == ("crashed", len(found) - 1, torn)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups")
def test_a_killed_tree_of_processes_has_every_call_that_returned(tmp_path: Path) -> None:
    code = """
        monitor = TrainingMonitor("tree", {quiet})
        children = [os.fork() for _ in range(1)]
        if children[0] == 0 and os.fork() == 0:
            os.fork()
        told = os.open("told-" + str(os.getpid()), os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(1, b"go %d\\n" % os.getpid())
        step = 0
        while True:
            monitor.log_metrics({"loss": step / 7}, step)
            os.pwrite(told, b"%12d" % step, 0)
            step += 1
        """
    with running(code, tmp_path) as process:
        assert process.stdout is not None
        pids = {int(process.stdout.readline().split()[1]) for _ in range(4)}
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    found = {records(log)[0][2]["writer"]["pid"]: points(log) for log in logs(tmp_path)}
    assert set(found) == pids
    for pid, held in found.items():
        assert len(held) - 1 in (told_by(tmp_path, pid), told_by(tmp_path, pid) + 1)
        assert held == [(step, {"loss": step / 7}) for step in range(len(held))]
    (folder,) = (tmp_path / "experiments").iterdir()
    assert StoredExperiment(folder).status == "crashed"


TOGETHER = """
assert sys.stdin.readline() == "go\\n"
with TrainingMonitor("together", {quiet}, params={"number": int(sys.argv[1])}) as monitor:
    for step in range(50):
        monitor.log_metrics({"loss": step / 7, "number": int(sys.argv[1])}, step)
"""


@pytest.mark.parametrize("count", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_processes_that_start_together_where_nothing_was_all_succeed(tmp_path: Path, count: int) -> None:
    processes = [start(TOGETHER, tmp_path, str(number), stdin=subprocess.PIPE) for number in range(count)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        with process:
            _, err = process.communicate(timeout=170)
            assert (process.returncode, err) == (0, "")
    assert len(logs(tmp_path)) == count
    listed = list_experiments(tmp_path / "experiments")
    assert [one.status for one in listed] == ["completed"] * count
    assert sorted(one.params["number"] for one in listed) == list(range(count))
    for log in logs(tmp_path):
        assert [step for step, _ in points(log)] == list(range(50))


def test_a_forked_child_writes_its_own_segment_and_leaves_the_parents_alone(tmp_path: Path) -> None:
    done = run(
        """
        monitor = TrainingMonitor("fork", {quiet})
        monitor.log_metrics({"loss": 1.0}, 10)
        quiet = os.fork()
        if quiet == 0:
            os._exit(0)  # logs nothing
        child = os.fork()
        if child == 0:
            monitor.log_metrics({"loss": 2.0, "child": 1.0})
            monitor.log_metrics({"loss": 3.0})
            sys.exit(5)
        os.waitpid(quiet, 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        monitor.log_metrics({"loss": 4.0})
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    parent, child = logs(tmp_path)
    assert points(parent) == [(10, {"loss": 1.0}), (11, {"loss": 4.0})]
    assert points(child) == [(11, {"loss": 2.0, "child": 1.0}), (12, {"loss": 3.0})]
    assert records(child)[0][2]["parent"] == parent.stem
    assert records(child)[0][2]["writer"]["pid"] != records(parent)[0][2]["writer"]["pid"]
    # The child does not speak for the run.
    assert of_kind(child, "z") == []
    assert last_status(parent) == ["completed", {"exit_code": 0}]
    assert StoredExperiment(parent.parent).status == "completed"


def test_forks_while_other_threads_log_neither_hang_nor_tear_a_line(tmp_path: Path) -> None:
    done = run(
        """
        monitor = TrainingMonitor("fork", {quiet})
        over = threading.Event()
        def work(name):
            while not over.is_set():
                monitor.log_metrics({name: 1.0})
        threads = [threading.Thread(target=work, args=(f"m{number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(30):
            child = os.fork()
            if child == 0:
                monitor.log_metrics({"child": 1.0})
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        over.set()
        for thread in threads:
            thread.join()
        print(monitor.recorder.step())
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    parent, *children = logs(tmp_path)
    assert len(children) == 30
    assert [len(points(log)) for log in children] == [1] * 30
    assert [step for step, _ in points(parent)] == list(range(int(done.stdout) + 1))
    assert parent.read_bytes().count(b"\n") == len(records(parent))


def test_the_parents_death_is_seen_while_its_forked_child_lives(tmp_path: Path) -> None:
    code = """
        monitor = TrainingMonitor("fork", {quiet})
        monitor.log_metrics({"loss": 1.0})
        child = os.fork()
        if child == 0:
            sys.stdin.readline()
            os._exit(0)
        print("go")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    with running(code, tmp_path, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.wait(timeout=60)
        stored = StoredExperiment(logs(tmp_path)[0].parent)
        # As soon as the child has come to its senses.
        until(lambda: stored.status == "crashed", "the parent is seen to be gone")
        assert process.poll() == -signal.SIGKILL
        process.stdin.close()


def test_a_running_training_is_not_taken_for_a_crashed_one(tmp_path: Path) -> None:
    code = """
        monitor = TrainingMonitor("runs", {quiet})
        monitor.log_metrics({"loss": 1.0})
        print("go")
        sys.stdin.readline()
        """
    with running(code, tmp_path, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stored = open_experiment(tmp_path / "experiments", "runs")
        assert (stored.status, stored.ended, stored.last_step) == ("running", None, 0)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)
    stored.refresh()
    assert stored.status == "completed"
    assert stored.ended is not None


def test_ranks_of_one_start_write_one_experiment_and_rank_0_speaks_for_it(tmp_path: Path) -> None:
    done = run(
        """
        import subprocess
        if len(sys.argv) == 1:
            workers = [
                subprocess.Popen([sys.executable, __file__, str(rank)], env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "3"})
                for rank in range(3)
            ]
            print(*[worker.wait() for worker in workers])
        else:
            for number in range(2):
                with TrainingMonitor(f"ranks {number}", {quiet}) as monitor:
                    monitor.log_metrics({"loss": float(sys.argv[1])}, number)
            if sys.argv[1] == "2":
                raise SystemExit(1)
        """,
        tmp_path,
    )
    assert done.stdout == "0 0 1\n", done.stderr
    first, second = sorted(list_experiments(tmp_path / "experiments"), key=lambda one: one.started)
    assert [first.name, second.name] == ["ranks 0", "ranks 1"]
    stored = open_experiment(tmp_path / "experiments", first.id)
    assert sorted(one.summary.about.writer.rank for one in stored.segments if one.summary.about) == [0, 1, 2]
    assert sorted(stored.history("loss").value) == [0.0, 1.0, 2.0]
    again = run(
        "TrainingMonitor('alone', {quiet}).log_metrics({'loss': 1.0})",
        tmp_path,
        env=environment(RANK="0", WORLD_SIZE="1"),
    )
    assert again.returncode == 0
    assert len(list_experiments(tmp_path / "experiments")) == 3


def test_a_killed_training_is_resumed_to_its_end(tmp_path: Path) -> None:
    code = """
        words = sys.argv[1:]
        monitor = TrainingMonitor("again", "project", {quiet}, resume=words[0] if words else None, params={"part": len(words)})
        print(monitor.last_step, flush=True)
        for _ in range(10):
            monitor.log_metrics({"loss": 1.0})
        print(monitor.last_step, flush=True)
        if not words:
            os.kill(os.getpid(), signal.SIGKILL)
        """
    killed = run(code, tmp_path)
    assert (killed.returncode, killed.stdout.split()) == (-signal.SIGKILL, ["None", "9"])
    directory = tmp_path / "experiments"
    crashed = open_experiment(directory, "again")
    assert (crashed.status, crashed.last_step) == ("crashed", 9)
    done = run(code, tmp_path, crashed.id)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["9", "19"]
    stored = open_experiment(directory, "again")
    assert (stored.id, stored.status, stored.last_step) == (crashed.id, "completed", 19)
    assert stored.history("loss").step == list(range(20))
    assert (stored.project, stored.params) == ("project", {"part": 1})
    first, second = logs(tmp_path)
    assert "resumed" not in records(first)[0][2]
    assert records(second)[0][2]["resumed"] is True
    # A run has one name and one project, whatever a resumed part is called.
    code = code.replace('"again", "project"', '"other", "elsewhere"')
    other = run(code, tmp_path, crashed.id)
    assert "goes on under its name 'again', not 'other'" in other.stderr
    assert [records(log)[0][2]["name"] for log in logs(tmp_path)] == ["again"] * 3
    assert [records(log)[0][2]["project"] for log in logs(tmp_path)] == ["project"] * 3
    # By its name, too; and an id that is not on this machine is taken as it is.
    assert run(code, tmp_path, "again").returncode == 0
    assert open_experiment(directory, crashed.id).last_step == 39
    away = run(code, tmp_path, "20240320T143000Z-5f0c2a9b")
    assert away.returncode == 0
    assert "is not in" in away.stderr
    assert open_experiment(directory, "20240320T143000Z-5f0c2a9b").history("loss").step == list(range(10))
    assert records(logs(tmp_path)[-1])[0][2]["resumed"] is True


def test_a_name_that_is_not_there_cannot_be_resumed_and_a_new_experiment_begins(tmp_path: Path) -> None:
    code = """
        monitor = TrainingMonitor("new", {quiet}, resume="no such name!", strict=bool(sys.argv[1:]))
        monitor.log_metrics({"loss": 1.0})
        """
    done = run(code, tmp_path)
    assert done.returncode == 0
    assert "nothing is resumed" in done.stderr
    assert open_experiment(tmp_path / "experiments", "new").last_step == 0
    strict = run(code, tmp_path, "strict")
    assert strict.returncode == 1
    assert "NothingFound" in strict.stderr
