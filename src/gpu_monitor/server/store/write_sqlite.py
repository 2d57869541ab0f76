"""How rows get into SQLite: many to a statement, because each step of one hands the interpreter to other threads.

The statements go to the driver itself: SQLAlchemy's own work on each came to a tenth of what writing a report takes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from gpu_monitor.core.clock import process_seconds
from gpu_monitor.server.store.slow import note_statement

Row = Sequence[Any]
_PARAMETERS = 3000
"""In one statement: above it nothing is gained, and SQLite takes 32,766 at most."""
_NULL = float("nan")
"""SQLite knows no NaN: it stores NULL, whatever the column's type is. For None the driver looks for an adapter, which
takes nine times as long as binding a number."""
_UNKNOWN = 9
"""Where fewer than one value in so many is unknown, None takes less time than looking at all of them."""
_LAST_HOUR = "UPDATE gpus SET last_hour = ? WHERE agent IN (SELECT value FROM json_each(?))"
_RECEIPTS = """SELECT r.agent, r.hour, r.contract, r.period_seconds, r.revision, r.body_digest, r.quarantined, r.simulated
    FROM json_each(?) w CROSS JOIN receipts r ON r.agent = json_extract(w.value, '$[0]')
    AND r.hour BETWEEN json_extract(w.value, '$[1]') AND json_extract(w.value, '$[2]')"""


class SqliteRows:
    """Bulk statements on one connection, inside its transaction."""

    def __init__(self, connection: Connection) -> None:
        self._driver: Any = connection.connection.driver_connection

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Nothing is gained here by waiting: each statement runs as it comes."""
        yield

    def send(self) -> None:
        """Nothing waits."""

    def insert(self, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Put rows in; values in the order of `columns`."""
        self._put(table.name, tuple(columns), rows, "")

    def insert_new(self, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Put rows in that are not there yet."""
        self._put(table.name, tuple(columns), rows, " ON CONFLICT DO NOTHING")

    def upsert(
        self, table: Table, columns: Sequence[str], keys: Sequence[str], then: str, rows: Sequence[Row]
    ) -> None:
        """Put rows in; where `keys` are there already, do `then` (the text after DO UPDATE)."""
        self._put(table.name, tuple(columns), rows, f" ON CONFLICT ({', '.join(keys)}) DO UPDATE {then}")

    def _put(self, table: str, columns: tuple[str, ...], rows: Sequence[Row], tail: str) -> None:
        at, left = 0, len(rows)
        most = 1 << ((_PARAMETERS // len(columns)) or 1).bit_length() - 1
        while left:
            size = min(most, 1 << left.bit_length() - 1)
            values: Sequence[Any] = tuple(chain.from_iterable(rows[at : at + size]))
            if rows[at].count(None) * _UNKNOWN > len(columns):  # the others are like the first, or nearly
                values = [_NULL if value is None else value for value in values]
            self._run(_statement(table, columns, tail, size), values)
            at, left = at + size, left - size

    def select_in(self, start: str, column: str, values: Iterable[Any]) -> list[Any]:
        """Rows of `start` (SELECT … FROM …) whose `column` is one of `values`."""
        return self._run(
            f"{start} WHERE {column} IN (SELECT value FROM json_each(?))",
            (msgspec.json.encode(list(values)).decode(),),
        )

    def receipts_in(self, ranges: Sequence[tuple[int, int, int]]) -> list[Any]:
        """Receipts of each (agent, from hour, to hour)."""
        return self._run(_RECEIPTS, (msgspec.json.encode(ranges).decode(),))

    def set_last_hours(self, seen: Sequence[tuple[int, int]]) -> None:
        """All GPUs of these agents were seen in an hour: (hour, agent)."""
        agents: dict[int, list[int]] = {}
        for hour, agent in seen:
            agents.setdefault(hour, []).append(agent)
        for hour, those in agents.items():
            self._run(_LAST_HOUR, (hour, msgspec.json.encode(those).decode()))

    def set_status(self, agent: int, gpu: int, status: str, until: float) -> None:
        """Say why a GPU gives nothing, unless something newer than `until` is known of it."""
        self._run(
            "UPDATE latest SET status = ? WHERE agent = ? AND gpu = ? AND time <= ?",
            (status, agent, gpu, until),
        )

    def facts_of(self, digests: Sequence[bytes]) -> list[Any]:
        """(id, digest) of the facts that are held."""
        marks = ", ".join("?" * len(digests))
        return self._run(f"SELECT id, digest FROM facts WHERE digest IN ({marks})", tuple(digests))

    def _run(self, statement: str, values: Sequence[Any]) -> list[Any]:
        """The rows that a statement gives; what the driver refuses is told as SQLAlchemy tells it."""
        began = process_seconds()
        try:
            found: list[Any] = self._driver.execute(statement, values).fetchall()
        except sqlite3.IntegrityError as error:
            raise IntegrityError(statement, None, error) from error
        except sqlite3.OperationalError as error:
            raise OperationalError(statement, None, error) from error
        except sqlite3.Error as error:
            raise DBAPIError(statement, None, error) from error
        note_statement(statement, process_seconds() - began)
        return found


@lru_cache(256)
def _statement(table: str, columns: tuple[str, ...], tail: str, size: int) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    marks = "(" + ", ".join("?" * len(columns)) + ")"
    return f"INSERT INTO {table} ({names}) VALUES {', '.join([marks] * size)}{tail}"
