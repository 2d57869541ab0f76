"""Tables from what programs have: rows, columns, data frames."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal

import pytest

from gpu_monitor.training.table import MOST_COLUMNS, MOST_ROWS, NoTable, table_of


def test_rows_and_columns() -> None:
    expected = {"columns": ["a", "b"], "rows": [[1, "x"], [2, None]]}
    for value, columns in (
        ([{"a": 1, "b": "x"}, {"a": 2}], None),
        ([[1, "x"], [2, None]], ["a", "b"]),
        (((1, "x"), (2, None)), ("a", "b")),
        ({"a": [1, 2], "b": ["x", None]}, None),
    ):
        assert json.loads(table_of(value, columns).content()) == expected
    assert table_of([[1, 2]]).columns == ["0", "1"]
    assert table_of([]).rows == []
    assert table_of([{"a": 1, "b": 2}], ["b"]).rows == [[2]]


def test_cells() -> None:
    moment = datetime.datetime(2024, 3, 20, 14, 30, tzinfo=datetime.timezone.utc)
    cells = [
        True,
        2**63,
        -(2**63) + 1,
        math.nan,
        -math.inf,
        0.5,
        moment,
        Decimal("1.5"),
        "a\ud800",
        [1, 2],
        None,
    ]
    assert table_of([cells]).rows == [
        [True, "9223372036854775808", -(2**63) + 1, "NaN", "-Infinity", 0.5, "2024-03-20T14:30:00+00:00", "1.5", "a?",
         "[1, 2]", None]
    ]  # fmt: skip
    (long,) = table_of([["x" * 5000]]).rows[0]
    assert (len(long), long[-1]) == (2000, "…")


class Hostile:
    """A value that refuses to be a text."""

    def __str__(self) -> str:
        raise RuntimeError("no\nand no")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "is a int, no table"),
        ("text", "is a str, no table"),
        ([1, 2], "neither all dicts nor all lists"),
        ([[1], {"a": 1}], "neither all dicts nor all lists"),
        ([[1, 2], [3]], "a row of 1 cells under 2 columns"),
        ({"a": [1], "b": [1, 2]}, "columns of different lengths"),
        ({"a": 1}, "whose values are no columns"),
        ([[Hostile()]], "cannot be read: RuntimeError: no"),
        ([list(range(MOST_COLUMNS + 1))], "1001 columns"),
    ],
)
def test_what_is_no_table_says_why(value: object, says: str) -> None:
    with pytest.raises(NoTable, match=says):
        table_of(value)


def test_a_long_table_is_cut_and_says_of_how_many() -> None:
    found = table_of({"a": range(MOST_ROWS + 5)})
    assert (len(found.rows), found.total) == (MOST_ROWS, MOST_ROWS + 5)
    assert json.loads(found.content())["total"] == MOST_ROWS + 5


def test_numpy_rows_and_scalars() -> None:
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed: tables of arrays are not tested")
    assert table_of(numpy.array([[1, 2], [3, 4]]), ["a", "b"]).rows == [[1, 2], [3, 4]]
    assert table_of({"a": numpy.array([0.5, numpy.nan])}).rows == [[0.5], ["NaN"]]
    cells = [numpy.float32(0.5), numpy.int64(3), numpy.bool_(True), numpy.datetime64("2024-03-20")]
    assert table_of([cells]).rows == [[0.5, 3, True, "2024-03-20"]]


def test_frames_of_pandas() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: its frames are not tested")
    frame = pandas.DataFrame(
        {"a": [1, 2], "b": [0.5, None], "when": pandas.to_datetime(["2024-03-20", None])}
    )
    assert table_of(frame).columns == ["a", "b", "when"]
    assert table_of(frame).rows == [[1, 0.5, "2024-03-20T00:00:00"], [2, "NaN", None]]
    assert table_of(frame.set_index("a")).columns == ["a", "b", "when"]
    assert table_of(pandas.DataFrame({"a": range(MOST_ROWS + 1)})).total == MOST_ROWS + 1


def test_frames_of_polars() -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed: its frames are not tested")
    frame = polars.DataFrame({"a": [1, 2], "b": ["x", None]})
    assert table_of(frame) == table_of({"a": [1, 2], "b": ["x", None]})


def test_tensors_as_cells() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: tensors in tables are not tested")
    assert table_of([[torch.tensor(0.5), torch.tensor(3)]]).rows == [[0.5, 3]]
