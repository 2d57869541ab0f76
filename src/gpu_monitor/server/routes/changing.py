"""What routes that change things have in common: somebody known must ask, and contracts are named by number."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from sqlalchemy import Connection
from starlette.requests import HTTPConnection

from gpu_monitor.server.auth.contracts import find_contract
from gpu_monitor.server.auth.principal import Principal, require, unauthorised
from gpu_monitor.server.problems import Problem

_reader = require("read")


async def _somebody(connection: HTTPConnection) -> Principal:
    """Who asks; Problem 401 where that is not known: what may be read by anybody may not be changed by anybody."""
    who = await _reader(connection)
    if who.kind == "anonymous":
        raise unauthorised("This needs a token or a login.")
    return who


Somebody = Annotated[Principal, Depends(_somebody)]
"""Somebody who may read, and is known by name."""


def contract_id(connection: Connection, number: str | None) -> int | None:
    """The id of a contract (None: none was named); Problem 422 where the server has not heard of it."""
    if number is None:
        return None
    found = find_contract(connection, number)
    if found is None:
        raise Problem(422, "The request is not valid", "contract_number: no node reports under it.")
    return found
