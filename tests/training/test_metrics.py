"""What log_metrics takes, and what stands in the log then."""

from __future__ import annotations

import decimal
import fractions
import math
from pathlib import Path
from typing import Any

import numpy
import pytest

from gpu_monitor.training.notice import Notices
from gpu_monitor.training.recorder import Recorder, Run
from tests.training.runs import of_kind, points, records


class Told(Notices):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def once(self, key: str, text: str, level: int = 30) -> None:
        """Keep the first of each key."""
        if self.count(key) == 0:
            self.words.append(text)
        super().once(key, text, 0)


def recorder_in(folder: Path, **more: Any) -> Recorder:
    ticks = iter(range(10**9))
    made = Recorder(
        Run("20240320T143000Z-5f0c2a9b", "name", "project", folder),
        now=lambda: 1_700_000_000.0 + next(ticks) / 1000,
        **more,
    )
    made.notices = Told()
    return made


def words_of(recorder: Recorder) -> list[str]:
    assert isinstance(recorder.notices, Told)
    return recorder.notices.words


def test_the_lines_are_those_of_the_page(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    recorder.log_points({"loss": 0.5, "lr": 0.001}, 120)
    recorder.log_points({"loss": 0.25, "lr": 0.001}, 121)
    recorder.close(1)
    header, *rest = records(recorder.writer.path)
    assert header[:2] == ["h", 1]
    assert header[2]["experiment_id"] == "20240320T143000Z-5f0c2a9b"
    assert header[2]["segment"] == recorder.writer.path.stem
    # The clock of this test goes on by a millisecond whenever it is asked: for `started`, then for each record.
    assert [record if record[0] != "p" else [record[0], *record[2:]] for record in rest] == [
        ["s", 0, "loss", {}], ["s", 1, "lr", {}], ["g", 0, [0, 1]],
        ["p", 120, 0, [0.5, 0.001]], ["p", 121, 0, [0.25, 0.001]],
    ]  # fmt: skip


def test_a_step_that_is_left_out_is_the_next_and_others_are_kept_as_they_are(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    for step in (None, None, 10, None, 10, 3, None, -5, None):
        recorder.log_points({"loss": 1.0}, step)
    recorder.log_points({"loss": 1.0, "extra": 2.0})
    recorder.close(1)
    assert [step for step, _ in points(recorder.writer.path)] == [0, 1, 10, 11, 10, 3, 4, -5, -4, -3]
    assert recorder.step() == -3


@pytest.mark.parametrize(
    ("step", "taken"),
    [(7.0, 7), (numpy.int64(9), 9), (numpy.array(4), 4), (True, 1), (2**63 - 1, 2**63 - 1)],
)
def test_steps_of_other_kinds_are_whole_numbers(tmp_path: Path, step: Any, taken: int) -> None:
    recorder = recorder_in(tmp_path)
    recorder.log_points({"loss": 1.0}, step)
    recorder.close(1)
    assert [step for step, _ in points(recorder.writer.path)] == [taken]
    assert words_of(recorder) == []


@pytest.mark.parametrize("step", [1.5, "3", 2**63, math.nan, [1]])
def test_what_is_no_step_is_told_and_the_next_one_taken(tmp_path: Path, step: Any) -> None:
    recorder = recorder_in(tmp_path)
    recorder.log_points({"loss": 1.0}, 41)
    recorder.log_points({"loss": 1.0}, step)
    recorder.close(1)
    assert [step for step, _ in points(recorder.writer.path)] == [41, 42]
    assert len(words_of(recorder)) == 1


class Tensor:
    """What tensors of all frameworks have in common, seen from here."""

    def __init__(self, value: Any, fails: Exception | None = None) -> None:
        self.value, self.fails = value, fails

    def item(self) -> Any:
        """The one element, or the library's own error."""
        if self.fails:
            raise self.fails
        return self.value


class Strange(Exception):
    """An error of a library that is derived from nothing we know."""


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (3, 3),
        (True, 1),
        (10**30, 1e30),
        (2**63 - 1, 2**63 - 1),
        (numpy.float32(0.5), 0.5),
        (numpy.float16(0.25), 0.25),
        (numpy.float64(0.125), 0.125),
        (numpy.int8(-3), -3),
        (numpy.bool_(True), 1),
        (numpy.array(1.5), 1.5),
        (numpy.array([2.5]), 2.5),
        (numpy.longdouble(0.75), 0.75),
        (decimal.Decimal("0.5"), 0.5),
        (fractions.Fraction(1, 4), 0.25),
        (Tensor(0.375), 0.375),
        (Tensor(numpy.float32(0.5)), 0.5),
    ],
)
def test_numbers_of_all_kinds_are_taken_as_they_are(tmp_path: Path, value: Any, stored: Any) -> None:
    recorder = recorder_in(tmp_path, strict=True)
    recorder.log_points({"value": value})
    recorder.close(1)
    found = points(recorder.writer.path)[0][1]["value"]
    assert (found, type(found)) == (stored, type(stored))


@pytest.mark.parametrize(
    "value",
    [
        None, "0.5", b"1", 1j, [1.0], (1.0,), {"a": 1}, {1}, object(), numpy.array([1.0, 2.0]), numpy.str_("1"),
        numpy.datetime64("2024-03-20"), Tensor(None, Strange("no data on meta device")), Tensor("x"),
        Tensor(None, RuntimeError("CUDA error")), 10**400,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_number_is_left_out_with_one_warning(tmp_path: Path, value: Any) -> None:
    recorder = recorder_in(tmp_path)
    for _ in range(3):
        recorder.log_points({"good": 1.0, "bad": value})
    recorder.log_points({"bad": value})
    recorder.close(1)
    assert points(recorder.writer.path) == [(0, {"good": 1.0}), (1, {"good": 1.0}), (2, {"good": 1.0})]
    assert [words[:7] for words in words_of(recorder)] == ["bad is "]
    strict = recorder_in(tmp_path, strict=True)
    with pytest.raises(ValueError, match="bad is"):
        strict.log_points({"good": 1.0, "bad": value})


def test_not_finite_values_come_back_as_themselves_and_raise_one_alert_each(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    recorder.log_points({"loss": 1.0, "norm": 1.0})
    for _ in range(2):
        recorder.log_points({"loss": math.nan, "norm": math.inf})
    recorder.log_points({"loss": numpy.float32("-inf"), "norm": 2.0})
    recorder.log_points({"loss": 0.5, "norm": 2.0})
    recorder.log_points({"loss": math.nan, "norm": 2.0})
    recorder.close(1)
    log = recorder.writer.path
    assert [values["loss"] for _, values in points(log)] == [1.0, "NaN", "NaN", "-Infinity", 0.5, "NaN"]
    assert [values["norm"] for _, values in points(log)] == [1.0, "Infinity", "Infinity", 2.0, 2.0, 2.0]
    # One when it begins, none while it lasts, one when it begins again.
    assert [alert[2:] for alert in of_kind(log, "e")] == [
        ["error", "loss is NaN", "loss is NaN at step 1"],
        ["error", "norm is Infinity", "norm is Infinity at step 1"],
        ["error", "loss is NaN", "loss is NaN at step 5"],
    ]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("loss%", "loss_"), ("größe", "gr_e"), ("a\nb", "a_b"), ("", "_"), ("x" * 251, "x" * 250), (7, "7"),
        ("α" * 300, "_"), ('q"\\', "q_"), ("tab\there", "tab_here"),
    ],
)  # fmt: skip
def test_a_bad_name_is_cleaned_with_one_warning_and_raises_where_that_was_asked_for(
    tmp_path: Path, name: Any, taken: str
) -> None:
    recorder = recorder_in(tmp_path)
    recorder.log_points({name: 1.0})
    recorder.log_points({name: 2.0})
    recorder.close(1)
    assert points(recorder.writer.path) == [(0, {taken: 1.0}), (1, {taken: 2.0})]
    assert len(words_of(recorder)) == 1
    strict = recorder_in(tmp_path, strict=True)
    with pytest.raises(ValueError, match="metric"):
        strict.log_points({name: 1.0})
    assert not strict.writer.path.exists()


@pytest.mark.parametrize("name", ["a", "val/loss", "gpu:0.util", "a b-c_d", "x" * 250])
def test_good_names_are_kept(tmp_path: Path, name: str) -> None:
    recorder = recorder_in(tmp_path, strict=True)
    recorder.log_points({name: 1.0})
    recorder.close(1)
    assert points(recorder.writer.path) == [(0, {name: 1.0})]


def test_what_is_no_mapping_and_empty_ones_do_no_harm(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    for odd in (None, 3, [("loss", 1.0)], "loss"):
        recorder.log_points(odd)  # type: ignore[arg-type]
    recorder.log_points({})
    recorder.close(1)
    assert [values for _, values in points(recorder.writer.path)] in ([], [{}])
    assert len(words_of(recorder)) == 1


def test_series_of_the_monitor_itself_do_not_move_the_step_of_the_training(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path)
    recorder.log_points({"system/cpu": 5.0}, None, {"unit": "%", "source": "sdk"})
    recorder.log_points({"loss": 1.0})
    recorder.log_points({"loss": 1.0}, 50)
    recorder.log_points({"system/cpu": 7.0}, None, {"unit": "%", "source": "sdk"})
    recorder.log_points({"loss": 1.0})
    recorder.close(1)
    log = recorder.writer.path
    assert [step for step, _ in points(log)] == [0, 0, 50, 50, 51]
    assert ["s", 0, "system/cpu", {"unit": "%", "source": "sdk"}] in records(log)


def test_more_metrics_than_a_record_holds_make_several_and_nothing_is_left_out(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path, strict=True)
    many = {f"layer{number}/weight/gradient/norm": number / 7 for number in range(9_001)}
    recorder.log_points(many, 3)
    recorder.log_points(many)
    recorder.close(1)
    log = recorder.writer.path
    assert max(len(line) for line in log.read_bytes().splitlines()) < 1 << 20
    by_step: dict[int, dict[str, float]] = {}
    for step, values in points(log):
        by_step.setdefault(step, {}).update(values)
    assert by_step == {3: many, 4: many}


def test_ever_new_combinations_of_metrics_take_no_ever_new_memory(tmp_path: Path) -> None:
    recorder = recorder_in(tmp_path, strict=True)
    expected = []
    for number in range(5_000):
        values = {f"m{place}": number / 3 for place in range(14) if number + 1 >> place & 1}
        recorder.log_points(values, number)
        expected.append((number, values))
    recorder.close(1)
    merged: dict[int, dict[str, float]] = {}
    for step, values in points(recorder.writer.path):
        merged.setdefault(step, {}).update(values)
    assert list(merged.items()) == expected
    assert len(of_kind(recorder.writer.path, "g")) <= 4_096 + 14


def test_many_threads_write_whole_lines_and_each_step_once(tmp_path: Path) -> None:
    import threading

    recorder = recorder_in(tmp_path)

    def work(name: str) -> None:
        for number in range(500):
            recorder.log_points({name: float(number)})

    threads = [threading.Thread(target=work, args=(f"m{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close(1)
    found = points(recorder.writer.path)
    assert [step for step, _ in found] == list(range(4_000))
    for number in range(8):
        own = [values[f"m{number}"] for _, values in found if f"m{number}" in values]
        assert own == [float(one) for one in range(500)]


def test_a_call_of_five_metrics_takes_thirty_bytes_a_value_and_one_sixty(tmp_path: Path) -> None:
    import random

    numbers = random.Random(4)
    for count, most in ((5, 30), (1, 60)):
        recorder = recorder_in(tmp_path)
        names = [f"metric/{number}" for number in range(count)]
        for step in range(2_000):
            recorder.log_points({name: numbers.random() for name in names}, 1_000_000 + step)
        recorder.close(1)
        assert recorder.writer.path.stat().st_size / (2_000 * count) <= most
