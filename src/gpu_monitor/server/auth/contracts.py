"""Contract numbers and their rows."""

from __future__ import annotations

from sqlalchemy import Connection, select, text

from gpu_monitor.server.store.schema import contracts, nodes


def find_contract(connection: Connection, number: str) -> int | None:
    """The id of a contract; None where the server has not heard of it."""
    return connection.execute(select(contracts.c.id).where(contracts.c.number == number)).scalar()


def ensure_contract(connection: Connection, number: str) -> int:
    """The id of a contract, whose row is made where it is missing."""
    connection.execute(
        text("INSERT INTO contracts (number) VALUES (:number) ON CONFLICT (number) DO NOTHING"),
        {"number": number},
    )
    found = find_contract(connection, number)
    assert found is not None
    return found


def contract_numbers(connection: Connection) -> dict[int, str]:
    """Every contract's number by its id."""
    return {row.id: row.number for row in connection.execute(select(contracts))}


def has_nodes(connection: Connection, number: str) -> bool:
    """Whether any node reports under a contract."""
    query = select(nodes.c.id).join(contracts, contracts.c.id == nodes.c.contract)
    return connection.execute(query.where(contracts.c.number == number).limit(1)).first() is not None
