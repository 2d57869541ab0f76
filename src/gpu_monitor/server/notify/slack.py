"""Alerts as a message of a Slack incoming webhook."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpu_monitor.server.notify.client import Client
from gpu_monitor.server.notify.kinds import SlackSpec
from gpu_monitor.server.notify.notice import Notice

_MARKS = {
    "critical": ":red_circle:",
    "error": ":red_circle:",
    "warning": ":warning:",
    "info": ":information_source:",
}
_LONGEST = 3000
"""Slack cuts a text block at 3,000 characters and takes at most 50 blocks."""


def send(client: Client, spec: SlackSpec, notices: Sequence[Notice]) -> str:
    """Send; the status. What cannot be delivered is raised."""
    blocks = [
        {"type": "section", "text": {"type": "mrkdwn", "text": _block(notice)[:_LONGEST]}}
        for notice in notices[:50]
    ]
    text = notices[0].title if len(notices) == 1 else f"{len(notices)} alerts: {notices[0].title}, ..."
    body = msgspec.json.encode({"text": _escaped(text), "blocks": blocks})
    return client.post(spec.url, body, {})


def _block(notice: Notice) -> str:
    mark = ":white_check_mark:" if notice.moment == "resolved" else _MARKS.get(notice.severity, ":warning:")
    return f"{mark} *{_escaped(notice.title)}*\n{_escaped(notice.text)}"


def _escaped(text: str) -> str:
    """The three characters that Slack gives a meaning (a host name must not mention a whole channel)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
