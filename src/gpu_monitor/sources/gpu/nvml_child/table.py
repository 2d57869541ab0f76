"""Which devices there are, by UUID, whatever index or address the driver shows them at. Runs in the child."""

from __future__ import annotations

import ctypes

from gpu_monitor.sources.gpu.nvml_child import codes
from gpu_monitor.sources.gpu.nvml_child.card import Card, Instance, Tools
from gpu_monitor.sources.gpu.nvml_child.layouts import ATS, AddressingMode, MemoryV2, PciInfo, version_of
from gpu_monitor.sources.gpu.nvml_child.library import DeviceGone, DriverGone, Handle, check

Identity = tuple[
    str, "str | None", "str | None", "int | None", "int | None", "str | None", "int | None", "str | None",
    "str | None", "str | None",
]  # fmt: skip
"""uid, name, PCI address, bytes of memory, index, serial, minor number, parent's uid, instance, memory kind."""

Absent = tuple["str | None", "int | None", int]
"""A device that the driver counts but will not open: address if known, index, NVML's code."""

Seen = tuple[Handle, str, int, int]
"""Handle, UUID, index, and its number among those asked for (what the progress board says meanwhile)."""


class Place:
    """One device in the table with its instances. `tag` is what the progress board calls it."""

    __slots__ = ("card", "identities", "index", "instances", "is_mig", "tag")

    def __init__(self, card: Card, index: int) -> None:
        self.card, self.index = card, index
        self.tag = card.uid.encode()[: codes.TAG_BYTES].ljust(codes.TAG_BYTES, b"\0")
        self.instances: list[Instance] = []
        self.identities: list[Identity] = []
        self.is_mig = False


class Table:
    """The devices of this child. `addresses`: open these and no others; None: all that the driver counts."""

    def __init__(self, tools: Tools, addresses: tuple[str, ...] | None) -> None:
        self._tools, self._library, self._addresses = tools, tools.library, addresses
        self.places: list[Place] = []
        self.absent: list[Absent] = []

    def refresh(self, now: float, since: int) -> bool:
        """Look which devices there are; True where the table changed. Raises DriverGone."""
        absent, self.absent = self.absent, []
        seen = self._look()
        kept = {place.card.uid: place for place in self.places}
        places = self._still_lost({uid for _, uid, _, _ in seen})
        for handle, uid, index, number in seen:
            self._library.board[codes.AT_CARD] = number + 1
            try:
                places.append(self._place(kept.get(uid), handle, uid, index, now, since))
            except DeviceGone as gone:
                self.absent.append((self._addresses[number] if self._addresses else None, index, gone.code))
        places.sort(key=lambda place: place.index)
        changed = absent != self.absent or [id(p) for p in places] != [id(p) for p in self.places]
        for place in self.places:
            if place not in places:
                _close(place)
        self.places = places
        self._library.board[codes.AT_PHASE] = codes.IN_TABLE
        self._library.board[codes.AT_CARD] = codes.NO_CARD
        return changed

    def _still_lost(self, seen: set[str]) -> list[Place]:
        """Places of devices that the driver counts and calls lost: they keep their identity."""
        by_index = {place.index: place for place in self.places if place.card.uid not in seen}
        lost = [
            by_index.pop(index)
            for _, index, code in self.absent
            if code in codes.LOST and index is not None and index in by_index
        ]
        known = {place.index for place in lost}
        self.absent = [entry for entry in self.absent if entry[1] not in known]
        return lost

    def _look(self) -> list[Seen]:
        """Handle, UUID and index of every device that can be opened. Raises DriverGone."""
        board = self._library.board
        board[codes.AT_CARD] = codes.NO_CARD
        seen: list[Seen] = []
        if self._addresses is None:
            board[codes.AT_PHASE] = codes.BY_INDEX
            count = self._library.number("nvmlDeviceGetCount_v2") or 0
            asked: list[tuple[str | None, int | None]] = [(None, index) for index in range(count)]
        else:
            board[codes.AT_PHASE] = codes.BY_ADDRESS
            asked = [(address, None) for address in self._addresses]
        board[codes.AT_COUNT] = min(len(asked), 255)
        for number, (address, index) in enumerate(asked):
            board[codes.AT_CARD] = number + 1
            found = self._open(address, index)
            if found is not None:
                seen.append((*found, number))
        return seen

    def _open(self, address: str | None, index: int | None) -> tuple[Handle, str, int] | None:
        handle = ctypes.c_void_p()
        library = self._library
        if address is not None:
            code = library.call("nvmlDeviceGetHandleByPciBusId_v2", address.encode(), ctypes.byref(handle))
        else:
            code = library.call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
        if code in codes.DRIVER_GONE:
            raise DriverGone(code)
        try:
            uid = library.text("nvmlDeviceGetUUID", handle) if not code else None
            if uid is not None:
                place = index if index is not None else library.number("nvmlDeviceGetIndex", handle)
                return handle, uid, -1 if place is None else place
        except DeviceGone as gone:
            code = gone.code
        if code not in (codes.NO_PERMISSION, codes.NOT_FOUND):  # those are simply not ours to see
            self.absent.append((address, index, code))
        return None

    def _place(
        self, before: Place | None, handle: Handle, uid: str, index: int, now: float, since: int
    ) -> Place:
        """The device's place, the one it had where nothing about it changed. Raises DriverGone, DeviceGone."""
        library = self._library
        current = ctypes.c_uint()
        pending = ctypes.c_uint()
        code = library.call("nvmlDeviceGetMigMode", handle, ctypes.byref(current), ctypes.byref(pending))
        check(code)
        is_mig = not code and bool(current.value)
        found = self._instances(handle) if is_mig else []
        if (
            before is not None
            and _same(before.card.handle, handle)
            and (before.index, before.is_mig) == (index, is_mig)
            and [i.uid for i in before.instances] == [uid for _, uid, _ in found]
        ):
            return before
        place = Place(Card(self._tools, handle, uid, now, since), index)
        place.is_mig = is_mig
        place.identities.append(self._identity(handle, uid, index))
        for instance_handle, instance_uid, label in found:
            gpu_instance = int(label.partition("/")[0])
            place.instances.append(Instance(self._tools, handle, instance_handle, instance_uid, gpu_instance))
            place.identities.append(self._instance_identity(instance_handle, instance_uid, label, place))
        return place

    def _instances(self, handle: Handle) -> list[tuple[Handle, str, str]]:
        """Handle, UUID and `GPU instance/compute instance` of each MIG instance."""
        library = self._library
        found: list[tuple[Handle, str, str]] = []
        for index in range(library.number("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            instance = ctypes.c_void_p()
            code = library.call("nvmlDeviceGetMigDeviceHandleByIndex", handle, index, ctypes.byref(instance))
            check(code)
            uid = library.text("nvmlDeviceGetUUID", instance) if not code else None
            outer = library.number("nvmlDeviceGetGpuInstanceId", instance) if uid else None
            if uid is None or outer is None:
                continue
            inner = library.number("nvmlDeviceGetComputeInstanceId", instance)
            found.append((instance, uid, f"{outer}/{inner or 0}"))
        return found

    def _identity(self, handle: Handle, uid: str, index: int) -> Identity:
        library = self._library
        total, code = self._memory_total(handle)
        return (
            uid,
            library.text("nvmlDeviceGetName", handle),
            self._address(handle),
            total,
            index if index >= 0 else None,
            library.text("nvmlDeviceGetSerial", handle),
            library.number("nvmlDeviceGetMinorNumber", handle),
            None,
            None,
            self._memory_kind(handle, code),
        )

    def _instance_identity(self, handle: Handle, uid: str, label: str, place: Place) -> Identity:
        parent = place.identities[0]
        name = self._library.text("nvmlDeviceGetName", handle)
        total, _ = self._memory_total(handle)
        return (uid, name, parent[2], total, None, None, None, parent[0], label, parent[9])

    def _address(self, handle: Handle) -> str | None:
        info = PciInfo()
        code = self._library.call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(info))
        check(code)
        return None if code else info.bus_id.decode("ascii", "replace")

    def _memory_total(self, handle: Handle) -> tuple[int | None, int]:
        """Bytes, None where the driver gives none (never a total of our own making), and NVML's code."""
        info = MemoryV2(version=version_of(MemoryV2, 2))
        code = self._library.call("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(info))
        check(code)
        if not code:
            return info.total, 0
        numbers = (ctypes.c_uint64 * 3)()  # nvmlMemory_t: total, free, used
        code = self._library.call("nvmlDeviceGetMemoryInfo", handle, numbers)
        check(code)
        return (None if code else int(numbers[0])), code

    def _memory_kind(self, handle: Handle, memory_code: int) -> str | None:
        """`unified` where CPU and GPU share one memory or one page table (GB10, Grace), else `dedicated`."""
        mode = AddressingMode(version=version_of(AddressingMode, 1))
        code = self._library.call("nvmlDeviceGetAddressingMode", handle, ctypes.byref(mode))
        check(code)
        if not code and mode.value == ATS:
            return "unified"
        if self._library.number("nvmlDeviceGetNumaNodeId", handle) is not None:
            return "unified"
        if memory_code == 0:
            return "dedicated"
        return "unified" if memory_code == codes.NOT_SUPPORTED else None

    def close(self) -> None:
        """Give back what the library holds for the devices."""
        for place in self.places:
            _close(place)
        self.places = []


def _same(one: object, other: object) -> bool:
    return getattr(one, "value", one) == getattr(other, "value", other)


def _close(place: Place) -> None:
    place.card.close()
    for instance in place.instances:
        instance.close()
