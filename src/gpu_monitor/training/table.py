# SPDX-License-Identifier: MIT
"""Tables as rows of JSON: from lists, dicts of columns, and the tables of pandas, polars and Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gpu_monitor.training.border import ForeignError, call_foreign
from gpu_monitor.wire.training import written

MOST_ROWS = 100_000
MOST_COLUMNS = 1_000
MOST_BYTES = 32 << 20
"""Of the JSON; rows beyond are left out, and said."""
_LONGEST_CELL = 2_000
"""Characters of a text in one cell."""
_LARGEST_INT = 1 << 63
"""Whole numbers beyond 64 bits are written as text: readers in other languages would round them."""


class NoTable(Exception):
    """A value is no table; the text says why, in words that go on after the name of it."""


@dataclass(frozen=True)
class Table:
    """`columns` and `rows` of cells that JSON has. `total`: rows that there were; more than `rows` where it was cut."""

    columns: list[str]
    rows: list[list[Any]]
    total: int

    def content(self) -> bytes:
        """The table as JSON; `total` only where it was cut."""
        said: dict[str, Any] = {"columns": self.columns, "rows": self.rows}
        if self.total > len(self.rows):
            said["total"] = self.total
        return msgspec.json.encode(said)


def table_of(value: object, columns: Sequence[object] | None = None) -> Table:
    """The table in `value`: rows (dicts, or lists with `columns`), a dict of columns, or a data frame.

    Cells are numbers, texts, booleans and null; times are ISO 8601, NaN and infinities their names, anything else its
    text. Raises NoTable.
    """
    try:
        table: Table = call_foreign(_make, value, columns)
    except ForeignError as error:
        if isinstance(error.__cause__, NoTable):
            raise error.__cause__ from None
        raise NoTable(f"cannot be read: {error}") from None
    return table


def _make(value: object, columns: Sequence[object] | None) -> Table:
    names, rows, total = _read(value, columns)
    if len(names) > MOST_COLUMNS:
        raise NoTable(f"has {len(names)} columns; a table has {MOST_COLUMNS} at most")
    kept: list[list[Any]] = []
    size = 0
    for row in rows:
        if len(kept) >= MOST_ROWS:
            break
        if len(row) != len(names):
            raise NoTable(f"has a row of {len(row)} cells under {len(names)} columns")
        cells = [cell_of(cell) for cell in row]
        size += len(msgspec.json.encode(cells)) + 1
        if size > MOST_BYTES:
            break
        kept.append(cells)
    return Table(names, kept, total)


_Read = tuple[list[str], Iterator[Sequence[object]], int]


def _read(value: Any, columns: Sequence[object] | None) -> _Read:
    if isinstance(value, Mapping):
        return _from_columns(value)
    if hasattr(value, "to_pydict") and hasattr(value, "num_rows"):  # pyarrow.Table
        head = value.slice(0, MOST_ROWS)
        names, rows, _ = _from_columns(head.to_pydict())
        return names, rows, int(value.num_rows)
    if hasattr(value, "columns") and hasattr(value, "itertuples"):  # pandas.DataFrame
        if any(
            name is not None for name in value.index.names
        ):  # an index with a name is a column like others
            value = value.reset_index()
        names = [str(name) for name in value.columns]
        return names, iter(value.head(MOST_ROWS).itertuples(index=False, name=None)), len(value)
    if hasattr(value, "columns") and hasattr(value, "iter_rows"):  # polars.DataFrame
        return [str(name) for name in value.columns], iter(value.head(MOST_ROWS).iter_rows()), len(value)
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise NoTable(f"is a {type(value).__name__}, no table")
    return _from_rows(list(value), columns)


def _from_columns(value: Mapping[Any, Any]) -> _Read:
    lists = {str(name): _cells(column) for name, column in value.items()}
    lengths = {len(column) for column in lists.values()}
    if len(lengths) > 1:
        raise NoTable("has columns of different lengths")
    total = lengths.pop() if lengths else 0
    return list(lists), zip(*lists.values(), strict=True), total


def _cells(column: Any) -> list[Any]:
    if isinstance(column, (str, bytes)) or not isinstance(column, Iterable):
        raise NoTable("is a dict whose values are no columns; a table of one row is a list with that dict")
    return list(column.tolist() if hasattr(column, "tolist") else column)


def _from_rows(rows: list[Any], columns: Sequence[object] | None) -> _Read:
    if rows and all(isinstance(row, Mapping) for row in rows):
        names = [str(name) for name in (columns or dict.fromkeys(key for row in rows for key in row))]
        texts = ({str(key): cell for key, cell in row.items()} for row in rows)
        return names, ([row.get(name) for name in names] for row in texts), len(rows)
    lists = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    if any(isinstance(row, (str, bytes, Mapping)) or not isinstance(row, Sequence) for row in lists):
        raise NoTable("has rows that are neither all dicts nor all lists")
    if columns is None:
        columns = range(len(lists[0])) if lists else ()
    return [str(name) for name in columns], iter(lists), len(rows)


def cell_of(value: Any) -> Any:
    """One cell as JSON has it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return int(value) if abs(value) < _LARGEST_INT else str(value)
    if isinstance(value, float):
        return written(float(value))
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas.NA, pandas.NaT
        return None
    if hasattr(value, "isoformat"):
        return _text(value.isoformat())
    if getattr(value, "shape", None) == () and hasattr(
        value, "item"
    ):  # scalars of NumPy, 0-d arrays, tensors
        single = value.item()
        return _text(str(value)) if single is value else cell_of(single)
    return _text(str(value))


def _text(value: str) -> str:
    """A text that UTF-8 can hold, and not a book."""
    whole = value.encode("utf-8", "replace").decode()
    return whole if len(whole) <= _LONGEST_CELL else whole[: _LONGEST_CELL - 1] + "…"
