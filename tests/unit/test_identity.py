"""The node's id: made once, kept twice, renewed on another machine, whatever became of file or store."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from pathlib import Path

import pytest

from gpu_monitor.agent.identity import establish, id_at, identity_path, reporting_ids
from gpu_monitor.storage.database import Writer

NOW = 1_700_000_000.0


def open_store(folder: Path) -> Writer:
    writer = Writer(folder / "gpu_metrics.db")
    with writer.transaction() as connection:
        connection.execute("INSERT OR IGNORE INTO nodes (id, name, kind) VALUES (1, 'node-1', 'local')")
    return writer


def events(writer: Writer) -> list[tuple[str, str]]:
    rows = writer.rows("SELECT detail FROM events WHERE kind = 'node_identity_changed' ORDER BY id")
    return [(json.loads(row[0])["old"], json.loads(row[0])["new"]) for row in rows]


def at(writer: Writer, moment: float, node: int = 1) -> str:
    with writer.transaction() as connection:
        return id_at(connection, node, moment)


def test_a_first_start_makes_one_and_keeps_it_in_three_places(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    made = establish(writer, "machine-a\n", NOW)
    assert uuid.UUID(made).version == 4
    filed = json.loads((tmp_path / "gpu_metrics.db.node.json").read_text())
    assert filed == {"id": made, "machine": hashlib.sha256(b"machine-a").hexdigest()}
    assert writer.value("SELECT uuid FROM nodes WHERE id = 1") == made
    assert establish(writer, "machine-a", NOW + 9) == made
    assert events(writer) == []
    assert "machine-a" not in (tmp_path / "gpu_metrics.db.node.json").read_text()
    assert writer.value("SELECT count(*) FROM meta WHERE value LIKE '%machine-a%'") == 0


def test_two_nodes_never_get_the_same(tmp_path: Path) -> None:
    made = set()
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        made.add(establish(open_store(tmp_path / str(number)), "the same image", NOW))
    assert len(made) == 20


def test_a_lost_file_is_written_again_from_the_store(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    made = establish(writer, "a", NOW)
    identity_path(writer.path).unlink()
    assert establish(writer, "a", NOW + 1) == made
    assert json.loads(identity_path(writer.path).read_text())["id"] == made


def test_a_replaced_store_takes_the_id_from_the_file(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    made = establish(writer, "a", NOW)
    writer.close()
    writer.path.unlink()
    again = open_store(tmp_path)
    assert establish(again, "a", NOW + 1) == made
    assert events(again) == []


@pytest.mark.parametrize("moved", ["both", "store alone"])
def test_another_machine_gets_a_new_id_and_an_event(tmp_path: Path, moved: str) -> None:
    writer = open_store(tmp_path)
    old = establish(writer, "a", NOW)
    if moved == "store alone":
        identity_path(writer.path).unlink()
    new = establish(writer, "b", NOW + 100)
    assert new != old
    assert events(writer) == [(old, new)]
    assert json.loads(identity_path(writer.path).read_text())["id"] == new
    assert establish(writer, "b", NOW + 200) == new
    assert len(events(writer)) == 1
    # Hours recorded before keep the old one: a clone must not count them a second time.
    assert at(writer, NOW + 100) == old
    assert at(writer, NOW + 101) == new


def test_a_kill_between_file_and_store_ends_with_one_new_id(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    old = establish(writer, "a", NOW)
    # What a kill after the file and before the store leaves behind.
    between = str(uuid.uuid4())
    machine = hashlib.sha256(b"b").hexdigest()
    identity_path(writer.path).write_text(json.dumps({"id": between, "machine": machine}))
    assert establish(writer, "b", NOW + 1) == between
    assert events(writer) == [(old, between)]


def test_where_both_belong_here_and_disagree_the_store_wins(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    made = establish(writer, "a", NOW)
    other = {"id": str(uuid.uuid4()), "machine": hashlib.sha256(b"a").hexdigest()}
    identity_path(writer.path).write_text(json.dumps(other))
    assert establish(writer, "a", NOW + 1) == made
    assert json.loads(identity_path(writer.path).read_text())["id"] == made


def test_a_store_copied_here_does_not_take_this_machines_id_away(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    there = open_store(tmp_path / "there")
    establish(there, "there", NOW)
    there.close()
    here = open_store(tmp_path)
    ours = establish(here, "here", NOW)
    here.close()
    (tmp_path / "there" / "gpu_metrics.db").replace(tmp_path / "gpu_metrics.db")
    assert establish(open_store(tmp_path), "here", NOW + 1) == ours


def test_an_unknown_machine_id_changes_nothing(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    made = establish(writer, None, NOW)
    assert establish(writer, None, NOW) == made
    assert establish(writer, "a", NOW) == made, "now it is known, it is filled in"
    assert json.loads(identity_path(writer.path).read_text())["machine"] is not None
    assert establish(writer, None, NOW) == made
    assert json.loads(identity_path(writer.path).read_text())["machine"] is not None
    assert establish(writer, "b", NOW) != made


HOSTILE = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "no id": b'{"machine": null}',
    "id is a number": b'{"id": 7, "machine": null}',
    "id is no UUID": b'{"id": "x", "machine": null}',
    "id in another spelling": b'{"id": "{6F9619FF-8B86-D011-B42D-00CF4FC964FF}", "machine": null}',
    "hash is no hash": b'{"id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "machine": "zz"}',
    "hash is a list": b'{"id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "machine": []}',
    "not UTF-8": b"\xff\xfe\x00",
    "nul": bytes(200),
    "deep": b"[" * 4000,
    "long": b'{"id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "machine": null}' + b" " * 5000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_not_ours_is_written_anew(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = open_store(tmp_path)
    path = identity_path(writer.path)
    path.write_bytes(HOSTILE[name])
    made = establish(writer, "a", NOW)
    assert json.loads(path.read_text())["id"] == made
    assert "written anew" in caplog.text


def test_a_pipe_in_its_place_does_not_hold_the_start_up(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    os.mkfifo(identity_path(writer.path))
    done: list[str] = []
    worker = threading.Thread(target=lambda: done.append(establish(writer, "a", NOW)), daemon=True)
    worker.start()
    worker.join(30)
    assert done
    assert identity_path(writer.path).is_file()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    target = tmp_path / "target"
    target.write_text(json.dumps({"id": str(uuid.uuid4()), "machine": None}))
    before = target.read_text()
    identity_path(writer.path).symlink_to(target)
    made = establish(writer, "a", NOW)
    assert target.read_text() == before
    assert made not in before
    assert not identity_path(writer.path).is_symlink()


def test_a_folder_in_its_place_leaves_the_id_in_the_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = open_store(tmp_path)
    identity_path(writer.path).mkdir()
    made = establish(writer, "a", NOW)
    assert "kept in the store alone" in caplog.text
    assert establish(writer, "a", NOW) == made


def test_a_clock_that_was_wrong_at_the_change_is_healed_at_the_next_start(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    establish(writer, "a", NOW)
    new = establish(writer, "b", NOW + 10_000_000)
    assert at(writer, NOW + 500) != new
    establish(writer, "b", NOW + 400)
    assert at(writer, NOW + 500) == new


def test_an_imported_node_has_an_id_of_its_own_that_never_changes(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    with writer.transaction() as connection:
        connection.execute("INSERT INTO nodes (id, name, kind) VALUES (7, 'trainer', 'import')")
    made = establish(writer, "a", NOW)
    imported = at(writer, NOW, 7)
    assert imported != made
    establish(writer, "b", NOW + 1)
    assert at(writer, NOW + 9, 7) == imported


def test_an_earlier_id_reports_for_as_long_as_its_hours_are_owed(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    old = establish(writer, "a", NOW)
    hour = int(NOW) // 3600 * 3600 - 3600

    def report(state: str) -> None:
        with writer.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO reports (id, node, period, period_seconds, revision, state, changed)"
                " VALUES (1, 1, ?, 3600, 1, ?, 0)",
                (hour, state),
            )

    report("pending")
    new = establish(writer, "b", NOW + 100)
    assert reporting_ids(writer) == {old, new}
    report("sent")
    assert reporting_ids(writer) == {new}
    with writer.transaction() as connection:
        connection.execute("INSERT INTO nodes (id, name, kind) VALUES (2, 'trainer', 'import')")
    # Imported under the first id of the store, which its reports keep.
    assert reporting_ids(writer) == {new, str(uuid.uuid5(uuid.UUID(old), "import:trainer"))}
