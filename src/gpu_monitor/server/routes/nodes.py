"""Machines with agents: the list, and one of them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from gpu_monitor.server.answers import answer, json_answer, missing, read_cursor, write_cursor
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import (
    Cursor,
    Format,
    Limit,
    Reader,
    State,
    Text,
    refuse_unknown,
)
from gpu_monitor.server.parameters import Node as NodeName
from gpu_monitor.server.store.gpus import Gpu, GpuFilter, list_gpus
from gpu_monitor.server.store.nodes import HostPeriod, Node, NodeFilter, list_nodes, newest_host, one_node

router = APIRouter(prefix="/api/nodes", tags=["fleet"], dependencies=[Depends(refuse_unknown)])


class NodePage(msgspec.Struct, frozen=True):
    """Nodes, in the order in which they first came."""

    items: list[Node]
    next: str | None


class NodeDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One node with its GPUs (the first 1,000) and its newest period as a machine."""

    node: Node
    gpus: list[Gpu]
    host: HostPeriod | None


@router.get("", summary="Every node", **answers(NodePage, "A page of nodes", csv=True))
def nodes(
    request: Request,
    state: State,
    who: Reader,
    node: NodeName = None,
    contract: Text = None,
    simulated: bool | None = None,
    silent: bool | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """The nodes that the asker may see, each with when it was last heard."""
    after = read_cursor(cursor, tuple[int]) or (0,)
    wanted = NodeFilter(node, contract, simulated, silent)
    with state.store.read() as connection:
        found, last = list_nodes(connection, who, wanted, state.clock.now(), after[0], limit)
    next = None if last is None else write_cursor(last)
    return answer(request, NodePage(found, next), found, Node, format, next)


@router.get("/{id}", summary="One node", **answers(NodeDetail, "The node"))
def node(
    state: State,
    who: Reader,
    id: Annotated[str, Path(max_length=100, pattern=r"^[^\x00]+$", description="the node's id")],
) -> Response:
    """A node, the GPUs that it ever reported, and the machine around them."""
    with state.store.read() as connection:
        found = one_node(connection, who, id, state.clock.now())
        if found is None:
            raise missing("node", id)
        agent, row = found
        held, _ = list_gpus(connection, who, GpuFilter(node=row.id), (agent, -1), 1000)
        return json_answer(NodeDetail(node=row, gpus=held, host=newest_host(connection, agent)))
