"""Packages imported without what they load and we never use."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.core.imports import import_lean
from tests.fakes.server import ServerProcess


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for packages of the test's own, on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_stand_in_takes_the_place_of_a_module_while_it_is_imported(package: Path) -> None:
    (package / "heavy_one.py").write_text("answer = 1\n")
    (package / "wants_one.py").write_text("from heavy_one import answer\n")

    def load() -> int:
        import wants_one

        return int(wants_one.answer)

    assert import_lean(load, {"heavy_one": {"answer": 2}}) == 2
    assert "heavy_one" not in sys.modules
    import heavy_one

    assert heavy_one.answer == 1


def test_a_package_that_wants_more_gets_the_real_module(package: Path) -> None:
    (package / "heavy_two.py").write_text("answer, question = 1, 6\n")
    (package / "wants_two.py").write_text("import heavy_two\nfrom heavy_two import answer, question\n")

    def load() -> tuple[int, int]:
        import wants_two

        return wants_two.answer, wants_two.question

    assert import_lean(load, {"heavy_two": {"answer": 2}}) == (1, 6)


def test_a_module_that_is_there_already_stays(package: Path) -> None:
    (package / "heavy_three.py").write_text("answer = 1\n")
    import heavy_three

    def load() -> int:
        import heavy_three

        return int(heavy_three.answer)

    assert import_lean(load, {"heavy_three": {"answer": 2}}) == 1
    assert sys.modules["heavy_three"] is heavy_three


def test_none_means_not_installed(package: Path) -> None:
    (package / "extra_four.py").write_text("answer = 1\n")

    def load() -> str:
        try:
            import extra_four
        except ImportError:
            return "without"
        return f"with {extra_four.answer}"

    assert import_lean(load, {"extra_four": None}) == "without"
    assert load() == "with 1"


def test_another_error_is_told() -> None:
    def load() -> None:
        raise ValueError("no import at all")

    with pytest.raises(ValueError, match="no import at all"):
        import_lean(load, {"never_there": {}})
    assert "never_there" not in sys.modules


_JOB = """
import json, sys, threading
from gpu_monitor.agent.schedule import Schedule
from gpu_monitor.core.clock import SystemClock
ran = threading.Event()
schedule = Schedule(SystemClock())
schedule.add("job", lambda: ran.set() or 60.0)
schedule.start()
ran.wait(20)
schedule.stop()
loaded = sorted({"asyncio", "multiprocessing", "ssl"} & set(sys.modules))
import asyncio, concurrent.futures
async def three(): return 3
print(json.dumps([ran.is_set(), loaded, asyncio.run(three()), concurrent.futures.ProcessPoolExecutor.__name__]))
"""


def test_the_schedule_runs_without_asyncio_and_leaves_it_whole() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _JOB], capture_output=True, text=True, timeout=60, check=True
    )
    ran, loaded, awaited, pool = json.loads(done.stdout)
    assert ran is True
    # From 3.14 on APScheduler asks inspect instead of asyncio; none of the three is loaded there either.
    assert loaded == []
    assert awaited == 3
    assert pool == "ProcessPoolExecutor"


_SEND = """
import json, sys, threading
from pathlib import Path
from gpu_monitor.core.outcome import Parcel
from gpu_monitor.sinks.http import HttpSink, Target
sink = HttpSink(Target(sys.argv[1], "12345"), lambda: None, threading.Event())
body = json.dumps({"report_id": "r-1", "node": {"id": "n"}, "aggregation_time": "t", "revision": 1}).encode()
outcome, = sink.send([Parcel("r-1", body)])
sink.close()
assert "charset_normalizer" not in sys.modules
import charset_normalizer
print(json.dumps([outcome.verdict.value, outcome.proof, bool(charset_normalizer.from_bytes(b"abc"))]))
print(sorted(name for name in sys.modules if name == "requests"), file=sys.stderr)
"""


def test_reports_are_sent_without_guessing_encodings(tmp_path: Path) -> None:
    """And who wants charset_normalizer afterwards gets it whole."""
    with ServerProcess(tmp_path) as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", _SEND, server.url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["acknowledged", "digest", True]
    assert done.stderr == "['requests']\n"
