"""Reads DATABASE_URL: which database is meant, or why it cannot be used."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from gpu_monitor.core.errors import ConfigError

_SQLITE = ("sqlite", "sqlite+pysqlite")
_POSTGRESQL = ("postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2", "postgres+psycopg2")
_FORMS = (
    "Write sqlite:///gpu_monitor.db (a file in the working directory), sqlite:////var/lib/gpu_monitor/server.db, "
    "or postgresql://user:password@host:5432/name."
)


def parse_url(text: str, folder: Path | None = None) -> URL:
    """The database that `text` means; a relative SQLite path begins at `folder` (None: the working directory).

    ConfigError where it cannot be read or names another engine. Every PostgreSQL form means psycopg 3.
    """
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError) as error:
        # The text itself may hold a password.
        raise ConfigError("DATABASE_URL cannot be read as the address of a database", _FORMS) from error
    if url.drivername in _SQLITE:
        return _sqlite(url, folder or Path.cwd())
    if url.drivername in _POSTGRESQL:
        if not url.database:
            raise ConfigError(f"DATABASE_URL names no database: {shown(url)}", _FORMS)
        return url.set(drivername="postgresql+psycopg")
    raise ConfigError(f"DATABASE_URL asks for {url.drivername}: {_reason(url)}", _FORMS)


def shown(url: URL) -> str:
    """The URL as messages and logs may name it: without its password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    bare = url.set(drivername="postgresql") if url.get_backend_name() == "postgresql" else url
    secret = {"password", "sslpassword"} & set(bare.query)
    return bare.difference_update_query(secret).render_as_string(hide_password=True)


def _sqlite(url: URL, folder: Path) -> URL:
    if url.host or url.username:
        raise ConfigError("a SQLite URL has three slashes before a relative path, four before /", _FORMS)
    if url.query:
        raise ConfigError(
            f"the SQLite URL holds options ({', '.join(url.query)}): the server sets its own", _FORMS
        )
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ConfigError("a SQLite database in memory would lose what was acknowledged: name a file", _FORMS)
    path = folder / Path(url.database).expanduser()
    return URL.create("sqlite+pysqlite", database=str(path))


def _reason(url: URL) -> str:
    if url.get_backend_name() == "postgresql":
        return "PostgreSQL is reached through psycopg 3 only"
    if url.get_backend_name() == "sqlite":
        return "SQLite is reached through Python's own module only"
    return (
        "reports are stored exactly once by means (partitions, COPY, advisory locks, one writer) "
        "that are built and tested on SQLite and PostgreSQL only"
    )
