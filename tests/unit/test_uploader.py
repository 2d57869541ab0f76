"""The SDK's thread brings a run to a server while it is written, and never makes anybody wait."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.sinks.experiments import ExperimentServer, Told
from gpu_monitor.sinks.patience import Patience
from gpu_monitor.sinks.sent import read_sent
from gpu_monitor.training.recorder import Recorder, Run
from gpu_monitor.training.upload import Upload
from gpu_monitor.training.uploader import Uploader
from gpu_monitor.wire.training import Note, Status
from tests.e2e.waiting import until
from tests.fakes.experiments import Fault, Shelf
from tests.fakes.segments import add_blob, header, make, points


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as started:
        yield started


SPEED = 40.0


class Quick(SystemClock):
    """A clock that runs forty times as fast, so that a minute's patience is over soon."""

    def monotonic(self) -> float:
        """Seconds that pass forty times as fast."""
        return super().monotonic() * SPEED

    def wait(self, event: threading.Event, deadline: float) -> bool:
        """Wait until that clock has come to the deadline."""
        return event.wait(max(0.0, deadline - self.monotonic()) / SPEED)


class Rig:
    """A recorder and its upload."""

    def __init__(
        self,
        shelf: Shelf,
        directory: Path,
        *,
        sweeps: bool = False,
        clock: SystemClock | None = None,
        share: tuple[int, int] = (0, 1),
        works: bool = True,
    ) -> None:
        """`works`: False for a test that does the rounds of the thread itself."""
        self.share, self.works = share, works
        self.said: list[str] = []
        self.recorder = Recorder(Run("e1", "resnet", "images", directory / "e1"))
        self.recorder.put(Status(0, "running", {}))
        self.server = ExperimentServer(shelf.url, lambda: "a-good-token", timeout_seconds=1.5)
        self.uploader = Uploader(
            self.server, directory if sweeps else None, clock or Quick(), Patience(lambda: 0.0)
        )
        self.upload = self.add(self.recorder)

    def add(self, recorder: Recorder) -> Upload:
        """Have a recorder's segment uploaded."""
        upload = Upload(
            self.server,
            recorder.writer.path,
            recorder.at,
            lambda _key, text: self.said.append(text),
            self.share,
        )
        if self.works:
            self.uploader.add(upload)
        else:
            self.uploader._uploads.append(upload)
        return upload

    @property
    def path(self) -> Path:
        """The segment."""
        return self.recorder.writer.path

    def end(self, timeout: float = 20.0) -> str | None:
        """End the run as `finish` does."""
        words = self.uploader.leave(self.upload, timeout * SPEED)
        self.recorder.close(1.0)
        return words


def test_records_are_at_the_server_soon_and_all_at_the_end(shelf: Shelf, tmp_path: Path) -> None:
    rig = Rig(shelf, tmp_path)
    for step in range(2000):
        rig.recorder.log_points({"loss": step / 7, "rate": 0.1}, step)
    until(lambda: len(shelf.held("e1", rig.path.stem)) > 1000, "the first records are there")
    for step in range(2000):
        rig.recorder.log_points({"loss": step / 7, "rate": 0.1}, step)
    assert rig.end() is None
    assert shelf.held("e1", rig.path.stem) == rig.path.read_bytes()
    assert read_sent(rig.path)[shelf.url].offset == rig.path.stat().st_size
    assert {one.token for one in shelf.asked} == {"a-good-token"}


def test_the_thread_ends_with_the_last_run_and_begins_again_with_the_next(
    shelf: Shelf, tmp_path: Path
) -> None:
    rig = Rig(shelf, tmp_path)
    assert rig.end() is None
    until(lambda: rig.uploader._thread is None, "the thread ends")
    other = Recorder(Run("e2", "resnet", "images", tmp_path / "e2"))
    other.put(Note(1, "again"))
    upload = rig.add(other)
    assert rig.uploader.leave(upload, 20 * SPEED) is None
    assert shelf.held("e2", other.segment) == other.writer.path.read_bytes()
    other.close(1.0)


def test_one_thread_serves_all_runs_of_a_process(shelf: Shelf, tmp_path: Path) -> None:
    before = threading.active_count()
    rig = Rig(shelf, tmp_path)
    others = [Recorder(Run(f"e{number}", "x", "y", tmp_path / f"e{number}")) for number in range(2, 6)]
    for other in others:
        other.put(Note(1, "hello"))
    uploads = [rig.add(other) for other in others]
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("gpu_monitor-upload") <= before + 1
    assert names.count("gpu_monitor-upload") == 1
    assert [rig.uploader.leave(upload, 20 * SPEED) for upload in uploads] == [None] * 4
    assert rig.end() is None
    assert {key[0] for key in shelf.segments} == {"e1", "e2", "e3", "e4", "e5"}
    for other in others:
        other.close(1.0)


@pytest.mark.parametrize(
    "faults",
    [
        ["lost"] * 4,
        ["reset"] * 4,
        [Fault("status", status=500)] * 5,
        [Fault("status", status=503, headers={"Retry-After": "1"})] * 2,
        [Fault("status", status=429), "lost", Fault("says", offset=0), "reset", Fault("status", status=502)],
    ],
    ids=["lost answers", "resets", "500", "503", "everything"],
)
def test_what_a_bad_server_did_is_made_good(faults: list[Fault | str], shelf: Shelf, tmp_path: Path) -> None:
    shelf.behave(*faults)
    rig = Rig(shelf, tmp_path)
    for step in range(500):
        rig.recorder.log_points({"loss": step / 7}, step)
    until(lambda: shelf.held("e1", rig.path.stem) == rig.path.read_bytes(), "all of it is there")
    assert rig.end() is None
    assert shelf.held("e1", rig.path.stem) == rig.path.read_bytes()


def test_a_server_that_comes_back_gets_everything(shelf: Shelf, tmp_path: Path) -> None:
    rig = Rig(shelf, tmp_path)
    until(lambda: shelf.held("e1", rig.path.stem), "it has begun")
    shelf.stop()
    for step in range(5000):
        rig.recorder.log_points({"loss": step / 7}, step)
    shelf.start()
    until(lambda: shelf.held("e1", rig.path.stem) == rig.path.read_bytes(), "all of it is there")
    assert rig.end() is None


def test_a_dead_server_does_not_hold_up_the_end(shelf: Shelf, tmp_path: Path) -> None:
    shelf.stop()
    rig = Rig(shelf, tmp_path)
    rig.recorder.log_points({"loss": 1.0}, 1)
    words = rig.end()
    size = rig.path.stat().st_size
    assert words is not None
    assert words.startswith(
        f"{size:,} bytes are only in {tmp_path / 'e1'}, not on {shelf.url}: no connection to"
    )
    assert f"`gpu_monitor sync {tmp_path}`" in words
    until(lambda: rig.uploader._thread is None, "the thread gives up")


@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_a_server_that_hangs_does_not_hold_up_the_end(kind: str, shelf: Shelf, tmp_path: Path) -> None:
    shelf.behave(then=Fault(kind, seconds=5))
    rig = Rig(shelf, tmp_path, clock=SystemClock())
    began = time.monotonic()
    words = rig.uploader.leave(rig.upload, 0.3)
    assert time.monotonic() - began < 5, "the drip of a byte every 5 s is not waited for"
    assert words is not None
    assert "0.3 s were not enough" in words
    shelf.behave()
    shelf.release.set()
    until(lambda: rig.upload.done.is_set(), "the thread goes on with it")
    assert shelf.held("e1", rig.path.stem) == rig.path.read_bytes()
    rig.recorder.close(1.0)


def test_a_refused_token_is_told_of_once_and_never_shown(tmp_path: Path) -> None:
    with Shelf(token="the-right-token") as strict:
        rig = Rig(strict, tmp_path)
        until(lambda: rig.said, "it is told")
        words = rig.end()
    assert words is not None
    assert "401" in words
    assert all("a-good-token" not in text for text in [*rig.said, words])
    assert "*** is not known" in words
    assert len({text for text in rig.said if "GPU_MONITOR_TOKEN" in text}) == 1


def test_a_token_that_was_mended_is_used(tmp_path: Path) -> None:
    held = ["a-wrong-token"]
    with Shelf(token="the-right-token") as strict:
        rig = Rig(strict, tmp_path)
        rig.server._token = lambda: held[0]
        until(lambda: any(one.status == 401 for one in strict.asked), "it is refused")
        held[0] = "the-right-token"
        until(lambda: strict.held("e1", rig.path.stem) == rig.path.read_bytes(), "it is there")
        assert rig.end() is None


def test_a_segment_that_is_refused_ends_at_once_with_the_reason(shelf: Shelf, tmp_path: Path) -> None:
    shelf.behave(then=Fault("status", status=422, body='{"detail": "line 3 is no record"}'))
    rig = Rig(shelf, tmp_path)
    words = rig.end()
    assert words is not None
    assert "line 3 is no record" in words
    assert shelf.count("PUT") == 2, "tried twice, not for ever"


def test_an_older_server_is_told_of_and_left_alone(shelf: Shelf, tmp_path: Path) -> None:
    shelf.behave(then=Fault("status", status=404))
    rig = Rig(shelf, tmp_path)
    words = rig.end()
    assert words is not None
    assert "404" in words
    assert shelf.count("PUT") == 1


def test_a_run_that_says_nothing_says_that_it_lives(shelf: Shelf, tmp_path: Path) -> None:
    rig = Rig(shelf, tmp_path)
    until(lambda: shelf.held("e1", rig.path.stem) == rig.path.read_bytes(), "all of it is there")
    until(lambda: shelf.alive, "it says so")
    experiment, body = shelf.alive[0]
    assert experiment == "e1"
    assert body["segment"] == rig.path.stem
    assert 0 <= body["at"] < 60_000, "milliseconds since the segment's start"
    assert rig.end() is None


def test_segments_of_forked_children_go_with_their_parents(shelf: Shelf, tmp_path: Path) -> None:
    rig = Rig(shelf, tmp_path)
    child = make(tmp_path, "e1", "seg-c0000000", parent=rig.path.stem)
    grandchild = make(tmp_path, "e1", "seg-b0000000", parent="seg-c0000000")
    assert rig.end() is None
    assert shelf.held("e1", "seg-c0000000") == child.read_bytes()
    assert shelf.held("e1", "seg-b0000000") == grandchild.read_bytes()


def test_what_is_left_of_the_own_experiment_goes_with_it(shelf: Shelf, tmp_path: Path) -> None:
    old = [make(tmp_path, "e1", f"seg-0000000{number}", started=1e9 + number) for number in range(3)]
    old[1].write_bytes(old[1].read_bytes() + b'["p",torn')
    sha256 = add_blob(old[2], b"picture" * 100_000)
    rig = Rig(shelf, tmp_path)
    assert rig.end() is None, "the end of a record that was never written whole is owed to nobody"
    for path in old:
        whole = path.read_bytes()[: path.read_bytes().rfind(b"\n") + 1]
        assert shelf.held("e1", path.stem) == whole
        assert read_sent(path)[shelf.url].offset == len(whole)
    assert bytes(shelf.blobs[sha256]) == b"picture" * 100_000
    first = [one.path.rpartition("/")[2] for one in shelf.asked if "/segments/" in one.path]
    assert list(dict.fromkeys(first))[1:] == [path.stem for path in old], "the first that began at first"


def test_much_that_is_left_does_not_hold_up_new_points(shelf: Shelf, tmp_path: Path) -> None:
    old = make(tmp_path, "e1", "seg-00000000", count=200_000)
    size = old.stat().st_size
    assert size > 5 << 20, "more than five requests carry"
    rig = Rig(shelf, tmp_path, works=False)
    rounds = 0
    while len(shelf.held("e1", old.stem)) < size:
        before = len(shelf.held("e1", old.stem))
        rig.recorder.log_points({"loss": rounds / 7}, rounds)
        assert rig.uploader._round() is not None
        rounds += 1
        assert shelf.held("e1", rig.path.stem) == rig.path.read_bytes(), (
            "new points are there after each round"
        )
        assert before < len(shelf.held("e1", old.stem)) <= before + (1 << 20), "and one piece of the old ones"
    assert shelf.held("e1", old.stem) == old.read_bytes()
    rig.recorder.close(1.0)
    rig.server.close()


def test_a_run_that_ends_in_the_middle_of_a_round_is_looked_at_once_more(
    shelf: Shelf, tmp_path: Path
) -> None:
    """Its last points, and files that were refused before: the round had passed by both when it ended."""
    rig = Rig(shelf, tmp_path, works=False)
    while shelf.held("e1", rig.path.stem) != rig.path.read_bytes():
        assert rig.uploader._round() is not None
    shelf.behave("good", Fault("status", status=507, body='{"detail": "no room"}'))
    sha256 = add_blob(rig.path, b"weights")
    while shelf.held("e1", rig.path.stem) != rig.path.read_bytes():
        assert rig.uploader._round() is not None
    assert sha256 not in shelf.whole
    own, upload = rig.upload.own, rig.upload
    look = own.step

    def look_then_end() -> Told | None:
        found = look()
        own.step = look  # type: ignore[method-assign]
        rig.recorder.log_points({"loss": 0.1}, 1)
        upload.is_leaving = True
        return found

    own.step = look_then_end  # type: ignore[method-assign]
    while rig.uploader._round() is not None:
        pass
    assert (upload.left(), upload.missing()) == (0, [])
    assert sha256 in shelf.whole
    assert shelf.held("e1", rig.path.stem) == rig.path.read_bytes()
    rig.recorder.close(1.0)


def test_what_a_living_process_of_the_experiment_writes_is_left_to_it(shelf: Shelf, tmp_path: Path) -> None:
    other = Recorder(Run("e1", "resnet", "images", tmp_path / "e1"))
    other.put(Note(1, "mine"))
    rig = Rig(shelf, tmp_path)
    assert rig.end() is None
    assert {key[1] for key in shelf.segments} == {rig.path.stem}
    other.close(1.0)
    # It is gone now, and did not upload: whoever comes next does.
    again = Rig(shelf, tmp_path)
    assert again.end() is None
    assert shelf.held("e1", other.segment) == other.writer.path.read_bytes()


def test_of_several_ranks_each_takes_what_its_number_left(shelf: Shelf, tmp_path: Path) -> None:
    for rank in range(6):
        make(tmp_path, "e1", f"seg-0000000{rank}", writer={"host": "h", "pid": 7, "rank": rank})
    make(tmp_path, "e1", "seg-00000009")
    rig = Rig(shelf, tmp_path, share=(1, 4))
    assert rig.end() is None
    assert {key[1] for key in shelf.segments} == {rig.path.stem, "seg-00000001", "seg-00000005"}
    alone = Rig(shelf, tmp_path)
    assert alone.end() is None
    assert len({key[1] for key in shelf.segments}) == 9, "one alone takes all"


def test_what_is_left_and_cannot_go_is_told_of_at_the_end(shelf: Shelf, tmp_path: Path) -> None:
    old = make(tmp_path, "e1", "seg-00000000")
    shelf.segments["e1", old.stem] = bytearray(b"x" * old.stat().st_size)
    rig = Rig(shelf, tmp_path)
    words = rig.end()
    assert words is not None
    assert words.startswith(
        f"{old.stat().st_size:,} bytes are only in {tmp_path / 'e1'}, not on {shelf.url}: "
    )
    assert "differs from what is held" in words
    assert any("seg-00000000 cannot be uploaded" in text for text in rig.said)
    assert shelf.held("e1", rig.path.stem) == rig.path.read_bytes()


def test_a_server_that_dies_leaves_old_and_new_to_the_next(shelf: Shelf, tmp_path: Path) -> None:
    old = make(tmp_path, "e1", "seg-00000000")
    shelf.stop()
    rig = Rig(shelf, tmp_path)
    words = rig.end()
    both = old.stat().st_size + rig.path.stat().st_size
    assert words is not None
    assert words.startswith(f"{both:,} bytes are only in {tmp_path / 'e1'}, not on {shelf.url}: ")


def test_one_segment_that_breaks_the_server_does_not_stop_the_others(shelf: Shelf, tmp_path: Path) -> None:
    old = [make(tmp_path, "e1", f"seg-0000000{number}", started=1e9 + number) for number in range(2)]
    shelf.broken[old[0].stem] = 500
    rig = Rig(shelf, tmp_path)
    for step in range(20):
        rig.recorder.log_points({"loss": step / 7}, step)
    until(lambda: shelf.held("e1", rig.path.stem) == rig.path.read_bytes(), "the new points are there")
    until(lambda: shelf.held("e1", old[1].stem) == old[1].read_bytes(), "the other old segment is there")
    words = rig.end()
    assert words is not None
    assert words.startswith(f"{old[0].stat().st_size:,} bytes are only in ")
    assert "this one breaks it" in words


def test_files_go_before_their_records(shelf: Shelf, tmp_path: Path) -> None:
    rig = Rig(shelf, tmp_path)
    content = os.urandom(3 << 20)
    sha256 = add_blob(rig.path, content)
    assert rig.end() is None
    assert bytes(shelf.blobs[sha256]) == content
    assert shelf.held("e1", rig.path.stem) == rig.path.read_bytes()


def test_a_file_for_which_there_was_no_room_is_tried_again_at_the_end(shelf: Shelf, tmp_path: Path) -> None:
    rig = Rig(shelf, tmp_path)
    until(lambda: shelf.held("e1", rig.path.stem) == rig.path.read_bytes(), "the header is there")
    shelf.behave("good", Fault("status", status=507, body='{"detail": "no room"}'))
    sha256 = add_blob(rig.path, b"weights")
    until(lambda: shelf.held("e1", rig.path.stem) == rig.path.read_bytes(), "the record is there")
    assert sha256 not in shelf.whole
    assert rig.end() is None
    assert sha256 in shelf.whole


def test_a_file_that_is_still_owed_at_the_end_is_told(shelf: Shelf, tmp_path: Path) -> None:
    rig = Rig(shelf, tmp_path)
    sha256 = add_blob(rig.path, b"weights")
    (rig.path.parent / f"media/{sha256[:16]}.bin").unlink()
    words = rig.end()
    assert words is not None
    assert "1 of its files were not uploaded" in words
    assert read_sent(rig.path)[shelf.url].owed


def test_what_earlier_runs_left_is_uploaded_after_the_own(shelf: Shelf, tmp_path: Path) -> None:
    old = [make(tmp_path, f"20240101T00000{number}Z-aaaaaaaa", count=50) for number in range(3)]
    old[1].write_bytes(old[1].read_bytes() + b'["p",torn')
    add_blob(old[2], b"picture")
    rig = Rig(shelf, tmp_path, sweeps=True)
    until(lambda: len(shelf.segments) == 4, "all are there")
    until(lambda: rig.uploader._directory is None, "it has come to the end")
    assert shelf.asked[0].path.startswith("/api/experiments/e1/"), "the own one goes first"
    for path in old:
        held = shelf.held(path.parent.name, path.stem)
        assert held == path.read_bytes()[: len(held)]
        assert held.endswith(b"\n")
        assert path.stat().st_size - len(held) == (9 if path is old[1] else 0)
        assert read_sent(path)[shelf.url].offset == len(held)
    assert rig.end() is None


def test_what_a_living_process_writes_is_left_to_it(shelf: Shelf, tmp_path: Path) -> None:
    other = Recorder(Run("living", "x", "y", tmp_path / "living"))
    other.put(Note(1, "mine"))
    rig = Rig(shelf, tmp_path, sweeps=True)
    until(lambda: rig.uploader._directory is None, "it has looked")
    assert rig.end() is None
    assert {key[0] for key in shelf.segments} == {"e1"}
    other.close(1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="that a process is gone is told from /proc of Linux")
def test_one_that_goes_on_in_another_process_is_not_said_to_have_ended(shelf: Shelf, tmp_path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    # No process has the pid 4194304: the largest is one less.
    gone = {"host": os.uname().nodename, "pid": 1 << 22, "ns_pid": 1 << 22, "start_ticks": 1, "boot_id": boot}
    old = make(tmp_path, "resumed", "seg-00000000", writer=gone)
    make(tmp_path, "over", "seg-00000000", writer=gone)
    now = Recorder(Run("resumed", "x", "y", tmp_path / "resumed"))
    now.put(Note(1, "it goes on"))
    rig = Rig(shelf, tmp_path, sweeps=True)
    until(lambda: rig.uploader._directory is None, "it has looked")
    assert shelf.held("resumed", old.stem) == old.read_bytes()
    assert [experiment for experiment, _ in shelf.ended] == ["over"]
    now.close(1.0)
    assert rig.end() is None


def test_a_mistake_of_ours_is_told_and_the_training_goes_on(
    shelf: Shelf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        rig = Rig(shelf, tmp_path)
        rig.upload.look_around = _fail  # type: ignore[method-assign]
        words = rig.end()
    assert rig.uploader.mistakes >= 1
    assert words is not None
    assert caplog.text.count("the uploader failed (RuntimeError: on purpose)") == 1


def _fail(*_: object) -> None:
    raise RuntimeError("on purpose")


FORKED = """
import json, os, sys
from gpu_monitor.training.monitor import TrainingMonitor
monitor = TrainingMonitor("forking", directory=sys.argv[1], server=sys.argv[2], capture=False)
monitor.log_metrics({"loss": 1.0}, step=1)
child = os.fork()
if child == 0:
    monitor.log_metrics({"loss": 2.0}, step=2)
    monitor.finish()
    os._exit(0)
os.waitpid(child, 0)
monitor.log_metrics({"loss": 3.0}, step=3)
print(json.dumps([monitor.experiment_id, monitor.finish()]))
"""


def test_a_forked_child_writes_and_its_parent_uploads(shelf: Shelf, tmp_path: Path) -> None:
    words = [sys.executable, "-c", FORKED, str(tmp_path), shelf.url]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    experiment, left = json.loads(ran.stdout)
    assert left == []
    segments = sorted((tmp_path / experiment).glob("seg-*.log"))
    assert len(segments) == 2
    for path in segments:
        assert shelf.held(experiment, path.stem) == path.read_bytes()


def test_made_segments_are_as_the_contract_says(tmp_path: Path) -> None:
    path = make(tmp_path)
    assert path.read_bytes() == header("e1", "seg-a0000000") + points(10)
