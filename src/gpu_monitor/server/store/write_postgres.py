"""How rows get into PostgreSQL: binary COPY, and for what may be there already COPY into a table of the session."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Double,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.exc import DBAPIError, OperationalError

from gpu_monitor.core.errors import StorageError

Row = Sequence[Any]
# The first that fits: SmallInteger and BigInteger are Integers too.
_TYPES = (
    (SmallInteger, "int2"),
    (BigInteger, "int8"),
    (Integer, "int4"),
    (Double, "float8"),
    (Boolean, "bool"),
    (LargeBinary, "bytea"),
    (Text, "text"),
)
_ARRAYS = {"int2": "h", "int4": "i"}
"""Arrays of the same width check a number's range while they are filled: 20 ns each."""
_RECEIPTS = """SELECT r.agent, r.hour, r.contract, r.period_seconds, r.revision, r.body_digest, r.quarantined, r.simulated
    FROM unnest(%s::int[], %s::int[], %s::int[]) AS w(agent, low, high)
    JOIN receipts r ON r.agent = w.agent AND r.hour BETWEEN w.low AND w.high"""


class PostgresRows:
    """Bulk statements on one connection, inside its transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def insert(self, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Put rows in; values in the order of `columns`."""
        if rows:
            self._copy(table, table.name, columns, rows)

    def insert_new(self, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Put rows in that are not there yet."""
        self._merge(table, columns, "NOTHING", "", rows)

    def upsert(
        self, table: Table, columns: Sequence[str], keys: Sequence[str], then: str, rows: Sequence[Row]
    ) -> None:
        """Put rows in; where `keys` are there already, do `then` (the text after DO UPDATE)."""
        self._merge(table, columns, f"UPDATE {then}", f"({', '.join(keys)})", rows)

    def _merge(self, table: Table, columns: Sequence[str], do: str, on: str, rows: Sequence[Row]) -> None:
        if not rows:
            return
        names = ", ".join(f'"{name}"' for name in columns)
        aside = f"incoming_{table.name}"
        self._connection.exec_driver_sql(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {aside} ON COMMIT DELETE ROWS AS SELECT {names} FROM {table.name} LIMIT 0"
        )
        self._copy(table, aside, columns, rows)
        self._connection.exec_driver_sql(
            f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {aside} ON CONFLICT {on} DO {do}"
        )
        self._connection.exec_driver_sql(f"DELETE FROM {aside}")

    def _copy(self, table: Table, into: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        names = ", ".join(f'"{name}"' for name in columns)
        types = [_type_of(table, name) for name in columns]
        _check_ranges(into, columns, types, rows)
        driver: Any = self._connection.connection.driver_connection
        with (
            _told(into),
            driver.cursor() as cursor,
            cursor.copy(f"COPY {into} ({names}) FROM STDIN (FORMAT BINARY)") as copy,
        ):
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)

    def select_in(self, start: str, column: str, values: Iterable[Any]) -> list[Any]:
        """Rows of `start` (SELECT … FROM …) whose `column` is one of `values`."""
        return list(self._connection.exec_driver_sql(f"{start} WHERE {column} = ANY(%s)", (list(values),)))

    def receipts_in(self, ranges: Sequence[tuple[int, int, int]]) -> list[Any]:
        """Receipts of each (agent, from hour, to hour)."""
        agents, low, high = (list(part) for part in zip(*ranges, strict=True))
        return list(self._connection.exec_driver_sql(_RECEIPTS, (agents, low, high)))

    def set_last_hours(self, seen: Sequence[tuple[int, int]]) -> None:
        """All GPUs of these agents were seen in an hour: (hour, agent)."""
        self._connection.exec_driver_sql("UPDATE gpus SET last_hour = %s WHERE agent = %s", list(seen))

    def set_status(self, agent: int, gpu: int, status: str, until: float) -> None:
        """Say why a GPU gives nothing, unless something newer than `until` is known of it."""
        self._connection.exec_driver_sql(
            "UPDATE latest SET status = %s WHERE agent = %s AND gpu = %s AND time <= %s",
            (status, agent, gpu, until),
        )

    def facts_of(self, digests: Sequence[bytes]) -> list[Any]:
        """(id, digest) of the facts that are held."""
        return list(
            self._connection.exec_driver_sql(
                "SELECT id, digest FROM facts WHERE digest = ANY(%s)", (list(digests),)
            )
        )


def _type_of(table: Table, name: str) -> str:
    kind = table.c[name].type
    return next(word for known, word in _TYPES if isinstance(kind, known))


def _check_ranges(into: str, columns: Sequence[str], types: Sequence[str], rows: Sequence[Row]) -> None:
    """StorageError for a number that its column does not hold: the driver would cut it without a word."""
    for name, kind, values in zip(columns, types, zip(*rows, strict=True), strict=True):
        code = _ARRAYS.get(kind)
        if code is not None:
            try:
                array(code, filter(None, values))
            except (OverflowError, TypeError) as error:
                raise StorageError(
                    f"{into}.{name} is to hold a number that is none of its kind ({kind}): {error}",
                    "Nothing of this group was written. This is a fault of the server: report it.",
                ) from error


@contextlib.contextmanager
def _told(table: str) -> Iterator[None]:
    """The driver's errors as SQLAlchemy tells them, which did not see this statement."""
    import psycopg  # heavy, and loaded by now: this runs on its connection

    try:
        yield
    except psycopg.OperationalError as error:
        raise OperationalError(f"COPY {table}", None, error) from error
    except psycopg.Error as error:
        raise DBAPIError(f"COPY {table}", None, error) from error
