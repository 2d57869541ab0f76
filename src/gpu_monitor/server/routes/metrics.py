"""What Prometheus scrapes: the fleet now, and the server itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from gpu_monitor.core.catalogue import HARMLESS_REASONS, Kind, throttle_names
from gpu_monitor.server.exposition import MEDIA_TYPE, OWN, UNITS, family, labels, own_lines
from gpu_monitor.server.parameters import Reader, State
from gpu_monitor.server.store.fleet import SILENT, fleet_now
from gpu_monitor.server.store.gpus import GpuFilter
from gpu_monitor.server.store.nodes import count_nodes
from gpu_monitor.server.store.schema import LIVE_METRICS

router = APIRouter(tags=["health"])

_HARMLESS = frozenset(throttle_names(HARMLESS_REASONS))


@router.get(
    "/metrics",
    summary="For Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Text format 0.0.4", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
def metrics(state: State, who: Reader) -> Response:
    """Values of GPUs that count as now, with uid, node, contract and simulated as labels.

    For readers of all contracts the server's own follow.
    """
    now = state.clock.now()
    with state.store.read() as connection:
        found = fleet_now(connection, who, GpuFilter(), now, simulated=True)
        nodes, reporting = count_nodes(connection, who, now)
    lines = [*_fleet_lines(found.rows)]
    if who.contracts is None:  # of all contracts together, so for those who may see all
        lines += own_lines(state.metrics.snapshot())
    lines += family(f"{OWN}nodes", "gauge", "nodes that ever reported", [("", nodes)])
    told = "nodes that have said nothing for longer than they should"
    lines += family(f"{OWN}silent_agents", "gauge", told, [("", nodes - reporting)])
    return Response("\n".join(lines) + "\n", media_type=MEDIA_TYPE)


def _fleet_lines(gpus: Sequence[Any]) -> Iterator[str]:
    own = [
        (
            ("uid", gpu.uid),
            ("node", gpu.node),
            ("contract", gpu.contract_number),
            ("simulated", "true" if gpu.simulated else "false"),
        )
        for gpu in gpus
    ]
    written = [labels(pairs) for pairs in own]
    info = [
        labels(
            (
                *pairs, ("name", gpu.name or ""), ("hostname", gpu.hostname or ""), ("source", gpu.source),
                ("index", "" if gpu.index is None else str(gpu.index)),
            )
        )
        for gpu, pairs in zip(gpus, own, strict=True)
    ]  # fmt: skip
    yield from family("gpu_monitor_gpu_info", "gauge", "1 for each GPU ever seen", [(one, 1) for one in info])
    health = [
        (one, int(gpu.status == "ok")) for gpu, one in zip(gpus, written, strict=True) if gpu.status != SILENT
    ]
    yield from family(
        "gpu_monitor_gpu_ok", "gauge", "1 where the node sees nothing wrong with the GPU", health
    )
    for metric in LIVE_METRICS:
        if metric.kind is not Kind.FLAGS:
            rows = [
                (one, value)
                for gpu, one in zip(gpus, written, strict=True)
                if (value := getattr(gpu, metric.name)) is not None
            ]
            yield from family(f"gpu_monitor_{metric.name}_{UNITS[metric.unit]}", "gauge", metric.help, rows)
    sizes = [
        (one, gpu.memory_total)
        for gpu, one in zip(gpus, written, strict=True)
        if gpu.memory_total is not None
    ]
    yield from family("gpu_monitor_memory_total_bytes", "gauge", "device memory", sizes)
    throttled = [
        (labels((*pairs, ("reason", reason))), 1)
        for gpu, pairs in zip(gpus, own, strict=True)
        for reason in gpu.throttle_reasons or ()
        if reason not in _HARMLESS
    ]
    yield from family(
        "gpu_monitor_throttled", "gauge", "1 while clocks are held down for a reason", throttled
    )
