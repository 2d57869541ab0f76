"""GPUs: the list, and one of them with everything it ever said it was."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from gpu_monitor.server.answers import answer, json_answer, missing, read_cursor, write_cursor
from gpu_monitor.server.openapi import answers
from gpu_monitor.server.parameters import Cursor, Format, Limit, Node, Reader, State, Text, refuse_unknown
from gpu_monitor.server.store.gpus import Gpu, GpuDetail, GpuFilter, list_gpus, one_gpu

router = APIRouter(prefix="/api/gpus", tags=["fleet"], dependencies=[Depends(refuse_unknown)])


class GpuPage(msgspec.Struct, frozen=True):
    """GPUs, node by node."""

    items: list[Gpu]
    next: str | None


@router.get("", summary="Every GPU", **answers(GpuPage, "A page of GPUs", csv=True))
def gpus(
    request: Request,
    state: State,
    who: Reader,
    node: Node = None,
    contract: Text = None,
    model: Text = None,
    source: Text = None,
    simulated: bool | None = None,
    status: Text = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Format = None,
) -> Response:
    """The GPUs that the asker may see. One that moved from node to node is listed in each."""
    after = read_cursor(cursor, tuple[int, int]) or (-1, -1)
    wanted = GpuFilter(node, contract, model, source, simulated, status)
    with state.store.read() as connection:
        found, last = list_gpus(connection, who, wanted, after, limit)
    next = None if last is None else write_cursor(*last)
    return answer(request, GpuPage(found, next), found, Gpu, format, next)


@router.get("/{uid}", summary="One GPU", **answers(GpuDetail, "The GPU"))
def gpu(
    state: State,
    who: Reader,
    uid: Annotated[str, Path(max_length=200, pattern=r"^[^\x00]+$", description="the GPU's uid")],
) -> Response:
    """A GPU: every place it was seen in, how its identity changed, its states, and why metrics are null."""
    with state.store.read() as connection:
        found = one_gpu(connection, who, uid)
    if found is None:
        raise missing("GPU", uid)
    return json_answer(found)
