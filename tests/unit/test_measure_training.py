"""`scripts/bench training` and the soak around what they measure: arguments, the page, and that a loss is seen."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.segments import header, line
from tests.measure import training_bench, training_peers
from tests.measure.bench import PAGE
from tests.measure.figures import Figure, replace_part
from tests.measure.machine import Machine
from tests.measure.training_bed import Spread, said_by
from tests.measure.training_ledger import (
    Segment,
    Told,
    check_calls,
    check_files,
    check_server,
    read_segment,
    read_told,
)
from tests.measure.training_log import figures_of
from tests.measure.training_server import MOST, SERIES, make_parts

MACHINE = Machine("2026-01-02 03:04 UTC", "CPU", 2, 16.0, "Linux 6", "3.11.7", "3.40.1", "0.1 0.1 0.1", 1.04)


def test_the_whole_measure_alone_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert training_bench.read_arguments(["--write", "--peers"]).parts == list(training_bench.PARTS)
    assert training_bench.read_arguments(["--only", "log,read"]).parts == ["log", "read"]
    for wrong in (["--write", "--quick"], ["--write", "--only", "log"], ["--only", "nothing"]):
        with pytest.raises(SystemExit):
            training_bench.read_arguments(wrong)
    assert "--write wants the whole measure" in capsys.readouterr().err


def test_every_part_is_there() -> None:
    assert [one for one in training_bench.PARTS if not callable(getattr(training_bench.Bench, one))] == []


def test_the_page_has_its_place_and_the_other_parts_stay(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    training_bench.write(page, MACHINE, [Figure("call", 9, 3.75, "µs")], ["crash: no agent"], "new peers")
    text = page.read_text(encoding="utf-8")
    assert "| call | ≤ 9 µs | 3.8 µs | yes |" in text
    assert "- crash: no agent" in text
    assert "2026-01-02 03:04 UTC, load average 0.1 0.1 0.1:\n\nnew peers\n" in text
    assert text.startswith(PAGE.read_text(encoding="utf-8").partition("## Training")[0])
    training_bench.write(page, MACHINE, [], [], None)
    assert "new peers" in page.read_text(encoding="utf-8"), "peers that were not measured keep their figures"
    for name in ("training machine", "training figures", "training peers"):
        assert f"\n\nnew {name}\n\n" in replace_part(text, name, f"new {name}")


def test_what_was_measured_before_a_part_failed_is_kept(tmp_path: Path) -> None:
    class Broken(training_bench.Bench):
        def log(self) -> Any:
            yield Figure("first", None, 1.0, "s")
            raise RuntimeError("the second could not run")

    bench = Broken(tmp_path, training_bench.QUICK, lambda what, share: None)
    figures, failed = training_bench.measure(bench, ["log"])
    assert [figure.what for figure in figures] == ["first"]
    assert failed == ["log: not measured to its end: the second could not run"]


def test_a_spread_and_the_bars_of_a_call() -> None:
    # 1 to 100 µs: the 50th and the 100th of a hundred.
    spread = Spread.of([number * 1000 for number in range(1, 101)])
    assert (spread.p50, spread.p99, spread.longest, spread.count) == (50.0, 100.0, 100.0, 100)
    with pytest.raises(ValueError, match="nothing"):
        Spread.of([])
    control = Spread(1.0, 4.0, 300.0, 10)
    found = list(figures_of("call", Spread(9.5, 28.0, 2200.0, 10), control, ("note",)))
    # 1 + 8, 2 * 4 + 20, 300 + 2000.
    assert [(one.limit, one.value, one.is_met) for one in found] == [
        (9.0, 9.5, False), (28.0, 28.0, True), (2300, 2200.0, True),
    ]  # fmt: skip
    assert "note" in found[0].notes


def test_uploads_are_whole_lines_that_follow_each_other() -> None:
    parts = make_parts("run", 20_000)
    assert sum(part.points for part in parts) == 20_000 * SERIES
    place = 0
    for part in parts:
        assert part.offset == place
        assert part.data.endswith(b"]\n")
        assert len(part.data) <= MOST
        place += len(part.data)
    assert len(parts) == 3
    (more,) = make_parts("run", 10, 20_000, place)
    assert (more.points, more.offset, more.data.count(b"\n")) == (50, place, 10)
    assert json.loads(more.data.splitlines()[0])[:4] == ["p", 20_000, 20_000, 0]


def test_a_program_that_fails_is_told_of() -> None:
    assert said_by(subprocess.CompletedProcess([], 0, 'words\n{"a": 1}\n', ""), "it") == {"a": 1}
    with pytest.raises(RuntimeError, match="it ended with 3: no way"):
        said_by(subprocess.CompletedProcess([], 3, "", "no way"), "it")


def test_peers_are_shown_beside_each_other() -> None:
    ran = training_peers.Peer("ours", "1", Spread(3.75, 10.0, 5000.0, 9), 0, 7, None)
    failed = training_peers.Peer("other", "", None, None, None, 50.0, "not run: no network")
    assert ran.cells() == ("ours 1", "3.8 µs", "10.0 µs", "5.0 ms", "0 of 1,000", "7 of 1,000", "", "")
    assert training_peers.as_markdown([ran, failed]).splitlines()[1:] == [
        "|---|---|---|---|---|---|---|---|",
        "| ours 1 | 3.8 µs | 10.0 µs | 5.0 ms | 0 of 1,000 | 7 of 1,000 |  |  |",
        "| other |  |  |  |  |  | 50 MB | not run: no network |",
    ]


# The soak's ledger: what it finds right, and that it sees each kind of loss.

STATE = b"state"
SHA = hashlib.sha256(STATE).hexdigest()
DIARY = [
    ["run", "e1", "seg-a0000000"], ["loss", 0], ["loss", 1], ["note", "0-1"], ["media", "text", "3-1", 1],
    ["file", "checkpoint", "", 1, SHA],
]  # fmt: skip


def lay(folder: Path, *, without: str = "", steps: int = 2) -> tuple[Told, Segment]:
    """A diary and a log that agree, but for the kind that is left out."""
    place = folder / "e1"
    (place / "checkpoints").mkdir(parents=True)
    (place / "checkpoints/one.bin").write_bytes(STATE)
    (folder / "told").write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in DIARY) + b'["loss", 2')
    checkpoint = {"sha256": SHA, "size": 5, "file": "checkpoints/one.bin", "epoch": 1, "type": "x"}
    lines = {
        "s": [line("s", 0, "loss", {}), line("g", 0, [0])],
        "p": [line("p", step, step, 0, [step / 7]) for step in range(steps)],
        "n": [line("n", 3, "0-1")],
        "x": [
            line("m", 4, 1, "text", "3-1", {"data": "words"}),
            line("m", 4, 1, "text", "a diff", {"data": ""}),
        ],
        "c": [line("m", 5, 1, "checkpoint", "epoch-1", checkpoint)],
    }
    data = b"".join(line for kind, found in lines.items() if kind != without for line in found)
    log = place / "seg-a0000000.log"
    log.write_bytes(header("e1", "seg-a0000000") + data + b'["p",9,9,0,[1')
    return read_told(folder / "told"), read_segment(log)


def test_a_ledger_finds_nothing_wrong_where_nothing_is(tmp_path: Path) -> None:
    told, segment = lay(tmp_path)
    assert (told.steps, told.has_ended, segment.damaged) == ([0, 1], False, 0)
    assert list(check_calls(told, segment)) == []
    assert list(check_files(tmp_path / "e1", [segment], [told])) == []


@pytest.mark.parametrize(
    ("without", "said"),
    [("p", "2 calls of metrics"), ("n", "1 notes"), ("x", "1 media"), ("c", "not on record")],
)
def test_a_ledger_sees_a_call_that_is_missing(tmp_path: Path, without: str, said: str) -> None:
    told, segment = lay(tmp_path, without=without)
    (fault,) = check_calls(told, segment)
    assert said in fault


def test_a_ledger_allows_the_call_that_was_under_way_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert list(check_calls(*lay(tmp_path / "one", steps=3))) == []
    assert len(list(check_calls(*lay(tmp_path / "two", steps=4)))) == 1


def test_a_ledger_sees_other_values_damaged_lines_and_logs_that_are_gone(tmp_path: Path) -> None:
    told, segment = lay(tmp_path)
    other = dataclasses.replace(segment, points={"loss": [(0, 0.0), (1, 0.5)], "child": []}, damaged=1)
    assert [fault.partition(": ")[2] for fault in check_calls(told, other)] == [
        "1 damaged lines", "other values at the steps [1]",
    ]  # fmt: skip
    assert list(check_calls(told, None)) == ["e1/seg-a0000000: there is no such log"]
    ended = dataclasses.replace(told, has_ended=True)
    assert list(check_calls(ended, segment)) == ["e1/seg-a0000000: it finished, and its last status is None"]


def test_a_ledger_sees_files_that_are_gone_or_others(tmp_path: Path) -> None:
    told, segment = lay(tmp_path)
    file = tmp_path / "e1/checkpoints/one.bin"
    file.write_bytes(b"other")
    assert list(check_files(tmp_path / "e1", [segment], [told])) == [
        f"{file}: it is not what its record says"
    ]
    file.unlink()
    assert list(check_files(tmp_path / "e1", [segment], [told])) == [
        "e1: the checkpoint of epoch 1 is gone, with 0 newer ones"
    ]


class Held:
    """A server's answers. `x` and `value`: what it holds of the loss."""

    def __init__(self, x: list[int], value: list[float], blob: bytes | None = STATE) -> None:
        self.x, self.value, self.blob = x, value, blob

    def get(self, path: str) -> Any:
        if path == "/api/experiments/e1":
            return {"last_step": 1}
        if "names=loss" not in path:
            return None
        asked = dict(pair.split("=") for pair in path.partition("?")[2].split("&"))
        low, high = int(asked.get("from", -(10**9))), int(asked.get("to", 10**9))
        kept = [(x, value) for x, value in zip(self.x, self.value, strict=True) if low <= x < high]
        return {
            "thinned": False,
            "series": [{"x": [x for x, _ in kept], "value": [value for _, value in kept]}],
        }

    def fetch(self, sha256: str) -> bytes | None:
        return self.blob


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (Held([0, 1], [0.0, 1 / 7]), ""),
        (Held([0], [0.0]), "1 points are missing and 0 too many"),
        (Held([0, 1, 1], [0.0, 1 / 7, 1 / 7]), "0 points are missing and 1 too many"),
        (Held([0, 1, 50_000], [0.0, 1 / 7, 1.0]), "0 points are missing and 1 too many"),
        (Held([-5, 0, 1], [0.0, 0.0, 1 / 7]), "0 points are missing and 1 too many"),
        (Held([0, 1], [0.0, 0.5]), "1 points are missing and 1 too many"),
        (Held([0, 1], [0.0, 1 / 7], None), "not there"),
        (Held([0, 1], [0.0, 1 / 7], b"else"), "another one"),
    ],
)
def test_a_ledger_sees_what_a_server_lacks_or_has_twice(tmp_path: Path, held: Held, said: str) -> None:
    _, segment = lay(tmp_path)
    found = list(check_server(tmp_path / "e1", [segment], held.get, held.fetch))
    assert [said in fault for fault in found] == ([True] if said else [])


def test_a_ledger_sees_an_experiment_that_the_server_does_not_know(tmp_path: Path) -> None:
    _, segment = lay(tmp_path)
    assert list(check_server(tmp_path / "e1", [segment], lambda path: None, lambda sha256: None)) == [
        "e1: the server does not know it"
    ]
