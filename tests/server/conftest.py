"""Databases for the server's tests: `database` and `store` come on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect

from gpu_monitor.server.store import migrate
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.migrate import REVISIONS, SCRIPTS
from gpu_monitor.server.store.schema_experiments import metadata
from tests.server.postgres import WHY_NOT, Cluster, running_cluster
from tests.server.prepared import prepare


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running PostgreSQL cluster, one for each worker of the tests; skipped loudly where there is none."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with every table and no row, to be copied."""
    path = tmp_path_factory.mktemp("template") / "server.db"
    prepare(path)
    with contextlib.closing(open_store(f"sqlite:///{path}")) as store, store.read() as connection:
        looked = inspect(connection)
        made = {(name, one["name"]) for name in looked.get_table_names() for one in looked.get_columns(name)}
    missing = {(table.name, column.name) for table in metadata.tables.values() for column in table.c} - made
    assert not missing, f"the migrations do not make {sorted(missing)}: run scripts/migration --first"
    return path


@pytest.fixture(scope="session")
def postgresql_template(cluster: Cluster) -> str:
    """The name of such a database in the cluster."""
    url = cluster.create()
    open_store(url).close()
    name = url.partition("?")[0].rpartition("/")[2]
    cluster.execute(f"ALTER DATABASE {name} RENAME TO made")
    return "made"


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """The kind of database that the test runs on."""
    return str(request.param)


@pytest.fixture
def empty_database(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The DATABASE_URL of a database without a table; a SQLite file is not there yet."""
    if dialect == "sqlite":
        yield f"sqlite:///{tmp_path / 'server.db'}"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    url = cluster.create()
    yield url
    cluster.drop(url)


@pytest.fixture
def database(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The DATABASE_URL of a fresh database with every table and no row, on each of the dialects."""
    if dialect == "sqlite":
        path = tmp_path / "server.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    url = cluster.create(request.getfixturevalue("postgresql_template"))
    yield url
    cluster.drop(url)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    """The same, open."""
    opened = open_store(database)
    yield opened
    opened.close()


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program that knows one more version, with one more table."""
    scripts = tmp_path / "scripts"
    (scripts / "versions").mkdir(parents=True)
    for path in (SCRIPTS / "versions").glob("r*.py"):
        (scripts / "versions" / path.name).write_bytes(path.read_bytes())
    (scripts / "versions" / "r9000_more.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision = '9000', {REVISIONS[-1]!r}\n"
        "def upgrade():\n"
        "    op.create_table('more', sa.Column('id', sa.Integer, primary_key=True))\n"
        "    op.add_column('nodes', sa.Column('rack', sa.Text))\n"
    )
    monkeypatch.setattr(migrate, "SCRIPTS", scripts)
    monkeypatch.setattr(migrate, "REVISIONS", (*REVISIONS, "9000"))
    return scripts
