"""Every answer that msgspec writes, for the description of the API: a line for each."""

from __future__ import annotations

import msgspec

from gpu_monitor.server.routes import events, fleet, gaps, gpus, nodes, processes, reports, series, usage
from gpu_monitor.server.store.gpus import GpuDetail

SHAPES: tuple[type[msgspec.Struct], ...] = (
    fleet.FleetNow,
    nodes.NodePage,
    nodes.NodeDetail,
    gpus.GpuPage,
    GpuDetail,
    series.SeriesAnswer,
    usage.UsageAnswer,
    usage.IdleAnswer,
    reports.ReportPage,
    reports.QuarantinePage,
    reports.StripPage,
    gaps.GapPage,
    events.EventPage,
    processes.ProcessPage,
)
