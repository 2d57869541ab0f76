"""A few kills of the soak: metrics, files and uploads of trainings that die with their whole tree, or alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.measure.training_soak import Plan, Soak

KILLS = 6


@pytest.mark.skipif(sys.platform != "linux", reason="counts the processes of a tree by their group")
def test_what_returned_is_on_disk_and_once_on_the_server(tmp_path: Path) -> None:
    said: list[str] = []
    story = Soak(tmp_path, Plan(KILLS, seed=20240320), said.append).run()
    assert story.wrong == {what: [] for what in story.wrong}
    assert story.kills >= KILLS
