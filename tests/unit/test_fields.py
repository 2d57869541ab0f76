"""`--fields`: what is chosen, and what is said of a name that is none."""

from __future__ import annotations

import pytest

from gpu_monitor.agent.ask import parse_fields
from gpu_monitor.core.errors import UsageError


def refusal(text: str, hourly: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        parse_fields(text, hourly)
    return str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("temprature", "temperature"),
        ("gpu_utilisation", "gpu_utilization"),
        ("GPU_Utilization", "gpu_utilization"),
        ("utilization.gpu", "gpu_utilization"),
        ("memory.used", "memory_used"),
        ("power_usage_maximum", "power_usage_max"),
        ("util", "gpu_utilization"),
        ("temp", "temperature"),
    ],
)
def test_the_nearest_name_is_told_and_how_to_see_all(typed: str, meant: str) -> None:
    said = refusal(f"uid,{typed}")
    assert said.startswith(f"unknown field {typed!r}\n  Did you mean {meant}?")
    assert said.endswith(" --fields all -f csv shows every name in its first line.")
    assert len(said) < 160  # no wall of names


def test_a_name_like_none_of_ours_gets_no_guess() -> None:
    said = refusal("xyzzy")
    assert said == "unknown field 'xyzzy'\n  --fields all -f csv shows every name in its first line."


def test_a_field_of_the_other_kind_says_so() -> None:
    assert "'coverage'\n  It is a field of aggregates: add --hourly." in refusal("coverage")
    assert "'reasons'\n  It is a field of rows, not of aggregates." in refusal("reasons", hourly=True)


def test_what_can_be_chosen() -> None:
    assert parse_fields(" uid , temperature,uid,") == ("uid", "temperature")
    assert parse_fields("coverage,energy", hourly=True) == ("coverage", "energy")
    assert "names no field" in refusal(" , ")
