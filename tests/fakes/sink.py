"""A sink in memory that answers as it is told, and keeps what it took like a correct server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence

from gpu_monitor.core.outcome import Outcome, Parcel, Room, Verdict

Answer = Callable[[Parcel], Outcome | None]
"""What becomes of one report; None: taken as a correct server takes it."""


def take(_: Parcel) -> None:
    """Every report is taken."""


class FakeSink:
    """`answer` decides; `held` is what was taken, report id to bytes; `sent` every parcel in order.

    `keeps_refused`: a report that is answered badly is held all the same (the answer was lost).
    """

    def __init__(self, answer: Answer = take, stop: threading.Event | None = None, room: int = 1) -> None:
        self.answer = answer
        self.held: dict[str, bytes] = {}
        self.sent: list[Parcel] = []
        self.keeps_refused = False
        self.is_open = False
        self._stop = stop or threading.Event()
        self._room = room

    def room(self) -> Room:
        """As many reports as it was made for."""
        return Room(self._room, 1 << 20)

    def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        """One outcome per parcel."""
        if self._stop.is_set():
            return [Outcome(Verdict.INTERRUPTED, error="the agent stops")] * len(parcels)
        self.is_open = True
        self.sent += parcels
        return [self._one(parcel) for parcel in parcels]

    def _one(self, parcel: Parcel) -> Outcome:
        told = self.answer(parcel)
        if told is not None and not self.keeps_refused:
            return told
        known = self.held.setdefault(parcel.report_id, parcel.body)
        if told is not None:
            return told
        if known != parcel.body:
            return Outcome(Verdict.CONFLICT, 409, error="held with other content")
        return Outcome(Verdict.ACKNOWLEDGED, 200, uid=f"uid-{parcel.report_id}", proof="digest")

    def close(self) -> None:
        """No connection is open afterwards."""
        self.is_open = False

    def newest(self) -> dict[str, dict[str, object]]:
        """Aggregation time to the report of the highest revision held."""
        best: dict[str, dict[str, object]] = {}
        for body in self.held.values():
            report = json.loads(body)
            known = best.get(report["aggregation_time"])
            if known is None or known["revision"] < report["revision"]:  # type: ignore[operator]
                best[report["aggregation_time"]] = report
        return best

    def digests(self) -> dict[str, str]:
        """Report id to SHA-256 of what is held."""
        return {key: hashlib.sha256(body).hexdigest() for key, body in self.held.items()}
