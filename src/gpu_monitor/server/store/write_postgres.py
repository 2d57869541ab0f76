"""How rows get into PostgreSQL: many at once by binary COPY, the others as an array a column."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
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
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from gpu_monitor.core.catalogue import SAMPLED
from gpu_monitor.core.clock import process_seconds
from gpu_monitor.core.errors import StorageError
from gpu_monitor.server.store.engine import WRITER_LOCK
from gpu_monitor.server.store.schema import COVER, IDLE, aggregates, metric_columns, nodes
from gpu_monitor.server.store.slow import note_statement

Row = Sequence[Any]
NODE_COLUMNS = tuple(column.name for column in nodes.c)
Statement = tuple[str, Sequence[Any]]
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
_BOUNDED = frozenset((*(name for name, _ in (*COVER, *IDLE)), *(c.name for c in metric_columns(SAMPLED))))
"""Columns of an aggregate whose values were bounded when they were read, to what the column holds."""
_COPIED_COLUMNS, _COPIED_ROWS = 40, 2_000
"""Above either, COPY is worth waiting for two more answers."""
_LAST_HOURS = """UPDATE gpus SET last_hour = w.hour FROM unnest(%s::int4[], %s::int4[]) AS w(hour, agent)
    WHERE gpus.agent = w.agent"""
_RECEIPT = "SELECT r.agent, r.hour, r.contract, r.period_seconds, r.revision, r.body_digest, r.quarantined, r.simulated"
_RECEIPTS = f"""{_RECEIPT} FROM unnest(%s::int4[], %s::int4[], %s::int4[]) AS w(agent, low, high)
    JOIN receipts r ON r.agent = w.agent AND r.hour BETWEEN w.low AND w.high"""
_NEVER = 2**62
"""Above all numbers of changes."""
_AHEAD = f"""SELECT pg_advisory_xact_lock(%s);
    SELECT {", ".join(NODE_COLUMNS)} FROM nodes WHERE uuid = ANY(%s::text[]);
    {_RECEIPT} FROM unnest(%s::text[], %s::int4[], %s::int4[]) AS w(uuid, low, high)
    JOIN nodes n ON n.uuid = w.uuid
    JOIN receipts r ON r.agent = n.id
    AND r.hour BETWEEN w.low + 1 - greatest(n.longest_seconds, 3600) / 3600 AND w.high;
    SELECT (SELECT max(seq) FROM changes), EXISTS (SELECT 1 FROM changes WHERE seq = %s),
    ARRAY(SELECT DISTINCT agent FROM changes WHERE seq > %s AND kind <> 'alert' AND agent IS NOT NULL)"""


class Ahead(NamedTuple):
    """What is read before a group is written: rows of nodes and receipts, and the number of the newest change.

    `agents`: nodes that others wrote since the change that was asked for; None where that is not known.
    """

    nodes: list[Any]
    receipts: list[Any]
    newest: int | None
    agents: frozenset[int] | None


class PostgresRows:
    """Bulk statements on one connection, inside its transaction.

    They go to the driver itself, and those of a `together` as one statement: each answer that is waited for hands
    the interpreter to other threads, and getting it back took longer than most of the statements.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver: Any = connection.connection.driver_connection
        self._waiting: list[Statement] | None = None
        if not connection.in_transaction():
            connection.begin()  # the driver begins its own with its first statement, unseen by SQLAlchemy

    def begin(self, wanted: Sequence[tuple[str, int, int]], since: int | None) -> Ahead:
        """Take the writers' lock, and read what is known of nodes: (uuid, first hour, last hour) of each report.

        `since`: the change after which this process knows what was written.
        """
        uuids, low, high = zip(*wanted, strict=True) if wanted else ((), (), ())
        known = _NEVER if since is None else since
        names = _array("text", uuids)
        values = (WRITER_LOCK, names, names, _array("int4", low), _array("int4", high), known, known)
        began = process_seconds()
        with self._told(_AHEAD):
            # Several statements at once must bind their values here; each sees what was there once the lock was ours.
            cursor = _client_cursor(self._driver).execute(_AHEAD, values)
            cursor.nextset()
            nodes = cursor.fetchall()
            cursor.nextset()
            receipts = cursor.fetchall()
            cursor.nextset()
            newest, is_known, agents = cursor.fetchone()
        note_statement(_AHEAD, process_seconds() - began)
        return Ahead(nodes, receipts, newest, frozenset(agents) if is_known else None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Send the inserts and upserts within as one statement, at the end; they must be of different rows.

        What waits goes before any other statement of this object, and where `send` says so; SQLAlchemy's own
        statements on the connection do not see it before.
        """
        if self._waiting is not None:  # within another one, which sends
            yield
            return
        self._waiting = []
        try:
            yield
            self.send()
        finally:
            self._waiting = None

    def insert(self, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Put rows in; values in the order of `columns`."""
        if not rows:
            return
        if self._waiting is None or len(columns) > _COPIED_COLUMNS or len(rows) > _COPIED_ROWS:
            self._copy(table, columns, rows)
        else:
            self._put(table, columns, rows, "")

    def insert_new(self, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Put rows in that are not there yet."""
        if rows:
            self._put(table, columns, rows, " ON CONFLICT DO NOTHING")

    def upsert(
        self, table: Table, columns: Sequence[str], keys: Sequence[str], then: str, rows: Sequence[Row]
    ) -> None:
        """Put rows in; where `keys` are there already, do `then` (the text after DO UPDATE)."""
        if rows:
            self._put(table, columns, rows, f" ON CONFLICT ({', '.join(keys)}) DO UPDATE {then}")

    def _put(self, table: Table, columns: Sequence[str], rows: Sequence[Row], tail: str) -> None:
        statement, kinds = _insert(table, tuple(columns), tail)
        self._change(statement, [_array(*pair) for pair in zip(kinds, zip(*rows, strict=True), strict=True)])

    def _change(self, statement: str, values: Sequence[str]) -> None:
        if self._waiting is None:
            self._run(statement, values)
        else:
            self._waiting.append((statement, values))

    def send(self) -> None:
        """Run what waits: data-modifying parts of one WITH, which all see the rows as they were before it."""
        if not self._waiting:
            return
        statements = tuple(statement for statement, _ in self._waiting)
        values = [value for _, part in self._waiting for value in part]
        self._waiting = []
        self._run(_joint(statements), values)

    def _copy(self, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
        statement, kinds = _copy_of(table, tuple(columns))
        _check_ranges(table.name, columns, kinds, rows)
        with self._told(statement), self._driver.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(kinds)
            for row in rows:
                copy.write_row(row)

    def select_in(self, start: str, column: str, values: Iterable[Any]) -> list[Any]:
        """Rows of `start` (SELECT … FROM …) whose `column` is one of `values`."""
        return self._run(f"{start} WHERE {column} = ANY(%s)", (list(values),))

    def receipts_in(self, ranges: Sequence[tuple[int, int, int]]) -> list[Any]:
        """Receipts of each (agent, from hour, to hour)."""
        return self._run(_RECEIPTS, [_array("int4", part) for part in zip(*ranges, strict=True)])

    def set_last_hours(self, seen: Sequence[tuple[int, int]]) -> None:
        """All GPUs of these agents were seen in an hour: (hour, agent)."""
        self._change(_LAST_HOURS, [_array("int4", part) for part in zip(*seen, strict=True)])

    def set_status(self, agent: int, gpu: int, status: str, until: float) -> None:
        """Say why a GPU gives nothing, unless something newer than `until` is known of it."""
        self._run(
            "UPDATE latest SET status = %s WHERE agent = %s AND gpu = %s AND time <= %s",
            (status, agent, gpu, until),
        )

    def facts_of(self, digests: Sequence[bytes]) -> list[Any]:
        """(id, digest) of the facts that are held."""
        return self._run("SELECT id, digest FROM facts WHERE digest = ANY(%s)", (list(digests),))

    def _run(self, statement: str, values: Sequence[Any]) -> list[Any]:
        """The rows that a statement gives, after those that wait."""
        if self._waiting:
            self.send()
        began = process_seconds()
        with self._told(statement):
            cursor = _cursor(self._driver).execute(_numbered(statement), values)
            found: list[Any] = [] if cursor.description is None else cursor.fetchall()
        note_statement(statement, process_seconds() - began)
        return found

    @contextlib.contextmanager
    def _told(self, statement: str) -> Iterator[None]:
        """The driver's errors as SQLAlchemy tells them, which did not see this statement."""
        import psycopg  # heavy, and loaded by now: this runs on its connection

        try:
            yield
        except psycopg.OperationalError as error:
            if self._driver.closed:
                self._connection.invalidate(error)
            raise OperationalError(statement, None, error) from error
        except psycopg.IntegrityError as error:
            raise IntegrityError(statement, None, error) from error
        except psycopg.Error as error:
            raise DBAPIError(statement, None, error) from error


@lru_cache(256)
def _insert(table: Table, columns: tuple[str, ...], tail: str) -> tuple[str, list[str]]:
    """A statement that puts in rows given as an array a column, and the types of those."""
    kinds = [_type_of(table, name) for name in columns]
    arrays = ", ".join(f"%s::{kind}[]" for kind in kinds)
    names = _quoted(columns)
    return f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays}) AS given{tail}", kinds


@lru_cache(256)
def _copy_of(table: Table, columns: tuple[str, ...]) -> tuple[str, list[str]]:
    kinds = [_type_of(table, name) for name in columns]
    return f"COPY {table.name} ({_quoted(columns)}) FROM STDIN (FORMAT BINARY)", kinds


@lru_cache(64)
def _joint(statements: tuple[str, ...]) -> str:
    *parts, last = statements
    begin = ", ".join(f"part_{number} AS ({part})" for number, part in enumerate(parts))
    return f"WITH {begin} {last}" if begin else last


@lru_cache(256)
def _numbered(statement: str) -> str:
    """With PostgreSQL's own marks, $1 and so on: the driver would look for the others anew each time."""
    first, *rest = statement.split("%s")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


def _quoted(columns: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)


def _array(kind: str, values: Sequence[Any]) -> str:
    """An array as PostgreSQL writes it, which takes a fraction of the time of the driver's own arrays."""
    if kind == "text":
        return "{" + ",".join(["NULL" if value is None else _text(value) for value in values]) + "}"
    if kind == "bytea":
        told = ["NULL" if value is None else f'"\\\\x{value.hex()}"' for value in values]
        return "{" + ",".join(told) + "}"
    return "{" + _encode(values).decode()[1:-1] + "}"  # numbers, true, false, null: as in JSON


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


_encode = msgspec.json.Encoder().encode


def _type_of(table: Table, name: str) -> str:
    kind = table.c[name].type
    return next(word for known, word in _TYPES if isinstance(kind, known))


def _check_ranges(into: str, columns: Sequence[str], types: Sequence[str], rows: Sequence[Row]) -> None:
    """StorageError for a number that its column does not hold: the driver would cut it without a word."""
    bounded = _BOUNDED if into == aggregates.name else ()
    for at, (name, kind) in enumerate(zip(columns, types, strict=True)):
        code = None if name in bounded else _ARRAYS.get(kind)
        if code is not None:
            try:
                array(code, filter(None, map(itemgetter(at), rows)))
            except (OverflowError, TypeError) as error:
                raise StorageError(
                    f"{into}.{name} is to hold a number that is none of its kind ({kind}): {error}",
                    "Nothing of this group was written. This is a fault of the server: report it.",
                ) from error


def _cursor(driver: Any) -> Any:
    import psycopg  # heavy, and loaded by now: this is its connection

    return psycopg.RawCursor(driver)


def _client_cursor(driver: Any) -> Any:
    import psycopg  # heavy, and loaded by now: this is its connection

    return psycopg.ClientCursor(driver)
