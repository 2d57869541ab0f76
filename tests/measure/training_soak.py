"""`scripts/soak training`: trainings killed at random instants, again and again, while they log and upload.

They log metrics, notes, pictures, histograms, texts, checkpoints and artifacts, fork, resume what was killed, and
upload to a real `gpu_monitor serve`, which is itself killed now and then, as `gpu_monitor sync` is. Afterwards every
call that returned is on disk; after a last `sync` the server holds everything, exactly once. Ends by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.measure import training_ledger as ledger
from tests.measure.bed import PROGRAM, compile_program
from tests.measure.server_soak import place
from tests.measure.training_bed import ROOT, training_environment
from tests.measure.training_servers import free_port, token_of
from tests.server.rig import PATIENCE, Server, launch

LANES = 2
"""Trainings at a time."""
_EARLY = 0.1
"""Share of kills that come while the training still starts."""
_LONGEST_LIFE = 1.5
_TREE, _RESUMED, _SHORT, _SYNCED = 0.5, 0.3, 0.08, 0.1
"""Shares of lives: killed with their whole tree; that go on in what was killed; short enough to end by themselves;
after which a `sync` runs, and is killed too."""
_SERVER_LIFE, _SERVER_AWAY = (2.0, 12.0), (0.0, 2.5)
_STEPS = 100_000
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is asked for. `seconds`: no kill begins later than this after the start."""

    kills: int
    seed: int
    seconds: float = 600.0


@dataclass
class Story:
    """What happened, and what is wrong."""

    kills: int = 0
    trees: int = 0
    early: int = 0
    resumed: int = 0
    ended: int = 0
    syncs: int = 0
    server_kills: int = 0
    wrong: dict[str, list[str]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.wrong.values())


class Mortal:
    """A server on one port, killed and started again by a thread of its own."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder, self._chance = folder, chance
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._port = free_port()
        self.server = self._launch()
        self.kills = 0
        self.trouble: BaseException | None = None

    def _launch(self) -> Server:
        return launch(self._folder, "--port", str(self._port))

    def wait_ready(self) -> Server:
        """The server, once it serves."""
        if not self.server.ready.wait(PATIENCE) or not self.server.url:
            raise RuntimeError(f"the server ended by itself: {self.server.said[-2000:]}")
        return self.server

    def begin(self) -> None:
        """Kill it now and then from here on."""
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._over.wait(self._chance.uniform(*_SERVER_LIFE)):
                self._kill()
                self._over.wait(self._chance.uniform(*_SERVER_AWAY))
                self.server = self._launch()
        except BaseException as error:
            self.trouble = error
            raise

    def _kill(self) -> None:
        if self.server.process.poll() is not None:
            raise RuntimeError(f"the server ended by itself: {self.server.said[-2000:]}")
        self.kills += 1
        _bury(self.server)

    def spare(self) -> Server:
        """Kill it no more: the server, serving."""
        self._over.set()
        self._thread.join()
        if self.trouble is not None:
            raise RuntimeError("the server could not be kept alive") from self.trouble
        return self.wait_ready()

    def close(self) -> None:
        """Kill what is left."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        _bury(self.server)


def _bury(server: Server) -> None:
    """Kill it, and let go of all that belonged to it."""
    server.kill()
    server.ended.wait(PATIENCE)
    if server.output is not None:
        server.output.close()


class Lane:
    """Trainings, one after the other, in a thread."""

    def __init__(self, number: int, home: Path, environ: dict[str, str], soak: Soak) -> None:
        self._name, self._home, self._environ, self._soak = f"lane-{number}", home, environ, soak
        self._chance = random.Random(f"{soak.plan.seed}-{number}")
        self._last = ""
        self.trouble: BaseException | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        number = 0
        try:
            while self._soak.wants_more():
                self._live(number)
                number += 1
        except BaseException as error:
            self.trouble = error
            raise

    def _live(self, number: int) -> None:
        chance = self._chance
        told = self._home / "told" / f"{self._name}-{number}"
        is_tree = chance.random() < _TREE
        goes_on = chance.random() < _RESUMED  # drawn in any case: what comes after it is the seed's alone
        resume = [self._last] if self._last and goes_on else []
        steps = chance.randrange(50, 300) if chance.random() < _SHORT else _STEPS
        forks = chance.randrange(3) if is_tree else 0
        is_early = chance.random() < _EARLY
        seconds = chance.uniform(0.0, 0.6) if is_early else chance.uniform(0.05, _LONGEST_LIFE)
        words = [told, f"{self._name}-{number}", steps, forks, *resume]
        with (self._home / "said" / f"{self._name}-{number}").open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.measure.training_trainee", *map(str, words)],
                cwd=ROOT, env=self._environ, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        was_killed = self._kill(process, told, seconds, is_early, is_tree)
        if told.exists():
            self._last = ledger.read_told(told).experiment or self._last
        self._soak.count(process, was_killed, is_tree, is_early, bool(resume))
        if chance.random() < _SYNCED:
            self._soak.sync_killed(chance)

    def _kill(
        self, process: subprocess.Popen[bytes], told: Path, seconds: float, is_early: bool, is_tree: bool
    ) -> bool:
        """Kill it `seconds` after its start, or after its first call returned; whether it still lived."""
        end = time.monotonic() + PATIENCE
        while not is_early and process.poll() is None and not told.exists() and time.monotonic() < end:
            time.sleep(0.01)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            if is_tree:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            return True
        if process.returncode != 0:
            said = (self._home / "said" / told.name).read_text(errors="replace")[-1500:]
            raise RuntimeError(f"a training ended by itself with {process.returncode}: {said}")
        return False


class Soak:
    """One whole soak in `folder`."""

    def __init__(self, folder: Path, plan: Plan, say: Say) -> None:
        self.folder, self.plan, self.story, self._say = folder, plan, Story(), say
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._groups: list[int] = []
        self._environ: dict[str, str] = {}

    def wants_more(self) -> bool:
        """Whether another training is to be started."""
        if time.monotonic() - self._began > self.plan.seconds:
            return False
        return self.story.kills < self.plan.kills

    def count(
        self,
        process: subprocess.Popen[bytes],
        was_killed: bool,
        is_tree: bool,
        is_early: bool,
        is_resumed: bool,
    ) -> None:
        """A training is over."""
        story = self.story
        with self._lock:
            self._groups.append(process.pid)
            story.kills += was_killed
            story.trees += was_killed and is_tree
            story.early += was_killed and is_early
            story.resumed += is_resumed
            story.ended += not was_killed
            if was_killed and story.kills % 20 == 0:
                self._say(f"{story.kills} kills")

    def sync_killed(self, chance: random.Random) -> None:
        """Run a `sync` beside everything else, and kill it too."""
        process = self._sync()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.uniform(0.2, 3.0))
        process.kill()
        process.communicate()
        with self._lock:
            self.story.syncs += 1

    def _sync(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, "sync", *words], cwd=self.folder, env=self._environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self) -> Story:
        """Kill, finish, compare."""
        for name in ("told", "said"):
            (self.folder / name).mkdir()
        runtime, home = self.folder / "runtime", self.folder / "server"
        runtime.mkdir(mode=0o700)
        home.mkdir()
        mortal = Mortal(home, random.Random(f"{self.plan.seed}-server"))
        with contextlib.closing(mortal):
            server = mortal.wait_ready()
            self._environ = training_environment(
                self.folder, GPU_MONITOR_SERVER=server.url, GPU_MONITOR_DIR=str(self.folder / "experiments"),
                XDG_RUNTIME_DIR=str(runtime), **token_of(server, self.folder),
            )  # fmt: skip
            mortal.begin()
            self._storm()
            server = mortal.spare()
            self.story.server_kills = mortal.kills
            self._say(f"{self.story.kills} kills are over: the last sync")
            self._finish(server)
        return self.story

    def _storm(self) -> None:
        lanes = [Lane(number, self.folder, self._environ, self) for number in range(LANES)]
        for lane in lanes:
            lane.thread.start()
        for lane in lanes:
            lane.thread.join()
            if lane.trouble is not None:
                raise RuntimeError("a lane ended") from lane.trouble

    def _finish(self, server: Server) -> None:
        wrong = self.story.wrong
        wrong["no process outlives its training"] = list(self._survivors())
        told, segments = self._read()
        wrong["every call that returned is on disk"] = [
            fault
            for one in told
            for fault in ledger.check_calls(one, segments.get(one.segment))
            if one.segment
        ]
        wrong["every file that is named is whole"] = [
            fault
            for folder, held in _by_folder(segments)
            for fault in ledger.check_files(
                folder, held, [one for one in told if one.experiment == folder.name]
            )
        ]
        wrong["the last sync ends well"] = list(self._sync_all())
        self._say("everything is compared with the server")
        token = (self.folder / "token").read_text()
        wrong["the server holds everything once"] = [
            fault
            for folder, held in _by_folder(segments)
            for fault in ledger.check_server(folder, held, _getter(server, token), _fetcher(server, token))
        ]
        checked = server.command("server", "check")
        wrong["`server check` is clean"] = [] if checked.returncode == 0 else checked.stdout.splitlines()[-5:]
        self._tell(told, segments)

    def _survivors(self) -> Iterator[str]:
        """Helpers of trainings end by themselves when these are gone."""
        end = time.monotonic() + 30
        for group in self._groups:
            while _lives(group):
                if time.monotonic() > end:
                    yield f"of the training with pid {group} something still runs: {_commands(group)}"
                    os.killpg(group, signal.SIGKILL)
                    break
                time.sleep(0.05)

    def _read(self) -> tuple[list[ledger.Told], dict[str, ledger.Segment]]:
        diaries = [path for path in (self.folder / "told").iterdir() if path.suffix != ".artifact"]
        told = [ledger.read_told(path) for path in sorted(diaries)]
        logs = (self.folder / "experiments").glob("*/seg-*.log")
        return told, {path.stem: ledger.read_segment(path) for path in logs}

    def _sync_all(self) -> Iterator[str]:
        """Upload the rest, then ask the server about every byte once more."""
        for words in ((), ("--again",)):
            process = self._sync(*words)
            out, err = process.communicate(timeout=600)
            if process.returncode != 0:
                yield f"sync {' '.join(words)} ended with {process.returncode}: {out[-500:]} {err[-500:]}"
                return
        if "it holds everything" not in err:
            yield f"sync --again says: {err[-300:]}"

    def _tell(self, told: Sequence[ledger.Told], segments: dict[str, ledger.Segment]) -> None:
        story = self.story
        points = sum(len(one.points[name]) for one in segments.values() for name in ledger.SERIES)
        story.told = [
            f"{story.kills} kills, {story.trees} of the whole tree, {story.early} while starting; {story.ended} ended by "
            f"themselves, {story.resumed} went on in one that was killed",
            f"the server was killed {story.server_kills} times, sync {story.syncs} times",
            f"{sum(len(one.steps) for one in told):,} calls of metrics returned ({points:,} are there), "
            f"{sum(len(one.notes) + len(one.media) for one in told):,} of notes, pictures, histograms and texts, "
            f"{sum(len(one.files) for one in told):,} of checkpoints and artifacts; {len(segments)} segments",
        ]  # fmt: skip


def _by_folder(segments: dict[str, ledger.Segment]) -> list[tuple[Path, list[ledger.Segment]]]:
    """The segments of each experiment."""
    folders = sorted({one.path.parent for one in segments.values()})
    return [(folder, [one for one in segments.values() if one.path.parent == folder]) for folder in folders]


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _commands(group: int) -> str:
    found = subprocess.run(
        ["ps", "-o", "args=", "-g", str(group)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()[:300]


def _getter(server: Server, token: str) -> Callable[[str], Any]:
    def get(path: str) -> Any:
        answer = server.ask("GET", path, token=token)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {answer.body[:300]!r}")
        return answer.json

    return get


def _fetcher(server: Server, token: str) -> Callable[[str], bytes | None]:
    def fetch(sha256: str) -> bytes | None:
        answer = server.ask("GET", f"/api/blobs/{sha256}", token=token)
        return answer.body if answer.status == 200 else None

    return fetch


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, finish, compare, tell; 0 where everything holds."""
    parser = argparse.ArgumentParser(prog="scripts/soak training", description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=200, help="how often a training is killed (200)")
    parser.add_argument("--seed", type=int, default=20240320, help="of what is logged and when it is killed")
    parser.add_argument("--minutes", type=float, default=10.0, help="no training begins later than this (10)")
    parser.add_argument("--keep", metavar="FOLDER", help="work here, and leave it for looking into")
    args = parser.parse_args(argv)
    compile_program()
    plan, began = Plan(args.kills, args.seed, args.minutes * 60), time.monotonic()

    def say(text: str) -> None:
        print(f"soak: {time.monotonic() - began:4.0f} s: {text}", flush=True)

    say(f"{plan.kills} kills, seed {plan.seed}")
    with place(args.keep) as folder:
        story = Soak(folder, plan, say).run()
    print("\n".join(["", *story.told, ""]))
    width = max(map(len, story.wrong))
    for what, wrong in story.wrong.items():
        print(f"{what.ljust(width)}  {'yes' if not wrong else 'NO'}")
        for one in wrong[:20]:
            print(f"    {one}")
    seconds = time.monotonic() - began
    short = f" (of {plan.kills}: the time was over)" if story.kills < plan.kills else ""
    print(f"\n{'all of it holds' if story.holds else 'SOMETHING IS WRONG'}: {story.kills} kills{short}, "
          f"seed {plan.seed}, {seconds:.0f} s")  # fmt: skip
    return 0 if story.holds else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
