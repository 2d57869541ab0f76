"""Output is written first and recorded beside: in real processes, and with streams of many kinds."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from gpu_monitor.training.console import Console
from gpu_monitor.training.place import new_id
from gpu_monitor.training.recorder import Recorder, Run
from tests.training.recorded import only, output


def run(tmp_path: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A program with a monitor `m` that takes down nothing but the output."""
    whole = (
        "import sys, os\nfrom gpu_monitor.training import TrainingMonitor\n"
        f"m = TrainingMonitor('x', directory={str(tmp_path / 'e')!r}, capture=['console'])\n"
        f"{textwrap.dedent(code)}"
    )
    command = [sys.executable, *options, "-c", whole]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_lines_of_both_streams_are_written_and_recorded(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import logging
        print("one"); print("two", file=sys.stderr)
        logging.getLogger().addHandler(logging.StreamHandler()); logging.error("three")
        sys.stdout.write("no end")
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\nno end", "two\nthree\n")
    folder = only(tmp_path / "e")
    assert output(folder) == ["one", "no end"]
    assert output(folder, "stderr") == ["two", "three"]


def test_handlers_that_held_the_stream_before_are_heard(tmp_path: Path) -> None:
    code = f"""
        import logging, sys
        logging.basicConfig(level="INFO")
        from gpu_monitor.training import TrainingMonitor
        m = TrainingMonitor("x", directory={str(tmp_path / "e")!r}, capture=["console"])
        logging.info("heard")
        m.finish()
        logging.info("after")
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=True, timeout=60)
    assert output(only(tmp_path / "e"), "stderr") == ["INFO:root:heard"]


def test_an_uncaught_exception_is_in_the_log(tmp_path: Path) -> None:
    done = run(tmp_path, "raise RuntimeError('it broke')")
    assert done.returncode == 1
    assert output(only(tmp_path / "e"), "stderr") == done.stderr.splitlines()
    assert "RuntimeError: it broke" in done.stderr


def test_a_forked_child_prints_without_being_recorded_or_held_up(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        print("before", flush=True)
        pid = os.fork()
        if pid == 0:
            print("in the child", flush=True)
            m.log_metrics({"a": 1.0})
            os._exit(0)
        os.waitpid(pid, 0)
        print("after")
        """,
    )
    assert done.stdout == "before\nin the child\nafter\n"
    assert sorted(output(only(tmp_path / "e"))) == ["after", "before"]


def test_streams_that_are_not_there_are_no_trouble(tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.stdout = sys.stderr = None
        from gpu_monitor.training import TrainingMonitor
        with TrainingMonitor("x", directory={str(tmp_path / "e")!r}, capture=["console"]) as m:
            print("nowhere")
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
    assert output(only(tmp_path / "e")) == []


def test_a_broken_pipe_is_the_programs_own_as_without_us(tmp_path: Path) -> None:
    code = "import signal\nfor i in range(100000): print('x' * 100)"
    whole = (
        "from gpu_monitor.training import TrainingMonitor\n"
        f"m = TrainingMonitor('x', directory={str(tmp_path / 'e')!r}, capture=['console'])\n{code}"
    )
    command = f"{sys.executable} -c '{whole.replace(chr(39), chr(34))}' | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "x" * 100 + "\n"
    assert "BrokenPipeError" in done.stderr


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    experiment = new_id(1_780_000_000.0)
    return Recorder(Run(experiment, "x", "p", tmp_path / experiment))


class Notebook:
    """A stream as notebooks have it: no file, no encoding of its own, written from several threads."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(self.pieces)

    def write(self, text: str) -> int:
        """Take text."""
        self.pieces.append(text)
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""


def test_a_stream_without_a_file(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Notebook()
    monkeypatch.setattr(sys, "stdout", stream)
    console = Console(recorder)
    console.start()
    assert sys.stdout is stream
    assert sys.stdout.write("a\n") == 2
    print("b")
    console.close(5.0)
    print("c")
    assert stream.text == "a\nb\nc\n"
    assert "write" not in vars(stream)
    recorder.close(1.0)
    assert output(recorder.folder) == ["a", "b"]


def test_the_stream_is_the_same_in_all_it_tells(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="replace")
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console(recorder)
    console.start()
    assert sys.stderr is stream
    assert (stream.encoding, stream.errors, stream.isatty()) == ("latin-1", "replace", False)
    with pytest.raises(io.UnsupportedOperation):
        stream.fileno()
    print("é → x", file=sys.stderr)
    sys.stderr.writelines(["two\n", "three\n"])
    with pytest.raises(TypeError):
        sys.stderr.write(b"bytes")  # type: ignore[arg-type]
    console.close(5.0)
    recorder.close(1.0)
    stream.flush()
    assert stream.buffer.getvalue() == b"\xe9 ? x\ntwo\nthree\n"  # type: ignore[attr-defined]
    assert output(recorder.folder, "stderr") == ["é → x", "two", "three"]


def test_under_pytest_capture(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(recorder)
    console.start()
    print("seen")
    console.close(5.0)
    recorder.close(1.0)
    assert capsys.readouterr().out == "seen\n"
    assert output(recorder.folder) == ["seen"]


def test_two_at_once_and_ended_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Notebook()
    monkeypatch.setattr(sys, "stdout", stream)
    both = [Recorder(Run(name, name, "p", tmp_path / name)) for name in ("first", "second")]
    consoles = [Console(recorder) for recorder in both]
    for console in consoles:
        console.start()
    print("both")
    consoles[0].close(5.0)  # below the other one: it stays, and says nothing
    print("second")
    consoles[1].close(5.0)
    print("none")
    for recorder in both:
        recorder.close(1.0)
    assert stream.text == "both\nsecond\nnone\n"
    assert [output(recorder.folder) for recorder in both] == [["both"], ["both", "second"]]


def test_threads_lose_nothing(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Notebook())
    console = Console(recorder)
    console.start()

    def talk(name: str) -> None:
        for number in range(500):
            sys.stdout.write(f"{name}{number}\n")

    threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    console.close(10.0)
    recorder.close(1.0)
    assert sorted(output(recorder.folder)) == sorted(
        f"{name}{number}" for name in "abcd" for number in range(500)
    )


def test_a_flood_is_dropped_counted_and_said(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Notebook()
    monkeypatch.setattr(sys, "stdout", stream)
    console = Console(recorder)
    console.start()
    line = "x" * 1000 + "\n"
    for _ in range(20_000):  # 20 MB at once; 4 MiB may wait
        sys.stdout.write(line)
    assert len(stream.text) == 20_000 * len(line)
    console.close(10.0)
    recorder.close(1.0)
    found = output(recorder.folder)
    said = [text for text in found if text.startswith("[gpu_monitor: ")]
    dropped = sum(int(text.split()[1]) for text in said)
    assert dropped > 0
    assert len(found) - len(said) + dropped == 20_000


def test_what_our_own_warnings_say_comes_to_an_end(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that cannot be written warns on the stream that is recorded."""
    stream = Notebook()
    monkeypatch.setattr(sys, "stderr", stream)
    handler = logging.StreamHandler(stream)
    logging.getLogger("gpu_monitor.training").addHandler(handler)
    try:
        recorder.folder.write_text("a file where the folder should be")
        console = Console(recorder)
        console.start()
        print("hello", file=sys.stderr)
        console.close(5.0)
        recorder.close(0.2)
    finally:
        logging.getLogger("gpu_monitor.training").removeHandler(handler)
    assert stream.text.startswith("hello\n")
    assert stream.text.count("cannot write") == 1
