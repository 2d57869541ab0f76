# SPDX-License-Identifier: MIT
"""A short-lived process that finds out what would hold up the training: git's answers and the installed packages.

Started through `sources.child.Child`: it takes one request and answers each topic as soon as it knows it.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_monitor.sources.frames import Inbox, pack
from gpu_monitor.sources.lifeline import die_with, private_output, write_frame
from gpu_monitor.training.blobs import Blobs
from gpu_monitor.training.git import DIFF_BYTES, Checkout, NoAnswer, read_checkout
from gpu_monitor.training.masking import mask_text
from gpu_monitor.training.topics import DIFF

_MOST_PACKAGES = 5_000
INLINE_BYTES = 64 << 10
"""A diff up to this long stands in its record, a longer one in a file of its own."""


def main(_board: str, lifeline: str) -> None:
    """Answer what was asked, topic by topic, then end."""
    output = private_output()
    die_with(int(lifeline))
    inbox = Inbox()
    while (found := inbox.take()) is None:
        piece = os.read(0, 65536)
        if not piece:
            return
        inbox.add(piece)
    asked: Any = found[0]
    for answer in answers(asked):
        write_frame(output, pack(answer))


def answers(asked: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each topic of `asked["topics"]` with its facts, and the record of the diff where there is one."""
    if "packages" in asked["topics"]:
        yield "packages", find_packages(asked["path"])
    if "git" in asked["topics"]:
        found, diff = find_git([Path(folder) for folder in asked["folders"]])
        if diff is not None:  # before the facts, which name it
            yield DIFF, keep_diff(diff, Path(asked["experiment"]))
        yield "git", found


def find_packages(path: Sequence[str]) -> dict[str, Any]:
    """Name and version of every distribution on a module search path; the first of a name is the one imported."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=list(path)):
        about = distribution.metadata
        name = about["Name"] if about is not None else None
        if name and name not in found:
            found[str(name)] = str(about["Version"])
        if len(found) >= _MOST_PACKAGES:
            break
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def find_git(folders: Sequence[Path]) -> tuple[dict[str, Any], str | None]:
    """What is said of the first folder that is in a checkout, and its diff, secrets masked; None where there is none."""
    reason = "no folder to look in"
    for number, folder in enumerate(folders):
        try:
            checkout = read_checkout(folder)
        except NoAnswer as error:
            reason = reason if number else str(error)
            continue
        diff = mask_text(checkout.diff.decode("utf-8", "replace")) if checkout.diff else None
        return _facts(checkout), diff
    return {"reason": reason}, None


def _facts(checkout: Checkout) -> dict[str, Any]:
    found: dict[str, Any] = {"root": checkout.root, "commit": checkout.commit, "branch": checkout.branch}
    if checkout.remote is not None:
        found["remote"] = mask_text(checkout.remote)
    if checkout.diff is not None:
        found["dirty"] = bool(checkout.diff)
    if checkout.diff:
        found["diff"] = DIFF
    if checkout.is_cut:
        found["diff_cut_at_bytes"] = DIFF_BYTES
    if checkout.reason is not None:
        found["reason"] = checkout.reason
    return found


def keep_diff(diff: str, experiment: Path) -> dict[str, Any]:
    """What the diff's media record says: the text itself, or the blob that holds it."""
    content = diff.encode("utf-8", "replace")
    if len(content) <= INLINE_BYTES:
        return {"data": content.decode()}
    try:
        return Blobs(experiment).put(content, "text/plain; charset=utf-8").more()
    except OSError as error:
        return {
            "data": "",
            "note": f"the diff of {len(content)} bytes cannot be stored: {os.strerror(error.errno or 0)}",
        }
