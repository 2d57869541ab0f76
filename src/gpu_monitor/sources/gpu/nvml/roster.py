"""Which devices are known, followed by UUID: what became of each, and what is worth an event."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from gpu_monitor.core.model import DeviceReading, Event, Identity, Status
from gpu_monitor.sources.gpu.nvml.pci import canonical
from gpu_monitor.sources.gpu.nvml.readings import absent, identity_of
from gpu_monitor.sources.gpu.nvml.worker import Opened
from gpu_monitor.sources.gpu.nvml_child import codes

NOT_FOUND = "no longer found by the driver"


@dataclass(frozen=True)
class Trouble:
    """Why a device does not answer, since when (UTC epoch)."""

    status: Status
    cause: str
    since: float


_BEGINS = {Status.LOST: "gpu_lost", Status.HUNG: "gpu_hung"}
_ENDS = {Status.LOST: "gpu_back", Status.HUNG: "gpu_recovered"}


class Roster:
    """The devices of this machine. `known`: those of earlier runs."""

    def __init__(self, known: Iterable[Identity]) -> None:
        self._known = {identity.uid: identity for identity in known}
        self._present: dict[str, Identity] = {}
        self._trouble: dict[str, Trouble] = {}
        self._was_opened = False
        self.driver: str | None = None

    # ---------------------------------------------------------------- looking

    @property
    def uids(self) -> Iterable[str]:
        """Devices that are there, or were when last seen and should be."""
        return self._present.keys()

    def identity(self, uid: str) -> Identity | None:
        """The device, if it is there."""
        return self._present.get(uid)

    def cards(self) -> list[Identity]:
        """The physical GPUs that are there."""
        return [identity for identity in self._present.values() if identity.parent_uid is None]

    def addresses(self) -> set[str]:
        """PCI addresses of the physical GPUs, as sysfs writes them."""
        return {canonical(card.pci_bus_id) for card in self.cards() if card.pci_bus_id}

    def address_of(self, uid: str) -> str | None:
        """Where a device is, as sysfs writes it."""
        identity = self._present.get(uid)
        return canonical(identity.pci_bus_id) if identity is not None and identity.pci_bus_id else None

    def uid_at(self, address: str) -> str | None:
        """The physical GPU at an address, also one of an earlier run."""
        for identity in (*self.cards(), *self._known.values()):
            if identity.pci_bus_id and canonical(identity.pci_bus_id) == address and not identity.parent_uid:
                return identity.uid
        return None

    def uid_with_index(self, index: int) -> str | None:
        """The physical GPU that had this index when last seen."""
        return next((card.uid for card in self.cards() if card.index == index), None)

    @property
    def is_any_troubled(self) -> bool:
        """Whether any device did not answer lately."""
        return bool(self._trouble)

    def is_any_lost(self, left_out: Collection[str]) -> bool:
        """Whether a device is lost now, beside those at these addresses."""
        return any(
            trouble.status is Status.LOST and self.address_of(uid) not in left_out
            for uid, trouble in self._trouble.items()
        )

    def trouble_of(self, uid: str) -> Trouble | None:
        """What ails a device; an instance shares its GPU's trouble."""
        identity = self._present.get(uid)
        parent = identity.parent_uid if identity is not None else None
        return self._trouble.get(uid) or (self._trouble.get(parent) if parent else None)

    def absent_reading(self, uid: str) -> DeviceReading | None:
        """The reading of a device in trouble; None where nothing is known against it."""
        trouble = self.trouble_of(uid)
        identity = self._present.get(uid)
        if trouble is None or identity is None:
            return None
        return absent(identity, trouble.status, trouble.cause, trouble.since)

    # ---------------------------------------------------------------- taking in

    def take(
        self, opened: Opened, now: float, untouched: Collection[str], bound: Collection[str]
    ) -> list[Event]:
        """Take in what the driver shows. `untouched`: addresses that were left out on purpose.

        A device that the driver no longer shows is lost while its kernel module still holds its
        address (`bound`), else it has disappeared.
        """
        events: list[Event] = []
        if opened.driver is not None:
            if self.driver is not None and opened.driver != self.driver:
                text = f"the driver changed from {self.driver} to {opened.driver}"
                detail = {"from": self.driver, "to": opened.driver}
                events.append(Event(now, "driver_changed", text, "info", None, detail))
            self.driver = opened.driver
        shown = {sent[0]: identity_of(sent) for sent in opened.identities}
        events += self._missing(opened, shown, now, untouched, bound)
        for uid, identity in shown.items():
            if uid not in self._present and self._was_opened:
                text = f"{_title(identity)} appeared"
                events.append(Event(now, "gpu_appeared", text, "info", uid, _where(identity)))
            self._present[uid] = self._known[uid] = identity
        self._present = {
            uid: self._present[uid] for uid in (*shown, *(u for u in self._present if u not in shown))
        }
        self._was_opened = True
        return events

    def _missing(
        self,
        opened: Opened,
        shown: dict[str, Identity],
        now: float,
        untouched: Collection[str],
        bound: Collection[str],
    ) -> list[Event]:
        events: list[Event] = []
        refused: dict[str, int] = {}
        for address, index, code in opened.absent:
            uid = self.uid_at(address) if address else None
            uid = uid or (self.uid_with_index(index) if index is not None else None)
            if uid is not None and uid not in shown:
                refused[uid] = code
        for uid, identity in list(self._present.items()):
            address = self.address_of(uid)
            if uid in shown or address in untouched:
                continue
            if uid in refused:
                events += self.fail(uid, Trouble(Status.LOST, codes.words(refused[uid]), now))
            elif identity.parent_uid is None and address in bound:
                events += self.fail(uid, Trouble(Status.LOST, NOT_FOUND, now))
            elif identity.parent_uid is not None and self.trouble_of(identity.parent_uid) is not None:
                continue
            else:
                del self._present[uid]
                self._trouble.pop(uid, None)
                text = f"{_title(identity)} disappeared"
                events.append(Event(now, "gpu_disappeared", text, "warning", uid, _where(identity)))
        return events

    def remember(self, address: str) -> None:
        """A device of an earlier run that cannot be touched now is there all the same."""
        uid = self.uid_at(address)
        if uid is not None and uid not in self._present:
            self._present[uid] = self._known[uid]

    def fail(self, uid: str, trouble: Trouble) -> list[Event]:
        """A device does not answer. The first cause of a trouble keeps its time."""
        before = self._trouble.get(uid)
        if before is not None and before.status is trouble.status:
            if before.cause != trouble.cause:
                self._trouble[uid] = Trouble(trouble.status, trouble.cause, before.since)
            return []
        self._trouble[uid] = trouble
        kind = _BEGINS.get(trouble.status)
        if kind is None:
            return []
        text = f"{_title(self._present.get(uid))}: {trouble.cause}"
        return [Event(trouble.since, kind, text, "error", uid, {"cause": trouble.cause})]

    def heal(self, uid: str, now: float) -> list[Event]:
        """A device answers."""
        trouble = self._trouble.pop(uid, None)
        kind = _ENDS.get(trouble.status) if trouble is not None else None
        if trouble is None or kind is None:
            return []
        seconds = round(now - trouble.since, 3)
        text = f"{_title(self._present.get(uid))} answers again"
        return [Event(now, kind, text, "info", uid, {"cause": trouble.cause, "seconds": seconds})]

    def wake(self, resting: Collection[str]) -> None:
        """Devices that are no longer at rest are no longer asleep."""
        for uid, trouble in list(self._trouble.items()):
            if trouble.status is Status.ASLEEP and self.address_of(uid) not in resting:
                del self._trouble[uid]


def _title(identity: Identity | None) -> str:
    if identity is None:
        return "GPU"
    return f"GPU {identity.index}" if identity.index is not None else identity.uid


def _where(identity: Identity) -> dict[str, str | int | float | None]:
    return {"name": identity.name, "pci_bus_id": identity.pci_bus_id, "index": identity.index}
