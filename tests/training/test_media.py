"""Pictures and the like through the monitor: what the segment says, and the files that it names."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.training import TrainingMonitor
from gpu_monitor.training.blobs import Blobs
from tests.fakes.clock import FakeClock
from tests.training.recorded import media
from tests.training.test_png import decode


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[TrainingMonitor]:
    with TrainingMonitor("x", directory=tmp_path, capture=False) as made:
        yield made


def file_of(monitor: TrainingMonitor, more: dict[str, object]) -> bytes:
    content = (monitor.folder / str(more["file"])).read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (more["sha256"], more["size"])
    return content


def test_a_picture_is_a_file_named_by_its_digest(monitor: TrainingMonitor) -> None:
    monitor.log_image("before", [[0, 255]])
    monitor.log_metrics({"loss": 1.0}, step=7)
    monitor.log_image("gray", [[0, 128], [255, 1]])
    monitor.log_image("gray", [[0, 128], [255, 1]], step=9)
    first, *both = media(monitor.folder, "image")
    assert (first.step, [record.step for record in both]) == (None, [7, 9])
    more = both[0].more
    assert (more["type"], more["width"], more["height"]) == ("image/png", 2, 2)
    assert more == both[1].more
    assert decode(file_of(monitor, more)) == (2, 2, 1, bytes([0, 128, 255, 1]))
    assert sorted(os.listdir(monitor.folder / "media")) == sorted(
        {Path(r.more["file"]).name for r in [first, *both]}
    )


@pytest.mark.parametrize(
    "image",
    [None, "text", [[1, 2], [3]], [1, 2, 3], [["a"]], [[0] * 20_000], object()],
)
def test_what_is_no_picture_is_told_and_nothing_breaks(
    image: object, monitor: TrainingMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.log_image("odd", image)
    monitor.log_image("odd", image)
    assert media(monitor.folder) == []
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("gpu_monitor: the image odd ")
    assert caplog.messages[0].endswith("; it is left out")


def test_values_that_fail_at_every_touch(monitor: TrainingMonitor, caplog: pytest.LogCaptureFixture) -> None:
    class Hostile:
        """Everything about it fails."""

        def __getattribute__(self, name: str) -> object:
            raise RuntimeError("no")

    for log in (monitor.log_image, monitor.log_histogram, monitor.log_table):
        log("hostile", Hostile())  # type: ignore[operator]
    assert media(monitor.folder) == []
    assert len(caplog.messages) == 3


def test_strict_raises(tmp_path: Path) -> None:
    with TrainingMonitor("x", directory=tmp_path, capture=False, strict=True) as monitor:
        for log in (
            lambda: monitor.log_image("a", "no"),
            lambda: monitor.log_histogram("a", "no"),
            lambda: monitor.log_histogram("a", [1], bins=0),
            lambda: monitor.log_table("a", 3),
            lambda: monitor.log_text("", "x"),
            lambda: monitor.log_text("a\nb", "x"),
            lambda: monitor.log_text("a", "x", step="soon"),  # type: ignore[arg-type]
        ):
            with pytest.raises(ValueError, match=r"left out|recorded as|whole number"):
                log()


def test_clipping_is_said_once(monitor: TrainingMonitor, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        monitor.log_image("bright", [[0, 300]])
    assert len(caplog.messages) == 1
    assert "clipped" in caplog.messages[0]
    assert len(media(monitor.folder)) == 2


def test_names_are_taken_as_text_and_cleaned(monitor: TrainingMonitor) -> None:
    monitor.log_text("größe/ä ✓", "fine")
    monitor.log_text("a\nb\x00", "cleaned")
    monitor.log_text(5, "number")  # type: ignore[arg-type]
    monitor.log_text("n" * 300, "cut")
    assert [record.name for record in media(monitor.folder)] == ["größe/ä ✓", "a_b_", "5", "n" * 250]


def test_texts_stand_in_the_record_or_in_a_file(monitor: TrainingMonitor) -> None:
    monitor.log_text("short", "a\ud800\nb", step=3)
    monitor.log_text("long", "ü" * 50_000)
    monitor.log_text("too long", "x" * (17 << 20))
    short, long = media(monitor.folder, "text")
    assert (short.step, short.more) == (3, {"data": "a?\nb"})
    assert long.more["type"] == "text/plain; charset=utf-8"
    assert file_of(monitor, long.more).decode() == "ü" * 50_000


def test_histograms_stand_in_the_record(monitor: TrainingMonitor) -> None:
    monitor.log_histogram("weights", [0.0, 1.0, 1.0, float("inf")], step=2, bins=2)
    (found,) = media(monitor.folder)
    assert (found.kind, found.step) == ("histogram", 2)
    assert found.more["data"] == {
        "low": 0.0, "high": 1.0, "counts": [1, 2], "count": 4, "infinity": 1,
        "min": 0.0, "max": 1.0, "mean": pytest.approx(2 / 3), "deviation": pytest.approx(2**0.5 / 3),
    }  # fmt: skip


def test_tables_stand_in_the_record_or_in_a_file(monitor: TrainingMonitor) -> None:
    monitor.log_table("small", [{"a": 1}])
    monitor.log_table("large", {"a": range(20_000)})
    small, large = media(monitor.folder, "table")
    assert small.more == {"data": {"columns": ["a"], "rows": [[1]]}, "rows": 1, "columns": 1}
    assert (large.more["type"], large.more["rows"]) == ("application/json", 20_000)
    assert json.loads(file_of(monitor, large.more))["rows"][-1] == [19_999]


def test_a_folder_that_cannot_be_written_is_told(
    monitor: TrainingMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    (monitor.folder / "media").write_text("a file where the folder should be")
    monitor.log_image("a", [[1]])
    monitor.log_metrics({"loss": 1.0})
    assert media(monitor.folder) == []
    assert "cannot be stored" in caplog.messages[0]


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path: Path) -> None:
    clock = FakeClock(1_780_000_000.0)
    folder = tmp_path / "media"
    folder.mkdir()
    for name, age in ((".tmp-old", 100_000), (".tmp-new", 100)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (clock.now() - age,) * 2)
    blob = Blobs(tmp_path, clock).put(b"content", "application/json")
    assert sorted(os.listdir(folder)) == sorted([".tmp-new", Path(blob.file).name])
    assert Blobs(tmp_path, clock).put(b"content", "application/json") == blob


def test_a_torn_blob_is_written_again(tmp_path: Path) -> None:
    blob = Blobs(tmp_path).put(b"content", "application/json")
    (tmp_path / blob.file).write_bytes(b"con")
    assert Blobs(tmp_path).put(b"content", "application/json") == blob
    assert (tmp_path / blob.file).read_bytes() == b"content"


def test_figures_of_matplotlib(monitor: TrainingMonitor) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: its figures are not tested")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1), dpi=50)
    axes = figure.subplots()
    axes.plot([1, 2, 3])
    monitor.log_image("figure", figure)
    monitor.log_image("axes", axes)
    monitor.log_image("huge", Figure(figsize=(2000, 2000), dpi=100))
    both = media(monitor.folder, "image")
    assert [record.name for record in both] == ["figure", "axes"]
    assert (both[0].more["width"], both[0].more["height"]) == (100, 50)
    assert both[0].more["sha256"] == both[1].more["sha256"]


def test_images_of_pillow(monitor: TrainingMonitor) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: its images are not tested")
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16")
    for mode in modes:
        monitor.log_image(mode, image.new(mode, (5, 3)))
    found = media(monitor.folder, "image")
    assert [record.name for record in found] == list(modes)
    for record in found:
        assert (record.more["width"], record.more["height"]) == (5, 3)
        assert image.open(io.BytesIO(file_of(monitor, record.more))).size == (5, 3)


def test_figures_of_plotly(monitor: TrainingMonitor) -> None:
    graphs = pytest.importorskip(
        "plotly.graph_objects", reason="plotly is not installed: its figures are not tested"
    )
    monitor.log_image("curve", graphs.Figure(graphs.Scatter(x=[1, 2], y=[3, 4])))
    found = media(monitor.folder, "image")[0]
    assert found.more["type"] == "application/vnd.plotly.v1+json"
    assert json.loads(file_of(monitor, found.more))["data"][0]["x"] == [1, 2]
