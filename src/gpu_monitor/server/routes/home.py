"""The plain first page: which nodes and GPUs report, which experiments run, what fires, and where to go on."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse

from gpu_monitor.core.tally import figures
from gpu_monitor.server.auth.principal import Principal, check_scope
from gpu_monitor.server.page import cards, page, table, text_of
from gpu_monitor.server.parameters import State
from gpu_monitor.server.problems import Problem
from gpu_monitor.server.routes.experiments import operand_of, terms_of
from gpu_monitor.server.state import ServerState
from gpu_monitor.server.store.alert_list import AlertFilter, AlertRow, list_alerts
from gpu_monitor.server.store.experiment_list import Experiment, ExperimentFilter, Order, list_experiments
from gpu_monitor.server.store.fleet import FleetGpu, FleetTotals, fleet_now
from gpu_monitor.server.store.gpus import GpuFilter
from gpu_monitor.server.store.nodes import Node, NodeFilter, list_nodes
from gpu_monitor.server.store.span import DAY, HOUR, Span
from gpu_monitor.server.store.usage import By, Line, usage

router = APIRouter(include_in_schema=False)

_ROWS = 100
"""Rows of a table: more are for the API, or a spreadsheet."""
_RUNS = 10
"""Experiments that are shown: the newest."""
_USAGE_OF = 1000
"""GPUs whose week is added up for the page, in some tenths of a second; of more it takes seconds."""
_WHERE = """<h2>Where to go on</h2>
<ul>
<li><a href="docs">docs</a>: the API, every question with its parameters, to try</li>
<li><a href="api/fleet?format=csv">api/fleet?format=csv</a>: every GPU now, for a spreadsheet</li>
<li><a href="api/experiments?format=csv">api/experiments?format=csv</a>: every experiment; what it is, ran on and came
to is below its address</li>
<li><a href="metrics">metrics</a>: for Prometheus</li>
<li><a href="readyz">readyz</a>: whether database, disk, writer and clock are well</li>
</ul>"""
_EMPTY = (
    "<p>No node has reported yet. On a machine with GPUs, set <code>server.url</code> in the agent's"
    " <code>config.json</code> to this server's address followed by <code>/api/metrics</code>, give it a token"
    " made here with <code>gpu_monitor token create</code>, and start <code>gpu_monitor</code>.</p>"
)


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
    return HTMLResponse(page("gpu_monitor", f"{body}\n{_WHERE}"))


def _numbers(state: ServerState, who: Principal) -> str:
    now = state.clock.now()
    with state.store.read() as connection:
        alerts, _ = list_alerts(connection, who, AlertFilter(state="firing"), None, _ROWS)
        by = Order(operand_of("started", "sort"))
        runs, last = list_experiments(
            connection, who, ExperimentFilter(), terms_of(state), by, (), None, _RUNS
        )
        found = fleet_now(connection, who, GpuFilter(), now, simulated=False)
        if not found.totals.nodes and not found.excluded:
            # Experiments come without an agent, too.
            fires = _alerts(alerts) if alerts or runs else ""
            return "\n".join((_EMPTY, fires, _experiments(runs, last is not None)))
        only_simulated = not found.totals.nodes
        if only_simulated:
            found = fleet_now(connection, who, GpuFilter(), now, simulated=True)
        nodes, more = list_nodes(connection, who, NodeFilter(), now, 0, _ROWS)
        week = Span(max(0.0, now - now % HOUR - 7 * DAY), now - now % HOUR)
        lines: list[Line] | None = None
        if len(found.rows) <= _USAGE_OF:
            lines = usage(connection, who, GpuFilter(), week, By.NODE, simulated=True).lines
    return "\n".join(
        (
            _banner(only_simulated, found.excluded),
            cards(_figures(found.totals)),
            _alerts(alerts),
            _nodes(nodes, more is not None),
            _gpus(found.rows),
            _experiments(runs, last is not None),
            _week(lines),
        )
    )


def _banner(only_simulated: bool, excluded: int) -> str:
    if only_simulated:
        return (
            '<p class="notice"><strong>SIMULATED</strong> Every GPU here is simulated: no number on this page was'
            " measured.</p>"
        )
    if excluded:
        what = "1 simulated GPU</strong> is" if excluded == 1 else f"{excluded} simulated GPUs</strong> are"
        return f"<p><strong>{what} not in these numbers.</p>"
    return ""


def _figures(totals: FleetTotals) -> list[tuple[str, str]]:
    reporting = totals.nodes - totals.silent_nodes
    power = totals.power_usage
    return [
        ("Nodes reporting", f"{reporting} of {totals.nodes}"),
        ("GPUs that give values", f"{totals.gpus_now} of {totals.gpus}"),
        ("GPUs with a fault", str(totals.gpus_failed)),
        ("Idle", str(totals.gpus_idle)),
        ("Utilisation", text_of(totals.gpu_utilization, "%")),
        ("Power", "unknown" if power is None else f"{power / 1000:.1f} kW"),
    ]


def _name(hostname: str | None, uuid: str, simulated: bool) -> str:
    return escape(hostname or uuid) + (' <strong class="mark">SIMULATED</strong>' if simulated else "")


def _time(stamp: str | None) -> str:
    """`2024-03-20 14:00:00 UTC` of what the API writes."""
    return "never" if stamp is None else escape(f"{stamp[:10]} {stamp[11:19]} UTC")


def _alerts(found: list[AlertRow]) -> str:
    if not found:
        return "<h2>Alerts</h2>\n<p>No alert fires.</p>"
    rows = [
        (
            escape(one.severity),
            escape(one.rule),
            _about(one),
            escape(one.gpu_name or one.gpu or "-"),
            escape(one.message),
            _time(one.since),
        )
        for one in found
    ]
    heads = ("Severity", "Rule", "About", "GPU", "What", "Since")
    return table("Alerts that fire", heads, rows, _more(len(found) == _ROWS, "api/alerts?state=firing"))


def _about(one: AlertRow) -> str:
    """The node, the experiment, or the server."""
    if one.experiment is None:
        return _name(one.hostname or one.node or "this server", "", one.simulated)
    link = f'<a href="{escape(f"api/experiments/{one.experiment}")}">'
    return f"experiment {link}{_name(one.experiment_name, one.experiment, one.simulated)}</a>"


def _nodes(found: list[Node], more: bool) -> str:
    rows = [
        (
            _name(node.hostname, node.id, node.simulated),
            escape(node.contract_number),
            str(node.gpus),
            _time(max(filter(None, (node.last_report, node.last_live)), default=None)),
            "silent" if node.silent else "reports",
        )
        for node in found
    ]
    heads = ("Node", "Contract", "GPUs", "Last heard", "Status")
    return table("Nodes", heads, rows, _more(more, "api/nodes"))


def _gpus(found: list[FleetGpu]) -> str:  # type: ignore[valid-type]  # made from the catalogue
    rows = []
    given: list[dict[str, Any]] = [
        {name: getattr(gpu, name) for name in gpu.__struct_fields__}  # type: ignore[attr-defined]
        for gpu in found
    ]
    given.sort(key=lambda shown: (shown["hostname"] or shown["node"], shown["index"] or 0, shown["uid"]))
    for shown in given[:_ROWS]:
        used, total = shown["memory_used"], shown["memory_total"]
        rows.append(
            (
                _name(_label(shown["index"], shown["name"]), shown["uid"], shown["simulated"]),
                escape(shown["hostname"] or shown["node"]),
                text_of(shown["gpu_utilization"], "%"),
                text_of(shown["temperature"], "°C"),
                text_of(shown["power_usage"], "W"),
                "unknown"
                if used is None
                else f"{used / (1 << 30):.1f} of {(total or 0) / (1 << 30):.0f} GiB",
                escape(shown["status"] or "unknown"),
            )
        )
    heads = ("GPU", "Node", "Utilisation", "Temperature", "Power", "Memory", "Status")
    return table("GPUs now", heads, rows, _more(len(found) > _ROWS, "api/fleet"))


def _label(index: int | None, name: str | None) -> str | None:
    return name if index is None or name is None else f"{index}: {name}"


def _experiments(found: list[Experiment], more: bool) -> str:
    if not found:
        return ""
    rows = []
    for one in found:
        path = f"api/experiments/{one.id}"
        steps = "none" if one.last_step is None else f"{one.last_step:,}"
        mark = ' <strong class="mark">SIMULATED</strong>' if one.simulated else ""
        rows.append(
            (
                f'<a href="{escape(path)}">{escape(one.name)}</a>{mark}',
                escape(one.project),
                "stalled" if one.stalled else escape(one.status),
                steps,
                "unknown" if one.duration_seconds is None else _duration(one.duration_seconds),
                f'<a href="{escape(path)}/gpus">GPUs</a>',
            )
        )
    heads = ("Experiment", "Project", "Status", "Last step", "Took", "Ran on")
    return table("Newest experiments", heads, rows, _more(more, "api/experiments"))


def _duration(seconds: float) -> str:
    """`2:03:04`, hours first."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _week(lines: list[Line] | None) -> str:
    title = "Last 7 days"
    if lines is None:
        return f"<h2>{title}</h2>\n" + _more(True, "api/usage?by=node")
    rows = []
    for line in lines:
        of = figures(line.tally, line.known, line.possible, None)
        known = [one for one in (of.energy_kwh, of.energy_estimated_kwh) if one is not None]
        card = line.card
        rows.append(
            (
                _name(None if card is None else card.hostname, line.key, line.origin != "real"),
                f"{of.gpu_hours:.1f} h",
                "unknown" if of.idle_hours is None else f"{of.idle_hours:.1f} h",
                f"{sum(known):.2f} kWh" if known else "unknown",
                f"{of.coverage * 100:.0f} %",
            )
        )
    heads = ("Node", "GPU-hours", "Idle", "Energy", "Recorded")
    return table(title, heads, rows, "" if rows else "<p>No whole period was reported yet.</p>")


def _more(is_more: bool, path: str) -> str:
    return f'<p class="quiet">All of them: <a href="{escape(path)}">{escape(path)}</a></p>' if is_more else ""
