"""`-ls` ends with a line on stderr that says how all deliveries stand; stdout stays what scripts read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_monitor.storage.database import Writer
from tests.e2e.program import ask, configure
from tests.fakes.stores import START, fill

SERVER = {"url": "https://example.com/api", "contract_number": "1"}
HEADER = "Aggregation Time | Attempts | First Attempt | Last Attempt | Last Error | UID | Sent"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six hours: three delivered, one waiting, one rejected, one parked."""
    writer = Writer(tmp_path / "gpu_metrics.db")
    fill(writer, 6 * 60, gpus=1)
    with writer.transaction() as connection:
        for hour, state in ((3, "pending"), (4, "rejected"), (5, "parked")):
            connection.execute("UPDATE reports SET state = ? WHERE period = ?", (state, START + hour * 3600))
    writer.close()
    return tmp_path


def test_how_all_deliveries_stand(folder: Path) -> None:
    configure(folder, server=SERVER)
    done = ask(folder, "-ls")
    assert done.stderr == "3 delivered, 1 waiting, 1 rejected (resend --rejected), 1 parked\n"
    lines = done.stdout.splitlines()
    assert lines[:2] == ["Send Attempts:", HEADER]
    assert [line[-1] for line in lines[2:]] == ["0", "0", "0", "1", "1", "1"]


def test_a_newer_revision_counts_in_place_of_the_older(folder: Path) -> None:
    configure(folder, server=SERVER)
    writer = Writer(folder / "gpu_metrics.db")
    with writer.transaction() as connection:
        connection.execute("UPDATE reports SET state = 'replaced' WHERE state = 'rejected'")
        connection.execute(
            "INSERT INTO reports (node, period, period_seconds, revision, state, changed)"
            " VALUES (1, ?, 3600, 2, 'sent', ?)",
            (START + 4 * 3600, START + 9 * 3600),
        )
    writer.close()
    assert ask(folder, "-ls").stderr == "4 delivered, 1 waiting, 1 parked\n"


def test_that_nothing_is_sent_without_a_server(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    configure(folder)
    said = ask(folder, "-ls").stderr
    assert said.endswith("1 parked; no server is configured: nothing is sent\n")
    bare = tmp_path_factory.mktemp("bare")
    assert ask(bare, "-ls").stderr == "no server is configured: nothing is sent\n"
    configure(bare, server=SERVER)
    assert ask(bare, "-ls").stderr == "no period is closed yet: nothing is owed\n"


def test_json_holds_the_state_itself(folder: Path) -> None:
    done = ask(folder, "-ls", "--json")
    assert done.stderr == ""
    states = [one["state"] for one in json.loads(done.stdout)]
    assert states == ["parked", "rejected", "pending", "sent", "sent", "sent"]
