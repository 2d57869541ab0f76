"""TensorBoard's event files: framing, checks, messages, and the experiments that runs become."""

from __future__ import annotations

import json
import os
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_monitor.core.errors import NothingFound
from gpu_monitor.training.tensorboard.crc32c import crc32c, masked
from gpu_monitor.training.tensorboard.events import Event, EventReader
from gpu_monitor.training.tensorboard.frames import Frame, Stop, read_frames
from gpu_monitor.training.tensorboard.messages import BadMessage, read_fields
from gpu_monitor.training.tensorboard.runs import import_runs
from gpu_monitor.training.tensorboard.segment import Segment
from gpu_monitor.wire.training import (
    About,
    AnyRecord,
    Header,
    Media,
    Params,
    Points,
    PointSet,
    Series,
    Status,
    Writer,
    decode,
    number_of,
    whole_lines,
)  # fmt: skip
from tests.e2e.program import ask
from tests.recordings import recording

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c6360606000000004000"
    "1f61738550000000049454e44ae426082"
)
RECORDED = "train/guild_events.out.tfevents"


# What TensorBoard's writers do, by the format's description alone.


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def part(number: int, value: bytes | str | int | float, form: str = "") -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | (1 if form == "<d" else 5)) + struct.pack(form, value)


def scalar(tag: str, value: float) -> bytes:
    return part(1, part(1, tag) + part(2, value, "<f"))


def tensor_value(tag: str, plugin: str, tensor: bytes) -> bytes:
    return part(1, part(1, tag) + part(9, part(1, part(1, plugin))) + part(8, tensor))


def event(time: float, step: int, *values: bytes) -> bytes:
    return part(1, time, "<d") + part(2, step) + (part(5, b"".join(values)) if values else b"")


def frame(content: bytes) -> bytes:
    def check(data: bytes) -> bytes:
        crc = crc32c_by_bits(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    head = struct.pack("<Q", len(content))
    return head + check(head) + content + check(content)


def crc32c_by_bits(data: bytes) -> int:
    """As RFC 3720 defines it, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


VERSION = part(1, 1_700_000_000.0, "<d") + part(3, "brain.Event:2")


def write_run(folder: Path, *events: bytes, name: str = "events.out.tfevents.1700000000.host-1.42.0") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with path.open("ab") as file:
        if not path.stat().st_size:
            file.write(frame(VERSION))
        for content in events:
            file.write(frame(content))
    return path


def records(directory: Path) -> list[AnyRecord]:
    [segment] = directory.glob("*/seg-*.log")
    return [decode(line) for line in whole_lines(segment.read_bytes())]


def series(found: list[AnyRecord]) -> dict[str, list[tuple[int, float]]]:
    names = {record.number: record.name for record in found if isinstance(record, Series)}
    sets = {record.number: record.series for record in found if isinstance(record, PointSet)}
    values: dict[str, list[tuple[int, float]]] = {name: [] for name in names.values()}
    for record in found:
        if isinstance(record, Points):
            for number, value in zip(sets[record.set], record.values, strict=True):
                values[names[number]].append((record.step, number_of(value)))
    return values


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, B.4, and the check value of the catalogue of parametrised CRCs
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_crc_is_that_of_the_standard(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc
    assert crc32c_by_bits(data) == crc


@given(st.binary(max_size=40), st.integers(0, 4000))
def test_long_texts_have_the_same_crc_as_bit_by_bit(data: bytes, size: int) -> None:
    whole = (data + random.Random(size).randbytes(size))[: max(size, len(data))]
    assert crc32c(whole) == crc32c_by_bits(whole)


def test_frames_of_a_damaged_or_torn_file(tmp_path: Path) -> None:
    good = [frame(b"one"), frame(b"two" * 100), frame(b"three")]
    path = tmp_path / "file"
    path.write_bytes(b"".join(good))
    assert [found.content for found in read_frames(path) if isinstance(found, Frame)] == [
        b"one", b"two" * 100, b"three",
    ]  # fmt: skip
    for cut in range(1, len(good[2])):
        path.write_bytes(b"".join(good)[:-cut])
        assert list(read_frames(path))[-1] == Stop(len(good[0] + good[1]), True)
    damaged = bytearray(b"".join(good))
    damaged[len(good[0]) + 20] ^= 1
    path.write_bytes(damaged)
    contents = [found.content for found in read_frames(path) if isinstance(found, Frame)]
    assert contents == [b"one", None, b"three"]
    damaged = bytearray(b"".join(good))
    damaged[len(good[0]) + 2] ^= 1
    path.write_bytes(damaged)
    assert list(read_frames(path))[1:] == [Stop(len(good[0]), False)]
    path.write_bytes(struct.pack("<QI", 1 << 40, masked(struct.pack("<Q", 1 << 40))))
    assert list(read_frames(path)) == [Stop(0, False)]


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_refused(data: bytes) -> None:
    try:
        list(read_fields(data))
        EventReader().read(data)
    except BadMessage:
        return


def test_numbers_of_messages() -> None:
    assert [found.whole for found in read_fields(part(2, -1) + part(2, 1 << 62))] == [-1, 1 << 62]
    for wrong in (b"\x08", b"\x0a\x05ab", b"\x0b", b"\x08" + b"\xff" * 10, b"\x09\x00"):
        with pytest.raises(BadMessage):
            list(read_fields(wrong))


def test_a_recorded_run_is_an_experiment(tmp_path: Path) -> None:
    source = recording(RECORDED)
    [report] = import_runs(source, tmp_path)
    found = records(tmp_path)
    values = series(found)
    assert {name: len(points) for name, points in values.items()} == {
        "acc": 20, "loss": 20, "val_acc": 20, "val_loss": 20,
    }  # fmt: skip
    assert [step for step, _ in values["acc"]] == list(range(20))
    # The bytes of the first values in the file, as little-endian floats: f1 63 6c 3f and 54 4d 7d 3e.
    assert values["acc"][0][1] == struct.unpack("<f", bytes.fromhex("f1636c3f"))[0]
    assert values["loss"][0][1] == struct.unpack("<f", bytes.fromhex("544d7d3e"))[0]
    header = found[0]
    assert isinstance(header, Header)
    # 1548797801 is 2019-01-29 21:36:41 UTC, and in the name of the file at its origin.
    assert header.about.started == 1548797801.0
    assert report.experiment_id is not None
    assert report.experiment_id.startswith("20190129T213641Z-tb")
    assert report.files[0].left_out == {"graph": 1, "graph of a session": 1}
    last = found[-1]
    assert isinstance(last, Status)
    assert (last.status, last.more["bytes"]) == ("completed", source.stat().st_size)


def test_importing_again_changes_nothing_wherever_the_folder_lies(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", event(1_700_000_001.5, 3, scalar("loss", 0.5)))
    [first] = import_runs(tmp_path / "runs", tmp_path / "experiments")
    [segment] = (tmp_path / "experiments").glob("*/seg-*.log")
    content, inode = segment.read_bytes(), segment.stat().st_ino
    (tmp_path / "runs").rename(tmp_path / "moved")
    [second] = import_runs(tmp_path / "moved", tmp_path / "experiments")
    assert (first.experiment_id, second.files[0].outcome) == (second.experiment_id, "unchanged")
    assert [*(tmp_path / "experiments").glob("*/*")] == [segment]
    assert (segment.read_bytes(), segment.stat().st_ino) == (content, inode)
    import_runs(tmp_path / "moved", tmp_path / "others")
    [other] = (tmp_path / "others").glob("*/seg-*.log")
    assert (other.parent.name, other.name, other.read_bytes()) == (segment.parent.name, segment.name, content)


def test_what_was_added_to_a_file_is_appended(tmp_path: Path) -> None:
    runs, experiments = tmp_path / "runs", tmp_path / "experiments"
    text = tensor_value("note", "text", part(1, 7) + part(8, "hello"))
    path = write_run(runs, event(1_700_000_001.0, 0, scalar("loss", 0.5)), event(1_700_000_001.5, 0, text))
    import_runs(runs, experiments)
    [segment] = experiments.glob("*/seg-*.log")
    before = segment.read_bytes()
    later = tensor_value("note", "", part(1, 7) + part(8, "later"))
    write_run(
        runs,
        event(1_700_000_002.0, 1, scalar("loss", 0.25), scalar("new", 1.0)),
        event(1_700_000_003.0, 1, later),
    )
    with path.open("ab") as file:
        file.write(frame(b"torn")[:-2])
    [report] = import_runs(runs, experiments)
    assert (report.files[0].outcome, report.files[0].values, report.files[0].texts) == ("grown", 2, 1)
    assert segment.read_bytes().startswith(before)
    assert series(records(experiments)) == {"loss": [(0, 0.5), (1, 0.25)], "new": [(1, 1.0)]}
    texts = [record.more["data"] for record in records(experiments) if isinstance(record, Media)]
    assert texts == ["hello", "later"]
    # Once the writer has finished its record it is taken, and what stands before it is not taken again.
    path.write_bytes(path.read_bytes()[: -len(frame(b"torn")) + 2])
    write_run(runs, event(1_700_000_004.0, 2, scalar("loss", 0.125)))
    import_runs(runs, experiments)
    assert series(records(experiments))["loss"] == [(0, 0.5), (1, 0.25), (2, 0.125)]
    statuses = [record.more["bytes"] for record in records(experiments) if isinstance(record, Status)]
    assert statuses == sorted(statuses)
    assert len(statuses) == 3


def test_each_folder_is_a_run_and_each_file_a_segment(tmp_path: Path) -> None:
    runs, experiments = tmp_path / "runs", tmp_path / "experiments"
    write_run(runs / "a", event(1_700_000_001.0, 0, scalar("loss", 0.5)))
    write_run(
        runs / "b" / "c", event(1_700_000_001.0, 0, scalar("loss", 0.75)), name="events.out.tfevents.1.h.1.0"
    )
    write_run(
        runs / "b" / "c", event(1_700_000_009.0, 1, scalar("loss", 0.5)), name="events.out.tfevents.2.h.2.0"
    )
    write_run(runs / "nothing", name="events.out.tfevents.3.h.3.0")
    (runs / "b" / "notes.txt").write_text("no event file")
    reports = {report.name: report for report in import_runs(runs, experiments)}
    assert set(reports) == {"a", "b/c", "nothing"}
    assert reports["nothing"].experiment_id is None
    assert len(list(experiments.iterdir())) == 2
    assert len(list((experiments / str(reports["b/c"].experiment_id)).glob("seg-*.log"))) == 2
    with pytest.raises(NothingFound, match="tfevents"):
        import_runs(experiments, tmp_path / "x")


def test_values_of_all_forms_and_names(tmp_path: Path) -> None:
    forms = [
        tensor_value("f", "scalars", part(1, 1) + part(5, 0.5, "<f")),
        tensor_value("d", "scalars", part(1, 2) + part(4, struct.pack("<d", 0.1))),
        tensor_value("h", "scalars", part(1, 19) + part(4, struct.pack("<e", 1.5))),
        tensor_value("i", "scalars", part(1, 9) + part(10, -3)),
        tensor_value("i4", "scalars", part(1, 3) + part(7, varint(7))),
        scalar("näme: 100 %", 1.0),
        scalar("n_me: 100 _", 2.0),
        scalar("nan", float("nan")),
        scalar("up", float("inf")),
        tensor_value(
            "vector", "scalars", part(1, 1) + part(2, part(2, part(1, 2))) + part(5, struct.pack("<ff", 1, 2))
        ),
        tensor_value("dist", "histograms", part(1, 2) + part(4, bytes(72))),
        part(1, part(1, "old") + part(5, b"")),
    ]
    write_run(tmp_path / "run", event(1_700_000_001.0, -5, *forms))
    [report] = import_runs(tmp_path / "run", tmp_path / "out")
    values = {name: points[0] for name, points in series(records(tmp_path / "out")).items()}
    assert values.pop("nan")[1] != values["up"][1]
    assert values == {
        "f": (-5, 0.5), "d": (-5, 0.1), "h": (-5, 1.5), "i": (-5, -3.0), "i4": (-5, 7.0),
        "n_me: 100 _": (-5, 1.0), "n_me: 100 __2": (-5, 2.0), "up": (-5, float("inf")),
    }  # fmt: skip
    assert report.files[0].left_out == {"scalar of more than one value": 1, "histogram": 2}


def test_pictures_and_hyperparameters_come_along(tmp_path: Path) -> None:
    old = part(1, part(1, "old") + part(4, part(1, 1) + part(2, 1) + part(3, 3) + part(4, PNG)))
    new = tensor_value(
        "new", "images", part(1, 7) + part(8, "1") + part(8, "1") + part(8, PNG) + part(8, PNG)
    )
    gif = part(1, part(1, "gif") + part(4, part(4, b"GIF89a")))

    def entry(name: str, value: bytes) -> bytes:
        return part(1, part(1, name) + part(2, value))

    params = part(3, entry("lr", part(2, 0.01, "<d")) + entry("layers", part(2, 4.0, "<d"))
        + entry("optimizer", part(3, "adam")) + entry("amp", part(4, 1)))  # fmt: skip
    session = part(
        1, part(1, "_hparams_/session_start_info") + part(9, part(1, part(1, "hparams") + part(2, params)))
    )
    write_run(tmp_path / "run", event(1_700_000_001.0, 1, old, new, gif), event(1_700_000_002.0, 0, session))
    [report] = import_runs(tmp_path / "run", tmp_path / "out")
    found = records(tmp_path / "out")
    pictures = [record for record in found if isinstance(record, Media)]
    assert [record.name for record in pictures] == ["old", "new", "new/1"]
    assert len({record.more["file"] for record in pictures}) == 1
    [folder] = (tmp_path / "out").iterdir()
    assert (folder / pictures[0].more["file"]).read_bytes() == PNG
    [given] = [record for record in found if isinstance(record, Params)]
    assert given.params == {"lr": 0.01, "layers": 4, "optimizer": "adam", "amp": True}
    assert report.files[0].left_out == {"picture that is no PNG or JPEG": 1}


def test_a_damaged_file_gives_what_it_has_and_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", event(1_700_000_001.0, 0, scalar("a", 1.0)))
    length = path.stat().st_size
    write_run(
        tmp_path / "run",
        event(1_700_000_002.0, 1, scalar("a", 2.0)),
        event(1_700_000_003.0, 2, scalar("a", 3.0)),
    )
    content = bytearray(path.read_bytes())
    content[length + 20] ^= 1
    path.write_bytes(content)
    (tmp_path / "run" / "not.tfevents").write_bytes(b"no event file at all")
    done = ask(tmp_path, "import", "--tensorboard", "run", "--directory", "out")
    assert done.returncode == 1
    assert "left out: 1 x damaged record" in done.stdout
    assert "not.tfevents is no event file, or damaged" in done.stderr
    assert series(records(tmp_path / "out")) == {"a": [(0, 1.0), (2, 3.0)]}


def test_the_command_line_imports_and_says_what(tmp_path: Path) -> None:
    write_run(
        tmp_path / "runs" / "lr \x1b[31m", event(1_700_000_001.0, 0, scalar("loss", 0.5), scalar("acc", 0.25))
    )
    dry = ask(tmp_path, "import", "--tensorboard", "runs", "--dry-run")
    assert (dry.returncode, (tmp_path / "experiments").exists()) == (0, False)
    done = ask(tmp_path, "import", "--tensorboard", "runs", "--project", "vision")
    assert (done.returncode, done.stderr) == (0, "")
    assert "new, 2 values of 2 metrics" in done.stdout
    assert "\x1b" not in done.stdout
    header = records(tmp_path / "experiments")[0]
    assert isinstance(header, Header)
    assert (header.about.project, header.about.writer.host, header.about.writer.pid) == (
        "vision",
        "host-1",
        42,
    )
    again = ask(tmp_path, "import", "--tensorboard", "runs", "--json")
    answer: dict[str, Any] = json.loads(again.stdout)
    assert [file["outcome"] for run in answer["runs"] for file in run["files"]] == ["unchanged"]
    assert answer["directory"] == os.fspath(tmp_path / "experiments")
    assert ask(tmp_path, "import", "--tensorboard", "gone").returncode == 3
    assert ask(tmp_path, "import", "--tensorboard", "runs", "file.csv").returncode == 2
    assert ask(tmp_path, "import").returncode == 2


def test_what_pytorchs_own_writer_wrote(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: its event files are not tested")
    pytest.importorskip(
        "tensorboard", reason="tensorboard is not installed: PyTorch's event files are not tested"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(tmp_path / "run")) as writer:
            for step in range(10):
                writer.add_scalar("train/loss", 1.0 / (step + 1), step)
            writer.add_text("note", "one\ntwo", 3)
            writer.add_image("picture", torch.zeros(3, 4, 5), 2)
            writer.add_histogram("weights", torch.arange(10.0), 1)
            writer.add_hparams({"lr": 0.5, "name": "x", "flag": True, "n": 3}, {"best": 0.1}, run_name="hp")
        import_runs(tmp_path / "run", tmp_path / "out")
        theirs = EventAccumulator(str(tmp_path / "run")).Reload()
        scalars = [(found.step, found.value) for found in theirs.Scalars("train/loss")]
    folders = {
        path.parent: [decode(line) for line in whole_lines(path.read_bytes())]
        for path in (tmp_path / "out").glob("*/seg-*.log")
    }
    main = next(found for found in folders.values() if "train/loss" in series(found))
    assert series(main)["train/loss"] == scalars
    assert {(record.kind, record.name, record.step) for record in main if isinstance(record, Media)} == {
        ("text", "note", 3), ("image", "picture", 2),
    }  # fmt: skip
    params = [record.params for found in folders.values() for record in found if isinstance(record, Params)]
    assert params == [{"lr": 0.5, "name": "x", "flag": True, "n": 3}]


def test_metrics_beyond_the_most_of_a_segment_are_counted_and_left_out(tmp_path: Path) -> None:
    events = [event(1_700_000_000.0 + at, at, scalar(f"one/{at}", float(at))) for at in range(6_000)]
    events.append(event(1_700_010_000.0, 7, *(scalar(f"many/{at}", float(at)) for at in range(4_030))))
    events.append(event(1_700_010_001.0, 8, scalar("late", 1.0), scalar("one/5", 9.0)))
    path = write_run(tmp_path / "run", *events)
    [report] = import_runs(tmp_path / "run", tmp_path / "out")
    [file] = report.files
    assert dict(file.left_out) == {"value of a metric beyond the first 10,000": 31}
    assert (file.values, len(file.metrics), file.problems) == (10_001, 10_000, [])
    found = series(records(tmp_path / "out"))
    assert len(found) == 10_000
    assert found["one/5"] == [(5, 5.0), (8, 9.0)]
    assert found["many/3999"] == [(7, 3_999.0)]
    assert not {"many/4000", "late"} & found.keys()
    # What comes later goes on under the same rule.
    write_run(tmp_path / "run", event(1_700_010_002.0, 9, scalar("later", 1.0), scalar("one/5", 10.0)))
    [again] = import_runs(path, tmp_path / "out")
    assert (again.files[0].outcome, again.files[0].values, again.files[0].left_out.total()) == ("grown", 1, 1)


def test_combinations_of_metrics_are_not_put_down_beyond_what_a_segment_may_have() -> None:
    # 200 events of 1,000 metrics each, every time with another one left out: 200,000 in sets, were they all put down.
    writer = Writer(host="here", pid=1)
    about = About(
        experiment_id="e", segment="seg-00000000", name="n", project="p", started=1.0, writer=writer
    )
    segment = Segment.begin(about, {})
    names = [f"m{at}" for at in range(1_001)]
    for at in range(200):
        scalars = [(name, float(at)) for name in names if name != names[at]]
        segment.take(Event(2.0 + at, at, segment.with_room(scalars)), [])
    found = [decode(line) for line in segment.lines]
    assert sum(len(one.series) for one in found if isinstance(one, PointSet)) <= 200_000
    values = series(found)
    assert values["m700"] == [(at, float(at)) for at in range(200)]
    assert values["m3"] == [(at, float(at)) for at in range(200) if at != 3]


def test_tags_that_become_one_name_get_numbers_and_keep_them(tmp_path: Path) -> None:
    write_run(
        tmp_path / "run", event(1_700_000_001.0, 1, *(scalar(tag, 1.0) for tag in ("a%", "a&", "a__2", "a_")))
    )
    import_runs(tmp_path / "run", tmp_path / "out")
    write_run(
        tmp_path / "run", event(1_700_000_002.0, 2, *(scalar(tag, 2.0) for tag in ("a?", "a&", "a__2")))
    )
    import_runs(tmp_path / "run", tmp_path / "out")
    tags = {
        str(record.more.get("tag", record.name)): record.name
        for record in records(tmp_path / "out")
        if isinstance(record, Series)
    }
    assert tags == {"a%": "a_", "a&": "a__2", "a__2": "a__2_2", "a_": "a__3", "a?": "a__4"}


def test_times_that_cannot_be_are_counted_and_said(tmp_path: Path) -> None:
    wrong = [float("nan"), 1e300, -1e18, float("inf"), 5e11]
    events = [event(1_700_000_010.0, 0, scalar("loss", 0.0))]
    events += [event(time, at, scalar("loss", 1.0)) for at, time in enumerate(wrong, 1)]
    events += [event(1_700_000_020.0, 9, scalar("loss", 2.0))]
    write_run(tmp_path / "run", *events)
    done = ask(tmp_path, "import", "--tensorboard", "run", "--directory", "out")
    assert done.returncode == 0, done.stderr
    assert "5 events without a right time, which have that of the one before" in done.stdout
    assert [record.at for record in records(tmp_path / "out") if isinstance(record, Points)] == [
        10_000
    ] * 6 + [20_000]
    told = json.loads(
        ask(tmp_path, "import", "--tensorboard", "run", "--directory", "other", "--json").stdout
    )
    assert told["runs"][0]["files"][0]["events_without_time"] == 5


def test_a_first_time_that_cannot_be_is_that_of_the_file_s_name(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.out.tfevents.1700000000.host-1.42.0"
    path.parent.mkdir()
    path.write_bytes(frame(event(float("nan"), 0)) + frame(event(1_700_000_005.0, 1, scalar("loss", 1.0))))
    [report] = import_runs(path, tmp_path / "out")
    assert str(report.experiment_id).startswith("20231114T221320Z-tb")
    [header] = [one for one in records(tmp_path / "out") if isinstance(one, Header)]
    assert header.about.started == 1_700_000_000.0


def test_a_length_that_no_record_has_does_not_hide_what_follows_without_a_word(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", event(1_700_000_001.0, 1, scalar("loss", 1.0)))
    good, length = path.read_bytes(), struct.pack("<Q", 2 << 30)
    path.write_bytes(good + length + struct.pack("<I", masked(length)) + b"abc" + good)
    done = ask(tmp_path, "import", "--tensorboard", "run", "--directory", "out")
    assert done.returncode == 1
    assert f"is damaged at byte {len(good):,}; what follows cannot be found" in done.stderr
    assert series(records(tmp_path / "out")) == {"loss": [(1, 1.0)]}


def test_the_torn_end_of_a_file_is_said(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", event(1_700_000_001.0, 1, scalar("loss", 1.0)))
    with path.open("ab") as file:
        file.write(frame(event(1_700_000_002.0, 2, scalar("loss", 2.0)))[:-7])
    torn = len(frame(event(1_700_000_002.0, 2, scalar("loss", 2.0)))) - 7
    done = ask(tmp_path, "import", "--tensorboard", "run", "--directory", "out")
    assert done.returncode == 0
    assert f"its last {torn} bytes are no whole record (yet)" in done.stdout
