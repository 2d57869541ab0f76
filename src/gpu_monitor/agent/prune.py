"""Deletes rows in batches so small that a sample never waits for one."""

from __future__ import annotations

from gpu_monitor.storage.database import Writer

SCAN = 1000
"""Rows of a long table that are looked at, and deleted if need be, at a time: a millisecond of work, and a sync."""
_BATCH = 500
_KEYS = {"aggregates": "period, gpu", "host_aggregates": "period", "periods": "node, start"}
_ON_CHANGE = {"states": "gpu, key, since", "reasons": "gpu, metric, since"}


def batch_sql(table: str, where: str, batch: int = _BATCH) -> str:
    """SQL that deletes at most `batch` rows of `table` (named t in `where`)."""
    key = (_KEYS | _ON_CHANGE).get(table, "id")
    return f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} t WHERE {where} LIMIT {batch})"


def delete_rows(writer: Writer, table: str, where: str) -> int:
    """Delete all rows for which `where` holds, each batch in its transaction; how many."""
    total, sql = 0, batch_sql(table, where)
    while True:
        with writer.transaction() as connection:
            count = connection.execute(sql).rowcount
        total += max(count, 0)
        if count < _BATCH:
            return total
