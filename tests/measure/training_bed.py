"""Where trainings are measured: processes of their own on the checked-out program, and what they say as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.measure.bed import environment

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0
_LAUNCHERS = ("GPU_MONITOR_", "SLURM_", "RANK", "WORLD_SIZE", "OMPI_", "PMI")
Say = Callable[[str, float], None]


@dataclass(frozen=True)
class Spread:
    """How long calls took, microseconds."""

    p50: float
    p99: float
    longest: float
    count: int

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> Spread:
        """The spread of some durations; ValueError where there are none."""
        if not nanoseconds:
            raise ValueError("nothing was measured")
        ordered = sorted(nanoseconds)
        last = len(ordered) - 1
        return cls(
            ordered[last // 2] / 1e3, ordered[min(last, len(ordered) * 99 // 100)] / 1e3, ordered[-1] / 1e3,
            len(ordered),
        )  # fmt: skip

    def told(self) -> str:
        """In words."""
        return f"p50 {self.p50:.1f}, p99 {self.p99:.1f}, max {self.longest:,.0f} µs"


def training_environment(home: Path, **more: str) -> dict[str, str]:
    """An environment without what a launcher or a user may have set for trainings."""
    kept = {name: value for name, value in environment(home).items() if not name.startswith(_LAUNCHERS)}
    return {**kept, **more}


def run(module: str, home: Path, *words: object, env: Mapping[str, str] | None = None) -> Any:
    """What a module of `tests.measure` says on the last line of its stdout. RuntimeError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.measure.{module}", *map(str, words)],
        cwd=ROOT, env=training_environment(home, **(env or {})), capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return said_by(done, module)


def run_code(code: str, home: Path, *words: object, env: Mapping[str, str] | None = None) -> Any:
    """The same for a program that is given as text; it runs in `home`."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=home, env=training_environment(home, **(env or {})),
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return said_by(done, "a program")


def said_by(done: subprocess.CompletedProcess[str], what: str) -> Any:
    """The JSON on the last line of what a program said."""
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{what} ended with {done.returncode}: {done.stderr.strip()[-1500:]}")
    return json.loads(lines[-1])
