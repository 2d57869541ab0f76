"""GPU readings for a program that asks: from the stand-in driver, simulated, or none with the reason."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from gpu_monitor.core.catalogue import DEFAULT_FIELDS
from gpu_monitor.training.readings import (
    BANNER,
    get_latest_metrics,
    get_system_info,
    start_monitoring,
    stop_monitoring,
)
from tests.standin.control import Standin
from tests.standin.profiles import GEFORCE, H100

pytest_plugins = ("tests.standin.fixtures",)


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    stop_monitoring()


@pytest.fixture
def card(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> Standin:
    for name, value in standin.env().items():
        monkeypatch.setenv(name, value)
    return standin


def test_rows_of_real_cards(card: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    card.gpus([H100, GEFORCE])
    card.hold(0, "temperature", 61)
    began = time.time()
    assert start_monitoring(interval=0.1) is True
    rows = get_latest_metrics()
    assert [row["index"] for row in rows] == [0, 1]
    row = rows[0]
    assert set(row) == {*DEFAULT_FIELDS, "timestamp", "index", "source", "status", "reasons"}
    assert (row["uid"], row["name"], row["source"], row["status"]) == (card.uuid(0), H100.name, "nvml", "ok")
    assert row["temperature"] == 61
    assert began <= row["timestamp"] <= time.time()
    missing = {name for name in DEFAULT_FIELDS if row[name] is None}
    assert missing == set(row["reasons"])
    assert row["reasons"]["fan_speed"] == "unsupported"  # an H100 has no fan
    card.hold(0, "temperature", 70)
    deadline = time.monotonic() + 20
    while get_latest_metrics()[0]["temperature"] != 70 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert get_latest_metrics()[0]["temperature"] == 70
    info = get_system_info()
    assert [gpu["name"] for gpu in info["gpus"]] == [H100.name, GEFORCE.name]
    assert info["driver_version"]
    assert info["memory_total"] > 0
    assert info["python"] == ".".join(map(str, sys.version_info[:3]))
    stop_monitoring()
    assert get_latest_metrics() == []
    assert capsys.readouterr().err == ""


def test_no_card_is_none_and_not_a_made_up_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert start_monitoring() is False
    assert get_latest_metrics() == []
    info = get_system_info()
    assert (info["gpus"], info["source"]) == ([], None)
    assert "no NVIDIA driver" in info["reason"]
    assert BANNER not in capsys.readouterr().err


@pytest.mark.parametrize("simulate", ["auto", "always"])
def test_simulated_rows_say_so_loudly(simulate: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert start_monitoring(interval=0.2, simulate=simulate) is True
    (row,) = get_latest_metrics()
    assert row["source"] == "simulated"
    assert row["uid"].startswith("SIM-")
    assert BANNER in capsys.readouterr().err


def test_auto_prefers_the_real_ones(card: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    card.gpus([H100])
    assert start_monitoring(simulate="auto") is True
    assert get_latest_metrics()[0]["source"] == "nvml"
    assert capsys.readouterr().err == ""


def test_before_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    stop_monitoring()
    assert get_latest_metrics() == []
    assert get_system_info()["reason"] == "start_monitoring was not called"


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_intervals_that_make_no_sense(interval: float) -> None:
    with pytest.raises(ValueError, match="interval"):
        start_monitoring(interval=interval)


def test_a_mode_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="never, auto, always"):
        start_monitoring(simulate="yes")
