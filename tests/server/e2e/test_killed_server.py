"""`scripts/soak server` in short, on SQLite and with two processes on PostgreSQL: what is left is what a twin has.

Twenty kills, PostgreSQL's stop among them, are in test_taking_killed; two hundred are the soak's.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.measure.server_soak import Plan, soak
from tests.server.postgres import Cluster

KILLS = 5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_answered_is_there_and_twice_is_once(
    dialect: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cluster: Cluster | None = None
    if dialect == "postgresql":
        cluster = request.getfixturevalue("cluster")
    said: list[str] = []
    story = soak(tmp_path, Plan(KILLS, seed=7, seconds=500), cluster, said.append)
    assert story.kills == KILLS, said
    assert {what: wrong for what, wrong in story.found.items() if wrong} == {}
    assert len(story.found) == 8
