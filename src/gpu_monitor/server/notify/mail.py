"""Alerts as a mail."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from email.message import EmailMessage
from email.utils import format_datetime

from gpu_monitor.core.terminal_text import clean
from gpu_monitor.server.notify.client import Access, Client, MailServer
from gpu_monitor.server.notify.kinds import EmailSpec
from gpu_monitor.server.notify.notice import Notice

_TLS_PORT = 465
_SUBJECT = 200


def send(client: Client, spec: EmailSpec, notices: Sequence[Notice], now: float) -> str:
    """Send one mail; what the server said. What cannot be delivered is raised."""
    access = None if spec.user is None or spec.password is None else Access(spec.user, spec.password)
    is_tls = spec.port == _TLS_PORT if spec.tls is None else spec.tls
    return client.mail(MailServer(spec.host, spec.port, is_tls, access), compose(spec, notices, now))


def compose(spec: EmailSpec, notices: Sequence[Notice], now: float) -> EmailMessage:
    """The mail. Its id is the same for every try, so that mail programs show a repeat once."""
    message = EmailMessage()
    message["From"] = spec.sender
    message["To"] = ", ".join(spec.to)
    message["Date"] = format_datetime(datetime.fromtimestamp(int(now), timezone.utc))
    more = f" (and {len(notices) - 1} more)" if len(notices) > 1 else ""
    message["Subject"] = clean(notices[0].title + more)[:_SUBJECT]
    domain = spec.sender.rpartition("@")[2]
    message["Message-ID"] = f"<{notices[0].id}.{notices[0].moment}.{len(notices)}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("\n\n".join(f"{notice.title}\n{notice.text}" for notice in notices) + "\n")
    return message
