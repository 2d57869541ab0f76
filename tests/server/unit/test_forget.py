"""A node is forgotten: all of it, nothing of another's, in batches, and not under a server that remembers it."""

from __future__ import annotations

import pytest
from sqlalchemy import Table, insert, inspect, select, update

from gpu_monitor.core.errors import NothingFound, StorageBusy, UsageError
from gpu_monitor.server.auth.audit import list_deeds
from gpu_monitor.server.auth.tokens import Grant, create_token
from gpu_monitor.server.auth.versions import read_version
from gpu_monitor.server.store import schema
from gpu_monitor.server.store.check import check
from gpu_monitor.server.store.engine import Store, open_store
from gpu_monitor.server.store.forget import Known, find_node, forget_node
from tests.fakes.clock import FakeClock
from tests.server.receipts import HOUR, NOW, Fleet, count

GONE, STAYS = "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "6fa459ea-ee8a-4ca4-894e-db77e160355e"
HOURS = 5


def quiet(name: str, done: int, total: int) -> None:
    """Nobody looks at the progress."""


@pytest.fixture
def filled(store: Store) -> Store:
    """Two nodes with a row of theirs in every table that has rows of nodes."""
    fleet = Fleet(store)
    for number, uuid in enumerate((GONE, STAYS)):
        agent = fleet.add_node(uuid)
        for hour in range(HOUR, HOUR + HOURS):
            fleet.add_report(agent, hour)
        _fill(store, agent, uuid, number)
    return store


def _fill(store: Store, agent: int, uuid: str, number: int) -> None:
    """The tables that a report alone does not fill."""
    store.make_room(times=[int(NOW)], now=NOW)
    alert = {
        "agent": agent, "contract": 1, "state": "firing", "severity": "error", "since": NOW, "message": "m",
        "past": False, "simulated": False, "seen": NOW, "silenced": False, "active": 1,
    }  # fmt: skip
    silence = {"start": NOW, "stop": NOW + 60, "author": "ann"}
    rows: list[tuple[Table, dict[str, object]]] = [
        (schema.samples, {"time": int(NOW), "agent": agent, "gpu": 0, "seconds": 600}),
        (schema.latest, {"agent": agent, "gpu": 0, "time": NOW, "live": True, "status": "ok"}),
        (schema.live_processes, {"agent": agent, "gpu": 0, "boot_id": "b", "start_ticks": 1, "pid": 1, "since": NOW,
                                 "until": NOW}),
        (schema.live_events, {"agent": agent, "time": NOW, "uid": "GPU-1", "kind": "xid", "severity": "error",
                              "message": "m"}),
        (schema.revisions, {"agent": agent, "hour": HOUR, "revision": 1, "body_digest": b"d", "received": NOW,
                            "outcome": "replaced"}),
        (schema.quarantine, {"kind": "entry", "agent": agent, "hour": HOUR, "revision": 1, "reason": "r", "raw": b"{}",
                             "received": NOW}),
        (schema.changes, {"seq": number + 1, "time": NOW, "kind": "report", "agent": agent, "hour": HOUR}),
        (schema.alerts, {**alert, "id": f"node-{number}", "rule": "node-silent", "subject": uuid}),
        (schema.alerts, {**alert, "id": f"gpu-{number}", "rule": "gpu-hot", "subject": f"{uuid}/GPU-1"}),
        (schema.silences, {**silence, "id": f"a{number}", "subject": uuid}),
        (schema.silences, {**silence, "id": f"b{number}", "subject": f"{uuid}/GPU-1"}),
        (schema.outbox, {"alert": f"gpu-{number}", "moment": "fired", "channel": "c", "body": "{}", "created": NOW,
                         "attempts": 1}),
    ]  # fmt: skip
    with store.write() as connection:
        for table, row in rows:
            connection.execute(insert(table).values(row))
        queued = connection.execute(
            select(schema.outbox.c.id).where(schema.outbox.c.alert == f"gpu-{number}")
        ).scalar_one()
        told = {"outbox": queued, "time": NOW, "channel": "c", "ok": True, "status": "200"}
        connection.execute(insert(schema.deliveries).values(told))
        create_token(connection, Grant(frozenset(("report:write",)), "12345", node=uuid), NOW)
        connection.execute(
            update(schema.nodes).where(schema.nodes.c.id == agent).values(hostname=f"n{number}")
        )


def find(store: Store, name: str) -> Known:
    with store.read() as connection:
        return find_node(connection, name)


def test_all_of_a_node_goes_and_nothing_of_another(filled: Store) -> None:
    with filled.read() as connection:
        per_node = {
            name: columns
            for name in inspect(connection).get_table_names()
            if name in schema.metadata.tables
            and (columns := {"agent", "node"} & set(schema.metadata.tables[name].c.keys()))
        }
    before = {table.name: count(filled, table) for table in schema.metadata.sorted_tables}
    untouched = {"watches"}  # who looks at a node now is known for seconds only
    assert all(before[name] for name in per_node if name not in untouched), (
        "a table of nodes that is not filled"
    )
    with filled.write() as connection:
        connection.execute(insert(schema.silences).values(id="all", start=NOW, stop=NOW + 60, author="ann"))
    node = find(filled, "n0")
    assert (node.uuid, node.contract_number) == (GONE, "12345")
    gone = forget_node(filled, node, NOW, "cli:ann", quiet, batch=3)
    assert gone == node.rows == {
        "aggregates": 2 * HOURS, "host_hours": HOURS, "gaps": HOURS, "events": HOURS, "processes": HOURS,
        "receipts": HOURS, "samples": 1, "live_processes": 1, "live_events": 1,
        "revisions": 1, "quarantine": 1, "changes": 1, "latest": 1, "gpus": 2,
        "nodes": 1, "alerts": 2, "silences": 2, "outbox": 1, "deliveries": 1, "tokens": 1,
    }  # fmt: skip
    for table in schema.metadata.sorted_tables:
        if table.name in gone:
            more = 1 if table is schema.silences else 0
            assert count(filled, table) == before[table.name] // 2 + more, table.name
    kept = find(filled, STAYS)
    assert kept.rows == node.rows
    with pytest.raises(NothingFound, match="no node n0"):
        find(filled, "n0")
    report = check(filled.read, FakeClock(NOW), lambda done, total: None)
    assert (report.receipts, report.count) == (HOURS, 0)


def test_it_is_in_the_audit_log_and_running_processes_heed_it(filled: Store) -> None:
    with filled.read() as connection:
        version = read_version(connection)
    node = find(filled, GONE)
    forget_node(filled, node, NOW, "cli:ann", quiet)
    with filled.read() as connection:
        (deed,) = list_deeds(connection, None, 10)
        assert read_version(connection) > version
    assert (deed.actor, deed.action, deed.subject) == ("cli:ann", "node.forget", GONE)
    assert deed.detail == {"hostname": "n0", "contract_number": "12345", "rows": node.rows}


def test_one_that_was_ended_halfway_is_finished_by_the_next(filled: Store) -> None:
    node = find(filled, GONE)

    def end(name: str, done: int, total: int) -> None:
        if name == "removing gaps":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forget_node(filled, node, NOW, "cli:ann", end, batch=3)
    half = find(filled, GONE)
    assert "aggregates" not in half.rows
    assert half.rows["receipts"] == HOURS
    forget_node(filled, half, NOW, "cli:ann", quiet, batch=3)
    with pytest.raises(NothingFound):
        find(filled, GONE)
    assert count(filled, schema.host_hours) == HOURS


def test_a_name_that_two_nodes_have_is_not_enough(filled: Store) -> None:
    with filled.write() as connection:
        connection.execute(update(schema.nodes).values(hostname="same"))
    with pytest.raises(UsageError, match="2 nodes") as told:
        find(filled, "same")
    assert GONE in str(told.value)
    assert STAYS in str(told.value)


def test_a_server_on_sqlite_must_be_stopped_first(filled: Store, database: str, dialect: str) -> None:
    node = find(filled, GONE)
    if dialect == "postgresql":
        forget_node(filled, node, NOW, "cli:ann", quiet)
        return
    serving = open_store(database, alone=True)
    with pytest.raises(StorageBusy, match="in use by") as told:
        forget_node(filled, node, NOW, "cli:ann", quiet)
    assert "Stop the server first" in (told.value.hint or "")
    assert find(filled, GONE).rows == node.rows
    serving.close()
