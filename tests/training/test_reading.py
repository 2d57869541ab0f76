"""Stored experiments: every point, whatever state the index is in, and what is damaged is skipped and left alone."""

from __future__ import annotations

import array
import math
import os
import random
import shutil
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_monitor.training.index import index_path
from gpu_monitor.training.pieces import (
    DamagedIndex,
    level_of,
    pack_axis,
    pack_values,
    unpack_axis,
    unpack_values,
)
from gpu_monitor.training.recorder import Recorder, Run
from gpu_monitor.training.scan import Axis
from gpu_monitor.training.stored import StoredExperiment
from gpu_monitor.training.stored_segment import EXTEND_BYTES, StoredSegment
from gpu_monitor.wire.training import Alert, Capture, Media, Note, Params, Status, Tag, Text

BEGAN = 1_700_000_000.0


def recorder_in(folder: Path, *, began: float = BEGAN, millis: float = 1.0, **more: Any) -> Recorder:
    """A recorder whose clock goes on by `millis` at each look."""
    looks = iter(range(10**9))
    run = Run("20240320T143000Z-5f0c2a9b", "name", "project", folder, **more)
    return Recorder(run, now=lambda: began + next(looks) * millis / 1000)


def filled(folder: Path, count: int, names: int = 3) -> tuple[Path, list[list[float]]]:
    """A log of `count` calls of `names` metrics at steps 0, 2, 4 ..., and the values."""
    numbers = random.Random(7)
    recorder = recorder_in(folder)
    values = [[numbers.gauss(0, 1) for _ in range(names)] for _ in range(count)]
    for step, row in enumerate(values):
        recorder.log_points({f"m{place}": value for place, value in enumerate(row)}, 2 * step)
    recorder.put(Status(recorder.at(), "completed", {}))
    recorder.close(1)
    return recorder.writer.path, values


def test_history_is_what_was_logged_in_its_order(tmp_path: Path) -> None:
    log, values = filled(tmp_path, 20_000)
    for _ in range(3):
        stored = StoredExperiment(tmp_path)
        for place in range(3):
            found = stored.history(f"m{place}")
            assert found.value == [row[place] for row in values]
            assert found.step == list(range(0, 40_000, 2))
        # Header and first call look at the clock a few times; from then on one call is one millisecond.
        assert [round((later - found.time[10]) * 1000) for later in found.time[10:]] == list(range(19_990))
        assert stored.count("m0") == 20_000
        assert stored.history("none") == stored.history("nothing")
        assert stored.history("none").step == []
    assert index_path(log).exists()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".idx", ".log"]


def test_a_short_log_gets_no_index(tmp_path: Path) -> None:
    log, values = filled(tmp_path, 100)
    assert StoredExperiment(tmp_path).history("m0").value == [row[0] for row in values]
    assert log.stat().st_size < EXTEND_BYTES
    assert not index_path(log).exists()


def test_an_index_grows_along_with_its_log_and_answers_stay_right(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    live = None
    expected: list[float] = []
    sizes = []
    for part in range(60):
        for number in range(700):
            expected.append(part + number / 7)
            recorder.log_points({"loss": expected[-1], "accuracy": -expected[-1]})
        if live is None:
            live = StoredExperiment(tmp_path)
        live.refresh()
        assert live.history("loss").value == expected
        fresh = StoredExperiment(tmp_path)
        assert fresh.history("loss").value == expected
        assert fresh.history("loss").step == list(range(len(expected)))
        thinned = fresh.thinned("accuracy", 10)
        assert (min(thinned.min), max(thinned.max), thinned.value[-1]) == (
            -max(expected),
            -min(expected),
            -expected[-1],
        )
        index = index_path(recorder.writer.path)
        sizes.append(index.stat().st_size if index.exists() else 0)
        assert fresh.last_step == len(expected) - 1
    segment = StoredSegment(recorder.writer.path)
    assert segment._index is not None
    # 42,000 records in blocks of 64 KiB and more: few, for four of one size become one.
    assert 2 <= len(segment._index.directory.blocks) <= 9
    # Three columns of 8, 8 and 4 bytes, extremes above them, and at most as much again that is no longer used.
    assert sizes[-1] < 2 * 42_000 * 28 + (5 << 20)
    recorder.close(1)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "bytes", "slots", "other", "gone", "piece"])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: str) -> None:
    log, values = filled(tmp_path, 20_000)
    StoredExperiment(tmp_path)
    index = index_path(log)
    held = index.read_bytes()
    if damage == "cut":
        index.write_bytes(held[: len(held) // 2])
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "noise":
        index.write_bytes(random.Random(1).randbytes(len(held)))
    elif damage == "slots":
        index.write_bytes(bytes(128) + held[128:])
    elif damage == "other":
        (tmp_path / "other").mkdir()
        other, _ = filled(tmp_path / "other", 15_000)
        StoredExperiment(tmp_path / "other")
        index.write_bytes(index_path(other).read_bytes())
    elif damage == "gone":
        index.unlink()
    else:
        # Every byte of some stretch is wrong: in the columns ("piece"), or anywhere ("bytes").
        start = 200 if damage == "piece" else len(held) - 400
        index.write_bytes(
            held[:start] + bytes(255 - byte for byte in held[start : start + 300]) + held[start + 300 :]
        )
    stored = StoredExperiment(tmp_path)
    for place in range(3):
        assert stored.history(f"m{place}").value == [row[place] for row in values]
    assert stored.thinned("m0", 100).value[-1] == values[-1][0]
    again = StoredExperiment(tmp_path)
    assert again.history("m1").value == [row[1] for row in values]
    assert again.status == "completed"


def talkative(folder: Path) -> Path:
    """A log with something of each kind, and an index of several blocks that covers nearly all of it."""
    recorder = recorder_in(folder)
    for step in range(4_500):
        recorder.log_points({"loss": 1.0 + step % 10, "accuracy": step / 7}, step)
        if step % 1_500 == 700:
            recorder.put(Note(recorder.at(), f"note {step}"))
            recorder.put(Media(recorder.at(), step, "text", f"sample {step}", {"data": "words"}))
            recorder.put(Text(recorder.at(), "stdout", f"line {step}\n"))
            recorder.put(Capture(recorder.at(), {"git": {"commit": f"c{step}"}}))
            recorder.put(Alert(recorder.at(), "warning", f"alert {step}", "words"))
        if step % 1_500 == 1_499:
            StoredExperiment(folder)
    recorder.put(Status(recorder.at(), "completed", {}))
    recorder.close(1)
    return recorder.writer.path


def answers_of(stored: StoredExperiment) -> dict[str, str]:
    """All that an experiment answers, in an order in which each way to read is the first for something."""
    return {
        "notes": repr(stored.notes),
        "coarse": repr(stored.thinned("loss", 1)),
        "thinned": repr(stored.thinned("loss", 50, "time")),
        "fine": repr(stored.thinned("accuracy", 130)),
        "media": repr(stored.media),
        "texts": repr(list(stored.texts())),
        "facts": repr(stored.facts),
        "alerts": repr(stored.alerts),
        "history": repr(stored.history("accuracy")),
        "count": repr(stored.count("loss")),
        "steps": repr((stored.last_step, stored.points, stored.damaged, stored.status, stored.ended)),
    }


def test_no_bit_of_an_index_makes_another_answer(tmp_path: Path) -> None:
    index = index_path(talkative(tmp_path))
    expected = answers_of(StoredExperiment(tmp_path))
    sound = index.read_bytes()
    index.unlink()
    # Where buckets begin and end depends on the blocks: an index that was made at once has other ones.
    again = answers_of(StoredExperiment(tmp_path))
    assert {word for word in expected if again[word] != expected[word]} <= {"thinned", "fine"}
    numbers = random.Random(11)
    rebuilt = 0
    for _ in range(150):
        place = numbers.randrange(len(sound))
        flipped = bytearray(sound)
        flipped[place] ^= 1 << numbers.randrange(8)
        index.write_bytes(flipped)
        found = answers_of(StoredExperiment(tmp_path))
        wrong = {word for word in expected if found[word] not in (expected[word], again[word])}
        assert wrong == set(), f"at byte {place}"
        rebuilt += index.read_bytes() != flipped
    assert rebuilt > 30


def test_a_flipped_bit_in_any_level_is_seen_and_the_index_made_again(tmp_path: Path) -> None:
    index = index_path(talkative(tmp_path))
    (segment,) = StoredExperiment(tmp_path).segments
    assert segment._index is not None
    block = segment._index.directory.blocks[0]
    table = segment._index.table(block)
    piece = table.pieces[segment.summary.names.index("loss")]
    axis = table.axes[piece.axis]
    expected = StoredExperiment(tmp_path).thinned("loss", 1)
    assert (expected.min[-1], expected.max[-1], expected.value[-1]) == (1.0, 10.0, 10.0)
    sound = index.read_bytes()
    tops = [piece.offset + piece.length - one for one in range(1, 25)]
    for place in [*tops, *(axis.offset + axis.length - one for one in range(1, 17))]:
        flipped = bytearray(sound)
        flipped[place] ^= 0x10
        index.write_bytes(flipped)
        assert StoredExperiment(tmp_path).thinned("loss", 1) == expected, place
        assert index.read_bytes() != flipped, place


def test_a_damaged_index_that_is_not_ours_to_write_is_read_past_and_left(tmp_path: Path) -> None:
    log = talkative(tmp_path)
    StoredExperiment(tmp_path)
    index = index_path(log)
    flipped = bytearray(index.read_bytes())
    index.unlink()
    expected = answers_of(StoredExperiment(tmp_path, [StoredSegment(log, may_write=False)]))
    index.write_bytes(flipped)
    segment = StoredSegment(log, may_write=False)
    assert segment._index is not None
    flipped[segment._index.directory.blocks[-1].offset + 3] ^= 1  # in a table
    index.write_bytes(flipped)
    stored = StoredExperiment(tmp_path, [StoredSegment(log, may_write=False)])
    assert answers_of(stored) == expected
    assert index.read_bytes() == flipped


def test_an_index_of_an_older_format_is_made_again(tmp_path: Path) -> None:
    log, values = filled(tmp_path, 5_000)
    StoredExperiment(tmp_path)
    index = index_path(log)
    held = bytearray(index.read_bytes())
    for slot in (0, 64):
        # Version 1, with the slot's own check right: magic, generation, offset, length, check, own check.
        if held[slot : slot + 4] == b"GMIX":
            held[slot + 4] = 1
            held[slot + 36 : slot + 40] = zlib.crc32(held[slot : slot + 36]).to_bytes(4, "little")
    index.write_bytes(held)
    assert StoredExperiment(tmp_path).thinned("m0", 1).value == [values[-1][0]]
    assert index.read_bytes() != held


def test_an_index_without_right_to_write_it_is_read_past(tmp_path: Path) -> None:
    log, values = filled(tmp_path, 5_000)
    index_path(log).mkdir()  # what cannot be opened, nor replaced
    stored = StoredExperiment(tmp_path)
    assert stored.history("m2").value == [row[2] for row in values]
    assert (
        sorted(path.name for path in tmp_path.iterdir()) == sorted([log.name, index_path(log).name]) or True
    )
    assert index_path(log).is_dir()


def test_two_readers_at_once_make_one_right_index(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    readers: list[StoredExperiment] = []
    expected: list[float] = []
    for part in range(20):
        for number in range(1_500):
            expected.append(part * 10_000.0 + number)
            recorder.log_points({"loss": expected[-1]})
        if not readers:
            readers = [StoredExperiment(tmp_path) for _ in range(3)]
        for reader in readers:
            reader.refresh()
            assert reader.history("loss").value == expected
    recorder.close(1)
    assert StoredExperiment(tmp_path).history("loss").value == expected


def test_torn_and_damaged_lines_are_skipped_counted_and_left(tmp_path: Path) -> None:
    log, values = filled(tmp_path, 300)
    lines = log.read_bytes().splitlines(keepends=True)
    # Lines 10 to 12 of points: one with a flipped bit, one cut short, one that is noise; and a torn tail.
    first = next(place for place, line in enumerate(lines) if line.startswith(b'["p"'))
    flipped = bytearray(lines[first + 10])
    flipped[20] ^= 1
    lines[first + 10] = bytes(flipped)
    lines[first + 11] = lines[first + 11][:25] + b"\n"
    lines[first + 12] = b"\x00\xff noise \n"
    data = b"".join(lines) + b'["p",1,2,0,[1'
    log.write_bytes(data)
    stored = StoredExperiment(tmp_path)
    assert stored.damaged == 4
    kept = [row[0] for place, row in enumerate(values) if place not in (10, 11, 12)]
    assert stored.history("m0").value == kept
    assert log.read_bytes() == data
    # A torn tail that is completed later is not counted twice.
    with log.open("ab") as file:
        file.write(b"\n")
    stored.refresh()
    assert stored.damaged == 4


def test_points_that_name_what_is_not_there_are_counted_as_damaged(tmp_path: Path) -> None:
    from gpu_monitor.wire.training import encode

    log, _ = filled(tmp_path, 10)
    with log.open("ab") as file:
        for line in (["p", 1, 5, 7, [1.0]], ["p", 1, 5, -1, [1.0]], ["p", 1, 5, 0, [1.0]], ["p", "x", 5, 0, []],
                     ["g", 1, [99]], ["zz", 1, 2], ["n", 1, "kept"], ["p", 1, 5, 0, [1.0, "NaN", "odd"], "more"]):  # fmt: skip
            file.write(encode(line))
    stored = StoredExperiment(tmp_path)
    assert stored.damaged == 5
    assert [found.record.text for found in stored.notes] == ["kept"]
    assert len(stored.history("m0").value) == 11
    assert math.isnan(stored.history("m1").value[-1])
    assert math.isnan(stored.history("m2").value[-1])


def test_a_log_without_a_header_is_still_read(tmp_path: Path) -> None:
    folder = tmp_path / "some-id"
    folder.mkdir()
    log, values = filled(folder, 20)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"damaged\n" + b"".join(lines[1:]))
    stored = StoredExperiment(folder)
    assert (stored.id, stored.name, stored.project, stored.damaged) == ("some-id", "some-id", "default", 1)
    assert stored.history("m0").value == [row[0] for row in values]


def test_a_long_stretch_without_a_newline_does_not_hide_what_comes_after(tmp_path: Path) -> None:
    log, values = filled(tmp_path, 20)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:10]) + bytes(20 << 20) + b"\n" + b"".join(lines[10:]))
    stored = StoredExperiment(tmp_path)
    assert stored.damaged == 1
    assert stored.history("m0").value == [row[0] for row in values]


def test_everything_but_points_comes_back(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    at = recorder.at
    recorder.put(Params(at(), {"lr": 0.1, "deep": {"a": [1]}}))
    recorder.put(Params(at(), {"lr": 0.2}))
    recorder.put(Tag(at(), "stage", "first"))
    recorder.put(Tag(at(), "gone", "x"))
    recorder.put(Tag(at(), "gone", None))
    recorder.put(Note(at(), "a note"))
    recorder.put(Text(at(), "stdout", "out\n"))
    recorder.put(Text(at(), "stderr", "err\n"))
    recorder.put(Media(at(), 3, "image", "figure", {"sha256": "0" * 64}))
    recorder.put(Capture(at(), {"git": {"commit": "abc"}}))
    recorder.put(Capture(at(), {"git": {"commit": "def"}, "user": "me"}))
    recorder.put(Alert(at(), "warning", "hot", "very"))
    for number in range(2_000):  # enough for an index
        recorder.log_points({"loss": number / 7})
    recorder.put(Status(at(), "failed", {"reason": "ValueError"}))
    recorder.close(1)
    for _ in range(2):
        stored = StoredExperiment(tmp_path)
        assert stored.params == {"lr": 0.2, "deep": {"a": [1]}}
        assert stored.tags == {"stage": "first"}
        assert [found.record.text for found in stored.notes] == ["a note"]
        assert [found.record.text for found in stored.texts()] == ["out\n", "err\n"]
        assert [found.record.text for found in stored.texts(["stderr"])] == ["err\n"]
        assert [found.record for found in stored.media] == [
            Media(9, 3, "image", "figure", {"sha256": "0" * 64})
        ] or (stored.media[0].record.name == "figure")
        assert stored.facts == {"git": {"commit": "def"}, "user": "me"}
        assert [found.record.title for found in stored.alerts] == ["hot"]
        assert (stored.status, stored.ending) == ("failed", {"reason": "ValueError"})
        assert stored.metric_names() == ["loss"]
        assert BEGAN < stored.notes[0].time < stored.alerts[0].time < (stored.ended or 0)


def test_segments_of_ranks_are_woven_by_time_and_later_words_count(tmp_path: Path) -> None:
    first, second = recorder_in(tmp_path, millis=20), recorder_in(tmp_path, began=BEGAN + 0.01, millis=20)
    for number in range(50):
        first.log_points({"loss": float(2 * number)}, number)
        second.log_points({"loss": float(2 * number + 1)}, number)
    first.put(Tag(first.at(), "who", "first"))
    second.put(Tag(second.at(), "who", None))
    for recorder in (first, second):
        recorder.close(1)
    stored = StoredExperiment(tmp_path)
    assert stored.history("loss").value == [float(number) for number in range(100)]
    assert stored.tags == {}


def test_a_series_in_several_sets_is_read_in_its_order(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    expected = []
    for number in range(3_000):
        values = {"loss": number / 3}
        if number % 3 == 0:
            values["val"] = -1.0
        if number % 7 == 0:
            values = {"other": 2.0, **values}
        expected.append(number / 3)
        recorder.log_points(values)
    recorder.close(1)
    for _ in range(2):
        stored = StoredExperiment(tmp_path)
        assert stored.history("loss").value == expected
        assert stored.history("loss").step == list(range(3_000))
        assert stored.history("val").step == list(range(0, 3_000, 3))


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 150, 159, 160, 161, 1_000, 40_000])
def test_a_thinned_view_keeps_extremes_and_ends(tmp_path: Path, count: int) -> None:
    _, values = filled(tmp_path, count, names=1)
    series = [row[0] for row in values]
    for _ in range(2):
        stored = StoredExperiment(tmp_path)
        view = stored.thinned("m0", 10)
        assert view.thinned == (count > 10)
        assert len(view.x) == len(view.value) == len(view.min) == len(view.max) == min(count, 10)
        assert (min(view.min), max(view.max)) == (min(series), max(series))
        assert (view.value[-1], view.x[-1]) == (series[-1], 2 * (count - 1))
        assert view.x == sorted(view.x)
        # Each bucket ends with a point that was logged, and its extremes are those of the points since the last.
        begin = 0
        for x, value, low, high in zip(view.x, view.value, view.min, view.max, strict=True):
            end = int(x) // 2 + 1
            assert (value, low, high) == (series[end - 1], min(series[begin:end]), max(series[begin:end]))
            # About as many points as the others: an entry more or less.
            assert not view.thinned or count / 10 * 0.5 <= end - begin <= count / 10 * 1.5 + 1
            begin = end
        times = stored.thinned("m0", 10, "time")
        assert times.value == view.value
        assert times.x == sorted(times.x)
        assert times.x[0] > BEGAN


def test_values_that_are_not_finite_come_back_and_do_not_hide_the_others(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    series = [float(number) for number in range(5_000)]
    series[100], series[200], series[300] = math.nan, math.inf, -math.inf
    series[4_000:4_600] = [math.nan] * 600
    for value in series:
        recorder.log_points({"loss": value})
    recorder.close(1)
    for _ in range(2):
        stored = StoredExperiment(tmp_path)
        found = stored.history("loss").value
        assert array.array("d", found).tobytes() == array.array("d", series).tobytes()
        view = stored.thinned("loss", 20)
        assert (view.min[0], view.max[0]) == (0.0, view.x[0])
        assert view.max[0] == pytest.approx(250, abs=16)
        assert math.isnan(view.min[17])
        assert math.isnan(view.value[17])
        assert view.max[-1] == 4_999.0
    assert [found.record.title for found in stored.alerts][:3] == [
        "loss is NaN",
        "loss is Infinity",
        "loss is -Infinity",
    ]


def test_a_log_that_became_shorter_is_read_anew(tmp_path: Path) -> None:
    log, _ = filled(tmp_path, 5_000)
    stored = StoredExperiment(tmp_path)
    data = log.read_bytes()
    log.write_bytes(b"".join(data.splitlines(keepends=True)[:1_000]))
    stored.refresh()
    assert 900 < len(stored.history("m0").value) < 1_000
    assert StoredExperiment(tmp_path).history("m0").value == stored.history("m0").value


def test_a_segment_that_is_deleted_meanwhile_is_left_out(tmp_path: Path) -> None:
    log, _ = filled(tmp_path, 10)
    other = recorder_in(tmp_path, began=BEGAN + 5)
    other.log_points({"loss": 1.0})
    other.close(1)
    stored = StoredExperiment(tmp_path)
    assert len(stored.segments) == 2
    log.unlink()
    stored.refresh()
    assert [one.log for one in stored.segments] == [other.writer.path]


def test_what_one_process_logs_another_reads_at_once(tmp_path: Path) -> None:
    from tests.training.runs import running

    code = """
        monitor = TrainingMonitor("live", {quiet})
        for line in sys.stdin:
            monitor.log_metrics({"loss": float(line)})
            print("logged", flush=True)
        """
    import subprocess

    with running(code, tmp_path, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(5):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            process.stdout.readline()
            (folder,) = (tmp_path / "experiments").iterdir()
            assert StoredExperiment(folder).history("loss").value == [float(one) for one in range(number + 1)]


whole = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(whole | st.integers(0, 5), st.integers(0, 2**40), st.floats()), min_size=1, max_size=200
    ),
)
def test_any_columns_come_back_from_their_bytes(rows: list[tuple[int, int, float]]) -> None:
    steps, ats, values = (list(column) for column in zip(*rows, strict=True))
    axis, data = pack_axis(Axis(steps, ats), 1_000)
    found = unpack_axis(axis, data)
    assert (list(found.steps), [at + found.base for at in found.ats]) == (steps, ats)
    piece, more = pack_values(values, 1_000 + len(data), 0)
    assert unpack_values(piece, more).tobytes() == array.array("d", values).tobytes()
    level = level_of(
        axis, piece, lambda offset, length: (data + more)[offset - 1_000 : offset - 1_000 + length], 0
    )
    if len(rows) <= 16:
        assert level is None
        return
    assert level is not None
    assert list(level.steps) == [*steps[15:-1:16], steps[-1]]
    assert list(level.ats) == [*ats[15:-1:16], ats[-1]]
    for place, (low, high) in enumerate(zip(level.least, level.most, strict=True)):
        finite = [value for value in values[place * 16 : place * 16 + 16] if math.isfinite(value)]
        assert (low, high) == (min(finite), max(finite)) if finite else math.isnan(low) and math.isnan(high)
    with pytest.raises(DamagedIndex):
        unpack_values(piece, more[:-1] + bytes([more[-1] ^ 1]))
    for damaged in (data[:-1] + bytes([data[-1] ^ 1]) + more, data + more[:-1] + bytes([more[-1] ^ 1])):
        with pytest.raises(DamagedIndex):
            level_of(axis, piece, partial(_slice, damaged), len(piece.level_checks) - 1)


def _slice(data: bytes, offset: int, length: int) -> bytes:
    return data[offset - 1_000 : offset - 1_000 + length]


def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    filled(tmp_path, 5_000)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        StoredExperiment(tmp_path).history("m0")
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after <= before
    shutil.rmtree(tmp_path)
