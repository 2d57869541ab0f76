"""Other trackers beside ours: what a call of five metrics costs, and what is left of a burst that ends with SIGKILL.

Each is installed from the package index into an environment of its own that is thrown away.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.measure.training_bed import PATIENCE, Say, Spread, said_by, training_environment

BURST = 1000
_SURVIVORS_SECONDS = 5.0
"""What helper processes that outlive the training get for writing what they hold."""
_LARGEST_MB = 600
"""An installed tracker that is larger is not measured."""

_COMMON = """
import json, os, random, sys, time
chance = random.Random(1)
def values():
    return {f"metric_{n}": chance.random() for n in range(5)}
%(begin)s
def log(step, batch):
    %(log)s
what = sys.argv[1]
if what == "cost":
    for step in range(20):
        log(step, values())
    taken, end = [], time.perf_counter() + float(sys.argv[2])
    while len(taken) < int(sys.argv[3]) and time.perf_counter() < end:
        batch, step = values(), 20 + len(taken)
        began = time.perf_counter_ns()
        log(step, batch)
        taken.append(time.perf_counter_ns() - began)
    print(json.dumps(taken), flush=True)
    os._exit(0)
log(0, values())
time.sleep(3)
burst = [values() for _ in range(int(sys.argv[2]))]
for step, batch in enumerate(burst, 1):
    log(step, batch)
if what == "tree":
    os.killpg(0, 9)
os.kill(os.getpid(), 9)
"""


# The file is a log as LevelDB has them: blocks of 32 KiB with pieces (check, length, whole/first/middle/last).
_WANDB_COUNT = """
import pathlib, struct
from wandb.proto import wandb_internal_pb2 as pb
def pieces(data):
    place = 7
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0 or place + 7 + size > len(data):
            return
        yield kind, data[place + 7 : place + 7 + size]
        place += 7 + size
found, held = 0, b""
for path in pathlib.Path(".").rglob("run-*.wandb"):
    for kind, piece in pieces(path.read_bytes()):
        held = piece if kind in (1, 2) else held + piece
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(held)
            found += record.WhichOneof("record_type") == "history"
print(found)
"""


@dataclass(frozen=True)
class Tracker:
    """One of them. `begin` and `log` (of `batch` at `step`) as its documentation has them.

    `count` prints how many calls are held in the working directory, seen from a new process.
    """

    name: str
    package: str
    begin: str
    log: str
    count: str
    environ: tuple[tuple[str, str], ...] = ()


TRACKERS = (
    Tracker(
        "gpu_monitor", "gpu_monitor",
        'from gpu_monitor import TrainingMonitor\nmonitor = TrainingMonitor("bench", server="")',
        "monitor.log_metrics(batch, step)",
        "from pathlib import Path\nfrom gpu_monitor.training.listing import list_experiments\n"
        "from gpu_monitor.training.reading import open_experiment\n"
        "(one,) = list_experiments(Path('experiments'))\n"
        "print(open_experiment(Path('experiments'), one.id).count('metric_0'))",
    ),
    Tracker(
        "trackio", "trackio",
        'import trackio\ntrackio.init(project="bench", name="run")',
        "trackio.log(batch, step=step)",
        "import pathlib, sqlite3\n"
        "files = [p for p in pathlib.Path('.').rglob('*.db')]\n"
        "print(sum(sqlite3.connect(p).execute('SELECT count(*) FROM metrics').fetchone()[0] for p in files))",
        (("TRACKIO_DIR", "trackio"), ("HF_HUB_OFFLINE", "1"), ("GRADIO_ANALYTICS_ENABLED", "False")),
    ),
    Tracker(
        "tensorboardX", "tensorboardX",
        'from tensorboardX import SummaryWriter\nwriter = SummaryWriter("runs")',
        "for name, value in batch.items(): writer.add_scalar(name, value, step)",
        # Frames: length, its check, data, its check.
        "import pathlib, struct\nfound = 0\n"
        "for path in pathlib.Path('runs').glob('events*'):\n"
        "    data, place = path.read_bytes(), 0\n"
        "    while place + 12 <= len(data):\n"
        "        size = struct.unpack_from('<Q', data, place)[0]\n"
        "        if place + 16 + size > len(data): break\n"
        "        found += b'metric_4' in data[place + 12 : place + 12 + size]\n"
        "        place += 16 + size\n"
        "print(found)",
    ),
    Tracker(
        "W&B, offline", "wandb",
        'import wandb\nrun = wandb.init(project="bench", settings=wandb.Settings(silent=True))',
        "run.log(batch, step=step)",
        _WANDB_COUNT,
        (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_ERROR_REPORTING", "false")),
    ),
    Tracker(
        "MLflow, files", "mlflow-skinny",
        'import mlflow\nmlflow.set_tracking_uri("file:mlruns")\nmlflow.start_run()',
        "mlflow.log_metrics(batch, step=step)",
        "import pathlib\n"
        "print(sum(len(p.read_text().splitlines()) for p in pathlib.Path('mlruns').rglob('metrics/metric_4')))",
        (("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false"), ("MLFLOW_DISABLE_TELEMETRY", "true"),
         ("DO_NOT_TRACK", "1"), ("MLFLOW_ALLOW_FILE_STORE", "true")),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """What was seen of one. `lost`, `lost_tree`: calls of the burst that nobody can read after the process, or all of
    its processes, were killed. `note`: why something is not known."""

    name: str
    version: str
    spread: Spread | None
    lost: int | None
    lost_tree: int | None
    megabytes: float | None
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        spread = self.spread
        costs = ("", "", "") if spread is None else (
            f"{spread.p50:,.1f} µs", f"{spread.p99:,.1f} µs", f"{spread.longest / 1e3:,.1f} ms",
        )  # fmt: skip
        lost = tuple("" if one is None else f"{one:,} of {BURST:,}" for one in (self.lost, self.lost_tree))
        size = "" if self.megabytes is None else f"{self.megabytes:,.0f} MB"
        return f"{self.name} {self.version}".strip(), *costs, *lost, size, self.note


_HEAD = (
    "tracker", "call, p50", "p99", "longest", "lost: process killed", "lost: its tree killed", "installed", "note"
)  # fmt: skip


def as_text(peers: Sequence[Peer]) -> str:
    """The table for a terminal."""
    rows = [_HEAD, *(peer.cells() for peer in peers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_markdown(peers: Sequence[Peer]) -> str:
    """The table for a page."""
    lines = [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    return "\n".join([*lines, *(f"| {' | '.join(peer.cells())} |" for peer in peers)])


def measure(
    folder: Path, seconds: float, calls: int, say: Say, trackers: Sequence[Tracker] = TRACKERS
) -> list[Peer]:
    """All of them, one after the other."""
    return [_measure(one, folder / one.package, seconds, calls, say) for one in trackers]


def _measure(tracker: Tracker, folder: Path, seconds: float, calls: int, say: Say) -> Peer:
    folder.mkdir(parents=True)
    say(f"{tracker.name}: installing", 0)
    python, version, size = sys.executable, "", None
    if tracker.package == "gpu_monitor":
        version = importlib.metadata.version("gpu_monitor")
    else:
        try:
            python, version, size = _install(folder / "venv", tracker.package)
        except (subprocess.SubprocessError, RuntimeError) as error:
            return Peer(tracker.name, "", None, None, None, None, f"not run: {str(error)[:160]}")
        if size > _LARGEST_MB:
            return Peer(tracker.name, version, None, None, None, size, "not run: too large")
    try:
        say(f"{tracker.name}: calls", 0.3)
        spread = Spread.of(
            said_by(_run(tracker, python, folder / "cost", "cost", seconds, calls), tracker.name)
        )
        say(f"{tracker.name}: bursts", 0.6)
        lost, tree = (_lost(tracker, python, folder / how, how) for how in ("process", "tree"))
    except (RuntimeError, subprocess.SubprocessError, ValueError) as error:
        return Peer(tracker.name, version, None, None, None, size, f"not run: {str(error)[-160:]}")
    return Peer(tracker.name, version, spread, lost, tree, size)


def _install(place: Path, package: str) -> tuple[str, str, float]:
    """An environment with the package: its Python, the version, and what it takes on the disk, MB."""
    venv.create(place, with_pip=True)
    python = str(place / "bin" / "python")
    before = _megabytes(place)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
    done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=PATIENCE)
    if done.returncode != 0:
        raise RuntimeError(f"pip could not install it: {done.stderr.strip().splitlines()[-1]}")
    ask = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    version = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    return python, version, _megabytes(place) - before


def _megabytes(place: Path) -> float:
    return sum(path.lstat().st_size for path in place.rglob("*")) / 1e6


def _run(tracker: Tracker, python: str, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run its program in a session of its own; nothing of it is left when this returns."""
    folder.mkdir(parents=True)
    code = _COMMON % {"begin": tracker.begin, "log": tracker.log}
    out, err = folder.with_suffix(".out"), folder.with_suffix(".err")
    with out.open("w") as said, err.open("w") as complained:
        process = subprocess.Popen(
            [python, "-c", code, *map(str, words)], cwd=folder, env=_environment(tracker, folder),
            stdin=subprocess.DEVNULL, stdout=said, stderr=complained, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(timeout=PATIENCE)
            if words[0] == "process":
                time.sleep(_SURVIVORS_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, out.read_text(), err.read_text())


def _environment(tracker: Tracker, folder: Path) -> dict[str, str]:
    own = {name: str(folder / value) if name.endswith("_DIR") else value for name, value in tracker.environ}
    return training_environment(folder, **own)


def _lost(tracker: Tracker, python: str, folder: Path, how: str) -> int:
    """How many calls of the burst cannot be read afterwards."""
    done = _run(tracker, python, folder, how, BURST)
    if done.returncode != -signal.SIGKILL:
        raise RuntimeError(f"it ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    counted = subprocess.run(
        [python, "-c", tracker.count], cwd=folder, env=_environment(tracker, folder), capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    held = int(said_by(counted, f"{tracker.name}, counting"))
    return max(0, BURST + 1 - held)


if __name__ == "__main__":
    chosen = [one for one in TRACKERS if one.name in sys.argv[4:] or not sys.argv[4:]]
    found = measure(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), lambda what, share: None, chosen)
    print(as_text(found))
    print(json.dumps([peer.as_dict() for peer in found]))
