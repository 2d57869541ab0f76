"""One NVML child and what was asked of it: open the driver, read rounds; late, gone and refused told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gpu_monitor.sources.child import Child, Ended
from gpu_monitor.sources.gpu.nvml_child import codes

NewChild = Callable[[], Child]


class Fault(Enum):
    """What went wrong with a child."""

    LATE = "late"
    """No answer by the deadline; the child still runs."""
    ENDED = "ended"
    """The child is gone."""
    REFUSED = "refused"
    """The driver cannot be opened."""
    GONE = "gone"
    """The driver went away under the child."""


class WorkerFault(Exception):
    """`code` is NVML's where the driver answered, else 0."""

    def __init__(self, fault: Fault, code: int = 0) -> None:
        super().__init__(fault.value)
        self.fault, self.code = fault, code


@dataclass(frozen=True)
class Opened:
    """What the child found: driver version, identities and absent devices as the child sends them."""

    driver: str | None
    identities: tuple[tuple[Any, ...], ...]
    absent: tuple[tuple[str | None, int | None, int], ...]


@dataclass(frozen=True)
class Answered:
    """One round as the child sends it; `opened` where the devices changed."""

    answers: list[tuple[str, int, dict[str, Any], dict[str, str], tuple[tuple[Any, ...], ...] | None]]
    xids: list[tuple[str | None, int]]
    opened: Opened | None


@dataclass(frozen=True)
class Spot:
    """Where a child is: name of the call, and the card by UUID or, before that is known, by number.

    `number` counts the addresses it was given (`by_address`) or NVML's indices, of which there are `count`.
    Neither: no card at all.
    """

    call: str
    uid: str | None = None
    number: int | None = None
    by_address: bool = False
    count: int = 0


class Worker:
    """A child, the request it is at, and when that must be answered (monotonic)."""

    def __init__(self, child: Child, addresses: tuple[str, ...] | None) -> None:
        self.child = child
        self.addresses = addresses
        """The only devices it may touch; None: all."""
        self.opened: Opened | None = None
        self.pending: str | None = None
        self.asked_at = 0.0
        self.asked_time = 0.0
        """The same as UTC epoch."""

    def ask_open(self, moment: float, now: float, since: float, again: bool = False) -> None:
        """Ask to open the driver. Raises WorkerFault."""
        self._ask("open", moment, now, self.addresses, now, since, again)

    def ask_read(self, moment: float, now: float, span: int) -> None:
        """Ask for a round. Raises WorkerFault."""
        self._ask("read", moment, now, int(span), now)

    def _ask(self, kind: str, moment: float, now: float, *arguments: object) -> None:
        self.pending, self.asked_at, self.asked_time = kind, moment, now
        try:
            self.child.send((kind, *arguments))
        except Ended:
            raise WorkerFault(Fault.ENDED) from None

    def answer(self, seconds: float) -> Opened | Answered:
        """The answer to what was asked, waiting up to `seconds`. Raises WorkerFault; LATE leaves it pending."""
        try:
            message = self.child.receive(seconds)
        except Ended:
            raise WorkerFault(Fault.ENDED) from None
        if message is None:
            raise WorkerFault(Fault.LATE)
        self.pending = None
        kind, *rest = message
        if kind == "opened":
            self.opened = Opened(rest[0], *rest[1])
            return self.opened
        if kind == "round":
            answers, xids, devices = rest
            if devices is not None:
                self.opened = Opened(self.opened.driver if self.opened else None, *devices)
            return Answered(answers, xids, self.opened if devices is not None else None)
        raise WorkerFault(Fault(kind), rest[0])

    def spot(self) -> Spot:
        """Where it is now."""
        board = self.child.board()
        number, call = board[codes.AT_CARD], board[codes.AT_CALL]
        name = codes.CALLS[call] if 0 < call < len(codes.CALLS) else "the driver library"
        if number == codes.NO_CARD:
            return Spot(name)
        if board[codes.AT_PHASE] == codes.IN_TABLE:
            return Spot(name, uid=board[codes.TAG].rstrip(b"\0").decode("ascii", "replace"))
        by_address = board[codes.AT_PHASE] == codes.BY_ADDRESS
        return Spot(name, None, number - 1, by_address, board[codes.AT_COUNT])
