"""Opening the database and its transactions, on both dialects."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, select

from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.schema import contracts, metadata


def test_what_was_written_is_read_and_what_failed_is_not(store: Store) -> None:
    with store.write() as connection:
        connection.execute(insert(contracts).values(number="kept"))
    with pytest.raises(KeyError), store.write() as connection:
        connection.execute(insert(contracts).values(number="dropped"))
        raise KeyError
    with store.read() as connection:
        assert connection.execute(select(contracts.c.number)).scalars().all() == ["kept"]


def test_an_empty_database_gets_every_table_and_opens_again(empty_database: str) -> None:
    open_store(empty_database).close()
    store = open_store(empty_database)
    with store.read() as connection:
        for table in metadata.tables.values():
            assert connection.execute(select(table)).fetchall() == []
    store.close()
