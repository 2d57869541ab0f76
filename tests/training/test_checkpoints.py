"""Checkpoints: whole or not there, kept by policy, loaded by digest."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu_monitor.core.errors import NothingFound
from gpu_monitor.training.checkpoints import Checkpoints, Damaged, list_checkpoints, load_checkpoint
from gpu_monitor.training.drafts import PREFIX, drafting, place
from gpu_monitor.training.holdings import Holdings
from gpu_monitor.training.keeping import Keep, KeepRefused, parse_keep
from gpu_monitor.training.place import segments_in
from gpu_monitor.training.recorder import Recorder, Run
from gpu_monitor.training.states import StateRefused, read_state
from gpu_monitor.wire.training import Media, decode, whole_lines


def recorder(directory: Path, name: str = "exp-1") -> Recorder:
    return Recorder(Run(name, "a run", "a project", directory / name), strict=True)


def media_of(folder: Path) -> list[Media]:
    found = [decode(line) for path in segments_in(folder) for line in whole_lines(path.read_bytes())]
    return [record for record in found if isinstance(record, Media)]


def contents(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (folder / "checkpoints").iterdir())


def test_a_checkpoint_is_on_disk_with_its_digest_on_record(tmp_path: Path) -> None:
    book = recorder(tmp_path)
    saved = Checkpoints(book).save(b"weights", 3, {"val_loss": 0.25})
    assert saved is not None
    assert saved.path.read_bytes() == b"weights"
    assert os.fspath(saved) == str(saved.path)
    [record] = media_of(book.folder)
    assert (record.kind, record.name) == ("checkpoint", saved.name)
    assert record.more["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert record.more["size"] == 7
    assert record.more["epoch"] == 3
    assert record.more["file"] == f"checkpoints/{saved.path.name}"
    assert list_checkpoints(book.folder) == [saved]
    assert load_checkpoint(saved) == b"weights"
    assert load_checkpoint(saved.path) == b"weights"
    assert {path.name for path in saved.path.parent.iterdir()} == {saved.path.name}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", Keep()),
        ("last:2", Keep(2)),
        ("best:3:val_loss:min", Keep(3, "val_loss")),
        ("best:1:val/top 1: acc:max", Keep(1, "val/top 1: acc", True)),
    ],
)
def test_policies_are_read_and_written(text: str, expected: Keep) -> None:
    assert parse_keep(text) == expected
    assert expected.text == text


@pytest.mark.parametrize(
    "text",
    ["", "all:1", "last", "last:0", "last:-1", "last:2:x", "best:3", "best:3:val_loss", "best:3::min", "best:0:a:min",
     "best:3:val_loss:least", "worst:1:a:min", "last:²"],
)  # fmt: skip
def test_a_policy_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(KeepRefused):
        parse_keep(text)


def test_last_keeps_the_last(tmp_path: Path) -> None:
    book = recorder(tmp_path)
    checkpoints = Checkpoints(book)
    for epoch in range(5):
        checkpoints.save(b"%d" % epoch, epoch, keep="last:2")
    assert contents(book.folder) == [b"3", b"4"]
    assert [found.epoch for found in checkpoints.all()] == [3, 4]
    removed = [record for record in media_of(book.folder) if record.more.get("removed")]
    assert len(removed) == 3


@pytest.mark.parametrize(
    ("keep", "values", "expected"),
    [
        ("best:2:loss:min", [0.5, 0.4, 0.6, 0.3], [1, 3]),
        ("best:2:loss:max", [0.5, 0.4, 0.6, 0.3], [0, 2]),
        ("best:2:loss:min", [math.nan, 0.9, math.nan, 0.8], [1, 3]),
        ("best:2:loss:min", [0.9, math.nan], [0, 1]),
        ("best:1:loss:min", [math.inf, math.nan, -math.inf, 0.0], [2]),
        ("best:1:loss:min", [0.5, 0.5], [1]),
    ],
)
def test_best_keeps_the_best_and_nan_is_never_one(
    tmp_path: Path, keep: str, values: list[float], expected: list[int]
) -> None:
    book = recorder(tmp_path)
    checkpoints = Checkpoints(book)
    for epoch, value in enumerate(values):
        checkpoints.save(b"%d" % epoch, epoch, {"loss": value}, keep)
    assert [found.epoch for found in checkpoints.all()] == expected
    assert contents(book.folder) == [b"%d" % epoch for epoch in expected]


def test_what_would_go_at_once_is_not_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(recorder(tmp_path))
    assert checkpoints.save(b"good", 0, {"loss": 0.1}, "best:1:loss:min") is not None
    assert checkpoints.save(b"bad", 1, {"loss": 0.2}, "best:1:loss:min") is None
    assert checkpoints.save(b"nan", 2, {"loss": math.nan}, "best:1:loss:min") is None
    assert [found.epoch for found in checkpoints.all()] == [0]


def test_a_policy_without_its_metric_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    book = recorder(tmp_path)
    with pytest.raises(KeepRefused, match="loss"):
        Checkpoints(book).save(b"x", 0, {"other": 1.0}, "best:1:loss:min")
    assert not (book.folder / "checkpoints").exists()


def test_a_policy_removes_only_what_records_of_its_own_name(tmp_path: Path) -> None:
    book = recorder(tmp_path)
    checkpoints = Checkpoints(book)
    checkpoints.save(b"for good", 0)
    checkpoints.save(b"other policy", 0, {"loss": 1.0}, "best:5:loss:min")
    foreign = book.folder / "checkpoints" / "epoch-0000-mine.bin"
    foreign.write_bytes(b"by hand")
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"outside")
    for file in (
        "checkpoints/../../outside.bin",
        "../outside.bin",
        str(outside),
        "checkpoints/.hidden",
        "artifacts/x",
    ):
        more = {"sha256": "0" * 64, "size": 7, "file": file, "format": "bytes", "epoch": 0, "keep": "last:1"}
        book.put(Media(0, None, "checkpoint", f"forged {file}", more))
    for epoch in range(3):
        checkpoints.save(b"mine", epoch, keep="last:1")
    assert outside.read_bytes() == b"outside"
    assert contents(book.folder) == [b"by hand", b"for good", b"mine", b"other policy"]


def test_another_rank_keeps_its_own(tmp_path: Path) -> None:
    first, second = Checkpoints(recorder(tmp_path), rank=0), Checkpoints(recorder(tmp_path), rank=1)
    for epoch in range(3):
        first.save(b"a%d" % epoch, epoch, keep="last:1")
        second.save(b"b%d" % epoch, epoch, keep="last:1")
    assert contents(tmp_path / "exp-1") == [b"a2", b"b2"]


def test_a_resumed_process_goes_on_with_the_policy(tmp_path: Path) -> None:
    for epoch in range(4):
        # Each has a segment of its own, and is told nothing but the folder.
        Checkpoints(recorder(tmp_path)).save(b"%d" % epoch, epoch, {"loss": 1.0 - epoch}, "best:2:loss:min")
    assert contents(tmp_path / "exp-1") == [b"2", b"3"]


SAVER = """
import sys
from pathlib import Path
from gpu_monitor.training.checkpoints import Checkpoints
from gpu_monitor.training.recorder import Recorder, Run
folder, first = Path(sys.argv[1]), int(sys.argv[2])
checkpoints = Checkpoints(Recorder(Run("exp-1", "a", "b", folder), strict=True))
print("ready", flush=True)
sys.stdin.readline()
for epoch in range(first, first + 12):
    checkpoints.save(b"%d" % epoch, epoch, {"loss": float(epoch * 7 % 48)}, "best:3:loss:min")
"""


def saver(folder: Path, *words: str, script: str = SAVER) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip


def test_processes_that_save_at_once_leave_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "exp-1"
    running = [saver(folder, str(first)) for first in (0, 12, 24, 36)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        process.communicate(timeout=60)
        assert process.returncode == 0
    # 7 * epoch mod 48 takes each value once: 0 at epoch 0, 1 at 7 (49), 2 at 14 (98).
    kept = {found.epoch for found in list_checkpoints(folder)}
    assert {0, 7, 14} <= kept
    # One more save judges all that is on record; it is no better itself.
    Checkpoints(Recorder(Run("exp-1", "a", "b", folder))).save(b"", 99, {"loss": -1.0}, "best:3:loss:min")
    assert {found.epoch for found in list_checkpoints(folder)} == {99, 0, 7}


ENDLESS = """
import sys
from pathlib import Path
from gpu_monitor.training.checkpoints import Checkpoints
from gpu_monitor.training.recorder import Recorder, Run
checkpoints = Checkpoints(Recorder(Run("exp-1", "a", "b", Path(sys.argv[1])), strict=True))
epoch = int(sys.argv[2])
while True:
    state = (b"%06d" % epoch) * 50_000
    checkpoints.save(state, epoch, {"loss": 1.0 / (1 + epoch)}, "best:2:loss:min")
    print(epoch, flush=True)
    epoch += 1
"""


def test_killed_at_any_instant_every_checkpoint_is_whole(tmp_path: Path) -> None:
    folder, epoch = tmp_path / "exp-1", 0
    for round_number in range(8):
        process = saver(folder, str(epoch), script=ENDLESS)
        assert process.stdout is not None
        for _ in range(2 + round_number % 3):
            epoch = int(process.stdout.readline()) + 1
        process.kill()
        process.communicate()
        kept = list_checkpoints(folder)
        assert len(kept) >= 2
        for checkpoint in kept:
            load_checkpoint(checkpoint)
        # Of all that was reported as saved the two best (the latest) are there, or better ones.
        assert sorted(found.epoch for found in kept)[-2:] >= [epoch - 2, epoch - 1]
        epoch += 10
    Checkpoints(recorder(tmp_path)).save(b"last", epoch, {"loss": 0.0}, "best:2:loss:min")
    assert not list((folder / "checkpoints").glob(f"{PREFIX}*"))
    assert len(list_checkpoints(folder)) == 2


def test_a_draft_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with drafting(folder) as draft:
        (draft / "file").write_bytes(b"half")
        with drafting(folder) as other:
            assert draft.is_dir()
            assert other != draft
        place(draft / "file", folder / "whole")
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_what_fails_leaves_nothing_behind_and_removes_nothing(tmp_path: Path) -> None:
    book = recorder(tmp_path)
    checkpoints = Checkpoints(book)
    checkpoints.save(b"first", 0, keep="last:1")
    with pytest.raises(StateRefused, match="set"):
        checkpoints.save({1, 2}, 1, keep="last:1")
    assert contents(book.folder) == [b"first"]


def test_a_damaged_file_is_not_loaded_and_does_not_count(tmp_path: Path) -> None:
    book = recorder(tmp_path)
    checkpoints = Checkpoints(book)
    first = checkpoints.save(b"12345678", 0, keep="last:2")
    second = checkpoints.save(b"abcdefgh", 1, keep="last:2")
    assert first is not None
    assert second is not None
    second.path.write_bytes(b"abcdefgX")
    with pytest.raises(Damaged, match="SHA-256"):
        load_checkpoint(second.path)
    second.path.write_bytes(b"abc")
    assert checkpoints.all() == [first]
    checkpoints.save(b"third", 2, keep="last:2")
    assert first.path.exists(), "the one that was cut short does not count as one of the last two"


def test_a_file_that_no_record_names_needs_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"abc")
    with pytest.raises(NothingFound, match="sha256="):
        load_checkpoint(path)
    # FIPS 180-2, example B.1
    assert load_checkpoint(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad") == b"abc"
    with pytest.raises(NothingFound):
        load_checkpoint(tmp_path / "gone.bin")


def test_a_torn_or_damaged_record_is_passed_over(tmp_path: Path) -> None:
    book = recorder(tmp_path)
    checkpoints = Checkpoints(book)
    saved = checkpoints.save(b"one", 0)
    assert saved is not None
    [segment] = segments_in(book.folder)
    good = segment.read_bytes()
    with segment.open("ab") as file:
        file.write(b'["m",1,null,"checkpoint","x",{},"00000000"]\n["m",2,nu')
    assert checkpoints.all() == [saved]
    assert Holdings(book.folder, frozenset({"artifact"})).read() == []
    assert segment.read_bytes().startswith(good)


def save_and_load(tmp_path: Path, state: Any) -> tuple[str, Any]:
    saved = Checkpoints(recorder(tmp_path)).save(state, 0)
    assert saved is not None
    return saved.format, load_checkpoint(saved.path)


def test_arrays_go_without_pickle(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed: saving arrays is not tested")
    state = {"w": numpy.arange(6.0).reshape(2, 3), "file": numpy.float32(0.5), "a/b": 7, "name": "é"}
    kind, loaded = save_and_load(tmp_path, state)
    assert kind == "npz"
    assert numpy.array_equal(loaded["w"], state["w"])
    assert loaded["file"].dtype == numpy.float32
    assert (float(loaded["file"]), int(loaded["a/b"]), str(loaded["name"])) == (0.5, 7, "é")
    kind, loaded = save_and_load(tmp_path, numpy.ones((2, 0), dtype="<i2"))
    assert (kind, loaded.shape, str(loaded.dtype)) == ("npy", (2, 0), "int16")
    with pytest.raises(StateRefused):
        save_and_load(tmp_path, {"w": numpy.array([object()])})
    first = Checkpoints(recorder(tmp_path)).save(state, 1)
    second = Checkpoints(recorder(tmp_path)).save(state, 2)
    assert first is not None
    assert second is not None
    assert first.sha256 == second.sha256


def test_flat_tensors_are_safetensors_and_all_else_is_marked_pickle(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: saving tensors is not tested")
    pytest.importorskip("safetensors", reason="safetensors is not installed: its files are not tested")
    model = torch.nn.Linear(3, 2)
    kind, loaded = save_and_load(tmp_path, model.state_dict())
    assert kind == "safetensors"
    assert torch.equal(loaded["weight"], model.weight)
    kind, loaded = save_and_load(
        tmp_path, {"t": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(2).bfloat16()}
    )
    assert kind == "safetensors"
    assert loaded["t"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert loaded["b"].dtype == torch.bfloat16
    shared = torch.ones(4)
    for state in (
        {"a": shared, "b": shared[:2]},
        {"model": model.state_dict(), "epoch": 3},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.ones(2), "n": 1},
    ):
        kind, loaded = save_and_load(tmp_path, state)
        assert kind == "pickle"
        assert loaded.keys() == state.keys()


class Trap:
    """What an unpickler would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("sprung"),))


def test_loading_never_runs_what_a_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: its files are not tested")
    monkeypatch.chdir(tmp_path)
    book = recorder(tmp_path)
    saved = Checkpoints(book).save({"model": {"w": torch.ones(1)}, "trap": Trap()}, 0)
    assert saved is not None
    assert saved.format == "pickle"
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load_checkpoint(saved)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(StateRefused, match="no format"):
        read_state(saved.path, "joblib")
