"""Reports as an agent sends them, made by hand: known numbers, exact bytes, right ids."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import uuid
from typing import Any

from gpu_monitor.core.clock import SystemClock

NODE = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
OTHER = "3f2504e0-4f89-41d3-9a0c-0305e82c3302"
CONTRACT = "12345"
HOUR = (int(SystemClock().now()) // 86400 - 21) * 24 + 22
"""22:00 UTC of a day three weeks ago: a server takes what is no older than a year."""
_NAMES = uuid.UUID("2d0c8d84-7599-5e9d-ba5b-152027040a2e")


def make_entry(number: int = 1, **changed: Any) -> dict[str, Any]:
    """One GPU's entry: 300.25 W, 60.0 % busy, all of the hour, or of as many `seconds` of one as are given."""
    seconds = changed.get("seconds")
    if isinstance(seconds, float) and seconds < 3600:
        changed = {"coverage": round(seconds / 3600, 4), "energy_seconds": seconds, **changed}
    entry: dict[str, Any] = {
        "uid": f"GPU-{number}",
        "pci_bus_id": f"0000:{number:02x}:00.0",
        "name": "NVIDIA H100",
        "temperature": 50.5,
        "temperature_min": 41,
        "temperature_max": 62.5,
        "memory_used": 1073741824,
        "memory_used_min": 0,
        "memory_used_max": 2147483648,
        "memory_total": 85899345920,
        "gpu_utilization": 60,
        "gpu_utilization_min": 0,
        "gpu_utilization_max": 100,
        "power_usage": 300.25,
        "power_usage_min": 70.5,
        "power_usage_max": 698,
        "fan_speed": None,
        "index": number - 1,
        "driver_version": "550.54.15",
        "power_limit": 700,
        "energy": 1080900,
        "throttle_reasons": ["sw_power_cap"],
        "source": "nvml",
        "samples": 60,
        "expected_samples": 60,
        "coverage": 1.0,
        "seconds": 3600.0,
        "idle_seconds": 600.0,
        "held_idle_seconds": 60.0,
        "energy_seconds": 3600.0,
        "reasons": {"fan_speed": "unsupported"},
    }
    for name, value in changed.items():
        if f"{name}_min" in entry and isinstance(value, (int, float)):
            entry[f"{name}_min"] = min(entry[f"{name}_min"], value)
            entry[f"{name}_max"] = max(entry[f"{name}_max"], value)
    return {**entry, **changed}


def iso(epoch: float) -> str:
    """UTC epoch seconds as an agent writes them."""
    from datetime import datetime, timezone

    return datetime.fromtimestamp(epoch, timezone.utc).isoformat()


def make_report(
    node: str = NODE,
    hour: int = HOUR,
    revision: int = 1,
    *,
    gpus: int | list[dict[str, Any]] = 2,
    hours: int = 1,
    contract: str = CONTRACT,
    **changed: Any,
) -> dict[str, Any]:
    """A report of `hours` hours from `hour` on."""
    start, seconds = hour * 3600, hours * 3600
    share = round(1 / hours, 4)
    entries = (
        [make_entry(number + 1, coverage=share) for number in range(gpus)] if isinstance(gpus, int) else gpus
    )
    return {
        "schema": 1,
        "report_id": str(uuid.uuid5(_NAMES, f"{node}/{start}/{seconds}/{revision}")),
        "revision": revision,
        "contract_number": contract,
        "node": {
            "id": node,
            "hostname": "node-1",
            "simulated": False,
            "os": "Linux",
            "agent_version": "0.1.0",
            "driver_version": "550.54.15",
        },
        "aggregation_time": iso(start),
        "period_seconds": seconds,
        "collection_interval_seconds": 60,
        "gpus": entries,
        "host": {
            "cpu_utilization": 12.5,
            "samples": 60,
            "expected_samples": 60,
            "coverage": 1,
            "seconds": 3600,
        },
        "gaps": [],
        "events": [],
        "processes": [],
        **changed,
    }


def encode(report: dict[str, Any]) -> bytes:
    """Its bytes."""
    return json.dumps(report, separators=(",", ":")).encode()


def join(*bodies: bytes) -> bytes:
    """A batch of them."""
    return b'{"reports":[' + b",".join(bodies) + b"]}"


def headers_of(body: bytes, *, report_id: str | None = None, contract: str = CONTRACT) -> dict[str, str]:
    """What an agent says beside the bytes."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    found = {"X-Contract-Number": contract, "Content-Digest": f"sha-256=:{digest}:"}
    return {**found, "Idempotency-Key": report_id} if report_id else found


def packed(body: bytes) -> tuple[bytes, dict[str, str]]:
    """The bytes with gzip, and their headers."""
    sent = gzip.compress(body)
    return sent, {**headers_of(sent), "Content-Encoding": "gzip"}
