"""Which channels there are: those of the settings, and those that administrators made."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from sqlalchemy import Connection

from gpu_monitor.config.server import ServerSettings
from gpu_monitor.core.errors import UsageError
from gpu_monitor.server.alerts.record import Audience
from gpu_monitor.server.notify.kinds import AnyChannel, EmailSpec, SlackSpec, read_channel
from gpu_monitor.server.store.deliveries import list_channels

_LOG = logging.getLogger("notify")
SLACK, EMAIL = "slack", "email"
"""The names of the settings' channels."""


@dataclass(frozen=True)
class Channel:
    """One channel. `is_fixed`: it comes from the settings and cannot be changed over the API."""

    name: str
    spec: AnyChannel = field(repr=False)
    enabled: bool = True
    is_fixed: bool = False
    changed: float | None = None


def fixed_channels(settings: ServerSettings) -> tuple[Channel, ...]:
    """The channels of the settings."""
    found: list[Channel] = []
    if settings.slack_webhook_url is not None:
        found.append(Channel(SLACK, SlackSpec(url=settings.slack_webhook_url), is_fixed=True))
    if settings.email_notifications and settings.smtp_host and settings.smtp_from:
        spec = EmailSpec(
            host=settings.smtp_host,
            port=settings.smtp_port,
            user=settings.smtp_user if settings.smtp_password else None,
            password=settings.smtp_password if settings.smtp_user else None,
            sender=settings.smtp_from,
            to=settings.receivers,
        )
        found.append(Channel(EMAIL, spec, is_fixed=True))
    return tuple(found)


def all_channels(connection: Connection, fixed: tuple[Channel, ...]) -> dict[str, Channel]:
    """Every channel by name; the settings' come before stored ones of the same name."""
    found = {channel.name: channel for channel in fixed}
    for row in list_channels(connection):
        if row.name in found:
            continue
        try:
            spec = read_channel(row.settings)
        except UsageError:
            # Never the settings themselves: they hold secrets.
            _LOG.error("the channel %s cannot be read and is left out; make it anew", row.name)
            continue
        found[row.name] = Channel(row.name, spec, row.enabled, changed=row.changed)
    return found


def audience(connection: Connection, fixed: tuple[Channel, ...], is_on: bool) -> Audience:
    """Who is told of alerts now; nobody where notifications are off."""
    if not is_on:
        return Audience()
    channels = all_channels(connection, fixed).values()
    return Audience(tuple((one.name, one.spec.least) for one in channels if one.enabled))
