# SPDX-License-Identifier: MIT
"""The begin of an experiment: its settings, its id, and where one that is resumed goes on."""

from __future__ import annotations

import importlib
import itertools
import logging
import sys
from pathlib import Path

from gpu_monitor.config.training import DEFAULT_DIRECTORY, TrainingSettings, load_training
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import ConfigError, NothingFound
from gpu_monitor.training.identity import shared_key
from gpu_monitor.training.notice import tell
from gpu_monitor.training.place import is_id, new_id
from gpu_monitor.training.recorder import Recorder, Run
from gpu_monitor.training.values import plain

DEFAULT_PROJECT = "default"
_LONGEST = 250
"""Characters of the name of an experiment or a project."""


def find_settings(server: str | None, directory: str | Path | None, strict: bool) -> TrainingSettings:
    """The settings; what is wrong with them is told, and the training goes on without a server.

    With `strict` it raises ConfigError.
    """
    try:
        return load_training(server=server, directory=directory, strict=strict or None)
    except ConfigError as error:
        if strict:
            raise
        tell(f"the settings of the training monitor are not used: {error}; nothing is uploaded")
        return TrainingSettings(Path.cwd() / Path(directory or DEFAULT_DIRECTORY).expanduser())


def begin(settings: TrainingSettings, name: str | None, project: str | None, resume: str | None) -> Recorder:
    """The recorder of a new experiment, or of the one to resume."""
    run = None if resume is None else _resumed(settings, resume, name, project)
    if run is not None:
        return Recorder(run, strict=settings.strict)
    experiment_id = new_id(SystemClock().now(), _next_key())
    folder = settings.directory / experiment_id
    run = Run(experiment_id, _short(name) or script_name(), _short(project) or DEFAULT_PROJECT, folder)
    return Recorder(run, strict=settings.strict)


def _resumed(settings: TrainingSettings, resume: str, name: str | None, project: str | None) -> Run | None:
    """The run that goes on; None where nothing is known to go on with.

    An id that is not on this machine is taken as it is: its other segments lie elsewhere. With `strict` it raises
    UsageError or NothingFound.
    """
    reading = importlib.import_module("gpu_monitor.training.reading")  # of no use to a training that begins
    try:
        stored = reading.open_experiment(settings.directory, resume)
    except NothingFound as error:
        if is_id(resume):
            tell(
                f"experiment {resume} goes on, and is not in {settings.directory}: steps that are left out count from 0"
            )
            folder = settings.directory / resume
            return Run(
                resume, _short(name) or script_name(), _short(project) or DEFAULT_PROJECT, folder, True
            )
        if settings.strict:
            raise
        tell(f"nothing is resumed, a new experiment begins: {error}")
        return None
    except OSError as error:
        tell(f"{resume!r} is not resumed, a new experiment begins: {error}")
        return None
    if stored.said:
        tell(f"resuming: {stored.said}", logging.INFO)
    for what, given, held in (
        ("name", _short(name), stored.name),
        ("project", _short(project), stored.project),
    ):
        if given not in (
            None,
            held,
        ):  # a run has one of each: or it would depend on which segment is read first
            tell(f"experiment {stored.id} goes on under its {what} {held!r}, not {given!r}")
    return Run(
        experiment_id=stored.id,
        name=stored.name,
        project=stored.project,
        folder=stored.folder,
        is_resumed=True,
        step=stored.last_step,
        after=stored.reach,
    )


def script_name() -> str:
    """The name of the running script, which an experiment without a name takes."""
    return _short(Path(sys.argv[0] if sys.argv else "").stem) or "experiment"


def _short(text: str | None) -> str | None:
    return str(plain(str(text)))[:_LONGEST].strip() or None if text is not None else None


_begun = itertools.count()
"""How many experiments this process has begun: the ranks of one start begin the same ones in the same order."""


def _next_key() -> str | None:
    key, number = shared_key(), next(_begun)
    if key is None:
        return None
    hashing = importlib.import_module("hashlib")  # OpenSSL's takes 4 MB, and few need it
    return str(hashing.sha256(f"{key} {number}".encode()).hexdigest())
