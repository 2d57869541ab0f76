"""Experiments whose every number is known, as segments that are written line by line as docs/segments.md has them.

Contract 100: `vision` holds two runs called `resnet` (the second newer), `vit`, which runs and is not heard from, and
`long` with 20,000 points of one metric and values at the edges. Contract 200: `speech` holds `wave`, which was resumed
from another process and had a forked child.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import update

from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.schema_experiments import experiments
from gpu_monitor.server.store.segment_records import read_records
from gpu_monitor.server.store.segment_write import Author, Held, Upload, write_work
from gpu_monitor.wire.training import (
    About,
    Alert,
    Capture,
    Header,
    Media,
    Note,
    Params,
    Points,
    PointSet,
    Series,
    Status,
    Tag,
    Text,
    Value,
    Writer,
    encode,
)

VISION, SPEECH = "100", "200"
OLD, NEW, VIT, LONG, WAVE = "run-old", "run-new", "run-vit", "run-long", "run-wave"
MINUTE = 60.0


@dataclass
class Segment:
    """One segment as it grows. `started`: UTC epoch s; `at` of its methods: seconds after that."""

    experiment: str
    name: str
    project: str
    started: float
    segment: str = "seg-00000001"
    host: str = "node-1"
    user: str | None = "ada"
    resumed: bool = False
    parent: str | None = None
    simulated: bool = False
    lines: list[bytes] = field(default_factory=list)
    _series: dict[str, int] = field(default_factory=dict)
    _sets: dict[tuple[str, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        writer = Writer(host=self.host, pid=4711, user=self.user, boot_id="boot", start_ticks=99)
        about = About(
            experiment_id=self.experiment, segment=self.segment, name=self.name, project=self.project,
            started=self.started, writer=writer, simulated=self.simulated, resumed=self.resumed, parent=self.parent,
        )  # fmt: skip
        self.add(Header(1, about))

    def add(self, record: Any) -> Segment:
        """One record."""
        self.lines.append(encode(record))
        return self

    def log(self, at: float, step: int, unit: str | None = None, **values: Value) -> Segment:
        """A value of each metric; `__` in a name stands for `/`."""
        named = {name.replace("__", "/"): value for name, value in values.items()}
        for name in named:
            if name not in self._series:
                self._series[name] = len(self._series)
                self.add(Series(self._series[name], name, {} if unit is None else {"unit": unit}))
        key = tuple(named)
        if key not in self._sets:
            self._sets[key] = len(self._sets)
            self.add(PointSet(self._sets[key], [self._series[name] for name in key]))
        return self.add(Points(_ms(at), step, self._sets[key], list(named.values())))

    def params(self, at: float = 0.0, **params: Any) -> Segment:
        """Parameters."""
        return self.add(Params(_ms(at), params))

    def tags(self, at: float = 0.0, **tags: str | None) -> Segment:
        """Tags."""
        for key, value in tags.items():
            self.add(Tag(_ms(at), key, value))
        return self

    def end(self, at: float, status: str, **more: Any) -> Segment:
        """The last word."""
        return self.add(Status(_ms(at), status, more))

    @property
    def data(self) -> bytes:
        """Its bytes."""
        return b"".join(self.lines)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def write_segment(store: Store, contract: str, segment: Segment, now: float) -> None:
    """Write a segment by the server's own functions, in uploads of at most 1 MiB."""
    place = 0
    for data in parts(segment.lines):
        upload = Upload(
            Author("test", None, contract),
            segment.experiment,
            segment.segment,
            place,
            data,
            read_records(data),
        )
        with store.write() as connection:
            store.lock_sequence(connection)
            (outcome,) = write_work(connection, [upload], now).outcomes
        assert isinstance(outcome, Held), outcome
        place += len(data)


def parts(lines: list[bytes]) -> list[bytes]:
    """Lines together, at most 1 MiB each."""
    found, held, size = [], [], 0
    for line in lines:
        if size + len(line) > 1 << 20:
            found.append(b"".join(held))
            held, size = [], 0
        held.append(line)
        size += len(line)
    return [*found, b"".join(held)]


SHA = "ab" * 32
"""The digest of a file that was never brought."""


def known_segments(begin: float) -> list[tuple[str, Segment]]:
    """Every segment, with its contract; the first begins at `begin`, a whole second."""
    old = Segment(OLD, "resnet", "vision", begin)
    old.params(lr=0.1, batch_size=32, optimizer="sgd", amp=False, layers=[64, 128]).tags(
        model="resnet", stage="dev"
    )
    for step, (loss, val_loss) in enumerate([(2.0, 2.5), (1.0, 1.25), (0.5, 0.75), (0.75, 0.875)]):
        old.log(10.0 * step, step, loss=loss, val_loss=val_loss)
    old.add(Note(_ms(31), "Learning rate too high?")).end(40, "completed", exit_code=0)

    new = Segment(NEW, "resnet", "vision", begin + 10 * MINUTE)
    new.params(lr=0.001, batch_size=32, optimizer="adam", amp=True, layers=[64, 128], seed=2**70)
    new.tags(model="resnet", stage="prod", removed="x").tags(at=1, removed=None)
    for step, (loss, val_loss) in enumerate([(2.0, 2.25), (0.5, 0.5), (0.25, 0.25)]):
        new.log(10.0 * step, step, loss=loss, val_loss=val_loss, accuracy=1 - loss / 4)
    new.log(25, 2, lr=0.0005)
    new.add(Text(_ms(1), "stdout", "epoch 1\n")).add(Text(_ms(2), "stderr", "a Warning\n"))
    new.add(Text(_ms(3), "stdout", "epoch 2\n")).add(Text(_ms(4), "log", "100 % done_\n"))
    new.add(Alert(_ms(5), "warning", "slow", "the disk is slow"))
    new.add(Capture(_ms(0), {"git": {"commit": "c0ffee"}, "command": ["python", "train.py"]}))
    new.add(
        Media(
            _ms(6),
            1,
            "image",
            "confusion",
            {"sha256": SHA, "size": 10, "type": "image/png", "file": "media/a.png"},
        )
    )
    new.add(
        Media(_ms(7), 2, "histogram", "weights", {"data": {"edges": [0, 1], "counts": [2**70]}, "bins": 1})
    )
    new.add(
        Media(_ms(8), None, "artifact", "data/train.csv", {"sha256": SHA, "size": 10, "type": "text/csv"})
    )
    new.add(
        Media(
            _ms(9), None, "artifact", "data/train.csv", {"sha256": "cd" * 32, "size": 11, "type": "text/csv"}
        )
    )
    new.add(Media(_ms(9), None, "artifact", "notes.txt", {"sha256": SHA, "size": 10, "type": "text/plain"}))
    metrics = {"val_loss": 0.5, "bad": "NaN", "odd": [1]}
    new.add(
        Media(
            _ms(11),
            1,
            "checkpoint",
            "epoch-1",
            {"sha256": SHA, "size": 10, "epoch": 1, "format": "numpy", "metrics": metrics},
        )
    )
    new.add(
        Media(_ms(12), 2, "checkpoint", "epoch-2", {"sha256": SHA, "size": 12, "epoch": 2, "format": "numpy"})
    )
    new.add(Media(_ms(13), 2, "checkpoint", "epoch-1", {"removed": True, "file": "checkpoints/epoch-1.npz"}))
    new.add(
        Media(
            _ms(14),
            2,
            "model",
            "classifier",
            {
                "sha256": SHA,
                "size": 12,
                "version": 1,
                "stage": "prod",
                "checkpoint": "epoch-2",
                "epoch": 2,
                "metrics": {"val_loss": 0.25},
            },
        )
    )
    new.end(60, "completed", exit_code=0)

    vit = Segment(VIT, "vit", "vision", begin + 20 * MINUTE, host="node-2", user="carl")
    vit.params(lr="auto", optimizer="adam").tags(model="vit")
    for step, loss in enumerate([3.0, 1.5, "NaN"]):
        vit.log(step, step, loss=loss)
    vit.log(3, 3, unit="°C", heat="Infinity")
    vit.add(Media(_ms(4), 2, "model", "classifier", {"sha256": "ef" * 32, "size": 13, "version": 1}))

    long = Segment(LONG, "long", "vision", begin + 30 * MINUTE, simulated=True)
    for step in range(20_000):
        long.log(
            step * 0.5, step, wave=-9.0 if step == 7777 else 8.0 if step == 12_345 else (step % 2) * 2 - 1.0
        )
    for step in range(100):
        special: Value = (
            "NaN"
            if step == 15
            else "Infinity"
            if step == 25
            else "-Infinity"
            if step in (35, 36)
            else float(step)
        )
        long.log(step, step, mixed=special, huge=1.5e308 if step % 2 else 1e308, flat=1.0)
    for _ in range(50):
        long.log(200, 7, same=2.0)
    for step in (-(2**63), 0, 2**63 - 1):
        long.log(201, step, far=float(step))
    long.end(20_000, "stopped", signal="SIGTERM")

    first = Segment(WAVE, "wave", "speech", begin + 40 * MINUTE)
    first.params(lr=0.01)
    for step in range(6):
        first.log(step, step, loss=10.0 - step)
    child = Segment(
        WAVE, "wave", "speech", begin + 40 * MINUTE + 2, segment="seg-00000002", parent="seg-00000001"
    )
    child.log(1, 100, child__loss=0.5)
    again = Segment(
        WAVE, "wave", "speech", begin + 50 * MINUTE, segment="seg-00000003", host="node-9", resumed=True
    )
    for step in range(4, 9):
        again.log(step, step, loss=5.0 - step / 2)
    again.end(9, "failed", exit_code=1, reason="ValueError: no")
    return [
        (VISION, old),
        (VISION, new),
        (VISION, vit),
        (VISION, long),
        (SPEECH, first),
        (SPEECH, child),
        (SPEECH, again),
    ]


def make_runs(store: Store, begin: float, now: float) -> None:
    """Write all of them; `wave` is archived, and of `vit` nothing was heard for an hour."""
    for contract, segment in known_segments(begin):
        write_segment(store, contract, segment, now - 3600 if segment.experiment == VIT else now)
    with store.write() as connection:
        archived = update(experiments).where(experiments.c.uid == WAVE).values(archived=now)
        connection.execute(archived)
