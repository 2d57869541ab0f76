"""Every answer that msgspec writes, for the description of the API: a line for each."""

from __future__ import annotations

import msgspec

from gpu_monitor.server.routes import (
    alerts,
    blobs,
    channels,
    events,
    experiment_gpus,
    experiment_metrics,
    experiments,
    fleet,
    gaps,
    gpus,
    logs,
    media,
    models,
    nodes,
    processes,
    projects,
    reports,
    rules,
    segments,
    series,
    silences,
    usage,
)
from gpu_monitor.server.store.comparison import Comparison
from gpu_monitor.server.store.experiment_detail import ExperimentDetail
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
    projects.ProjectPage,
    experiments.ExperimentPage,
    ExperimentDetail,
    experiment_gpus.GpusOfRun,
    experiment_gpus.RunsOnGpu,
    experiment_metrics.MetricsAnswer,
    logs.LogAnswer,
    media.MediaPage,
    media.ArtifactPage,
    models.SavedPage,
    models.RegistryPage,
    models.VersionPage,
    Comparison,
    *segments.SHAPES,
    blobs.BlobHeld,
    alerts.AlertPage,
    rules.RulePage,
    silences.SilencePage,
    channels.ChannelPage,
    channels.Tested,
    channels.DeliveryPage,
)
