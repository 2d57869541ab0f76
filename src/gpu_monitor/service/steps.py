"""What installing and removing a service consists of: a list that can be shown or carried out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gpu_monitor.core.errors import GpuMonitorError
from gpu_monitor.service.commands import Commands, shell_text

Say = Callable[[str], None]


@dataclass(frozen=True)
class MakeFolder:
    """A folder that is there afterwards; one that exists is left as it is."""

    path: Path
    mode: int = 0o755


@dataclass(frozen=True)
class WriteFile:
    """A file with this text afterwards, written at once or not at all.

    With `keep` a file that exists is left as it is: it belongs to the user.
    """

    path: Path
    text: str
    mode: int = 0o644
    keep: bool = False


@dataclass(frozen=True)
class Remove:
    """A file, link or folder with all it holds that is gone afterwards; nothing there is fine."""

    path: Path


@dataclass(frozen=True)
class Run:
    """A command. With `may_fail` its failure changes nothing; else it ends the work with `hint`."""

    argv: tuple[str, ...]
    hint: str | None = None
    may_fail: bool = False


@dataclass(frozen=True)
class Note:
    """Something the reader should know; nothing is done."""

    text: str


Step = MakeFolder | WriteFile | Remove | Run | Note


def describe(steps: Iterable[Step], say: Say) -> None:
    """Say what `carry_out` would do, with the whole text of each file, and change nothing."""
    for step in steps:
        if isinstance(step, MakeFolder):
            if not step.path.is_dir():
                say(f"would make the folder {step.path} (mode {step.mode:04o})")
        elif isinstance(step, WriteFile) and step.keep and step.path.exists():
            say(f"would keep {step.path} as it is")
        elif isinstance(step, WriteFile):
            say(f"would write {step.path} (mode {step.mode:04o}):")
            for line in step.text.splitlines():
                say(f"    {line}".rstrip())
        elif isinstance(step, Remove):
            if _is_there(step.path):
                say(f"would remove {step.path}")
        elif isinstance(step, Run):
            say(f"would run: {shell_text(step.argv)}")
        else:
            say(step.text)


def carry_out(steps: Iterable[Step], commands: Commands, say: Say) -> None:
    """Do the steps in order and say each one done; GpuMonitorError at the first that cannot be done."""
    for step in steps:
        if isinstance(step, Run):
            _run(step, commands, say)
        elif isinstance(step, Note):
            say(step.text)
        else:
            try:
                _change(step, say)
            except OSError as error:
                raise GpuMonitorError(
                    f"cannot change {step.path}: {error.strerror or error}",
                    "Check who owns it and whether the disk is writable, then run this again.",
                ) from error


def _change(step: MakeFolder | WriteFile | Remove, say: Say) -> None:
    """Do one step that changes files."""
    if isinstance(step, MakeFolder):
        if not step.path.is_dir():
            step.path.mkdir(parents=True)
            step.path.chmod(step.mode)
            say(f"made the folder {step.path}")
    elif isinstance(step, Remove):
        if _is_there(step.path):
            _remove(step.path)
            say(f"removed {step.path}")
    elif step.keep and step.path.exists():
        say(f"kept {step.path} as it is")
    else:
        verb = "replaced" if step.path.exists() else "wrote"
        _write(step)
        say(f"{verb} {step.path}")


def _write(step: WriteFile) -> None:
    """Write beside the file and rename, so that nobody reads half of it."""
    step.path.parent.mkdir(parents=True, exist_ok=True)
    beside = step.path.with_name(step.path.name + ".new")
    beside.write_text(step.text, encoding="utf-8", newline="\n")
    beside.chmod(step.mode)
    beside.replace(step.path)


def _is_there(path: Path) -> bool:
    """Whether anything has this name, a dangling link included."""
    return path.is_symlink() or path.exists()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _run(step: Run, commands: Commands, say: Say) -> None:
    answer = commands.run(step.argv)
    if answer.code == 0:
        say(f"ran: {shell_text(step.argv)}")
    elif step.may_fail:
        say(f"ran: {shell_text(step.argv)} (exit code {answer.code}, which does not matter here)")
    else:
        said = " ".join((answer.error or answer.output).split())
        raise GpuMonitorError(
            f"{shell_text(step.argv)} failed with exit code {answer.code}: {said or 'it said nothing'}",
            step.hint,
        )
