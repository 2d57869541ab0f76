"""What goes wrong around a training: full disks, folders that are gone or not to be written, streams that are closed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.e2e.test_disk_full import inside, on_small_disk
from tests.training.runs import last_status, logs, points, records, run

FULL = """
import json, os, sys, time
from pathlib import Path
from gpu_monitor import TrainingMonitor

folder = Path(sys.argv[1])
os.chdir(folder)
monitor = TrainingMonitor("full", directory=folder / "experiments", server="", capture=False)
log = monitor.recorder.writer.path
(folder / "filler").write_bytes(b"x" * 400_000)
step = 0
while monitor.recorder.writer.waiting < 500:
    monitor.log_metrics({"loss": step / 7, "accuracy": step / 11}, step)
    step += 1
    assert step < 100_000
held = log.stat().st_size
if sys.argv[2] == "room":
    (folder / "filler").unlink()
    end = time.monotonic() + 60
    while monitor.recorder.writer.waiting and time.monotonic() < end:
        time.sleep(0.02)
    for step in range(step, step + 100):
        monitor.log_metrics({"loss": step / 7, "accuracy": step / 11}, step)
    step += 1
said = monitor.finish()
from tests.training.runs import points, records
print(json.dumps({
    "said": said, "logged": step, "held": held, "torn": log.read_bytes()[-1:] != b"\\n",
    "kept": [[one, values["loss"]] for one, values in points(log)], "last": records(log)[-1],
    "damaged": log.read_bytes().count(b"\\n") - len(records(log)),
}))
"""


@on_small_disk
def test_what_a_full_disk_held_up_is_written_in_order_when_there_is_room(tmp_path: Path) -> None:
    found = inside(tmp_path, 1, FULL, "room")
    assert found["kept"] == [[step, step / 7] for step in range(found["logged"])]
    assert (found["said"], found["damaged"], found["torn"]) == ([], 0, False)
    assert found["last"][0::2] == ["z", "completed"]


@on_small_disk
def test_what_a_full_disk_never_took_is_counted_and_told_at_the_end(tmp_path: Path) -> None:
    found = inside(tmp_path, 1, FULL, "full")
    # What is there is whole and in order; the rest, and the status, are what was told.
    kept = found["kept"]
    assert kept == [[step, step / 7] for step in range(len(kept))]
    missing = found["logged"] - len(kept)
    assert missing >= 400
    assert len(found["said"]) == 1
    assert found["said"][0].startswith(f"{missing + 1:,} records could not be written to ")
    assert found["damaged"] == 0


def test_a_limit_on_the_size_of_files_holds_up_and_loses_nothing(tmp_path: Path) -> None:
    done = run(
        """
        import resource
        monitor = TrainingMonitor("limit", {quiet})
        log = monitor.recorder.writer.path
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
        for step in range(200):
            monitor.log_metrics({"loss": step / 7}, step)
        assert log.stat().st_size == 2_000, "a line was cut in the middle"
        monitor.log_metrics({"new": 1.0}, 200)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(monitor.finish())
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n")
    (log,) = logs(tmp_path)
    assert points(log) == [(step, {"loss": step / 7}) for step in range(200)] + [(200, {"new": 1.0})]
    assert last_status(log)[0] == "completed"


def test_memory_for_what_waits_is_bounded_and_the_first_of_it_is_kept(tmp_path: Path) -> None:
    done = run(
        """
        import resource
        from gpu_monitor.training import log as writing
        writing.WAITING_BYTES = 20_000
        monitor = TrainingMonitor("limit", {quiet})
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
        for step in range(2_000):
            monitor.log_metrics({"loss": step / 7}, step)
        monitor.log_metrics({"fresh": 1.0}, 5_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        monitor.recorder.writer.drain()
        monitor.log_metrics({"fresh": 1.0}, 6_000)
        print(*monitor.finish())
        """,
        tmp_path,
    )
    (log,) = logs(tmp_path)
    found = points(log)
    kept = len(found) - 1
    assert 300 < kept < 2_000
    # What was logged first, without a gap; then what came when there was room. The series and set of the metric that
    # was new in between are there, so that later values of it can be read.
    assert found == [*((step, {"loss": step / 7}) for step in range(kept)), (6_000, {"fresh": 1.0})]
    assert done.stdout.startswith(f"{2_000 - kept + 1:,} records could not be written to ")
    assert last_status(log)[0] == "completed"


def test_a_folder_that_cannot_be_made_keeps_nobody_from_training(tmp_path: Path) -> None:
    (tmp_path / "experiments").write_text("a file in the way")
    done = run(
        """
        monitor = TrainingMonitor("none", {quiet}, params={"lr": 1})
        for step in range(1_000):
            monitor.log_metrics({"loss": 1.0})
        print("trained")
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert done.stderr.count("cannot write") == 1
    # Header, two statuses, parameters, a series, a set and 1,000 records of points.
    assert "1,006 records could not be written" in done.stderr


def test_a_folder_that_can_be_made_later_gets_everything(tmp_path: Path) -> None:
    (tmp_path / "experiments").write_text("a file in the way")
    done = run(
        """
        monitor = TrainingMonitor("late", {quiet})
        for step in range(100):
            monitor.log_metrics({"loss": step / 7})
        os.remove("experiments")
        print(monitor.finish())
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert points(logs(tmp_path)[0]) == [(step, {"loss": step / 7}) for step in range(100)]


def test_a_folder_that_is_deleted_under_the_training_is_put_back_whole(tmp_path: Path) -> None:
    done = run(
        """
        import shutil
        monitor = TrainingMonitor("gone", {quiet})
        log = monitor.recorder.writer.path
        for step in range(100):
            monitor.log_metrics({"loss": step / 7})
        shutil.rmtree("experiments")
        end = time.monotonic() + 60
        while not log.exists() and time.monotonic() < end:
            monitor.log_metrics({"loss": 0.5})
            time.sleep(0.01)
        monitor.log_metrics({"loss": 0.25})
        print(monitor.recorder.step())
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was deleted while the training ran") == 1
    found = points(logs(tmp_path)[0])
    assert [step for step, _ in found] == list(range(int(done.stdout) + 1))
    assert found[:100] == [(step, {"loss": step / 7}) for step in range(100)]
    assert last_status(logs(tmp_path)[0])[0] == "completed"


def test_a_log_that_another_file_replaces_is_put_back_and_the_other_kept(tmp_path: Path) -> None:
    done = run(
        """
        monitor = TrainingMonitor("replaced", {quiet})
        log = monitor.recorder.writer.path
        for step in range(100):
            monitor.log_metrics({"loss": step / 7})
        log.unlink()
        log.write_text("something else\\n")
        monitor.log_metrics({"loss": 0.5})
        print(monitor.finish())
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    (log,) = tmp_path.glob("**/seg-*.log")
    assert [step for step, _ in points(log)] == list(range(101))
    assert last_status(log)[0] == "completed"
    (aside,) = log.parent.glob("*.foreign-*")
    assert aside.read_text() == "something else\n"
    assert aside.name in done.stderr


@pytest.mark.parametrize("size", [0, 200])
def test_a_log_that_is_cut_short_is_told(tmp_path: Path, size: int) -> None:
    done = run(
        f"""
        monitor = TrainingMonitor("cut", {{quiet}})
        for step in range(100):
            monitor.log_metrics({{"loss": step / 7}})
        os.truncate(monitor.recorder.writer.path, {size})
        for left in monitor.finish():
            print(left)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "cut short by another program: what it held before is lost here" in done.stdout
    assert "was cut short while the training ran, from " in done.stderr


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("times", [1, 2])
def test_what_is_logged_after_a_cut_goes_on_in_another_segment(
    tmp_path: Path, share: float, times: int
) -> None:
    done = run(
        f"""
        import json
        monitor = TrainingMonitor("cut", {{quiet}})
        for step in range(1_000):
            monitor.log_metrics({{"loss": step / 7}})
        registration = dict(monitor._parts._running)["registration"].path
        paths = [monitor.recorder.writer.path]
        for turn in range({times}):
            monitor.recorder.settle()
            monitor.log_metrics({{"new": 5.0}}, 1_000)
            os.truncate(paths[-1], int(paths[-1].stat().st_size * {share}))
            monitor.log_metrics({{"loss": turn, "new": 2.0}}, 1_001)
            monitor.log_metrics({{"loss": 1.0}}, 1_002)
            end = time.monotonic() + 60
            while monitor.recorder.writer.path == paths[-1] and time.monotonic() < end:
                time.sleep(0.01)
            paths.append(monitor.recorder.writer.path)
            monitor.log_metrics({{"loss": 3.0, "later": 2.0}}, 1_003)
        told = json.loads(registration.read_text())["segment"]
        monitor.finish()
        print(json.dumps([[path.stem for path in paths], told]))
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was cut short while the training ran, from ") == times
    names, told = json.loads(done.stdout)
    assert (len(names), told) == (times + 1, names[-1]), "the machine's agent is told of the new one"
    (log,) = tmp_path.glob(f"**/{names[-1]}.log")
    found = records(log)
    assert (found[0][2]["segment"], found[0][2]["after"]) == (names[-1], names[-2])
    assert log.read_bytes().count(b"\n") == len(found), "nothing is damaged"
    assert [number for kind, number, *_ in found if kind == "s"] == [0, 1, 2]
    assert points(log) == [
        (1_001, {"loss": times - 1, "new": 2.0}), (1_002, {"loss": 1.0}), (1_003, {"loss": 3.0, "later": 2.0}),
    ]  # fmt: skip
    assert last_status(log)[0] == "completed"


def test_a_cut_that_comes_while_the_disk_is_full_loses_nothing_that_waits(tmp_path: Path) -> None:
    """Records wait in memory when the file is cut, the definition of a metric among them."""
    done = run(
        """
        import resource
        monitor = TrainingMonitor("cut", {quiet})
        for step in range(100):
            monitor.log_metrics({"loss": step / 7}, step)
        log = monitor.recorder.writer.path
        size = log.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
        for step in range(100, 200):
            monitor.log_metrics({"loss": step / 7, "new": 1.0}, step)
        os.truncate(log, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        monitor.recorder.settle()
        path = monitor.recorder.writer.path
        monitor.finish()
        print(path.stem if path != log else "none")
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.glob(f"**/{done.stdout.strip()}.log")
    assert points(log) == [(step, {"loss": step / 7, "new": 1.0}) for step in range(100, 200)]
    assert last_status(log)[0] == "completed"


def test_a_folder_that_is_deleted_just_before_the_end_is_put_back_too(tmp_path: Path) -> None:
    done = run(
        """
        import shutil
        with TrainingMonitor("gone", {quiet}) as monitor:
            monitor.log_metrics({"loss": 0.5})
            shutil.rmtree("experiments")
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert points(logs(tmp_path)[0]) == [(0, {"loss": 0.5})]


@pytest.mark.skipif(sys.platform != "linux", reason="gives up the rights of root in the way of Linux")
def test_a_directory_that_may_only_be_read_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir(mode=0o555)
    done = run(
        """
        # Root may write anywhere, until it gives that up: 1 is CAP_DAC_OVERRIDE.
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        if os.geteuid() == 0:
            header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert libc.capset(header, data) == 0
        monitor = TrainingMonitor("other", {quiet})
        for step in range(100):
            monitor.log_metrics({"loss": 1.0})
        print(len(monitor.finish()))
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert done.stderr.count("Permission denied") == 1


@pytest.mark.parametrize("how", ["sys.stderr.close()", "sys.stderr = None", "os.close(2)"])
def test_closed_streams_do_no_harm(tmp_path: Path, how: str) -> None:
    done = run(
        f"""
        {how}
        monitor = TrainingMonitor("silent", {{quiet}})
        monitor.log_metrics({{"bad%": "x", "loss": 1.0}})
        monitor.log_metrics({{"loss": 2.0}})
        monitor.finish("nonsense")
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert points(logs(tmp_path)[0]) == [(0, {"loss": 1.0}), (1, {"loss": 2.0})]


def test_a_handler_of_logging_that_raises_does_no_harm(tmp_path: Path) -> None:
    done = run(
        """
        import logging
        class Bad(logging.Handler):
            def handle(self, record):
                raise KeyError("broken")
        logging.getLogger().addHandler(Bad())
        monitor = TrainingMonitor("silent", {quiet})
        monitor.log_metrics({"bad%": "x"})
        monitor.log_metrics({"loss": 2.0})
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert points(logs(tmp_path)[0]) == [(0, {"loss": 2.0})]


def test_settings_that_are_wrong_are_told_and_the_training_is_recorded(tmp_path: Path) -> None:
    code = """
        monitor = TrainingMonitor("bad", server="htp:/nowhere", capture=False, strict=bool(sys.argv[1:]))
        monitor.log_metrics({"loss": 2.0})
        """
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no address of a server" in done.stderr
    assert points(logs(tmp_path)[0]) == [(0, {"loss": 2.0})]
    strict = run(code, tmp_path, "strict")
    assert strict.returncode == 1
    assert "ConfigError" in strict.stderr


def test_params_that_json_cannot_say_become_texts(tmp_path: Path) -> None:
    done = run(
        """
        import enum, pathlib, numpy
        class Color(enum.Enum):
            RED = "red"
        class Bad:
            def __str__(self): raise OSError("no")
        loop = []
        loop.append(loop)
        monitor = TrainingMonitor("params", {quiet}, params={
            "path": pathlib.PurePosixPath("/data"), "kind": Color.RED, "tuple": (1, 2.5), "numpy": numpy.float32(0.5),
            "array": numpy.zeros(3), "one": numpy.ones((1,)), "nan": float("nan"), "bad": Bad(), "set": {1}, 7: "seven",
            "big": 10**40, "none": None, "yes": True, "surrogate": "a\\ud800", "nested": {"a": {"b": [1]}},
        })
        monitor.log_params({"loop": loop, "path": "later"})
        monitor.log_params("nonsense")
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    from tests.training.runs import of_kind

    (first, second) = [record[2] for record in of_kind(logs(tmp_path)[0], "a")]
    assert first == {
        "path": "/data", "kind": "red", "tuple": [1, 2.5], "numpy": 0.5, "array": "[0. 0. 0.]", "one": 1.0,
        "nan": "NaN", "bad": "<Bad>", "set": [1], "7": "seven", "big": 1e40, "none": None, "yes": True,
        "surrogate": "a?", "nested": {"a": {"b": [1]}},
    }  # fmt: skip
    assert second["path"] == "later"
    assert done.stderr.count("parameters are a mapping") == 1
