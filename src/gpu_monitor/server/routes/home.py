"""The plain first page: what runs here, how many nodes report, and where to go on."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse

from gpu_monitor import __version__
from gpu_monitor.server.auth.principal import Principal, check_scope
from gpu_monitor.server.parameters import State
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.state import ServerState
from gpu_monitor.server.store.fleet import FleetTotals, fleet_now
from gpu_monitor.server.store.gpus import GpuFilter

router = APIRouter(include_in_schema=False)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gpu_monitor</title>
<link rel="stylesheet" href="assets/page.css">
</head>
<body>
<header>
<h1>gpu_monitor</h1>
<p class="quiet">The flight recorder and the ledger of a GPU fleet: central server {version}</p>
</header>
<main>
{body}
<h2>Where to go on</h2>
<ul>
<li><a href="docs">docs</a>: the API, every question with its parameters, to try</li>
<li><a href="api/fleet?format=csv">api/fleet?format=csv</a>: every GPU now, for a spreadsheet</li>
<li><a href="metrics">metrics</a>: for Prometheus</li>
<li><a href="readyz">readyz</a>: whether database, disk, writer and clock are well</li>
</ul>
</main>
</body>
</html>
"""


@router.get("/")
async def home(request: Request, state: State) -> HTMLResponse:
    """The page; numbers are for those who may read."""
    try:
        who = await state.gate.identify(request)
        check_scope(who, "read")
    except Problem:
        body = "<p>Numbers are shown to those who are logged in, or show a token with the scope read.</p>"
    else:
        body = await run_in_threadpool(_numbers, state, who)
    return HTMLResponse(_PAGE.format(version=escape(__version__), body=body))


def _numbers(state: ServerState, who: Principal) -> str:
    with state.store.read() as connection:
        found = fleet_now(connection, who, GpuFilter(), state.clock.now(), simulated=False)
    if not found.totals.nodes and not found.excluded:
        return (
            "<p>No node has reported yet. On a machine with GPUs, set <code>server.url</code> in the agent's"
            " <code>config.json</code> to this server's address followed by <code>/api/metrics</code>, give it a token"
            " made here with <code>gpu_monitor token create</code>, and start <code>gpu_monitor</code>.</p>"
        )
    return _cards(found.totals) + _simulated(found.excluded)


def _cards(totals: FleetTotals) -> str:
    reporting = totals.nodes - totals.silent_nodes
    rows = [
        ("Nodes reporting", f"{reporting} of {totals.nodes}"),
        ("GPUs heard now", f"{totals.gpus_now} of {totals.gpus}"),
        ("GPUs with a fault", str(totals.gpus_failed)),
        ("Idle", str(totals.gpus_idle)),
        ("Utilisation", "unknown" if totals.gpu_utilization is None else f"{totals.gpu_utilization} %"),
        ("Power", "unknown" if totals.power_usage is None else f"{totals.power_usage / 1000:.1f} kW"),
    ]
    cards = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows)
    return f'<dl class="cards">{cards}</dl>'


def _simulated(count: int) -> str:
    if not count:
        return ""
    return f"<p><strong>{count} simulated GPUs</strong> are not in these numbers.</p>"
