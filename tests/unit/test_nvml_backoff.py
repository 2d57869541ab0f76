"""When the driver is opened again after it could not be."""

from __future__ import annotations

import itertools
from pathlib import Path

from gpu_monitor.sources.gpu.nvml.backoff import Backoff
from gpu_monitor.sources.gpu.nvml.settings import NvmlSettings


def tries(backoff: Backoff, seconds: int, refuse: bool) -> list[int]:
    """At which of the next seconds it tries, failing each time."""
    found = []
    for second in range(seconds):
        if backoff.may_try(float(second)):
            found.append(second)
            if refuse:
                backoff.refused(float(second), "no driver")
            else:
                backoff.failed(float(second), "driver crashed")
    return found


def test_a_child_that_ends_is_replaced_at_once_then_ever_less_often(tmp_path: Path) -> None:
    backoff = Backoff(NvmlSettings(), tmp_path)
    assert backoff.failed(0.0, "driver crashed")
    backoff = Backoff(NvmlSettings(), tmp_path)
    found = tries(backoff, 400, refuse=False)
    gaps = [later - earlier for earlier, later in itertools.pairwise(found)]
    assert gaps[:9] == [1, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_machine_without_a_driver_is_left_in_peace(tmp_path: Path) -> None:
    backoff = Backoff(NvmlSettings(), tmp_path)
    assert tries(backoff, 2000, refuse=True) == [0, 1, 3, 7, 15, 31, 63, 663, 1263, 1863]
    assert backoff.cause == "no driver"


def test_a_driver_that_comes_is_noticed(tmp_path: Path) -> None:
    backoff = Backoff(NvmlSettings(), tmp_path)
    tries(backoff, 70, refuse=True)
    assert not backoff.may_try(71.0)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert backoff.may_try(72.0)


def test_what_is_news(tmp_path: Path) -> None:
    backoff = Backoff(NvmlSettings(), tmp_path)
    said = [backoff.refused(float(second), cause) for second, cause in enumerate(["a", "a", "b", "b", "a"])]
    assert said == [True, False, True, False, True]


def test_a_good_round_ends_it_all(tmp_path: Path) -> None:
    backoff = Backoff(NvmlSettings(), tmp_path)
    tries(backoff, 70, refuse=True)
    backoff.worked()
    assert (backoff.may_try(70.5), backoff.cause) == (True, "")
    assert backoff.failed(71.0, "driver crashed"), "the first again"


def test_hold(tmp_path: Path) -> None:
    backoff = Backoff(NvmlSettings(), tmp_path)
    backoff.hold(100.0, "driver hung", 600.0)
    assert [backoff.may_try(second) for second in (100.0, 699.0, 700.0)] == [False, False, True]
