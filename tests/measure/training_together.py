"""Many trainings that start in the same moment where nothing existed before."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gpu_monitor.training.listing import list_experiments
from gpu_monitor.training.reading import open_experiment
from tests.measure.figures import Figure
from tests.measure.training_bed import PATIENCE, ROOT, Say, training_environment

_CALLS = 200
_CODE = """
import sys
sys.stdin.readline()
from gpu_monitor.training import TrainingMonitor
with TrainingMonitor("together", directory=sys.argv[1], server="", params={"number": int(sys.argv[2])}) as monitor:
    for step in range(int(sys.argv[3])):
        monitor.log_metrics({"loss": step / 7, "number": int(sys.argv[2])}, step)
"""


def together_figures(folder: Path, counts: tuple[int, ...], say: Say) -> Iterator[Figure]:
    """How many of 4 and of 64 processes that start together fail, or lose something. Bar: none."""
    for count in counts:
        say(f"{count} processes at once", 0)
        yield _together(folder / str(count), count)


def _together(folder: Path, count: int) -> Figure:
    folder.mkdir(parents=True)
    directory = folder / "experiments"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _CODE, str(directory), str(number), str(_CALLS)], cwd=ROOT,
            env=training_environment(folder), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(count)
    ]  # fmt: skip
    began = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    failed = []
    for process in processes:
        with process:
            _, said = process.communicate(timeout=PATIENCE)
            if process.returncode != 0 or said:
                failed.append(said.strip().splitlines()[-1] if said.strip() else str(process.returncode))
    seconds = time.perf_counter() - began
    whole = {
        one.params["number"]
        for one in list_experiments(directory)
        if one.status == "completed"
        and open_experiment(directory, one.id).history("loss").value == [step / 7 for step in range(_CALLS)]
    }
    wrong = max(len(failed), count - len(whole))
    notes = (f"each imports, begins, logs {_CALLS} calls and ends; all in {seconds:.1f} s", *failed[:3])
    return Figure(f"{count} processes start together: failed or not whole", 0, wrong, "of them", 0, notes)
