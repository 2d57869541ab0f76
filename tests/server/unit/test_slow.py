"""Statements that take long are told, without their values."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from gpu_monitor.server.store import slow


def test_a_slow_statement_is_told_and_a_quick_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/x.db")
    slow.watch_slow(engine)
    moments = iter([10.0, 10.9, 20.0, 21.2, 30.0, 31.0])
    monkeypatch.setattr(slow, "process_seconds", lambda: next(moments))
    with caplog.at_level(logging.WARNING), engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.execute(text("SELECT\n  CAST(:secret AS TEXT)"), {"secret": "hunter2"})
        connection.execute(text("SELECT 3"))
    engine.dispose()
    assert [record.getMessage() for record in caplog.records] == [
        "a statement took 1.2 s: SELECT CAST(? AS TEXT)"
    ]
    assert caplog.records[0].levelname == "WARNING"
