"""Artifacts and models: stored by content, refused where a name or file leads elsewhere, numbered for all."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.core.errors import NothingFound
from gpu_monitor.training.artifacts import ArtifactRefused, Artifacts, list_artifacts
from gpu_monitor.training.checkpoints import Checkpoints, Damaged
from gpu_monitor.training.copying import CopyRefused, copy_steady
from gpu_monitor.training.drafts import PREFIX
from gpu_monitor.training.models import ModelRefused, Models, find_model, list_models, verify_model
from gpu_monitor.training.recorder import Recorder, Run
from gpu_monitor.wire.artifact_names import NameRefused, check_name
from tests.fakes.clock import FakeClock
from tests.training.runs import environment
from tests.training.test_checkpoints import media_of

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


def recorder(directory: Path, name: str = "exp-1") -> Recorder:
    return Recorder(Run(name, "a run", "a project", directory / name), strict=True)


@pytest.mark.parametrize(
    "name", ["a", "data/train.csv", "..a", "a..", "été/ü.txt", "100%", "a%20b", ".hidden", "a b"]
)
def test_names_that_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/../b", "a/..", "/a", "a//b", "a/", "C:/a", "c:a", "a\\b", "..\\a", "a\0b", "a\nb", "a\x7f",
     "%2e%2e/a", "a/%2E./b", "%2fetc", "a%5Cb", "a%00", "a" * 256, "a/" * 256 + "a", "\udcff"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(NameRefused):
        check_name(name)


@given(st.text(max_size=40))
def test_a_name_that_is_taken_stays_under_its_root(name: str) -> None:
    try:
        check_name(name)
    except NameRefused:
        return
    root = "/root/of/all"
    assert os.path.normpath(f"{root}/{name}") == f"{root}/{name}"


def test_a_file_is_stored_by_its_content(tmp_path: Path) -> None:
    book = recorder(tmp_path / "experiments")
    source = tmp_path / "notes.json"
    source.write_bytes(b"abc")
    [artifact] = Artifacts(book).log(source, kind="notes")
    # FIPS 180-2, example B.1
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (artifact.name, artifact.sha256, artifact.size) == ("notes.json", sha256, 3)
    assert artifact.path == book.folder / "artifacts" / "ba" / sha256
    source.write_bytes(b"changed in place, later")
    assert artifact.path.read_bytes() == b"abc"
    [record] = media_of(book.folder)
    assert record.kind == "artifact"
    assert record.more == {
        "sha256": sha256, "size": 3, "type": "application/json", "file": f"artifacts/ba/{sha256}", "artifact_type": "notes",
    }  # fmt: skip
    assert list_artifacts(book.folder) == [artifact]


def test_what_has_not_changed_is_stored_and_said_once(tmp_path: Path) -> None:
    book = recorder(tmp_path / "experiments")
    source = tmp_path / "data.bin"
    source.write_bytes(b"one")
    artifacts = Artifacts(book)
    [first] = artifacts.log(source)
    inode = first.path.stat().st_ino
    assert artifacts.log(source) == [first]
    assert len(media_of(book.folder)) == 1
    assert artifacts.log(source, name="copy")[0].path == first.path
    assert first.path.stat().st_ino == inode
    source.write_bytes(b"two")
    [second] = artifacts.log(source)
    assert second.sha256 != first.sha256
    source.write_bytes(b"one")
    assert artifacts.log(source) == [first]
    assert len(media_of(book.folder)) == 4
    assert {found.name: found.sha256 for found in list_artifacts(book.folder)} == {
        "data.bin": first.sha256, "copy": first.sha256,
    }  # fmt: skip


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    book = recorder(tmp_path / "experiments")
    folder = tmp_path / "data"
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.txt").write_text("b")
    (folder / "sub" / "same.txt").write_text("a")
    found = Artifacts(book).log(folder, name="set")
    assert [artifact.name for artifact in found] == ["set/a.txt", "set/sub/b.txt", "set/sub/same.txt"]
    assert found[0].path == found[2].path
    assert {record.more["folder"] for record in media_of(book.folder)} == {"set"}
    with pytest.raises(NothingFound):
        Artifacts(book).log(folder / "sub" / "empty")
    with pytest.raises(NothingFound):
        Artifacts(book).log(folder / "gone")
    with pytest.raises(ArtifactRefused, match="experiment itself"):
        Artifacts(book).log(tmp_path)


def many_files(folder: Path, count: int) -> dict[str, str]:
    """Files of which every tenth says the same; digest by name."""
    folder.mkdir()
    contents = {
        f"{number:04}": b"the same" if number % 10 == 0 else b"%d" % number for number in range(count)
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {
        f"{folder.name}/{name}": hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }


def test_a_large_folder_is_all_of_its_files(tmp_path: Path) -> None:
    book = recorder(tmp_path / "experiments")
    expected = many_files(tmp_path / "data", 700)
    found = Artifacts(book).log(tmp_path / "data")
    assert [one.name for one in found] == sorted(expected)
    assert {one.name: one.sha256 for one in found} == expected
    assert [hashlib.sha256(one.path.read_bytes()).hexdigest() for one in found] == [
        one.sha256 for one in found
    ]
    stored = {path.name for path in (book.folder / "artifacts").rglob("*") if path.is_file()}
    assert stored == set(expected.values())
    assert [record.name for record in media_of(book.folder)] == sorted(expected)
    assert Artifacts(book).log(tmp_path / "data") == found
    assert len(media_of(book.folder)) == 700


def test_a_file_of_a_large_folder_that_goes_meanwhile_is_told_and_what_was_stored_before_is_kept(
    tmp_path: Path,
) -> None:
    book = recorder(tmp_path / "experiments")
    expected = many_files(tmp_path / "data", 700)
    last = tmp_path / "data" / "0699"

    class GoneClock(FakeClock):
        def now(self) -> float:
            last.unlink(missing_ok=True)
            return super().now()

    with pytest.raises(FileNotFoundError, match="0699"):
        Artifacts(book, GoneClock(1_700_000_000.0)).log(tmp_path / "data")
    kept = {one.name: one.sha256 for one in list_artifacts(book.folder)}
    assert len(kept) >= 256
    assert kept == {name: expected[name] for name in kept}
    assert not list((book.folder / "artifacts").glob(f"{PREFIX}*"))


@posix
def test_links_within_are_taken_and_links_out_are_refused(tmp_path: Path) -> None:
    book = recorder(tmp_path / "experiments")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "real.txt").write_text("real")
    (folder / "link.txt").symlink_to("real.txt")
    assert [one.name for one in Artifacts(book).log(folder)] == ["data/link.txt", "data/real.txt"]
    (tmp_path / "secret").write_text("secret")
    for target in ("../secret", "/etc/hostname", "nowhere", "."):
        (folder / "bad").symlink_to(target)
        with pytest.raises(ArtifactRefused, match="link"):
            Artifacts(book).log(folder)
        (folder / "bad").unlink()
    assert len(media_of(book.folder)) == 2


@posix
def test_what_is_no_file_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    book = recorder(tmp_path / "experiments")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    os.mkfifo(folder / "pipe")
    with pytest.raises(ArtifactRefused, match="named pipe"):
        Artifacts(book).log(folder)
    with pytest.raises(ArtifactRefused, match="named pipe"):
        Artifacts(book).log(folder / "pipe")
    with pytest.raises(ArtifactRefused, match="character device"):
        Artifacts(book).log("/dev/null")
    (folder / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "sock"))
        with pytest.raises(ArtifactRefused, match="socket"):
            Artifacts(book).log(folder)
    (folder / "sock").unlink()
    (folder / "a\\b").write_text("x")
    with pytest.raises(NameRefused):
        Artifacts(book).log(folder)
    assert not (book.folder / "artifacts").exists()
    assert media_of(book.folder) == []


class BusyClock(FakeClock):
    """A clock whose every look is a moment in which somebody else writes to a file: between opening and copying it."""

    def __init__(self, file: Path, times: int) -> None:
        super().__init__(1_700_000_000.0)
        self.file, self.times = file, times

    def now(self) -> float:
        if self.times:
            self.times -= 1
            content = self.file.read_bytes()
            self.file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return super().now()


def test_a_file_that_changes_while_it_is_copied_is_found_out(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * 3_000_000)
    os.utime(source, (1_600_000_000, 1_600_000_000))
    sha256, size = copy_steady(source, target, BusyClock(source, 2))
    assert (sha256, size) == (hashlib.sha256(target.read_bytes()).hexdigest(), 3_000_000)
    assert target.read_bytes() == source.read_bytes()
    target.unlink()
    with pytest.raises(CopyRefused, match="changes while"):
        copy_steady(source, target, BusyClock(source, 99))
    assert not target.exists()
    book = recorder(tmp_path / "experiments")
    with pytest.raises(CopyRefused):
        Artifacts(book, BusyClock(source, 99)).log(source)
    assert list((book.folder / "artifacts").iterdir()) == []


def test_a_file_that_grows_all_the_time_is_never_stored_torn(tmp_path: Path) -> None:
    book = recorder(tmp_path / "experiments")
    source = tmp_path / "growing.log"
    source.write_bytes(b"0" * 4096)
    stop = threading.Event()

    def grow() -> None:
        with source.open("r+b", buffering=0) as file:
            number = 0
            while not stop.is_set():
                number += 1
                file.seek(0)
                file.write(b"%d" % (number % 10) * 4096)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(20):
            try:
                [artifact] = Artifacts(book).log(source)
            except CopyRefused:
                continue
            assert len(set(artifact.path.read_bytes())) == 1
    finally:
        stop.set()
        writer.join()
    assert not list((book.folder / "artifacts").glob(f"{PREFIX}*"))


def test_a_checkpoint_as_an_artifact_takes_no_room_twice(tmp_path: Path) -> None:
    book = recorder(tmp_path)
    saved = Checkpoints(book).save(b"weights", 0)
    assert saved is not None
    [artifact] = Artifacts(book).log(saved.path)
    assert artifact.sha256 == saved.sha256
    assert artifact.path.stat().st_ino == saved.path.stat().st_ino


def test_a_model_outlives_the_policy_of_its_checkpoint(tmp_path: Path) -> None:
    book = recorder(tmp_path)
    checkpoints, models = Checkpoints(book), Models(book)
    saved = checkpoints.save(b"best", 4, {"val_loss": 0.1}, "last:1")
    assert saved is not None
    version = models.register("resnet50", saved, stage="staging")
    checkpoints.save(b"later", 5, keep="last:1")
    assert not saved.path.exists()
    assert verify_model(version).read_bytes() == b"best"
    assert list_models(tmp_path) == [version]
    assert (version.version, version.experiment_id, version.metrics, version.stage) == (
        1, "exp-1", {"val_loss": 0.1}, "staging",
    )  # fmt: skip
    assert (version.checkpoint, version.epoch, version.sha256) == (saved.name, 4, saved.sha256)
    second = models.register("resnet50", checkpoints.all()[0].name, {"top1": 0.7})
    assert (second.version, second.metrics) == (2, {"top1": 0.7})
    assert find_model(tmp_path, "resnet50") == second
    assert find_model(tmp_path, "resnet50", 1) == version
    with pytest.raises(NothingFound, match="version 3"):
        find_model(tmp_path, "resnet50", 3)
    assert list_models(tmp_path / "nowhere") == []


def test_a_model_that_was_damaged_is_told(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"abcdef")
    version = Models(recorder(tmp_path / "experiments")).register("m", source)
    assert version.path.name == "m-v1.onnx"
    version.path.write_bytes(b"abcdeX")
    with pytest.raises(Damaged, match="not what was registered"):
        verify_model(version)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a" * 129, "a\\b", "a b"])
def test_names_that_are_no_models_are_refused(tmp_path: Path, name: str) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x")
    with pytest.raises(ModelRefused):
        Models(recorder(tmp_path)).register(name, source)
    with pytest.raises(ModelRefused):
        Models(recorder(tmp_path)).register("m", source, stage="a/b")
    with pytest.raises(ModelRefused, match="no checkpoint"):
        Models(recorder(tmp_path)).register("m", None)
    with pytest.raises(NothingFound):
        Models(recorder(tmp_path)).register("m", tmp_path / "gone")


REGISTER = """
import sys
from pathlib import Path
from gpu_monitor.training.models import Models
from gpu_monitor.training.recorder import Recorder, Run
directory, name = Path(sys.argv[1]), sys.argv[2]
models = Models(Recorder(Run(name, "a", "b", directory / name), strict=True))
for _ in range(5):
    print(models.register("m", directory.parent / "source").version)
"""


def test_experiments_that_register_at_once_get_different_versions(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    words = [sys.executable, "-c", REGISTER, str(tmp_path / "experiments")]
    running = [subprocess.Popen([*words, f"exp-{n}"], stdout=subprocess.PIPE, text=True) for n in range(4)]
    numbers = [int(line) for process in running for line in process.communicate(timeout=60)[0].split()]
    assert sorted(numbers) == list(range(1, 21))
    found = list_models(tmp_path / "experiments", "m")
    assert [version.version for version in found] == list(range(1, 21))
    assert all(verify_model(version) for version in found)


FOLDER_LOGGED = """
import atexit, signal, sys, threading, time
from gpu_monitor.training.monitor import TrainingMonitor
how, folder = sys.argv[1:]
monitor = TrainingMonitor("late", capture=False, server="")
if how == "thread":
    def late():
        threading.main_thread().join()
        print(len(monitor.log_artifact(folder)), flush=True)
    threading.Thread(target=late).start()
elif how == "atexit":
    atexit.register(lambda: print(len(monitor.log_artifact(folder)), flush=True))
else:
    what = folder if how == "folder" else folder + "/0001"
    handled = []
    monitor.log_artifact(what)
    signal.signal(signal.SIGALRM, lambda *_: handled.append(len(monitor.log_artifact(what))))
    while len(handled) < 30:
        signal.setitimer(signal.ITIMER_REAL, 0.0001 * (len(handled) + 1))
        found = monitor.log_artifact(what)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert set(handled) == {len(found)}
    print(len(found), flush=True)
    monitor.finish()
"""


@posix
@pytest.mark.parametrize(("how", "count"), [("thread", 40), ("atexit", 40), ("folder", 40), ("file", 1)])
def test_it_works_after_the_main_thread_and_in_signal_handlers(tmp_path: Path, how: str, count: int) -> None:
    expected = many_files(tmp_path / "data", 40)
    done = subprocess.run(
        [sys.executable, "-c", FOLDER_LOGGED, how, str(tmp_path / "data")], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{count}\n", "")
    (folder,) = (tmp_path / "experiments").glob("*-*")
    kept = {one.name: one.sha256 for one in list_artifacts(folder)}
    digests = expected if count == 40 else {"0001": expected["data/0001"]}
    assert kept == digests
