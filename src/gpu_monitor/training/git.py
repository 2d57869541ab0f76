# SPDX-License-Identifier: MIT
"""Which commit a program is, and what was changed since: asked of git so that a hostile repository runs nothing.

A repository's own configuration may name programs (file system monitors, filters, external diffs, hooks, pagers,
transports). Each is switched off, or set back to what the user's own configuration says.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DIFF_BYTES = 1 << 20
"""The longest diff that is kept."""
SECONDS = 10.0
"""A command that takes longer is ended: a large repository on a slow disk."""
_SETTINGS = (
    "core.fsmonitor=false", f"core.hooksPath={os.devnull}", "core.pager=cat", "core.untrackedCache=false",
    "diff.external=", "submodule.recurse=false", "safe.bareRepository=explicit", "log.showSignature=false",
    "color.ui=false", "core.quotePath=true",
)  # fmt: skip
_ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_PAGER": "cat", "GIT_ASKPASS": "", "SSH_ASKPASS": "",
    "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C",
}  # fmt: skip
_TRUSTED = ("system", "global", "command")
"""Scopes of configuration that the user or the machine's owner wrote."""


class NoAnswer(Exception):
    """git does not tell; the text says why."""


@dataclass(frozen=True)
class Checkout:
    """What is checked out. `branch` None: detached. `remote`: where it came from, with whatever it holds.

    `diff`: changes of tracked files against the commit, at most DIFF_BYTES; `is_cut` where there were more. None
    where they are not known; `reason` then says why.
    """

    root: str
    commit: str | None = None
    branch: str | None = None
    remote: str | None = None
    diff: bytes | None = None
    is_cut: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class _Place:
    """Where git is asked, and how long each of its commands may take."""

    folder: Path
    seconds: float


def read_checkout(folder: Path, seconds: float = SECONDS) -> Checkout:
    """The checkout that `folder` is in. Raises NoAnswer where it is in none, or git is missing, refuses or hangs.

    `seconds`: what one command may take.
    """
    place = _Place(folder, seconds)
    root = _line(place, "rev-parse", "--show-toplevel")
    if not root or not folder.resolve().is_relative_to(Path(root).resolve()):
        raise NoAnswer(f"{folder} is in a repository whose files are elsewhere")
    commit = _maybe(place, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    branch = _maybe(place, "symbolic-ref", "--quiet", "--short", "HEAD")
    remote = _maybe(place, "config", "--get", "remote.origin.url")
    if commit is None:
        return Checkout(root, None, branch, remote, reason="there is no commit yet")
    try:
        diff, is_cut = _diff(place)
    except NoAnswer as error:
        return Checkout(root, commit, branch, remote, reason=str(error))
    return Checkout(root, commit, branch, remote, diff, is_cut)


def _diff(place: _Place) -> tuple[bytes, bool]:
    asked = [
        "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "--submodule=short",
        "--no-color", "--src-prefix=a/", "--dst-prefix=b/",
    ]  # fmt: skip
    found = _run(place, *asked, settings=_without_filters(place), most=DIFF_BYTES)
    return found[:DIFF_BYTES], len(found) > DIFF_BYTES


def _without_filters(place: _Place) -> list[str]:
    """Settings by which filters that the repository's own configuration defines run no more (git-lfs of the user does)."""
    listed = _run(
        place,
        "config",
        "-z",
        "--show-scope",
        "--get-regexp",
        r"^filter\..*\.(clean|process|smudge)$",
        missing=b"",
    )
    words = listed.decode("utf-8", "surrogateescape").split("\0")
    trusted: dict[str, str] = {}
    doubtful: set[str] = set()
    for scope, entry in zip(words[::2], words[1::2], strict=False):
        name, _, value = entry.partition("\n")
        if scope in _TRUSTED:
            trusted[name] = value
        else:
            doubtful.add(name)
    if any(
        "=" in name for name in doubtful
    ):  # cannot be set on a command line, so it cannot be switched off there
        raise NoAnswer(
            "the repository defines a filter with an odd name, which may run programs: not compared"
        )
    names = {name.rpartition(".")[0] for name in doubtful}
    return [f"{name}={trusted.get(name, '')}" for name in sorted(doubtful)] + [
        f"{name}.required=false" for name in sorted(names)
    ]


def _line(place: _Place, *arguments: str) -> str:
    return _run(place, *arguments).decode("utf-8", "replace").rstrip("\n")


def _maybe(place: _Place, *arguments: str) -> str | None:
    """One line of an answer, None where there is none."""
    return _run(place, *arguments, missing=b"").decode("utf-8", "replace").strip() or None


def _run(
    place: _Place,
    *arguments: str,
    settings: Sequence[str] = (),
    most: int = 1 << 16,
    missing: bytes | None = None,
) -> bytes:
    """What a git command says, at most `most` + 1 bytes of it; `missing` where it exits with 1: no such thing."""
    command = ["git", "--no-pager"]
    for setting in (*_SETTINGS, *settings):
        command += ["-c", setting]
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=place.folder,
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=sys.platform != "win32",
            )
        except FileNotFoundError:
            raise NoAnswer("git is not installed") from None
        except OSError as error:
            raise NoAnswer(f"git cannot be started: {error.strerror}") from None
        with process, _Deadline(process, place.seconds) as deadline:
            assert process.stdout is not None
            found = process.stdout.read(most + 1)
            if len(found) > most:
                _end(process)
            status = process.wait()
        if deadline.has_passed:
            raise NoAnswer(f"git {arguments[0]} took longer than {place.seconds:.0f} s")
        if status == 0 or len(found) > most:
            return found
        if status == 1 and missing is not None:
            return missing
        complaints.seek(0)
        raise NoAnswer(_why(place.folder, complaints.read(4096).decode("utf-8", "replace")))


class _Deadline:
    """Ends a process that runs for too long, whatever it started with it."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process = process
        self._seconds = seconds
        self.has_passed = False

    def __enter__(self) -> _Deadline:
        self._timer = threading.Timer(self._seconds, self._pass)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _pass(self) -> None:
        self.has_passed = True
        _end(self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _why(folder: Path, errors: str) -> str:
    if "not a git repository" in errors:
        return f"{folder} is in no git repository"
    if "dubious ownership" in errors:
        return f"git refuses {folder}: it belongs to another user (git config --global --add safe.directory)"
    lines = [line for line in errors.splitlines() if line.strip()]
    return f"git refuses: {lines[0][:200]}" if lines else "git gives no answer"
