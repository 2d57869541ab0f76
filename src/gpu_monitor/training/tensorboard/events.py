# SPDX-License-Identifier: MIT
"""TensorBoard's events: the scalars, texts, pictures and hyperparameters in them; all else is named and left out.

Field numbers are those of tensorboard/compat/proto: event, summary, tensor, and of the hparams plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpu_monitor.training.tensorboard.messages import Field, read_fields

_SCALARS, _TEXT, _IMAGES, _HPARAMS = "scalars", "text", "images", "hparams"
_HPARAMS_TAG = "_hparams_/session_start_info"
_FLOAT, _DOUBLE, _STRING, _BOOL, _HALF = 1, 2, 7, 10, 19
_WHOLE = {3: ("<i", 7), 9: ("<q", 10)}
"""Types of tensors of whole numbers: how their content is packed, and the field that holds them otherwise."""
_KINDS = {4: "picture", 5: "histogram", 6: "audio"}
_GRAPHS = {
    4: "graph",
    9: "graph of a session",
    8: "metadata of a session",
    7: "log of a session",
    6: "log message",
}
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG as it was written. `type`: MIME."""

    tag: str
    content: bytes
    type: str


@dataclass
class Event:
    """One event. `time`: UTC epoch seconds; `left_out`: what was in it that is not taken, by kind."""

    time: float = 0.0
    step: int = 0
    scalars: list[tuple[str, float]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


class EventReader:
    """Reads the events of one file in their order: what a tag is, is said with its first value only."""

    def __init__(self) -> None:
        self._plugins: dict[str, str] = {}

    def read(self, message: bytes) -> Event:
        """One event; BadMessage where the bytes are none."""
        event = Event()
        for found in read_fields(message):
            if found.number == 1:
                event.time = found.number_as("<d")
            elif found.number == 2:
                event.step = found.whole
            elif found.number == 5:
                for value in read_fields(found.content):
                    if value.number == 1:
                        self._take(event, _Value.read(value.content))
            elif found.number in _GRAPHS:
                event.left_out.append(_GRAPHS[found.number])
        return event

    def _take(self, event: Event, value: _Value) -> None:
        plugin = value.plugin or self._plugins.get(value.tag, "")
        self._plugins[value.tag] = plugin
        if value.simple is not None:
            event.scalars.append((value.tag, value.simple))
        elif value.tag == _HPARAMS_TAG:
            event.params |= _params_of(value.content)
        elif value.picture is not None:
            self._take_picture(event, value.tag, value.picture)
        elif value.tensor is None:
            event.left_out.append(value.kind or plugin or "value of an unknown kind")
        else:
            self._take_tensor(event, value.tag, plugin, _Tensor.read(value.tensor))

    def _take_tensor(self, event: Event, tag: str, plugin: str, tensor: _Tensor) -> None:
        if plugin == _TEXT:
            text = "\n\n".join(part.decode("utf-8", "replace") for part in tensor.strings)
            event.texts.append((tag.removesuffix("/text_summary"), text))
        elif plugin == _IMAGES and len(tensor.strings) > 2:
            # Width and height come first, as texts.
            for number, content in enumerate(tensor.strings[2:]):
                self._take_picture(event, f"{tag}/{number}" if number else tag, content)
        elif plugin in (_SCALARS, "") and len(tensor.numbers) == 1 and not tensor.dimensions:
            event.scalars.append((tag, tensor.numbers[0]))
        else:
            event.left_out.append(_PLURALS.get(plugin, plugin) or "tensor")

    def _take_picture(self, event: Event, tag: str, content: bytes) -> None:
        for magic, kind in ((_PNG, "image/png"), (_JPEG, "image/jpeg")):
            if content.startswith(magic):
                event.pictures.append(Picture(tag, content, kind))
                return
        event.left_out.append("picture that is no PNG or JPEG")


_PLURALS = {"histograms": "histogram", "scalars": "scalar of more than one value", "images": "picture"}


@dataclass
class _Value:
    """A value of a summary, as far as it is looked into."""

    tag: str = ""
    plugin: str = ""
    content: bytes = b""
    kind: str = ""
    simple: float | None = None
    picture: bytes | None = None
    tensor: bytes | None = None

    @classmethod
    def read(cls, message: bytes) -> _Value:
        value = cls()
        for found in read_fields(message):
            if found.number == 1:
                value.tag = found.text
            elif found.number == 2:
                value.simple = found.number_as("<f")
            elif found.number == 8:
                value.tensor = found.content
            elif found.number == 9:
                value._read_plugin(found.content)
            elif found.number in _KINDS:
                value.kind = _KINDS[found.number]
                if found.number == 4:
                    value.picture = _last_bytes(found.content, 4)
        return value

    def _read_plugin(self, metadata: bytes) -> None:
        for found in read_fields(metadata):
            if found.number == 1:
                for part in read_fields(found.content):
                    if part.number == 1:
                        self.plugin = part.text
                    elif part.number == 2:
                        self.content = part.content


@dataclass
class _Tensor:
    """A tensor of texts or numbers. `dimensions`: how many it has; 0 is a single value."""

    dimensions: int = 0
    strings: list[bytes] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, message: bytes) -> _Tensor:
        fields = list(read_fields(message))
        kind = next((found.whole for found in fields if found.number == 1), 0)
        tensor = cls()
        for found in fields:
            if found.number == 2:
                tensor.dimensions = sum(1 for part in read_fields(found.content) if part.number == 2)
            elif found.number == 8 and kind == _STRING:
                tensor.strings.append(found.content)
            else:
                tensor.numbers += _numbers(found, kind)
        return tensor


def _numbers(found: Field, kind: int) -> list[float]:
    """The numbers that a field of a tensor of this kind holds."""
    forms = {(4, _FLOAT): "<f", (5, _FLOAT): "<f", (4, _DOUBLE): "<d", (6, _DOUBLE): "<d"}
    forms |= {(4, whole): form for whole, (form, _) in _WHOLE.items()} | {(4, _HALF): "<e"}
    form = forms.get((found.number, kind))
    if form is not None:
        return found.numbers_as(form)
    if (kind in _WHOLE and found.number == _WHOLE[kind][1]) or (kind == _BOOL and found.number == 11):
        return [float(number) for number in _varints(found)]
    return []


def _varints(found: Field) -> list[int]:
    """Repeated whole numbers: one, or packed (as the fields of a message whose keys are left out)."""
    if isinstance(found.value, int):
        return [found.whole]
    # A key for field 1 before each number makes a message of them.
    packed, numbers, start = found.value, [], 0
    for at, byte in enumerate(packed):
        if byte < 0x80:
            numbers += [one.whole for one in read_fields(b"\x08" + packed[start : at + 1])]
            start = at + 1
    return numbers


def _last_bytes(message: bytes, number: int) -> bytes | None:
    held = None
    for found in read_fields(message):
        if found.number == number:
            held = found.content
    return held


def _params_of(content: bytes) -> dict[str, Any]:
    """The hyperparameters in what the hparams plugin says at a session's start."""
    params: dict[str, Any] = {}
    for start in _messages(content, 3):
        for entry in _messages(start, 1):
            name, value = "", None
            for part in read_fields(entry):
                if part.number == 1:
                    name = part.text
                elif part.number == 2:
                    value = _value_of(part.content)
            params[name] = value
    return params


def _messages(message: bytes, number: int) -> list[bytes]:
    return [found.content for found in read_fields(message) if found.number == number]


def _value_of(message: bytes) -> Any:
    """A google.protobuf.Value that is a number, a text or a truth; None for all else."""
    readers: dict[int, Callable[[Field], Any]] = {
        2: lambda found: _plain_number(found.number_as("<d")),
        3: lambda found: found.text,
        4: lambda found: bool(found.whole),
    }
    value = None
    for found in read_fields(message):
        if found.number in readers:
            value = readers[found.number](found)
    return value


def _plain_number(number: float) -> float | int:
    """Protocol buffers have no whole numbers there: 64 was written as 64.0."""
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
