# SPDX-License-Identifier: MIT
"""The way in to stored experiments: by id or name, in a directory, with no server and no process of theirs."""

from __future__ import annotations

from pathlib import Path

from gpu_monitor.training.listing import Listed as Listed
from gpu_monitor.training.listing import list_experiments as list_experiments
from gpu_monitor.training.listing import resolve
from gpu_monitor.training.stored import Columns as Columns
from gpu_monitor.training.stored import StoredExperiment as StoredExperiment
from gpu_monitor.training.stored import Timed as Timed
from gpu_monitor.training.thinning import Thinned as Thinned


def open_experiment(directory: str | Path, name_or_id: str) -> StoredExperiment:
    """The experiment that an id or a name means (`name~2`: the one before the newest); its `said` tells which.

    NothingFound, with the nearest names, where there is none.
    """
    meant = resolve(directory, name_or_id)
    return StoredExperiment(Path(directory) / meant.experiment_id, said=meant.said)
