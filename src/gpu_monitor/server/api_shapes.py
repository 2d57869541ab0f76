"""Every answer that msgspec writes, for the description of the API: a line for each."""

from __future__ import annotations

import msgspec

from gpu_monitor.server.routes import (
    alerts,
    blobs,
    channels,
    events,
    fleet,
    gaps,
    gpus,
    nodes,
    processes,
    reports,
    rules,
    segments,
    series,
    silences,
    usage,
)
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
    *segments.SHAPES,
    blobs.BlobHeld,
    alerts.AlertPage,
    rules.RulePage,
    silences.SilencePage,
    channels.ChannelPage,
    channels.Tested,
    channels.DeliveryPage,
)
