"""How a training ends, whatever way it takes, and that its own way of ending is not changed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import last_status, logs, of_kind, points, run, start

LOOP = """
monitor = TrainingMonitor("end", {quiet})
monitor.log_metrics({"loss": 1.0})
"""


@pytest.mark.parametrize(
    ("end", "code", "status", "more"),
    [
        ("", 0, "completed", {"exit_code": 0}),
        ("sys.exit()", 0, "completed", {"exit_code": 0}),
        ("sys.exit(3)", 3, "failed", {"exit_code": 3}),
        ("exit(4)", 4, "failed", {"exit_code": 4}),
        ("sys.exit('no data')", 1, "failed", {"exit_code": 1, "reason": "no data"}),
        ("raise ValueError('odd')", 1, "failed", {"reason": "ValueError: odd"}),
        ("raise SystemExit(0)", 0, "completed", {}),
        ("monitor.finish()", 0, "completed", {}),
        ("monitor.finish('failed')", 0, "failed", {}),
        ("monitor.finish('failed'); monitor.finish()", 0, "failed", {}),
        ("monitor.finish(); raise ValueError('later')", 1, "completed", {}),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, "stopped", {"signal": 15}),
        (
            "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
            -signal.SIGINT,
            "stopped",
            {"signal": 2, "reason": "KeyboardInterrupt"},
        ),
        # A caught exit ends nothing; what comes after it counts.
        ("try: sys.exit(3)\nexcept SystemExit: pass", 0, "completed", {"exit_code": 0}),
        ("def main():\n    sys.exit(5)\nmain()", 5, "failed", {"exit_code": 5}),
        (
            "import argparse\nargparse.ArgumentParser().parse_args(['--odd'])",
            2,
            "failed",
            {"exit_code": 2},
        ),
        # A thread that dies does not end the run.
        (
            "t = threading.Thread(target=lambda: sys.exit(9)); t.start(); t.join()",
            0,
            "completed",
            {"exit_code": 0},
        ),
    ],
)
def test_every_end_has_its_status_and_stays_as_it_is(
    tmp_path: Path, end: str, code: int, status: str, more: dict[str, Any]
) -> None:
    done = run(LOOP + end, tmp_path)
    assert done.returncode == code, done.stderr
    (log,) = logs(tmp_path)
    assert last_status(log) == [status, more]
    assert of_kind(log, "z")[0][2] == "running"
    assert points(log) == [(0, {"loss": 1.0})]


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        ("pass", 0, "completed"),
        ("raise ValueError('odd')", 1, "failed"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "stopped"),
        ("sys.exit(7)", 7, "failed"),
        ("raise SystemExit(8)", 8, "failed"),
        ("raise SystemExit", 0, "completed"),
    ],
)
def test_the_block_of_a_monitor_ends_with_it(tmp_path: Path, body: str, code: int, status: str) -> None:
    done = run(f'with TrainingMonitor("end", {{quiet}}) as monitor:\n    {body}\n', tmp_path)
    assert done.returncode == code
    assert last_status(logs(tmp_path)[0])[0] == status


def test_the_traceback_of_what_leaves_the_block_is_in_the_output(tmp_path: Path) -> None:
    done = run(
        """
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError("no text")

        def step(number):
            if number == 900:
                raise Odd
            step(number + 1)

        with TrainingMonitor("end", server="", directory="experiments", capture=["console"]) as monitor:
            print("before", file=sys.stderr)
            step(0)
        """,
        tmp_path,
    )
    assert done.returncode == 1
    (log,) = logs(tmp_path)
    lines = [text for _, _, stream, text in of_kind(log, "x") if stream == "stderr"]
    told = done.stderr[done.stderr.index("Traceback") :].splitlines()
    kept = [line for line in lines if line != "before"]
    assert kept[0] == told[0] == "Traceback (most recent call last):"
    # Python 3.10 words the last line in two ways, by whether C or Python prints it.
    assert kept[-1] in (told[-1], "Odd: <unprintable Odd object>")
    assert kept[:40] == told[:40] and len(kept) < 1000
    assert last_status(log)[0] == "failed" and last_status(log)[1]["reason"].startswith("Odd: ")


def test_a_program_started_by_module_name_ends_as_others_do(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    (tmp_path / "package/train.py").write_text(
        "import sys\nfrom gpu_monitor import TrainingMonitor\n"
        "monitor = TrainingMonitor('end', directory='experiments', server='', capture=False)\n"
        "try:\n    sys.exit(1)\nexcept SystemExit:\n    pass\n"
        "if sys.argv[1:]:\n    sys.exit(int(sys.argv[1]))\n"
    )
    for word, status in (("", "completed"), ("6", "failed")):
        done = run(
            "import subprocess\nsys.exit(subprocess.call([sys.executable, '-m', 'package.train', *sys.argv[1:]]))",
            tmp_path, *([word] if word else []),
        )  # fmt: skip
        assert done.returncode == int(word or 0), done.stderr
        assert last_status(logs(tmp_path)[-1])[0] == status


def test_hooks_of_others_go_on_being_called(tmp_path: Path) -> None:
    done = run(
        """
        def hook(kind, error, trace):
            print("hook", kind.__name__)
        sys.excepthook = hook
        signal.signal(signal.SIGTERM, lambda number, frame: print("term", number))
        monitor = TrainingMonitor("hooks", {quiet})
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        print("goes on")
        raise ValueError
        """,
        tmp_path,
    )
    assert done.stdout.splitlines() == ["term 15", "goes on", "hook ValueError"]
    assert last_status(logs(tmp_path)[0])[0] == "failed"


def test_a_handler_that_ends_the_training_on_sigterm_makes_it_stopped(tmp_path: Path) -> None:
    done = run(
        """
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        monitor = TrainingMonitor("term", {quiet})
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        """,
        tmp_path,
    )
    assert done.returncode == 0
    assert last_status(logs(tmp_path)[0]) == ["stopped", {"signal": 15}]


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    done = run(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        monitor = TrainingMonitor("term", {quiet})
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert last_status(logs(tmp_path)[0])[0] == "completed"


def test_after_the_last_monitor_all_hooks_are_as_they_were(tmp_path: Path) -> None:
    done = run(
        """
        import builtins
        def all_hooks():
            return sys.excepthook, sys.exit, builtins.exit, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        before = all_hooks()
        for _ in range(3):
            first, second = TrainingMonitor("a", {quiet}), TrainingMonitor("b", {quiet})
            assert all_hooks()[:4] != before[:4]
            first.finish()
            assert all_hooks()[:4] != before[:4]
            second.finish()
            assert all_hooks() == before, all_hooks()
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_hooks_that_others_chained_to_are_not_put_on_top_twice(tmp_path: Path) -> None:
    done = run(
        """
        first = TrainingMonitor("a", {quiet})
        ours, ours_term = sys.excepthook, signal.getsignal(signal.SIGTERM)
        def hook(kind, error, trace):
            print("theirs")
            ours(kind, error, trace)
        sys.excepthook = hook
        first.finish()
        second = TrainingMonitor("b", {quiet})
        raise ValueError("once")
        """,
        tmp_path,
    )
    assert done.stdout == "theirs\n"
    assert done.stderr.count("ValueError: once") == 1
    assert [last_status(log)[0] for log in logs(tmp_path)] == ["completed", "failed"]


def test_a_monitor_of_another_thread_leaves_the_signals_alone(tmp_path: Path) -> None:
    done = run(
        """
        def work():
            TrainingMonitor("thread", {quiet}).log_metrics({"loss": 1.0})
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert last_status(logs(tmp_path)[0])[0] == "completed"


def test_sigterm_between_any_two_instructions_leaves_whole_lines_and_the_status(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = start(
            """
            monitor = TrainingMonitor("term", {quiet})
            print("go")
            step = 0
            while True:
                monitor.log_metrics({"loss": step / 7}, step)
                step += 1
            """,
            folder,
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        assert process.returncode == -signal.SIGTERM
        (log,) = logs(folder)
        assert last_status(log) == ["stopped", {"signal": 15}]
        found = points(log)
        assert found == [(step, {"loss": step / 7}) for step in range(len(found))]
        assert log.read_bytes().endswith(b"]\n")


def test_what_is_logged_after_the_end_is_told_and_not_kept(tmp_path: Path) -> None:
    done = run(
        LOOP + "monitor.finish()\nmonitor.log_metrics({'loss': 2.0})\nmonitor.add_note('late')\n", tmp_path
    )
    assert done.returncode == 0
    assert points(logs(tmp_path)[0]) == [(0, {"loss": 1.0})]
    assert done.stderr.count("is finished") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(
    ("body", "code", "status"),
    [("pass", 0, "completed"), ("raise ValueError('odd')", 1, "failed"), ("sys.exit(6)", 6, "failed")],
)
def test_a_process_of_multiprocessing_ends_its_own_experiment(
    tmp_path: Path, method: str, body: str, code: int, status: str
) -> None:
    done = run(
        f"""
        import multiprocessing
        def work():
            monitor = TrainingMonitor("child", {{quiet}})
            monitor.log_metrics({{"loss": 1.0}})
            {body}
        if __name__ == "__main__":
            process = multiprocessing.get_context("{method}").Process(target=work)
            process.start()
            process.join()
            print(process.exitcode)
        """,
        tmp_path,
    )
    assert done.stdout == f"{code}\n", done.stderr
    (log,) = logs(tmp_path)
    assert last_status(log)[0] == status
