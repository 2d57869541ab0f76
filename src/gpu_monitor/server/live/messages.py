"""What passes over the live socket: what a client asks for, and the messages it is sent, as JSON text."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

MESSAGE_BYTES = 32 * 1024
"""Of one message from a client: 256 names of 40 characters are 11 KB."""
NAMES = 256
"""Nodes and GPUs named in one subscription; who wants more asks for `all`."""
EXPERIMENTS = 64
"""Named in one subscription: each is asked for anew when it changed."""
ALL_GPUS = 10_000
"""As many cells as a heat map draws in 70 ms; beyond it `all` GPUs is refused."""


class AskError(Exception):
    """A client's message that cannot be served; the text says why, for the client."""


class Wanted(msgspec.Struct, frozen=True):
    """What to tell of. Names of `nodes` are node ids; of `gpus` GPU uids, or node ids for all GPUs of a node; of
    `experiments` their ids."""

    fleet: bool = False
    nodes: Literal["all"] | list[str] = []
    gpus: Literal["all"] | list[str] = []
    include: Literal["simulated"] | None = None
    experiments: list[str] = []


class Ask(msgspec.Struct, frozen=True):
    """A client's message: it replaces what was asked before. `cursor`: of the last message it has."""

    subscribe: Wanted
    cursor: str | None = None


@dataclass(frozen=True)
class Subscription:
    """Who sees the same gets the same bytes. `contracts` None: all; `nodes` and `gpus` None: all."""

    fleet: bool
    nodes: frozenset[str] | None
    gpus: frozenset[str] | None
    simulated: bool
    contracts: frozenset[int] | None
    experiments: frozenset[str] = frozenset()

    @property
    def digest(self) -> bytes:
        """Eight bytes that name this subscription, in every process."""
        parts: tuple[Any, ...] = (
            self.fleet, _sorted(self.nodes), _sorted(self.gpus), self.simulated, _sorted(self.contracts)
        )  # fmt: skip
        if self.experiments:
            parts += (_sorted(self.experiments),)
        return hashlib.sha256(repr(parts).encode()).digest()[:8]


def _sorted(names: frozenset[str] | frozenset[int] | None) -> list[Any] | None:
    return None if names is None else sorted(names)


DEFAULT = Wanted(fleet=True)
"""What a client sees that asks for nothing."""


@dataclass(frozen=True)
class Cursor:
    """Up to which change a client has seen what: `time` proves that it is a change of this database."""

    seq: int
    time: float
    digest: bytes


_CURSOR = struct.Struct(">qd8s")


def write_cursor(cursor: Cursor) -> str:
    """The cursor as clients keep it."""
    packed = _CURSOR.pack(cursor.seq, cursor.time, cursor.digest)
    return base64.urlsafe_b64encode(packed).decode()


def read_cursor(text: str) -> Cursor | None:
    """The cursor in `text`; None where it is none of ours."""
    try:
        return Cursor(*_CURSOR.unpack(base64.urlsafe_b64decode(text.encode())))
    except (ValueError, struct.error):
        return None


_decode_ask = msgspec.json.Decoder(Ask).decode


def read_ask(text: str) -> Ask:
    """The client's message; AskError where it is none, or asks for too much."""
    try:
        ask = _decode_ask(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise AskError(
            f'not understood: {error}; send {{"subscribe": {{"fleet": true, "nodes": "all", "gpus": []}}}}'
        ) from error
    named = sum(len(names) for names in (ask.subscribe.nodes, ask.subscribe.gpus) if names != "all")
    if named > NAMES:
        raise AskError(f"{named} names in one subscription; the most are {NAMES}: ask for all")
    if len(ask.subscribe.experiments) > EXPERIMENTS:
        raise AskError(
            f"{len(ask.subscribe.experiments)} experiments in one subscription; the most are {EXPERIMENTS}"
        )
    return ask


def subscription(wanted: Wanted, contracts: frozenset[int] | None) -> Subscription:
    """What `wanted` means for someone who may see `contracts`."""
    return Subscription(
        fleet=wanted.fleet,
        nodes=None if wanted.nodes == "all" else frozenset(wanted.nodes),
        gpus=None if wanted.gpus == "all" else frozenset(wanted.gpus),
        simulated=wanted.include == "simulated",
        contracts=contracts,
        experiments=frozenset(wanted.experiments),
    )


@dataclass(frozen=True)
class Parts:
    """What a message holds; `fleet` None and empty lists are left out, but for a reset."""

    cursor: str
    time: str
    reset: bool
    fleet: bytes | None
    nodes: Sequence[bytes]
    gpus: Sequence[bytes]
    experiments: Sequence[bytes] = ()


def compose(parts: Parts) -> str:
    """The JSON text of a message, from pieces that are JSON already."""
    pieces: list[bytes] = [
        b'{"cursor":"%s","time":"%s","reset":%s'
        % (parts.cursor.encode(), parts.time.encode(), b"true" if parts.reset else b"false")
    ]
    if parts.fleet is not None:
        pieces += [b',"fleet":', parts.fleet]
    for name, items in ((b"nodes", parts.nodes), (b"gpus", parts.gpus)):
        if items or parts.reset:
            pieces += [b',"', name, b'":[', *_joined(items), b"]"]
    if parts.experiments:
        pieces += [b',"experiments":[', *_joined(parts.experiments), b"]"]
    pieces.append(b"}")
    return b"".join(pieces).decode()


def _joined(items: Iterable[bytes]) -> list[bytes]:
    return [b",".join(items)]


def refusal(text: str) -> str:
    """A message that says why the last ask was not served."""
    return msgspec.json.encode({"error": text}).decode()
