"""A training that is going to be killed: it logs everything there is, and writes down each call that has returned.

    python -m tests.measure.training_trainee TOLD SEED STEPS FORKS [EXPERIMENT]

TOLD is appended to with one `write` after each call, so that it survives what the log must survive. Each line is a
JSON array: ["run", experiment, segment], then ["loss", step], ["note", text], ["media", kind, name, step],
["file", kind, name, epoch, sha256] and ["end"]. A forked child has a file of its own, TOLD.PID.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpu_monitor.training.monitor import TrainingMonitor

KEEP = "last:2"
PIECE = 10
"""Steps between two calls that are no metrics."""
_PAUSE_SECONDS = 0.001


class Diary:
    """What has returned."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, *words: Any) -> None:
        """Write one line."""
        os.write(self._file, json.dumps(words).encode() + b"\n")


def value_of(step: int) -> float:
    """The loss at a step: whoever checks works it out again."""
    return step / 7


class Training:
    """One life of one."""

    def __init__(self, told: str, seed: str, resume: str | None) -> None:
        self._diary = Diary(told)
        self._told = told
        self._chance = random.Random(seed)
        # A share with all that is recorded by itself: its children belong to the tree that is killed.
        capture = self._chance.random() < 0.5
        self._monitor = TrainingMonitor(
            "soaked", "soak", params={"seed": seed}, resume=resume, capture=capture
        )
        self._diary.note("run", self._monitor.experiment_id, self._monitor.recorder.segment)

    def fork(self, count: int) -> None:
        """Children that log into segments of their own until they are killed."""
        for _ in range(count):
            if os.fork() == 0:
                diary, step = Diary(f"{self._told}.{os.getpid()}"), 0
                while True:
                    self._monitor.log_metrics({"child": value_of(step)}, step)
                    if step == 0:
                        segment = self._monitor.recorder.segment
                        diary.note("run", self._monitor.experiment_id, segment)
                    diary.note("child", step)
                    step += 1
                    time.sleep(_PAUSE_SECONDS)

    def train(self, steps: int) -> None:
        """Log; each step of the loss is one more than the one before."""
        last = self._monitor.recorder.step()
        first = 0 if last is None else last + 1
        for step in range(first, first + steps):
            self._monitor.log_metrics({"loss": value_of(step), "rate": 0.1}, step)
            self._diary.note("loss", step)
            if step % PIECE == 0:
                self._more(step)
            time.sleep(_PAUSE_SECONDS * self._chance.random())
        self._monitor.finish(timeout=2.0)
        self._diary.note("end")

    def _more(self, step: int) -> None:
        monitor, diary, kind = self._monitor, self._diary, self._chance.randrange(6)
        name = f"{kind}-{step}"
        if kind == 0:
            monitor.add_note(name)
            diary.note("note", name)
        elif kind == 1:
            monitor.log_image(name, np.full((24, 24, 3), step % 256, dtype=np.uint8), step)
            diary.note("media", "image", name, step)
        elif kind == 2:
            monitor.log_histogram(name, np.arange(step % 100 + 2.0), step)
            diary.note("media", "histogram", name, step)
        elif kind == 3:
            monitor.log_text(name, f"text of {step}", step)
            diary.note("media", "text", name, step)
        elif kind == 4:
            state = b"%012d" % step * self._chance.randrange(1, 40_000)
            if monitor.save_checkpoint(state, step, keep=KEEP) is not None:
                diary.note("file", "checkpoint", "", step, hashlib.sha256(state).hexdigest())
        else:
            self._artifact(name, step)

    def _artifact(self, name: str, step: int) -> None:
        path = Path(f"{self._told}.artifact")
        data = b"%012d" % (step // 100) * 20_000  # now and then the same as before
        path.write_bytes(data)
        if self._monitor.log_artifact(path, name):
            self._diary.note("file", "artifact", name, step, hashlib.sha256(data).hexdigest())


def main(told: str, seed: str, steps: str, forks: str, *resume: str) -> None:
    """One life."""
    training = Training(told, seed, resume[0] if resume else None)
    training.fork(int(forks))
    training.train(int(steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
