"""The disposable child as such: frames, deadlines, last words, isolation; with small programs in its place."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpu_monitor.sources.child import Child, Ended, SystemLauncher, command_for, module_paths

Start = Callable[[str], Child]
PRELUDE = """
import mmap, os, sys, time
from gpu_monitor.sources.frames import Inbox, pack
def main(board, lifeline):
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a child whose `main` has this body; what still runs at the end is killed."""
    started: list[Child] = []

    def begin(body: str) -> Child:
        name = f"small_{len(started)}"
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / f"{name}.py").write_text(PRELUDE + lines)
        paths = [*module_paths(), str(tmp_path)]
        started.append(Child(name, paths, SystemLauncher(), 64, {"FOR_THE_CHILD": "yes"}))
        return started[-1]

    yield begin
    for child in started:
        child.kill()
        assert child.has_ended(10)
        child.close()


def test_it_answers(start: Start) -> None:
    child = start(
        "inbox = Inbox()\n"
        "while (piece := os.read(0, 4096)):\n"
        "    inbox.add(piece)\n"
        "    while (found := inbox.take()) is not None:\n"
        "        os.write(1, pack(('got', found[0])))\n"
    )
    child.send(("read", 1.5, {"a": None}))
    assert child.receive(10) == ("got", ("read", 1.5, {"a": None}))
    assert child.receive(0) is None
    child.send(2)
    child.send(3)
    assert [child.receive(10), child.receive(10)] == [("got", 2), ("got", 3)]
    assert not child.has_ended()


def test_an_answer_larger_than_a_pipe_arrives_whole(start: Start) -> None:
    child = start("data = pack('x' * 1_000_000)\nwhile data:\n    data = data[os.write(1, data):]\n")
    assert child.receive(10) == "x" * 1_000_000


def test_silence_is_no_answer_and_no_error(start: Start) -> None:
    child = start("time.sleep(60)")
    assert child.receive(0.05) is None
    child.kill()
    with pytest.raises(Ended):
        child.receive(10)
    assert child.has_ended(10)
    assert child.status == -signal.SIGKILL


def test_its_end_is_noticed_with_its_last_words(start: Start) -> None:
    child = start("print('first')\nraise SystemExit('NVML: cannot go on')")
    with pytest.raises(Ended):
        while child.receive(10) is not None:
            pass
    assert child.has_ended(10)
    assert child.status == 1
    assert child.last_words().endswith("NVML: cannot go on")
    with pytest.raises(Ended):
        child.send("more")


def test_garbage_in_the_pipe_is_the_end_of_talking(start: Start) -> None:
    child = start("os.write(1, b'NVRM: something to say')\ntime.sleep(60)")
    with pytest.raises(Ended):
        child.receive(10)


def test_the_board_is_seen_at_once(start: Start) -> None:
    child = start(
        "memory = mmap.mmap(int(board), 64)\nmemory[5] = 200\nos.write(1, pack('written'))\ntime.sleep(60)"
    )
    assert child.receive(10) == "written"
    assert (child.board()[5], len(child.board())) == (200, 64)


def test_noise_is_forgotten_and_the_newest_kept(start: Start) -> None:
    child = start(
        "sys.stderr.write('noise ' * 100_000)\nsys.stderr.flush()\nos.write(1, pack(1))\n"
        "os.read(0, 100)\nsys.stderr.write('the end')\nsys.stderr.flush()\nos.write(1, pack(2))\ntime.sleep(60)"
    )
    assert child.receive(10) == 1
    child.forget_noise()
    child.send("go on")
    assert child.receive(10) == 2
    assert child.last_words() == "the end"


def test_it_is_a_bare_interpreter_of_the_same_version(start: Start) -> None:
    child = start(
        "os.write(1, pack((sys.flags.isolated, sys.flags.no_site, tuple(sys.version_info[:3]),"
        " os.environ['FOR_THE_CHILD'], 'site' in sys.modules)))"
    )
    assert child.receive(10) == (1, 1, tuple(sys.version_info[:3]), "yes", False)


def test_close_lets_go_of_everything(start: Start) -> None:
    before = len(os.listdir("/proc/self/fd"))
    child = start("os.read(0, 1)")
    assert len(os.listdir("/proc/self/fd")) > before
    child.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert child.has_ended(10), "its input closed"
    child.close()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    class Nowhere(SystemLauncher):
        def start(self, command, wiring):  # type: ignore[no-untyped-def]
            return super().start([str(tmp_path / "no-python"), *command[1:]], wiring)

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Child("any", [], Nowhere(), 64)
    assert len(os.listdir("/proc/self/fd")) == before


def test_paths_are_found_without_importing_anything() -> None:
    loaded = set(sys.modules)
    own, other = module_paths("pynvml", "no_such_module_anywhere")
    assert (Path(own) / "gpu_monitor/sources/child.py").is_file()
    assert (Path(other) / "pynvml.py").is_file()
    assert set(sys.modules) == loaded
    assert command_for("some.module", [own, other], "1", "2")[1:4] == ["-I", "-S", "-c"]
