"""What a report is to what is held of its node: new, a repeat, better, worse, or in conflict. Pure but for the reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

import msgspec

from gpu_monitor.core.times import format_time
from gpu_monitor.server.store.retention import oldest_hour
from gpu_monitor.wire.intake import Intake

HOUR = 3600


class Refusal(msgspec.Struct, frozen=True):
    """Why a report is not taken, and the status it is answered with. `revision`: the highest held, for a conflict."""

    status: int
    title: str
    field: str
    reason: str
    revision: int | None = None


class Conclusion(Enum):
    """What is to be done with a report that may be taken."""

    NEW = "new"
    REPEATED = "repeated"
    REPLACES = "replaces"
    SUPERSEDED = "superseded"


class Receipt(msgspec.Struct, frozen=True):
    """What is held of one period of a node."""

    agent: int
    hour: int
    contract: int
    period_seconds: int
    revision: int
    body_digest: bytes
    quarantined: int
    simulated: bool

    @property
    def stop(self) -> int:
        """The hour after its last one."""
        return self.hour + self.period_seconds // HOUR


class Judged(msgspec.Struct, frozen=True):
    """A conclusion, and the receipt it is drawn from."""

    conclusion: Conclusion
    receipt: Receipt | None = None

    @property
    def is_held(self) -> bool:
        """Whether the report's rows are to be written."""
        return self.conclusion in (Conclusion.NEW, Conclusion.REPLACES)


def too_old(intake: Intake, now: float) -> Refusal | None:
    """Why a report is refused whose period begins before anything is kept; None where it does not.

    Whether it was here before is not known any more, and the fleet's hours, which stay, would count it twice.
    """
    oldest = oldest_hour(now)
    if intake.hour >= oldest:
        return None
    reason = f"the period begins before {format_time(oldest * HOUR)}, the oldest that this server keeps"
    return Refusal(422, "The report is not valid", "aggregation_time", reason)


def reach(intake: Intake, longest_seconds: int) -> tuple[int, int]:
    """The first and the last hour at which a receipt may begin that has to do with this report."""
    longest = max(longest_seconds, HOUR) // HOUR
    return intake.hour - longest + 1, intake.hour + intake.period_seconds // HOUR - 1


def judge(intake: Intake, receipts: Iterable[Receipt], superseded: bytes | None = None) -> Judged | Refusal:
    """The conclusion. `receipts`: of its node, within `reach`; `superseded`: the digest held of this older revision."""
    mine: Receipt | None = None
    stop = intake.hour + intake.period_seconds // HOUR
    for receipt in receipts:
        if receipt.hour == intake.hour and receipt.period_seconds == intake.period_seconds:
            mine = receipt
        elif receipt.hour < stop and receipt.stop > intake.hour:
            return overlaps(receipt.hour, receipt.period_seconds)
    if mine is None:
        return Judged(Conclusion.NEW)
    if intake.revision > mine.revision:
        return Judged(Conclusion.REPLACES, mine)
    if intake.revision < mine.revision:
        if superseded is not None and superseded != intake.body_digest:
            return conflict(intake, mine.revision)
        return Judged(Conclusion.SUPERSEDED, mine)
    if intake.body_digest != mine.body_digest:
        return conflict(intake, mine.revision)
    return Judged(Conclusion.REPEATED, mine)


def conflict(intake: Intake, revision: int) -> Refusal:
    """The same id with another body."""
    return Refusal(
        409,
        "Conflict",
        "report_id",
        f"revision {intake.revision} of this period is held with another body; this one's SHA-256 is"
        f" {intake.body_digest.hex()}",
        revision,
    )


def overlaps(hour: int, period_seconds: int) -> Refusal:
    """Why a report is not taken that lies over a part of this period, which is held."""
    return Refusal(
        422,
        "The report is not valid",
        "period_seconds",
        f"overlaps the period held from hour {hour} on ({period_seconds} s): periods never overlap",
    )


def rounds(reports: Sequence[Intake]) -> list[list[int]]:
    """Places of reports, parted so that no two of one part are about the same hour of a node, in their order."""
    parts: list[list[int]] = []
    taken: list[set[tuple[str, int]]] = []
    first_free: dict[str, int] = {}
    for place, intake in enumerate(reports):
        node = intake.node.id
        hours = {(node, hour) for hour in range(intake.hour, intake.hour + intake.period_seconds // HOUR)}
        at = first_free.get(node, 0)
        while at < len(parts) and taken[at] & hours:
            at += 1
        if at == len(parts):
            parts.append([])
            taken.append(set())
        # What comes later from this node waits for this one: revisions keep their order.
        if at:
            first_free[node] = at
        parts[at].append(place)
        taken[at] |= hours
    return parts
