# SPDX-License-Identifier: MIT
"""Artifacts of an experiment: files and folders, stored by their content, each content once.

Files are cloned or copied (`copying`), never linked, but for those that this experiment itself has stored.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import GpuMonitorError, NothingFound
from gpu_monitor.training.checkpoints import FOLDER as CHECKPOINTS
from gpu_monitor.training.checkpoints import Book, list_checkpoints
from gpu_monitor.training.copying import copy_steady, link_or_copy
from gpu_monitor.training.drafts import drafting, move, sync_folder
from gpu_monitor.training.holdings import Holdings
from gpu_monitor.wire.artifact_names import NameRefused, check_name
from gpu_monitor.wire.training import Media

FOLDER = "artifacts"
KIND = "artifact"
_OWN = frozenset({FOLDER, "models", "media"})
"""Folders of an experiment whose files are never written to again, as are checkpoints that are on record."""


_AT_A_TIME = 8
"""Files of a folder that are copied beside one another."""
_BATCH = 256
"""Files of a folder that are stored before they are recorded."""


class ArtifactRefused(GpuMonitorError):
    """Something that is not taken as an artifact."""


@dataclass(frozen=True)
class Artifact:
    """One stored file. `path`: where its content lies; `kind`: what its user said it is, None: nothing."""

    experiment_id: str
    name: str
    path: Path
    sha256: str
    size: int
    type: str
    kind: str | None = None

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class _Source:
    """A file to store: its name, where it is, and what it was when it was looked at."""

    name: str
    path: Path
    seen: os.stat_result


@dataclass(frozen=True)
class _Stored:
    """A content in the store; `is_new`: its folder is still to be synced."""

    sha256: str
    size: int
    is_new: bool


class Artifacts:
    """Stores the artifacts of one writer of an experiment. Safe for threads."""

    def __init__(self, book: Book, clock: Clock | None = None) -> None:
        self._book = book
        self._clock = clock or SystemClock()
        self._holdings = Holdings(book.folder, frozenset({KIND}))

    def log(self, path: str | Path, name: str | None = None, kind: str | None = None) -> list[Artifact]:
        """Store a file, or all files of a folder under `name/…`; what is stored, unchanged ones included.

        NameRefused and ArtifactRefused before anything is stored, where a name or a kind of file is not taken;
        CopyRefused for a file that changes each time it is read; NothingFound where there is nothing.
        """
        source = Path(path)
        if not source.exists():
            raise NothingFound(f"{source} is not there", "Give the path of a file or folder.")
        sources = list(self._sources(source, check_name(name if name is not None else source.resolve().name)))
        if not sources:
            raise NothingFound(f"the folder {source} holds no file", "An artifact is made of files.")
        known = {artifact.name: artifact for artifact in artifacts_of(self._holdings)}
        folder = name if name is not None and source.is_dir() else None
        with drafting(self._book.folder / FOLDER) as draft:
            return [
                self._put(found, stored, known.get(found.name), kind, folder)
                for batch in _batches(sources)
                for found, stored in zip(batch, self._store(batch, draft), strict=True)
            ]

    def _sources(self, source: Path, name: str) -> Iterator[_Source]:
        real = source.resolve()
        if not real.is_dir():
            yield _checked(name, real)
            return
        if self._book.folder.resolve().is_relative_to(real):
            raise ArtifactRefused(
                f"{source} holds the experiment itself", "Choose a folder that does not hold the experiments."
            )
        for inside, found in _files(real, real):
            yield _checked(check_name(f"{name}/{inside}"), found)

    def _put(
        self, source: _Source, stored: _Stored, known: Artifact | None, kind: str | None, folder: str | None
    ) -> Artifact:
        """Record what was stored, where that is news."""
        file = _file_of(stored.sha256)
        path = self._book.folder / file
        mime = _mime(source.name)
        artifact = Artifact(
            self._book.experiment_id, source.name, path, stored.sha256, stored.size, mime, kind
        )
        if artifact != known:
            more: dict[str, Any] = {"sha256": stored.sha256, "size": stored.size, "type": mime, "file": file}
            more |= {"artifact_type": kind} if kind is not None else {}
            more |= {"folder": folder} if folder is not None else {}
            self._book.put(Media(self._book.at(), self._book.step(), KIND, source.name, more))
        return artifact

    def _store(self, sources: Sequence[_Source], draft: Path) -> list[_Stored]:
        """Bring the contents of files into the store, and to the disk before this returns."""
        if len(sources) == 1:
            stored = [self._store_one(sources[0], draft / "0")]
        else:
            stored = self._store_beside(sources, draft)
        for folder in sorted(
            {(self._book.folder / _file_of(one.sha256)).parent for one in stored if one.is_new}
        ):
            sync_folder(folder)
        if any(one.is_new for one in stored):
            sync_folder(self._book.folder / FOLDER)
        return stored

    def _store_beside(self, sources: Sequence[_Source], draft: Path) -> list[_Stored]:
        """Several at a time: nearly all of it is waiting for the disk, which takes many files as fast as one.

        The caller's thread is one of those that work: where no other can be had (the interpreter is ending), it does all.
        """
        stored: dict[int, _Stored] = {}
        failed: dict[int, OSError | GpuMonitorError] = {}
        numbers, is_over = itertools.count(), threading.Event()

        def work() -> None:
            while not failed and not is_over.is_set() and (number := next(numbers)) < len(sources):
                try:
                    stored[number] = self._store_one(sources[number], draft / str(number))
                except (OSError, GpuMonitorError) as error:  # raised below, in the caller's thread
                    failed[number] = error

        crew = [
            threading.Thread(target=work, name="gpu_monitor-artifacts", daemon=True)
            for _ in range(_AT_A_TIME - 1)
        ]
        with contextlib.suppress(RuntimeError):
            for one in crew:
                one.start()
        try:
            work()
        finally:
            is_over.set()
        for one in crew:
            if one.ident is not None:
                one.join()
        if failed:
            raise failed[min(failed)]
        return [stored[number] for number in range(len(sources))]

    def _store_one(self, source: _Source, file: Path) -> _Stored:
        """Bring one file's content into the store by way of `file`, in a draft."""
        if self._is_own(source.path):
            sha256, size = link_or_copy(source.path, file, self._clock)
        else:
            sha256, size = copy_steady(source.path, file, self._clock, source.seen)
        target = self._book.folder / _file_of(sha256)
        if _holds(target, size):
            file.unlink()
            return _Stored(sha256, size, False)
        target.parent.mkdir(exist_ok=True)
        move(file, target)
        return _Stored(sha256, size, True)

    def _is_own(self, path: Path) -> bool:
        with contextlib.suppress(ValueError):
            parts = path.relative_to(self._book.folder.resolve()).parts
            if parts[0] == CHECKPOINTS:
                return parts[1:] in {(found.path.name,) for found in list_checkpoints(self._book.folder)}
            return len(parts) > 1 and parts[0] in _OWN
        return False


def list_artifacts(folder: Path) -> list[Artifact]:
    """The artifacts of the experiment in `folder`, the newest of each name, by name."""
    return artifacts_of(Holdings(folder, frozenset({KIND})))


def artifacts_of(holdings: Holdings) -> list[Artifact]:
    """As `list_artifacts`, for holdings that were read before."""
    newest: dict[str, Artifact] = {}
    for held in sorted(holdings.read(), key=lambda held: held.time):
        more = held.media.more
        sha256, size, kind = more.get("sha256"), more.get("size"), more.get("artifact_type")
        if not isinstance(sha256, str) or not isinstance(size, int) or more.get("file") != _file_of(sha256):
            continue
        with contextlib.suppress(NameRefused):
            name = check_name(held.media.name)
            newest[name] = Artifact(
                holdings.folder.name, name, holdings.folder / _file_of(sha256), sha256, size, str(more["type"]), kind
            )  # fmt: skip
    return [newest[name] for name in sorted(newest)]


def _file_of(sha256: str) -> str:
    return f"{FOLDER}/{sha256[:2]}/{sha256}"


def _mime(name: str) -> str:
    """The MIME type by a name's ending."""
    import mimetypes  # reads the system's tables: only where an artifact is logged

    return mimetypes.guess_type(name, strict=False)[0] or "application/octet-stream"


def _checked(name: str, path: Path) -> _Source:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ArtifactRefused(
            f"{path} is no file: {_kind_of(found.st_mode)}", "Artifacts are files, and folders of files."
        )
    return _Source(name, path, found)


def _kind_of(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a block device",
        stat.S_IFCHR: "a character device", stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "of an unknown kind")


def _files(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """Each file under `folder`, by its name under `root`; a link inside stands for the file that it leads to."""
    for entry in sorted(folder.iterdir()):
        inside = entry.relative_to(root).as_posix()
        if not entry.is_symlink():
            if entry.is_dir():
                yield from _files(entry, root)
            else:
                yield inside, entry
            continue
        target = entry.resolve()
        if not target.is_relative_to(root) or not target.is_file():
            raise ArtifactRefused(
                f"{entry} is a link to {entry.readlink()}: out of the folder, or to no file",
                "Put the files themselves into the folder.",
            )
        yield inside, target


def _batches(sources: Sequence[_Source]) -> Iterator[Sequence[_Source]]:
    for start in range(0, len(sources), _BATCH):
        yield sources[start : start + _BATCH]


def _holds(target: Path, size: int) -> bool:
    """Whether a content is stored already."""
    try:
        found = target.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size
