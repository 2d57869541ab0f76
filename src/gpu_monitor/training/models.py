# SPDX-License-Identifier: MIT
"""The register of models: versions of a name, each with its file, its digest, and the experiment it came from.

A version's file is a link to (or a copy of) the checkpoint, in `models/` of the experiment: no policy for
checkpoints removes it. Numbers are given under `<directory>/.models/`, one empty file each, so that experiments that
run at once get different ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import GpuMonitorError, NothingFound
from gpu_monitor.training.checkpoints import Book, Checkpoint, Damaged, list_checkpoints, numbers_in
from gpu_monitor.training.copying import copy_steady, link_or_copy
from gpu_monitor.training.drafts import digest, drafting, place
from gpu_monitor.training.holdings import Held, Holdings
from gpu_monitor.wire.training import EXPERIMENT_ID, BadRecord, Media, number_of, written

FOLDER = "models"
KIND = "model"
_NUMBERS = ".models"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


class ModelRefused(GpuMonitorError):
    """A name or stage that a model cannot have."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model. `time`: UTC epoch seconds; `checkpoint`: the name of the one it came from, None: a file.

    `metrics`: those it was registered with, else those of its checkpoint. It stands for its path.
    """

    name: str
    version: int
    experiment_id: str
    path: Path
    sha256: str
    size: int
    type: str
    time: float
    metrics: Mapping[str, float]
    stage: str | None = None
    checkpoint: str | None = None
    epoch: int | None = None
    format: str | None = None

    def __fspath__(self) -> str:
        return str(self.path)


class Models:
    """Registers the models of one experiment."""

    def __init__(self, book: Book, clock: Clock | None = None) -> None:
        self._book = book
        self._clock = clock or SystemClock()

    def register(
        self,
        name: str,
        source: Checkpoint | str | Path | None,
        metrics: Mapping[str, Any] | None = None,
        stage: str | None = None,
    ) -> ModelVersion:
        """Make a checkpoint (as saved, or its name or path) or any file the next version of the model `name`.

        ModelRefused for a name or stage that is none; NothingFound where there is no such file; Damaged where a
        checkpoint is not what its record says.
        """
        if not _NAME.fullmatch(name):
            raise ModelRefused(
                f"{name[:130]!r} cannot name a model",
                "Use up to 128 letters, digits and . _ -, a letter or digit first.",
            )
        if stage is not None and not _STAGE.fullmatch(stage):
            raise ModelRefused(
                f"{stage[:70]!r} cannot name a stage", "Use up to 64 letters, digits, space and . _ -."
            )
        if source is None:
            raise ModelRefused(
                "no checkpoint was given", "One that was not kept (save_checkpoint gave None) has no file."
            )
        known, path = self._found(source)
        folder = self._book.folder / FOLDER
        with drafting(folder) as draft:
            file = draft / "content"
            take = copy_steady if known is None else link_or_copy
            sha256, size = take(path, file, self._clock)
            if known is not None and known.sha256 != sha256:
                raise Damaged(
                    f"{path} is damaged: its digest is not the one on record", "Register another checkpoint."
                )
            version = _take_number(self._book.folder.parent, name)
            target = folder / f"{name}-v{version}{path.suffix if path.suffix.isascii() else ''}"
            place(file, target)
        values = known.metrics if metrics is None and known is not None else numbers_in(metrics or {})
        more: dict[str, Any] = {
            "sha256": sha256, "size": size, "type": "application/octet-stream", "file": f"{FOLDER}/{target.name}",
            "version": version, "metrics": {key: written(value) for key, value in values.items()},
        }  # fmt: skip
        more |= {"stage": stage} if stage is not None else {}
        if known is not None:
            more |= {"checkpoint": known.name, "epoch": known.epoch, "format": known.format}
        media = Media(self._book.at(), self._book.step(), KIND, name, more)
        self._book.put(media)
        registered = Held(self._book.segment, self._book.started + media.at / 1000, media)
        return next(_versions(self._book.folder, [registered]))

    def _found(self, source: Checkpoint | str | Path) -> tuple[Checkpoint | None, Path]:
        """The checkpoint that is meant, where it is one of this experiment's, and the file."""
        if isinstance(source, Checkpoint):
            return source, _there(source.path)
        own = list_checkpoints(self._book.folder)
        named = next((found for found in own if found.name == str(source)), None)
        if named is not None:
            return named, named.path
        path = _there(Path(source)).resolve()
        return next((found for found in own if found.path.resolve() == path), None), path


def list_models(directory: str | Path, name: str | None = None) -> list[ModelVersion]:
    """The versions of all models (or of one) that the experiments in `directory` registered, by name and version."""
    found: list[ModelVersion] = []
    try:
        folders = sorted(Path(directory).iterdir())
    except FileNotFoundError:
        return []
    for folder in folders:
        if EXPERIMENT_ID.fullmatch(folder.name) and (folder / FOLDER).is_dir():
            found += _versions(folder, Holdings(folder, frozenset({KIND})).read())
    return sorted(
        (version for version in found if name in (None, version.name)),
        key=lambda version: (version.name, version.version, version.time),
    )


def find_model(directory: str | Path, name: str, version: int | None = None) -> ModelVersion:
    """A version of a model, the newest where none is named; NothingFound where there is none.

    Where two experiments registered one number (directories that were joined) it is the later one.
    """
    found = [one for one in list_models(directory, name) if version in (None, one.version)]
    if not found:
        wanted = name if version is None else f"{name} version {version}"
        raise NothingFound(
            f"no model {wanted} is registered in {directory}", "list_models(directory) lists all."
        )
    return found[-1]


def verify_model(version: ModelVersion) -> Path:
    """The path of a version whose file is what was registered; Damaged where it is not, NothingFound without one."""
    sha256, size = digest(_there(version.path))
    if (sha256, size) != (version.sha256, version.size):
        raise Damaged(
            f"{version.path} is not what was registered: its SHA-256 is {sha256}", "Register it again."
        )
    return version.path


def _there(path: Path) -> Path:
    if not path.is_file():
        raise NothingFound(
            f"{path} is not there", "Give a checkpoint that is still kept, or the path of a file."
        )
    return path


def _take_number(directory: Path, name: str) -> int:
    """The next version number of `name`, which nobody else gets."""
    taken = directory / _NUMBERS / name
    taken.mkdir(parents=True, exist_ok=True)
    held = [version.version for version in list_models(directory, name)]
    number = max([*held, *(int(file.name) for file in taken.iterdir() if file.name.isdecimal())], default=0)
    while True:
        number += 1
        try:
            (taken / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        return number


def _versions(folder: Path, held: Iterable[Held]) -> Iterator[ModelVersion]:
    return (version for version in (_version(folder, one) for one in held) if version is not None)


def _version(folder: Path, held: Held) -> ModelVersion | None:
    """The version that a record names; None where it makes no sense."""
    more, name = held.media.more, held.media.name
    file = more.get("file")
    if not isinstance(file, str) or not _NAME.fullmatch(name):
        return None
    place_of, _, base = file.partition("/")
    if place_of != FOLDER or not base or base != Path(base).name or "\\" in base or base.startswith("."):
        return None
    try:
        return ModelVersion(
            name=name, version=int(more["version"]), experiment_id=folder.name, path=folder / FOLDER / base,
            sha256=str(more["sha256"]), size=int(more["size"]), type=str(more["type"]), time=held.time,
            metrics={key: number_of(value) for key, value in more.get("metrics", {}).items()},
            stage=more.get("stage"), checkpoint=more.get("checkpoint"), epoch=more.get("epoch"), format=more.get("format"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, BadRecord, AttributeError):
        return None
