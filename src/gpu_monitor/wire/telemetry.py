# SPDX-License-Identifier: MIT
"""The report: what one node tells of one period, as JSON (schema 1, documented in docs/report.md).

A `report_id` names one exact sequence of JSON bytes. `encode` is deterministic: equal reports give
equal bytes, in this version and on every machine.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from gpu_monitor.core.errors import WireVersionError

SCHEMA = 1
BATCH_REPORTS = 64
BATCH_BYTES = 1 << 20
ANSWER_BYTES = 1 << 20
"""A longer answer is no acknowledgement: a right one holds a few hundred bytes, an echo one report."""

REPORT_NAMES = uuid.UUID("2d0c8d84-7599-5e9d-ba5b-152027040a2e")
"""The name space of report ids: the UUIDv5 of `reports.gpu-monitor` among DNS names. Never to be changed."""

Entry = dict[str, Any]
"""One GPU's aggregate, or the host's: names of the catalogue in its order, then what qualifies them."""


class NodePart(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, as it was in the period."""

    id: str
    hostname: str | None
    simulated: bool
    os: str | None
    agent_version: str | None
    driver_version: str | None


class GapPart(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch without data, clipped to the period. `uid` null: of the whole node."""

    uid: str | None
    start: str
    end: str
    seconds: float
    cause: str
    detail: str | None


class EventPart(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened in the period. `uid` null: to the whole node."""

    time: str
    uid: str | None
    kind: str
    severity: str
    message: str
    detail: Any


class ProcessPart(msgspec.Struct, frozen=True, kw_only=True):
    """One process on one GPU. `ended`: it was gone before the period's end; memory is known only then."""

    uid: str
    pid: int
    kind: str
    first_seen: str
    last_seen: str
    ended: bool
    start_ticks: int | None
    boot_id: str | None
    ns_pid: int | None
    user: str | None
    command: str | None
    container: str | None
    job: str | None
    experiment_id: str | None
    memory: int | None
    memory_max: int | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One node, one period. `gpus` is empty where there is only a gap to tell of."""

    schema: int
    report_id: str
    revision: int
    contract_number: str
    node: NodePart
    aggregation_time: str
    period_seconds: int
    collection_interval_seconds: int
    gpus: list[Entry]
    host: Entry | None
    gaps: list[GapPart]
    events: list[EventPart]
    processes: list[ProcessPart]


def report_id(node_id: str, start: int, seconds: int, revision: int) -> str:
    """The UUIDv5 of node, period start (UTC epoch s), period length (s) and revision."""
    return str(uuid.uuid5(REPORT_NAMES, f"{node_id}/{start}/{seconds}/{revision}"))


def encode(report: Report) -> bytes:
    """The report's JSON bytes."""
    return msgspec.json.encode(report)


def decode(body: bytes) -> Report:
    """The report in `body`; WireVersionError where it is none, or of a schema this program does not read."""
    try:
        schema = msgspec.json.decode(body, type=_Versioned).schema
        if schema != SCHEMA:
            raise WireVersionError(f"a report of schema {schema}; this program reads {SCHEMA}")
        return msgspec.json.decode(body, type=Report)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireVersionError(f"not a report: {error}") from error


class _Versioned(msgspec.Struct):
    schema: int


class _Noded(msgspec.Struct):
    node: _Named


class _Named(msgspec.Struct):
    id: str


def node_of(body: bytes) -> str | None:
    """The id of the node that a report or a message of live samples is of; None where there is none."""
    try:
        return msgspec.json.decode(body, type=_Noded).node.id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def digest(body: bytes) -> str:
    """SHA-256 of the bytes, hexadecimal."""
    return hashlib.sha256(body).hexdigest()


def content_digest(report: Report) -> str:
    """SHA-256 of what the report says, whatever its id, revision and contract number are."""
    bare = msgspec.structs.replace(report, report_id="", revision=0, contract_number="")
    return digest(encode(bare))


def join(bodies: Sequence[bytes]) -> bytes:
    """The body of a batch: `{"reports": [...]}` around the exact bytes of each report."""
    return b'{"reports":[' + b",".join(bodies) + b"]}"
