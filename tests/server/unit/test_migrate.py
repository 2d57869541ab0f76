"""From no tables to the newest ones, killed anywhere, asked by several at once; and what is refused untouched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text

from gpu_monitor.core.errors import StorageBusy, StorageForeign
from gpu_monitor.server.store import migrate
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.migrate import REVISIONS, SCRIPTS, VERSIONS
from gpu_monitor.server.store.schema_experiments import metadata
from gpu_monitor.server.store.url import parse_url
from tests.server import migrating
from tests.server.postgres import Cluster

ALL = len(metadata.tables) + 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_killed_at_every_statement_it_is_all_or_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, migrating.__file__, tmp_path], capture_output=True, text=True, check=True, timeout=170,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    *each, (_, _, _, _, together) = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(each) > len(metadata.tables)
    assert {how for _, how, _, _, _ in each} == {"killed"}
    # Before the commit nothing is there, and everything after it; what was killed opens again, whole.
    assert {left for _, _, left, _, _ in each} <= {0, ALL}
    assert {(again, after) for _, _, _, again, after in each} == {(True, ALL)}
    assert together == ALL


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_killed_between_two_versions_it_is_the_older_or_the_newer_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, migrating.__file__, tmp_path, "0001"], capture_output=True, text=True, check=True,
        timeout=170, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    *each, (_, _, _, _, together) = [json.loads(line) for line in done.stdout.splitlines()]
    (older,) = {left for _, _, left, _, _ in each} - {ALL}
    assert 30 < older < ALL
    assert {how for _, how, _, _, _ in each} == {"killed"}
    assert {(again, after) for _, _, _, again, after in each} == {(True, ALL)}
    assert together == ALL
    with contextlib.closing(sqlite3.connect(tmp_path / "one.db")) as connection:
        assert connection.execute("SELECT number FROM contracts").fetchall() == [("12345",)]


def test_a_version_only_adds(tmp_path: Path) -> None:
    """Processes of the version before go on with the tables of the newer one."""
    before: dict[str, set[tuple[object, ...]]] = {}
    for version in REVISIONS:
        (tmp_path / version).mkdir()
        path = migrating.make_older(tmp_path / version, version)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            now = {
                name: {row[1:] for row in connection.execute(f"PRAGMA table_info({name})")}
                for (name,) in names
            }
        for name, columns in before.items():
            assert columns <= now[name], f"{version} takes something of {name} away"
            # What is new there is not asked of a program that does not know it.
            assert not [one for one in now[name] - columns if one[2] and one[3] is None], name
        before = now


def test_the_chain_is_the_one_that_is_named() -> None:
    chain = [script.revision for script in ScriptDirectory(str(SCRIPTS)).walk_revisions()]
    assert tuple(reversed(chain)) == REVISIONS


def shape(connection: Connection) -> dict[str, Any]:
    """Everything about the tables that a statement could depend on."""
    found: dict[str, Any] = {}
    looked = inspect(connection)
    for name in sorted(set(looked.get_table_names()) - {VERSIONS}):
        columns = [{**column, "type": str(column["type"])} for column in looked.get_columns(name)]
        keys = sorted(map(str, looked.get_foreign_keys(name)))
        uniques = sorted(str(sorted(one.items())) for one in looked.get_unique_constraints(name))
        indexes = sorted(
            str(sorted({**one, "dialect_options": _words(one)}.items())) for one in looked.get_indexes(name)
        )
        found[name] = [columns, looked.get_pk_constraint(name)["constrained_columns"], keys, uniques, indexes]
        if connection.dialect.name == "sqlite":
            asked = text("SELECT sql LIKE '%WITHOUT ROWID%' FROM sqlite_master WHERE name = :name")
        else:
            asked = text("SELECT pg_get_partkeydef(to_regclass(:name))")
        found[name].append(connection.execute(asked, {"name": name}).scalar_one())
    return found


def _words(index: Any) -> dict[str, str]:
    """What an index says of its own dialect, in words: a condition is an object of its own each time."""
    return {name: str(option) for name, option in index.get("dialect_options", {}).items()}


def test_the_migrations_make_what_the_schema_says(
    store: Store, dialect: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if dialect == "sqlite":
        url = parse_url(f"sqlite:///{tmp_path / 'schema.db'}")
    else:
        cluster: Cluster = request.getfixturevalue("cluster")
        url = parse_url(cluster.create())
    engine = create_engine(url)
    with engine.begin() as connection:
        metadata.create_all(connection)
    with engine.connect() as connection, store.read() as made:
        assert shape(made) == shape(connection), "run scripts/migration (--first until the first release)"
    engine.dispose()


def test_several_that_start_at_once_make_one(empty_database: str) -> None:
    """Threads here; to the database they are processes: each has its own connections."""
    failures: list[BaseException] = []
    begin = threading.Barrier(4)

    def start() -> None:
        try:
            begin.wait(30)
            open_store(empty_database).close()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store = open_store(empty_database)
    with store.read() as connection:
        assert connection.execute(text(f"SELECT count(*) FROM {VERSIONS}")).scalar_one() == 1
    store.close()


def test_an_unknown_newer_version_is_left_untouched(store: Store, database: str, tmp_path: Path) -> None:
    with store.write() as connection:
        connection.execute(text(f"UPDATE {VERSIONS} SET version_num = '9999'"))
    store.close()
    path = tmp_path / "server.db"
    before = hashlib.sha256(path.read_bytes()).digest() if path.exists() else b""
    with pytest.raises(StorageForeign, match="version 9999; this program knows them up to") as refused:
        open_store(database)
    assert "untouched" in str(refused.value.hint)
    if path.exists():
        assert hashlib.sha256(path.read_bytes()).digest() == before
        log = tmp_path / "server.db-wal"  # whoever reads makes one; nothing is in it
        assert not log.exists() or log.stat().st_size == 0


def test_tables_of_others_are_left_untouched(empty_database: str, tmp_path: Path) -> None:
    """On PostgreSQL only ours may clash with them; a SQLite file is one program's alone."""
    parsed = parse_url(empty_database)
    engine = create_engine(parsed)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE nodes (a INTEGER)"))
    engine.dispose()
    with pytest.raises(StorageForeign, match="did not make: nodes"):
        open_store(empty_database)
    engine = create_engine(parsed)
    with engine.begin() as connection:
        assert inspect(connection).get_table_names() == ["nodes"]
        connection.execute(text("ALTER TABLE nodes RENAME TO theirs"))
    engine.dispose()
    if parsed.get_backend_name() == "sqlite":
        with pytest.raises(StorageForeign, match="theirs"):
            open_store(empty_database)
    else:
        open_store(empty_database).close()


def test_an_older_version_is_brought_up(database: str, newer: Path) -> None:
    store = open_store(database)
    with store.read() as connection:
        assert {"more"} == set(inspect(connection).get_table_names()) - {*metadata.tables, VERSIONS}
        assert connection.execute(text("SELECT rack FROM nodes")).fetchall() == []
        assert connection.execute(text(f"SELECT version_num FROM {VERSIONS}")).scalar_one() == "9000"
    store.close()


def test_a_migration_that_fails_leaves_everything_as_it_was(database: str, newer: Path) -> None:
    path = newer / "versions" / "r9000_more.py"
    path.write_text(path.read_text() + "    op.execute('INSERT INTO absent VALUES (1)')\n")
    with pytest.raises(Exception, match="absent"):
        open_store(database)
    path.write_text(path.read_text().replace("op.execute('INSERT INTO absent VALUES (1)')", "pass"))
    store = open_store(database)
    with store.read() as connection:
        assert connection.execute(text(f"SELECT version_num FROM {VERSIONS}")).scalar_one() == "9000"
    store.close()


def test_a_newer_command_does_not_migrate_under_an_older_server(
    database: str, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL it may: versions only add, so that servers can be replaced one after the other."""
    with monkeypatch.context() as older:
        older.setattr(migrate, "REVISIONS", REVISIONS)
        serving = open_store(database, alone=True)
    if serving.dialect == "sqlite":
        with pytest.raises(StorageBusy, match=r"in use by process \d+") as refused:
            open_store(database)
        assert "older version" in str(refused.value.hint)
    else:
        open_store(database).close()
    serving.close()
    open_store(database).close()


def test_a_current_database_is_opened_without_alembic(database: str) -> None:
    program = (
        "import sys; from gpu_monitor.server.store.engine import open_store; open_store(sys.argv[1]).close();"
        "print('alembic' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, database], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_what_opening_asks_of_a_current_database_is_little(database: str) -> None:
    asked: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        open_store(database).close()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert not [one for one in asked if one.split()[0].upper() in ("CREATE", "ALTER", "INSERT", "UPDATE")]
