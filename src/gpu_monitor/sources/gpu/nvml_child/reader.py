"""Rounds of readings of all devices, in the shape that goes over the pipe. Runs in the child."""

from __future__ import annotations

from gpu_monitor.sources.gpu.nvml_child import codes
from gpu_monitor.sources.gpu.nvml_child.card import WIDE, Card, Instance, Tools
from gpu_monitor.sources.gpu.nvml_child.events import XidEvents
from gpu_monitor.sources.gpu.nvml_child.library import DeviceGone, DriverGone, Library
from gpu_monitor.sources.gpu.nvml_child.processes import Found
from gpu_monitor.sources.gpu.nvml_child.table import Absent, Identity, Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpu_monitor.sources.gpu.nvml_child.library import Board

_DOUBT_SECONDS = 60.0
"""A call that says its handle may be stale makes us look again which devices there are, this often at most."""

Answer = tuple[str, int, dict[str, object], dict[str, str], "tuple[Found, ...] | None"]
"""uid, NVML's code (0: it answered), values, reasons, processes."""
Devices = tuple[tuple[Identity, ...], tuple[Absent, ...]]
Readings = tuple[list[Answer], "list[tuple[str | None, int]]", "Devices | None"]
"""Answers, Xids (uid, number), and the devices where they changed."""


class Refused(Exception):
    """The driver cannot be opened; `code` is NVML's."""

    def __init__(self, code: int) -> None:
        super().__init__(codes.words(code))
        self.code = code


class Reader:
    """All of NVML that the agent uses. `board`: the progress board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._library = Library(board)
        self._tools = Tools(self._library)
        self._events = XidEvents(self._library)
        self._table = Table(self._tools, None)
        self._is_open = False
        self._driver: str | None = None
        self._since = 0
        self._doubt_at: float | None = None
        self._in_doubt = False

    def open(
        self, addresses: tuple[str, ...] | None, now: float, since: float, again: bool
    ) -> tuple[str | None, Devices]:
        """Driver version and devices. `addresses`: only these are touched; None: all.

        `since`: the driver's samples before this moment were handed over already. `again`: let go of the
        driver first, so that it shows what it shows to a newcomer. Raises Refused, DriverGone.
        """
        if self._is_open and again:
            self._close()
        if not self._is_open:
            self._board[codes.AT_CARD] = codes.NO_CARD
            self._board[codes.AT_PHASE] = codes.BY_INDEX
            code = self._library.open()
            if code:
                raise Refused(code)
            self._is_open = True
        else:
            self._table.close()
        self._driver = self._library.text("nvmlSystemGetDriverVersion", size=80)
        self._since = int(since * 1e6)
        self._table = Table(self._tools, addresses)
        self._table.refresh(now, self._since)
        self._listen()
        return self._driver, self._devices()

    def _close(self) -> None:
        self._events.close()
        self._table.close()
        self._library.close()
        self._is_open = False

    def _listen(self) -> None:
        self._events.watch([(place.card.handle, place.card.uid) for place in self._table.places])

    def _devices(self) -> Devices:
        identities = [identity for place in self._table.places for identity in place.identities]
        return tuple(identities), tuple(self._table.absent)

    def read(self, span: int, now: float) -> Readings:
        """One round. Raises DriverGone."""
        changed = False
        if span == WIDE or self._is_doubtful(now):
            changed = self._table.refresh(now, self._since)
            if changed:
                self._listen()
        answers: list[Answer] = []
        for place in self._table.places:
            self._board[codes.TAG] = place.tag
            self._board[codes.AT_CARD] = 1
            card = self._answer(place.card, span, now, share=not place.is_mig)
            answers.append(card)
            for instance in place.instances:
                answers.append(
                    (instance.uid, card[1], {}, {}, None) if card[1] else self._answer(instance, span, now)
                )
        self._board[codes.AT_CARD] = codes.NO_CARD
        xids = self._events.drain()
        self._board[codes.AT_CALL] = 0
        return answers, xids, self._devices() if changed else None

    def _is_doubtful(self, now: float) -> bool:
        if not self._in_doubt:
            return False
        self._in_doubt = False
        if self._doubt_at is not None and 0 <= now - self._doubt_at < _DOUBT_SECONDS:
            return False
        self._doubt_at = now
        return True

    def _answer(self, device: Card | Instance, span: int, now: float, share: bool = True) -> Answer:
        """`share` False: its processes are told by its instances."""
        try:
            values, reasons, is_sound = device.read(span, now)
            self._in_doubt = self._in_doubt or not is_sound
            processes: tuple[Found, ...] | None = None
            if span == WIDE:
                processes, reason = device.processes() if share else ((), None)
                if reason is not None:
                    reasons["processes"] = reason
        except DeviceGone as gone:
            self._in_doubt = True
            return device.uid, gone.code, {}, {}, None
        if isinstance(device, Card) and span and self._driver is not None:
            values["driver_version"] = self._driver
        return device.uid, 0, values, reasons, processes


__all__ = ["DriverGone", "Reader", "Refused"]
