# SPDX-License-Identifier: MIT
"""Checkpoints of an experiment: saved whole or not at all, listed, loaded with their digest, removed by policy.

A file is on the disk before the record that names it, and gone before the record that says so. A policy removes
only files that this experiment's records name, of the same rank and saved under the same policy.
"""

from __future__ import annotations

import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gpu_monitor.core.errors import GpuMonitorError, NothingFound
from gpu_monitor.training.drafts import digest, drafting, place
from gpu_monitor.training.holdings import Held, Holdings
from gpu_monitor.training.keeping import Keep, KeepRefused, Standing, parse_keep, surplus
from gpu_monitor.training.states import choose_format, read_state, write_state
from gpu_monitor.training.values import number_in
from gpu_monitor.wire.training import BadRecord, Media, number_of, written

FOLDER = "checkpoints"
KIND = "checkpoint"
_KINDS = frozenset({KIND})


class Damaged(GpuMonitorError):
    """A file is not what its record says it is."""


class Book(Protocol):
    """What checkpoints need of the recorder of an experiment."""

    @property
    def experiment_id(self) -> str:
        """The experiment's id."""
        ...

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        ...

    @property
    def segment(self) -> str:
        """The name of the segment that records go to now."""
        ...

    @property
    def started(self) -> float:
        """When that segment started, UTC epoch seconds."""
        ...

    def at(self) -> int:
        """Milliseconds since the segment's start."""
        ...

    def put(self, record: Any) -> None:
        """Append one record."""
        ...

    def step(self) -> int | None:
        """The last step."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A saved checkpoint. `time`: UTC epoch seconds; `metrics`: what it was saved with; `format`: see `states`.

    It stands for its path wherever a path is taken (`torch.load(checkpoint)`, `open(checkpoint)`).
    """

    experiment_id: str
    name: str
    path: Path
    sha256: str
    size: int
    format: str
    epoch: int
    step: int | None
    time: float
    metrics: Mapping[str, float]
    keep: str = "all"
    rank: int | None = None
    order: int = 0

    def __fspath__(self) -> str:
        return str(self.path)


class Checkpoints:
    """Saves the checkpoints of one writer of an experiment and keeps what its policies say. Safe for threads."""

    def __init__(self, book: Book, rank: int | None = None) -> None:
        self._book = book
        self._rank = rank
        self._holdings = Holdings(book.folder, _KINDS)

    def save(
        self, state: Any, epoch: int, metrics: Mapping[str, Any] | None = None, keep: str = "all"
    ) -> Checkpoint | None:
        """Save `state` and remove what `keep` no longer wants; None where it is not among the best itself.

        StateRefused, KeepRefused, OSError and what the framework raises where it cannot be saved; nothing is
        left behind then, and nothing was removed.
        """
        policy, values = parse_keep(keep), numbers_in(metrics or {})
        if policy.metric is not None and policy.metric not in values:
            raise KeepRefused(
                f"keep={keep!r} needs metrics with {policy.metric!r} in it",
                f"Call save_checkpoint(state, epoch, metrics={{{policy.metric!r}: value}}, keep=…).",
            )
        name = self._new_name(epoch)
        if _is_beaten(policy, Standing(name, self._next_order(policy), values), self._rivals(policy)):
            return None
        chosen = choose_format(state)
        folder = self._book.folder / FOLDER
        target = folder / f"{name}{chosen.suffix}"
        with drafting(folder) as draft:
            file = draft / target.name
            write_state(state, chosen, file)
            sha256, size = digest(file)
            place(file, target)
        more: dict[str, Any] = {
            "sha256": sha256, "size": size, "type": chosen.type, "file": f"{FOLDER}/{target.name}",
            "format": chosen.name, "epoch": epoch, "keep": policy.text, "order": self._next_order(policy),
            "metrics": {key: written(value) for key, value in values.items()},
        }  # fmt: skip
        if self._rank is not None:
            more["rank"] = self._rank
        media = Media(self._book.at(), self._book.step(), KIND, name, more)
        self._book.put(media)
        self._remove_surplus(policy)
        saved = Held(self._book.segment, self._book.started + media.at / 1000, media)
        return checkpoint_of(self._book.folder, saved)

    def all(self) -> list[Checkpoint]:
        """The checkpoints of the experiment, of all its writers, whose files are there: the first saved first."""
        return checkpoints_of(self._holdings)

    def _new_name(self, epoch: int) -> str:
        rank = "" if self._rank is None else f"-rank-{self._rank}"
        return f"epoch-{epoch:04d}{rank}-{secrets.token_hex(4)}"

    def _rivals(self, policy: Keep) -> list[Checkpoint]:
        """What is there of this rank and under this policy."""
        if policy.count is None:
            return []
        return [
            found for found in self.all() if found.rank == self._rank and policy.rules(parse_keep(found.keep))
        ]

    def _next_order(self, policy: Keep) -> int:
        """Ahead of all that this process knows of, so that every process puts them in one order."""
        return 1 + max((rival.order for rival in self._rivals(policy)), default=0)

    def _remove_surplus(self, policy: Keep) -> None:
        rivals = [(_standing(rival), rival) for rival in self._rivals(policy)]
        for checkpoint in surplus(policy, rivals):
            checkpoint.path.unlink(missing_ok=True)
            more = {"removed": True, "file": f"{FOLDER}/{checkpoint.path.name}"}
            self._book.put(Media(self._book.at(), self._book.step(), KIND, checkpoint.name, more))


def numbers_in(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers; tensors and arrays of one element are."""
    found = {str(name): number_in(value) for name, value in metrics.items()}
    return {name: float(number) for name, number in found.items() if number is not None}


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints that an experiment's folder holds, the first saved first."""
    return checkpoints_of(Holdings(folder, _KINDS))


def checkpoints_of(holdings: Holdings) -> list[Checkpoint]:
    """As `list_checkpoints`, for holdings that were read before."""
    found: dict[str, Checkpoint] = {}
    for held in holdings.read():
        checkpoint = checkpoint_of(holdings.folder, held)
        if checkpoint is not None and _is_whole(checkpoint):
            found[checkpoint.name] = checkpoint
    return sorted(found.values(), key=lambda one: (one.time, one.order, one.name))


def load_checkpoint(source: Checkpoint | str | Path, sha256: str | None = None) -> Any:
    """The state that was saved, tensors on the CPU, once the file's digest is the one on record.

    `source` is what `save_checkpoint` gave, or a path. `sha256`: the digest to go by, for a file that no record
    names. Never runs what a file says: torch's own format is read with `weights_only`. Damaged where the digest
    differs; NothingFound where there is no file, or no digest to go by.
    """
    path = Path(source)
    if not path.is_file():
        raise NothingFound(
            f"{path} is not there", "It may have been removed by the policy that it was saved under."
        )
    known = source if isinstance(source, Checkpoint) else _on_record(path)
    expected = sha256 or (known.sha256 if known is not None else None)
    if expected is None:
        raise NothingFound(
            f"no record beside {path} names it, so its digest is not known",
            "Give sha256=… if you know where the file comes from.",
        )
    found, _ = digest(path)
    if found != expected:
        raise Damaged(
            f"{path} is damaged: its SHA-256 is {found}, on record is {expected}", "Take another one."
        )
    return read_state(path, known.format if known is not None else _format_by_name(path))


def _on_record(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, from the records of the experiment in whose folder it lies."""
    path = path.resolve()
    beside = list_checkpoints(path.parent.parent) if path.parent.name == FOLDER else []
    return next((found for found in beside if found.path.name == path.name), None)


def _format_by_name(path: Path) -> str:
    from_suffix = {".safetensors": "safetensors", ".pt": "pickle", ".npz": "npz", ".npy": "npy"}
    return from_suffix.get(path.suffix, "bytes")


def _standing(checkpoint: Checkpoint) -> Standing:
    return Standing(checkpoint.name, checkpoint.order, checkpoint.metrics)


def _is_beaten(policy: Keep, newcomer: Standing, rivals: list[Checkpoint]) -> bool:
    """Whether there are enough that are better, so that the newcomer would go at once."""
    if policy.metric is None:
        return False
    return newcomer in surplus(policy, [(one, one) for one in [newcomer, *map(_standing, rivals)]])


def _is_whole(checkpoint: Checkpoint) -> bool:
    try:
        found = checkpoint.path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == checkpoint.size


def checkpoint_of(folder: Path, held: Held) -> Checkpoint | None:
    """The checkpoint that a record names; None for one that says something was removed, or that makes no sense."""
    more = held.media.more
    file = more.get("file")
    if more.get("removed") or not isinstance(file, str):
        return None
    place_of, _, name = file.partition("/")
    if place_of != FOLDER or not name or name != Path(name).name or "\\" in name or name.startswith("."):
        return None
    try:
        return Checkpoint(
            experiment_id=folder.name, name=held.media.name, path=folder / FOLDER / name,
            sha256=str(more["sha256"]), size=int(more["size"]), format=str(more["format"]),
            epoch=int(more["epoch"]), step=held.media.step, time=held.time,
            metrics={key: number_of(value) for key, value in more.get("metrics", {}).items()},
            keep=parse_keep(str(more.get("keep", "all"))).text, rank=more.get("rank"), order=int(more.get("order", 0)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, BadRecord, KeepRefused, AttributeError):
        return None
