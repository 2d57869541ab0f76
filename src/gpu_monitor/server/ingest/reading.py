"""From a request's bytes to what the writer takes: read, shaped, and held against the headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.ingest.body import Body
from gpu_monitor.server.store.early import is_early
from gpu_monitor.server.store.shape import Shaped, Shaper
from gpu_monitor.server.store.write import Submission
from gpu_monitor.server.store.write_live import LiveBatch, shape_live
from gpu_monitor.wire.intake import Malformed, read_batch, read_report
from gpu_monitor.wire.live_intake import read_live


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a request, what its headers say, and when it came."""

    principal: Principal
    received: float
    contract_number: str | None
    idempotency_key: str | None
    skew: float | None


def sender_of(principal: Principal, headers: Mapping[bytes, str], now: float) -> Sender:
    """What the headers of a request say."""
    return Sender(
        principal,
        now,
        headers.get(b"x-contract-number"),
        headers.get(b"idempotency-key"),
        _skew(headers.get(b"date"), now),
    )


def read_single(shaper: Shaper, body: Body, sender: Sender) -> Submission:
    """The report in a body; Malformed where it cannot be taken."""
    shaped = shaper.shape(read_report(body.data, body.digest))
    intake = shaped.intake
    if sender.idempotency_key is not None and sender.idempotency_key != intake.report_id:
        raise Malformed("Idempotency-Key", "not the report_id in the body")
    return _submission(shaped, body.data, sender)


def read_many(shaper: Shaper, body: Body, sender: Sender) -> list[Submission | Malformed]:
    """The reports of a batch, in order, each for itself; Malformed where the body is no batch."""
    found: list[Submission | Malformed] = []
    for part in read_batch(body.data):
        try:
            found.append(_submission(shaper.shape(read_report(part)), part, sender))
        except Malformed as error:
            found.append(Malformed(error.field, error.reason))  # without the frames that hold this list
    return found


def read_samples(shaper: Shaper, body: Body, sender: Sender) -> LiveBatch:
    """The live samples in a body; Malformed where they cannot be taken."""
    message = read_live(body.data)
    _check_contract(sender, message.contract_number)
    return shape_live(shaper, message, sender.principal, sender.received)


def _check_contract(sender: Sender, number: str) -> None:
    if sender.contract_number is not None and sender.contract_number != number:
        raise Malformed("X-Contract-Number", "not the contract_number in the body")


def _submission(shaped: Shaped, data: bytes | memoryview, sender: Sender) -> Submission:
    _check_contract(sender, shaped.intake.contract_number)
    body = bytes(data) if is_early(shaped.intake, sender.received) else None
    return Submission(shaped, sender.principal, sender.received, sender.skew, body)


def _skew(date: str | None, now: float) -> float | None:
    """The sender's clock minus ours, to a second, where it says what its clock shows."""
    if date is None:
        return None
    try:
        return parsedate_to_datetime(date).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return None
