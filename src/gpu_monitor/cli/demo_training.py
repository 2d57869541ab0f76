"""The example training of `gpu_monitor demo`: a small network, in plain Python, learns to tell two moons apart, twice.

Run as `python -m gpu_monitor.cli.demo_training [SECONDS]` (the pause after each step); where the
experiments go is in the environment, as for any training.
"""

from __future__ import annotations

import math
import random
import sys
import threading
from collections.abc import Sequence

from gpu_monitor.core.clock import SystemClock
from gpu_monitor.training.monitor import TrainingMonitor

NAME, PROJECT = "two_moons", "demo"
RATES = (0.05, 0.3)
_POINTS, _HIDDEN, _EPOCHS, _BATCH = 240, 8, 30, 24
_PACE_SECONDS = 0.02
"""A pause after each step, so that there is something to watch: it learns in a second otherwise."""
Point = tuple[float, float, int]


def moons(count: int, chance: random.Random) -> list[Point]:
    """Points of two half circles that reach into each other, with noise: x, y, and to which of them it belongs."""
    found = []
    for number in range(count):
        angle, side = math.pi * chance.random(), number % 2
        x, y = math.cos(angle), math.sin(angle)
        x, y = (1 - x, 0.5 - y) if side else (x, y)
        found.append((x + chance.gauss(0, 0.1), y + chance.gauss(0, 0.1), side))
    chance.shuffle(found)
    return found


class Network:
    """Two inputs, one hidden layer (tanh), one output (logistic), by gradient descent."""

    def __init__(self, chance: random.Random) -> None:
        self.inner = [[chance.gauss(0, 1) for _ in range(3)] for _ in range(_HIDDEN)]
        self.outer = [chance.gauss(0, 1) for _ in range(_HIDDEN + 1)]

    def answer(self, x: float, y: float) -> tuple[list[float], float]:
        """What the hidden cells say, and the probability that the point is of the second moon."""
        hidden = [math.tanh(a * x + b * y + c) for a, b, c in self.inner]
        total = sum(w * h for w, h in zip(self.outer, hidden, strict=False)) + self.outer[-1]
        return hidden, 1 / (1 + math.exp(-max(-60.0, min(60.0, total))))

    def learn(self, batch: Sequence[Point], rate: float) -> float:
        """One step down the gradient of the cross-entropy; what it was before."""
        loss = 0.0
        for x, y, side in batch:
            hidden, said = self.answer(x, y)
            loss -= math.log(max(1e-12, said if side else 1 - said)) / len(batch)
            error = (said - side) * rate
            for cell, out in enumerate(hidden):
                back = error * self.outer[cell] * (1 - out * out)
                self.outer[cell] -= error * out
                for place, value in enumerate((x, y, 1.0)):
                    self.inner[cell][place] -= back * value
            self.outer[-1] -= error
        return loss

    def accuracy(self, points: Sequence[Point]) -> float:
        """The share of points that are told right."""
        return sum((self.answer(x, y)[1] > 0.5) == bool(side) for x, y, side in points) / len(points)


def train(rate: float, pause: threading.Event, pace: float) -> None:
    """One run, recorded, with `pace` seconds after each step; `pause` set ends its pauses."""
    chance, clock = random.Random(7), SystemClock()
    points, held = moons(_POINTS, chance), moons(_POINTS, chance)
    network = Network(chance)
    params = {"learning_rate": rate, "hidden": _HIDDEN, "batch": _BATCH, "epochs": _EPOCHS, "points": _POINTS}
    with TrainingMonitor(NAME, PROJECT, params=params, tags={"data": "made"}) as monitor:
        monitor.add_note(
            "The example training of gpu_monitor demo: plain Python on the processor. A GPU beside it is simulated."
        )
        step = 0
        for epoch in range(_EPOCHS):
            for start in range(0, _POINTS, _BATCH):
                monitor.log_metrics({"loss": network.learn(points[start : start + _BATCH], rate)}, step=step)
                step += 1
                clock.wait(pause, clock.monotonic() + pace)
            monitor.log_metrics({"val_accuracy": network.accuracy(held), "epoch": epoch}, step=step - 1)
            monitor.log_histogram(
                "weights", [weight for cell in network.inner for weight in cell], step=step - 1
            )
        print(f"{NAME} with a learning rate of {rate}: {network.accuracy(held):.1%} right")


def main(words: Sequence[str]) -> None:
    """Both runs, one after the other. `words`: the pause after a step in seconds, or nothing."""
    pause = threading.Event()
    for rate in RATES:
        train(rate, pause, float(words[0]) if words else _PACE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
