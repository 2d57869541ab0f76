"""What is logged once and then counted, also across a configuration that is read again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.cli.logs import ONCE, Repeats, set_up
from gpu_monitor.config.model import Logging
from tests.fakes.clock import FakeClock

LOG = logging.getLogger("tests.logs")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """`set_up` is for a whole process: what it changed is put back."""
    root = logging.getLogger()
    names = ("apscheduler", "urllib3", "requests", "asyncio", "tzlocal")
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    levels = {name: logging.getLogger(name).level for name in names}
    root.handlers.clear()
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raises
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def record(level: int, text: str, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("agent", level, "agent.py", 1, text, (), None)
    made.__dict__.update(more)
    return made


def test_an_info_that_can_be_asked_for_in_a_loop_is_said_once_an_hour_and_counted() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    passed = [repeats.filter(record(logging.INFO, "read again", **ONCE)) for _ in range(5)]
    assert passed == [True, False, False, False, False]
    assert repeats.filter(record(logging.INFO, "read again"))  # any other info is never held back
    clock.advance(3601)
    late = record(logging.INFO, "read again", **ONCE)
    assert repeats.filter(late)
    assert late.getMessage() == "read again (and 4 times before)"


def test_what_was_said_before_the_configuration_was_read_again_is_not_said_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agent.log"
    for text in ("disk full", "disk full", "disk gone"):
        set_up(Logging(), file, None, False)
        LOG.warning(text)
        LOG.info("read again", extra=ONCE)
    for handler in logging.getLogger().handlers:
        handler.flush()
    expected = ["disk full", "read again", "disk gone"]
    for written in (file.read_text(), capsys.readouterr().err):
        assert [line.split(": ", 1)[1] for line in written.splitlines()] == expected
