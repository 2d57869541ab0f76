"""Sends notices through a channel, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_monitor.server.notify import mail, others, slack, webhook
from gpu_monitor.server.notify.client import Client
from gpu_monitor.server.notify.kinds import AnyChannel, EmailSpec, SlackSpec, WebhookSpec
from gpu_monitor.server.notify.notice import Notice


def send(client: Client, spec: AnyChannel, notices: Sequence[Notice], now: float) -> str:
    """Send all in one message; what the other side said. GpuMonitorError where it did not take them."""
    if isinstance(spec, SlackSpec):
        return slack.send(client, spec, notices)
    if isinstance(spec, WebhookSpec):
        return webhook.send(client, spec, notices, now)
    if isinstance(spec, EmailSpec):
        return mail.send(client, spec, notices, now)
    return others.send(spec, notices)
