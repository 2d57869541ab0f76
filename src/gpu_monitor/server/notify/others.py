"""Every other service, through apprise: it connects as it likes, so its addresses are not checked."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_monitor.server.notify.client import NotDelivered
from gpu_monitor.server.notify.kinds import AppriseSpec
from gpu_monitor.server.notify.notice import Notice


def send(spec: AppriseSpec, notices: Sequence[Notice]) -> str:
    """Send; a word of success. What cannot be delivered is raised."""
    import apprise  # half a second and 20 MB: only where such a channel is used

    service = apprise.Apprise()
    scheme = spec.url.partition("://")[0]
    if not service.add(spec.url):
        raise NotDelivered(f"apprise cannot read the {scheme}:// address of this channel")
    title = notices[0].title if len(notices) == 1 else f"{len(notices)} alerts: {notices[0].title}, ..."
    body = "\n\n".join(f"{notice.title}\n{notice.text}" for notice in notices)
    if not service.notify(body=body, title=title):
        raise NotDelivered(f"the {scheme}:// service did not take it")
    return "accepted"
