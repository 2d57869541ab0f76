"""What a training may say is more than the format takes: it is made to fit, and never holds up what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import last_status, logs, of_kind, points, records, run

SCRIPT = """
class Odd:
    def __str__(self):
        raise RuntimeError("no text")

with TrainingMonitor("limits", {quiet}) as monitor:
    monitor.log_metrics({{"before": 1.0}})
    {call}
    monitor.log_metrics({{"sentinel": 42.0}})
"""
CALLS = {
    "an empty parameter": ('monitor.log_params({"": 1, "lr": 2})', "a", {"lr": 2}),
    "a long parameter": ('monitor.log_params({"x" * 501: 1})', "a", {"x" * 499 + "…": 1}),
    "a huge number": ('monitor.log_params({"n": 10**400})', "a", {"n": hex(10**400)}),
    "a tag without a key": ('monitor.add_tag("", "v")', "t", None),
    "a long key": ('monitor.add_tag("k" * 251, "v")', "t", "k" * 249 + "…"),
    "a long tag": ('monitor.add_tag("k", "v" * 2_000_000)', "t", "k"),
    "a tag without a text": ('monitor.add_tag("k", Odd())', "t", "k"),
    "a long title": ('monitor.alert("t" * 501)', "e", "warning"),
    "a long name": ('monitor.log_text("n" * 501, "words")', "m", 0),
}


def made(call: str, folder: Path, **more: str) -> Path:
    code = SCRIPT.replace("{call}", call).replace("{{", "{").replace("}}", "}")
    done = run(code, folder, **more)
    assert done.returncode == 0, done.stderr
    return logs(folder)[0]


@pytest.mark.parametrize("name", CALLS)
def test_it_is_made_to_fit_and_told(tmp_path: Path, name: str) -> None:
    call, kind, first = CALLS[name]
    log = made(call, tmp_path)
    found = of_kind(log, kind)
    if first is None:
        assert found == []
    elif isinstance(first, (dict, str)):
        assert found[0][2] == first
    lengths = [len(text) for record in found for text in record if isinstance(text, str)]
    assert all(length <= 5_000 for length in lengths)
    assert [values for _, values in points(log)] == [{"before": 1.0}, {"sentinel": 42.0}]
    assert last_status(log)[0] == "completed"


def test_strict_refuses_what_has_to_be_changed(tmp_path: Path) -> None:
    done = run(
        """
        monitor = TrainingMonitor("strict", directory="experiments", server="", capture=False, strict=True)
        for call in (lambda: monitor.log_params({"": 1}), lambda: monitor.add_tag("k", "v" * 5001)):
            try:
                call()
            except ValueError as error:
                print(error)
        """,
        tmp_path,
    )
    assert done.stdout.splitlines() == [
        "the name of a parameter has 1 to 500 letters: one without is left out, a longer one is cut",
        "the tag k has 5,001 letters; 5,000 are kept",
    ]


def test_many_parameters_are_all_there(tmp_path: Path) -> None:
    log = made("monitor.log_params({f'p{i}': i for i in range(100_000)})", tmp_path)
    found: dict[str, int] = {}
    for _, _, held in of_kind(log, "a"):
        found.update(held)
    assert found == {f"p{number}": number for number in range(100_000)}


def test_more_metrics_than_a_segment_takes(tmp_path: Path) -> None:
    log = made(
        "monitor.log_metrics({f'm{i}': i for i in range(12_000)}); monitor.log_metrics({'m5': 1.0, 'new': 2.0})",
        tmp_path,
    )
    numbers = [record[1] for record in records(log) if record[0] == "s"]
    assert numbers == list(range(10_000))
    # `before` took a number, so 9,999 others have one; what was known goes on, and the last name comes too late.
    assert points(log)[-1][1] == {"m5": 1.0}


def test_overlapping_sets_stay_within_what_a_segment_takes(tmp_path: Path) -> None:
    log = made(
        "for start in range(900): monitor.log_metrics({f'm{i}': start for i in range(start, start + 300)})",
        tmp_path,
    )
    members = sum(len(record[2]) for record in records(log) if record[0] == "g")
    assert members <= 200_000
    assert sum(len(record[4]) for record in records(log) if record[0] == "p") == 900 * 300 + 2


def test_a_capture_that_is_none_is_told(tmp_path: Path) -> None:
    done = run(
        "monitor = TrainingMonitor('odd', directory='experiments', server='', capture=5)\nmonitor.finish()",
        tmp_path,
    )
    assert (done.returncode, "capture= is True, False, names of topics" in done.stderr) == (0, True)
