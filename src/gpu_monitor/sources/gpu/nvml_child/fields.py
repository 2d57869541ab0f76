"""Field values: many metrics of one device in one call, into an array that is kept. Runs in the child."""

from __future__ import annotations

import ctypes
import struct

from gpu_monitor.sources.gpu.nvml_child.library import Handle, Library, argument, check, reason_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Shape = Callable[[Sequence[float]], object]

# nvmlFieldValue_t: fieldId, scopeId, timestamp, latencyUsec, valueType, nvmlReturn, value
_ENTRY = struct.Struct("=IIqqIIQ")
_ANSWER = "24xIIQ"  # the last three of them
_PAIR = "24xQQ"  # the same, type and code as one number
_ASK = struct.Struct("=II")
_DOUBLE, _UINT, _ULONG, _ULONGLONG, _SIGNED_LONG, _SIGNED_INT, _USHORT = range(7)  # nvmlValueType_t
_USUAL = (_ULONGLONG, _UINT)
_BITS = {_UINT: 32, _ULONG: 64, _ULONGLONG: 64, _USHORT: 16}
_BLANK_64 = 0x7FFF_FFFF_FFFF_FFE0
"""Blank values of NVML and DCGM lie from here to 2^64 - 1; no counter that begins at 0 gets there."""
_BLANK_32 = 0xFFFF_FFFF
_ALL_64 = 2**64 - 1

ALL_LINKS = 0xFFFF_FFFF
_LINKS = 91  # NVML_FI_DEV_NVLINK_LINK_COUNT

Asked = tuple[int, int]
"""Field id and scope."""

_ACTIONS = ("none", "reset", "reboot", "drain", "drain_and_reset")
"""nvmlDeviceGpuRecoveryAction_t, in its order."""


def _one(scale: float) -> Shape:
    return lambda raw: raw[0] * scale


def _sum(scale: float) -> Shape:
    return lambda raw: sum(raw) * scale


def _seconds(raw: Sequence[float]) -> object:
    return tuple([value / 1e9 for value in raw])


def _action(raw: Sequence[float]) -> object:
    number = int(raw[0])
    return _ACTIONS[number] if number < len(_ACTIONS) else f"action_{number}"


class Field:
    """One metric: alternative sets of fields that give it (the first that is whole is taken).

    `shape`: the value out of the raw numbers; None: the one number as it is.
    `wide`: a counter of 32 bits would wrap within seconds, so it is no value at all.
    """

    __slots__ = ("metric", "shape", "wants", "wide")

    def __init__(
        self,
        metric: str,
        wants: Sequence[Sequence[Asked]],
        shape: Shape | None,
        wide: bool = False,
    ) -> None:
        self.metric, self.wants, self.shape, self.wide = metric, wants, shape, wide


# Ids: NVML_FI_DEV_* of NVML's reference. Throttle times come in ns, power in mW, NVLink data in KiB.
# Drivers of one generation numbered the thermal and brake counters 251 to 253, which others use for
# power smoothing: those ids are left alone, and the older pair (74, 75) serves there.
FIELDS: tuple[Field, ...] = (
    Field("memory_temperature", (((82, 0),),), None),
    Field("power_instant", (((186, 0),),), _one(0.001)),
    Field("pcie_tx", (((197, 0),),), None, wide=True),
    Field("pcie_rx", (((198, 0),),), None, wide=True),
    Field("nvlink_tx", (((138, ALL_LINKS),),), _one(1024), wide=True),
    Field("nvlink_rx", (((139, ALL_LINKS),),), _one(1024), wide=True),
    Field("ecc_corrected", (((5, 0),),), None),
    Field("ecc_uncorrected", (((6, 0),),), None),
    Field("remapped_rows", (((142, 0), (143, 0)),), _sum(1)),
    Field("retired_pages", (((29, 0), (30, 0)),), _sum(1)),
    Field("recovery_action", (((230, 0),),), _action),
    Field("throttle_time", (((74, 0), (269, 0), (270, 0), (271, 0)), ((74, 0), (75, 0))), _seconds),
)


def _per_link(links: int) -> tuple[Field, ...]:
    """NVLink bytes by link, where the driver has no total: the counters that came with NVLink 5."""
    return (
        Field("nvlink_tx", (tuple((202, link) for link in range(links)),), _sum(1), wide=True),
        Field("nvlink_rx", (tuple((204, link) for link in range(links)),), _sum(1), wide=True),
    )


class Fields:
    """The fields that one device gives, read in one call."""

    def __init__(self, library: Library, handle: Handle) -> None:
        self._library = library
        self._handle = argument(handle)
        self._singles: list[tuple[str, Shape | None, int]] = []
        self._sets: list[tuple[str, Shape | None, int, int]] = []
        self._count = 0
        self._answers = self._pairs = struct.Struct("=")
        self._good: tuple[int, ...] | None = None
        self._quick: list[tuple[str, Shape | None, int, int]] = []
        self._quick_sets: list[tuple[str, Shape, int, int, int, int]] = []
        self.missing: dict[str, str] = {}
        """Metric to reason, for those that the device does not give."""
        self._bytes = bytearray()
        self._array: object = None
        self._discover()

    def _discover(self) -> None:
        """Ask for everything once and keep what was answered. Raises DriverGone, DeviceGone."""
        chosen: list[tuple[Field, Sequence[Asked]]] = []
        for field in FIELDS:
            found = self._choose(field)
            if found is not None:
                chosen.append((field, found))
        if "nvlink_tx" in self.missing:
            chosen += self._links()
        self._lay_out([pair for _, wants in chosen for pair in wants])
        place = 0
        for field, wants in chosen:
            end = place + 3 * len(wants)
            if len(wants) == 1:
                self._singles.append((field.metric, field.shape, place))
            else:
                self._sets.append((field.metric, field.shape, place, end))
            place = end
        self._count = place // 3
        self._answers = struct.Struct("=" + _ANSWER * self._count)
        self._pairs = struct.Struct("=" + _PAIR * self._count)

    def _choose(self, field: Field) -> Sequence[Asked] | None:
        """The first set of fields that is whole, or may be another time; None where the card has none."""
        reason, later = "unsupported", None
        for wants in field.wants:
            answers = self._ask(wants)
            reasons = {reason_of(code) for _, code, _ in answers if code}
            if not reasons:
                if field.wide and any(kind == _UINT for kind, _, _ in answers):
                    continue
                self.missing.pop(field.metric, None)
                return wants
            if reasons == {"failed"} and later is None:
                later = wants
            if "denied" in reasons:
                reason = "denied"
        if later is None:
            self.missing[field.metric] = reason
        return later

    def _links(self) -> list[tuple[Field, Sequence[Asked]]]:
        ((_, code, links),) = self._ask(((_LINKS, 0),))
        if code or not 0 < links <= 64:
            return []
        found = [(field, self._choose(field)) for field in _per_link(int(links))]
        return [(field, wants) for field, wants in found if wants is not None]

    def _ask(self, wants: Sequence[Asked]) -> list[tuple[int, int, int]]:
        """Value type, code and raw value of each field. Raises DriverGone, DeviceGone."""
        self._lay_out(wants)
        code = self._call(len(wants))
        if code:
            return [(0, code, 0)] * len(wants)
        return [(kind, code, raw) for _, _, _, _, kind, code, raw in _ENTRY.iter_unpack(self._bytes)]

    def _lay_out(self, wants: Sequence[Asked]) -> None:
        self._bytes = bytearray(_ENTRY.size * len(wants))
        for place, (field, scope) in enumerate(wants):
            _ASK.pack_into(self._bytes, place * _ENTRY.size, field, scope)
        self._array = (ctypes.c_char * max(1, len(self._bytes))).from_buffer(self._bytes) if wants else None

    def _call(self, count: int) -> int:
        code = self._library.call("nvmlDeviceGetFieldValues", self._handle, count, self._array)
        if code:
            check(code)
        return code

    def read(self, values: dict[str, object], reasons: dict[str, str]) -> None:
        """Put what the device gives into `values`. Raises DriverGone, DeviceGone."""
        if self.missing:
            reasons.update(self.missing)
        if not self._count:
            return
        code = self._call(self._count)
        if code:
            reason = reason_of(code)
            reasons.update((single[0], reason) for single in self._singles)
            reasons.update((several[0], reason) for several in self._sets)
            return
        if not self._read_quickly(values):
            self._read_each(values, reasons)

    def _read_quickly(self, values: dict[str, object]) -> bool:
        """Take the answers at once where their types and codes are those of a round before, of which each was good.

        False: look at each of them.
        """
        flat = self._pairs.unpack(self._bytes)
        if flat[::2] != self._good:
            return False
        bits = flat[1::2]
        for metric, shape, at, mask in self._quick:
            value = bits[at] & mask
            if value == _BLANK_32 or value >= _BLANK_64:
                return False
            values[metric] = value if shape is None else shape((value,))
        for metric, shape, start, end, mask, blank in self._quick_sets:
            part = [value & mask for value in bits[start:end]]
            if max(part) >= blank:
                return False
            values[metric] = shape(part)
        return True

    def _learn(self, flat: tuple[int, ...]) -> None:
        """Remember types and codes of answers that were all good, of the types that need no more than a mask."""
        self._good = None
        if any(flat[1::3]) or not set(flat[::3]) <= set(_USUAL):
            return
        self._quick_sets = []
        for metric, shape, start, end in self._sets:
            kinds = set(flat[start:end:3])
            if len(kinds) > 1 or shape is None:
                return
            limits = (_BLANK_32, _BLANK_32) if kinds == {_UINT} else (_ALL_64, _BLANK_64)
            self._quick_sets.append((metric, shape, start // 3, end // 3, *limits))
        self._good = self._pairs.unpack(self._bytes)[::2]
        self._quick = [
            (metric, shape, at // 3, _BLANK_32 if flat[at] == _UINT else _ALL_64)
            for metric, shape, at in self._singles
        ]

    def _read_each(self, values: dict[str, object], reasons: dict[str, str]) -> None:
        flat = self._answers.unpack(self._bytes)  # type, code and bits of each field
        self._learn(flat)
        for metric, shape, at in self._singles:
            kind, code, value = flat[at : at + 3]
            # The two common types are decoded here: this loop runs for each field of each GPU.
            if code or kind not in _USUAL:
                self._gather(metric, shape, flat[at : at + 3], values, reasons)
                continue
            if kind == _UINT:
                value &= _BLANK_32
            if value == _BLANK_32 or value >= _BLANK_64:
                self._gather(metric, shape, flat[at : at + 3], values, reasons)
            else:
                values[metric] = value if shape is None else shape((value,))
        for metric, shape, start, end in self._sets:
            self._gather(metric, shape, flat[start:end], values, reasons)

    @staticmethod
    def _gather(
        metric: str,
        shape: Shape | None,
        answers: tuple[int, ...],
        values: dict[str, object],
        reasons: dict[str, str],
    ) -> None:
        """One metric out of several fields, or out of one that is not as usual."""
        raw: list[float] = []
        for at in range(0, len(answers), 3):
            kind, code, bits = answers[at : at + 3]
            value = None if code else _decode(kind, bits)
            if value is None:
                reasons[metric] = reason_of(code) if code else "invalid"
                return
            raw.append(value)
        values[metric] = raw[0] if shape is None else shape(raw)


def _decode(kind: int, bits: int) -> float | None:
    """The number in the eight bytes of a field; None for a blank one or a type of another kind."""
    width = _BITS.get(kind)
    if width == 64:
        return bits if bits < _BLANK_64 else None
    if width is not None:
        bits &= (1 << width) - 1
        return bits if bits != _BLANK_32 else None
    form = {_DOUBLE: "=d", _SIGNED_LONG: "=q", _SIGNED_INT: "=i"}.get(kind)
    if form is None:
        return None
    (value,) = struct.unpack_from(form, bits.to_bytes(8, "little"))
    return float(value)
