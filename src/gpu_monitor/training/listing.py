# SPDX-License-Identifier: MIT
"""All experiments of a directory, and what a name means among them.

What was found out is kept in `.listing` in the directory, where the user may write there: a cache that may be deleted
at any time. An entry holds for as long as its folder has not changed, and its logs where it still runs.
"""

from __future__ import annotations

import difflib
import operator
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import NothingFound
from gpu_monitor.training.place import is_id, segments_in, split_name
from gpu_monitor.training.stored import StoredExperiment

if sys.platform != "win32":
    import fcntl

CACHE = ".listing"
_MAGIC = b"GMLS\x02\x00\x00\x00"
_SETTLED_NS = 2_000_000_000
"""A folder that changed so shortly before it was read may have changed again within the same tick of its clock."""
_FEW = 20
"""So many entries of running experiments may be out of date before the cache is written anew."""
_NEAREST = 3


class Listed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One experiment of a list. Times are UTC epoch seconds; `ended` is None while it runs, `last_step` before the first.

    `changed`: when its log was last written to. `seconds`: how long it took; None while it runs, and where its clocks do
    not tell. `damaged`: lines of its logs that hold no record.
    """

    id: str
    name: str
    project: str
    status: str
    started: float
    ended: float | None
    changed: float
    last_step: int | None
    params: dict[str, Any]
    tags: dict[str, str]
    simulated: bool
    damaged: int
    seconds: float | None


class _Entry(msgspec.Struct, array_like=True, gc=False):
    """`folder_ns`: when the folder changed last; 0: not to be relied on."""

    folder_ns: int
    listed: Listed


_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[list[_Entry]] = msgspec.msgpack.Decoder(list[_Entry])


@dataclass(frozen=True)
class Meant:
    """The experiment that a name means. `said`: which one that is, in words; None where the id itself was given."""

    experiment_id: str
    said: str | None = None


def list_experiments(directory: str | Path) -> list[Listed]:
    """All experiments of a directory, the newest first; none where there is no such directory."""
    directory = Path(directory)
    held = _read_cache(directory / CACHE)
    now = round(SystemClock().now() * 1e9)
    found: list[_Entry] = []
    stale = fresh = 0
    try:
        folders = os.scandir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    with folders:
        for folder in folders:
            entry = held.pop(folder.name, None)
            if entry is None and (not is_id(folder.name) or not folder.is_dir(follow_symlinks=False)):
                continue
            try:
                changed = folder.stat(follow_symlinks=False).st_mtime_ns
            except FileNotFoundError:
                continue
            if entry is None or entry.folder_ns != changed:
                was_running = entry is not None and entry.listed.status == "running"
                entry = _read(directory / folder.name, now)
                stale += 1
                fresh += not was_running or entry is None or entry.listed.status != "running"
            if entry is not None:
                found.append(entry)
    if fresh or held or stale > _FEW:
        _write_cache(directory / CACHE, found)
    return sorted([one.listed for one in found], key=_by_age, reverse=True)


_by_age = operator.attrgetter("started", "id")


def _read(folder: Path, now: int) -> _Entry | None:
    """What a folder says; None where it holds no experiment (any more)."""
    try:
        stored = StoredExperiment(folder)
        folder_ns = folder.stat().st_mtime_ns
    except (NothingFound, OSError):
        return None
    status = stored.status
    listed = Listed(
        id=stored.id,
        name=stored.name,
        project=stored.project,
        status=status,
        started=stored.started,
        ended=None if status == "running" else stored.ended,
        changed=max(segment.changed for segment in stored.segments),
        last_step=stored.last_step,
        params=stored.params,
        tags=stored.tags,
        simulated=stored.simulated,
        damaged=stored.damaged,
        seconds=stored.seconds,
    )
    is_settled = status != "running" and now - folder_ns >= _SETTLED_NS
    return _Entry(folder_ns if is_settled else 0, listed)


def resolve(directory: str | Path, text: str) -> Meant:
    """The experiment that an id or a name means: of several with a name the newest, with `~2` the one before, and so on.

    NothingFound, with the nearest names, where there is none.
    """
    directory = Path(directory)
    if is_id(text) and segments_in(directory / text):
        return Meant(text)
    listed = list_experiments(directory)
    name, back = text, 1
    if not any(one.name == text for one in listed):
        name, back = split_name(text)
    same = [one.id for one in listed if one.name == name]
    if len(same) >= back:
        which = "the only one" if len(same) == 1 else f"number {back} of {len(same)}, the newest first"
        return Meant(same[back - 1], f"{text} is {same[back - 1]}, {which}")
    if same:
        word = "experiment is" if len(same) == 1 else "experiments are"
        raise NothingFound(f"{len(same)} {word} called {name!r} in {directory}: there is no number {back}")
    known = dict.fromkeys([one.name for one in listed] + [one.id for one in listed])
    near = difflib.get_close_matches(name, list(known), n=_NEAREST, cutoff=0.5)
    hint = f"Nearest: {', '.join(near)}." if near else None if known else "There are no experiments at all."
    raise NothingFound(f"no experiment {text[:200]!r} in {directory}", hint)


def _read_cache(path: Path) -> dict[str, _Entry]:
    """The entries of the last look by id; none where the cache is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    body = memoryview(data)[12:]
    if data[:8] != _MAGIC or zlib.crc32(body) != int.from_bytes(data[8:12], "little"):
        return {}
    try:
        return {entry.listed.id: entry for entry in _decoder.decode(body)}
    except msgspec.MsgspecError:
        return {}


def _write_cache(path: Path, entries: list[_Entry]) -> None:
    """Put the entries in the place of the last ones, where this user may; of several at once one does."""
    try:
        body = _encode(entries)
    except OverflowError:  # of a parameter beyond 64 bits: such an experiment is read each time
        body = _encode([entry for entry in entries if _is_plain(entry)])
    try:
        file = os.open(path.with_name(f"{CACHE}.new"), _FLAGS, 0o644)
    except OSError:
        return
    try:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        view = memoryview(_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)
        while view:
            view = view[os.write(file, view) :]
        path.with_name(f"{CACHE}.new").replace(path)
    except OSError:
        return
    finally:
        os.close(file)


def _is_plain(entry: _Entry) -> bool:
    try:
        _encode(entry)
    except OverflowError:
        return False
    return True


_FLAGS = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
