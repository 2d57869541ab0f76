"""How much text one answer holds."""

from __future__ import annotations

from gpu_monitor.server.store.room import ROOM, fitting


def test_as_many_as_fit_are_kept_and_one_at_least() -> None:
    assert fitting([]) == []
    assert fitting([("a", 5), ("b", 5), ("c", 1)], 10) == ["a", "b"]
    assert fitting([("a", 50), ("b", 0)], 10) == ["a"]
    assert fitting([("a", None), ("b", ROOM)]) == ["a", "b"]
