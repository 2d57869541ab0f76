"""The runner: a source's errors stop here, its time is measured."""

from __future__ import annotations

import logging

import pytest

from gpu_monitor.core.errors import DeviceLost, SourceUnavailable
from gpu_monitor.core.model import Round, Span
from gpu_monitor.sources.runner import SourceRunner
from tests.fakes.source import FakeSource, reading


def test_what_the_source_gives_is_passed_on() -> None:
    given = Round((reading(),), (), None)
    source = FakeSource([given])
    runner = SourceRunner(source)
    assert runner.read(17.0, Span.WIDE) is given
    assert source.asked == [(17.0, Span.WIDE)]
    assert (runner.name, runner.rounds, runner.failures) == ("fake", 1, 0)
    assert 0 <= runner.longest_seconds <= runner.seconds
    runner.close()
    assert source.is_closed


def test_an_error_is_a_round_without_readings_that_says_why(caplog: pytest.LogCaptureFixture) -> None:
    runner = SourceRunner(FakeSource([ValueError("what"), DeviceLost("it fell", "pick it up")]))
    with caplog.at_level(logging.ERROR):
        assert runner.read(1.0, Span.FAST) == Round((), (), "fake source failed: ValueError: what")
        assert runner.read(2.0, Span.FAST) == Round((), (), "fake source failed: it fell")
        assert runner.read(3.0, Span.FAST).paused is None
    assert (runner.rounds, runner.failures) == (3, 2)
    assert len(caplog.records) == 2


def test_an_error_that_repeats_is_said_once_then_counted(caplog: pytest.LogCaptureFixture) -> None:
    runner = SourceRunner(FakeSource([ValueError("what")] * 5))
    with caplog.at_level(logging.ERROR):
        for _ in range(6):
            runner.read(1.0, Span.FAST)
    assert runner.failures == 5
    assert [record.getMessage() for record in caplog.records] == [
        "the fake source failed: ValueError: what",
        "the fake source failed 4 more times: ValueError: what",
    ]


def test_the_end_of_the_program_is_no_error_of_the_source() -> None:
    class Stopping(FakeSource):
        def read(self, now: float, span: Span) -> Round:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SourceRunner(Stopping()).read(1.0, Span.FAST)


def test_probe_speaks_for_the_source() -> None:
    SourceRunner(FakeSource()).probe()
    with pytest.raises(SourceUnavailable, match="none here"):
        SourceRunner(FakeSource(unavailable=SourceUnavailable("none here"))).probe()
