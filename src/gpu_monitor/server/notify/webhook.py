"""Alerts as signed JSON, for programs.

`POST` with the body `{"alerts": [notice, ...]}` and these headers:

- `X-Gpu-Monitor-Timestamp`: UTC epoch seconds when it was sent; refuse what is older than five minutes.
- `X-Gpu-Monitor-Signature`: `v1=` and the HMAC-SHA256, in hex, with the channel's secret, over the timestamp, a
  full stop and the body's bytes. Compare it in constant time.
- `X-Gpu-Monitor-Delivery`: the same for every try of the same alerts.

Delivery is at least once: `id` and `moment` of an alert tell a repeat. Any 2xx takes it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import msgspec

from gpu_monitor.server.notify.client import Client
from gpu_monitor.server.notify.kinds import WebhookSpec
from gpu_monitor.server.notify.notice import Notice

TIMESTAMP, SIGNATURE, DELIVERY = (
    "X-Gpu-Monitor-Timestamp",
    "X-Gpu-Monitor-Signature",
    "X-Gpu-Monitor-Delivery",
)


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The value of the signature's header."""
    return "v1=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def send(client: Client, spec: WebhookSpec, notices: Sequence[Notice], now: float) -> str:
    """Send; the status. What cannot be delivered is raised."""
    body = msgspec.json.encode({"alerts": notices})
    timestamp = str(int(now))
    names = ",".join(f"{notice.id}:{notice.moment}" for notice in notices)
    headers = {
        TIMESTAMP: timestamp,
        SIGNATURE: sign(spec.secret, timestamp, body),
        DELIVERY: hashlib.sha256(names.encode()).hexdigest()[:32],
    }
    return client.post(spec.url, body, headers)
