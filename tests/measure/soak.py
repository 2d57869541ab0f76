"""`scripts/soak`: an agent killed at random instants, again and again, while its server misbehaves.

Afterwards it is compared with an unkilled twin on the same seeded GPUs, and its ledger with what the
server holds. Ends by itself; 0 where everything holds, 1 where anything does not.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.server import ServerProcess, Step
from tests.measure import twin
from tests.measure.bed import PROGRAM, compile_program, configure, environment, query, running, stop

START = 1_710_892_800  # 2024-03-20T00:00:00Z
CONTRACT = "12345"
_LONGEST_LIFE = 2.4
"""Seconds; a start takes half of one, so some kills come before the first row, and some half an hour after it."""
_SPARED = 0.08
"""Share of lives that last this much longer, so that some hours are whole."""
_SPARED_SECONDS = 5.0
_FINISH_SECONDS = 240.0
_TWIN_SPEED = "3000"
"""Faster, a pause of milliseconds in the machine would look like minutes in which the agent did not run."""
_FAULTS: tuple[Step | str, ...] = (
    Step("status", status=500, stored=True), Step("status", status=503, headers={"Retry-After": "7"}),
    Step("status", status=502), Step("status", status=429), Step("status", status=404), Step("status", status=401),
    Step("reset", stored=True), Step("reset", stored=False), Step("close", stored=True), Step("cut", stored=True),
    Step("hang", seconds=0.7, stored=True), Step("drip", seconds=0.01, stored=True),
    "wrong_digest", "wrong_echo", "no_uid", "garbage", "list", "binary", "huge", "echo", "good", "good", "good",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is asked for. `speed`: simulated seconds in a real one."""

    kills: int
    seed: int
    gpus: int = 3
    speed: int = 900

    def words(self, config: Path) -> list[str]:
        """The agent's flags."""
        return [
            "-c", str(config), "--simulate", f"{self.gpus}:h100", "--seed", str(self.seed),
            "--speed", str(self.speed), "--start", "2024-03-20T00:00:00Z",
        ]  # fmt: skip


Say = Callable[[str], None]


class Misbehaviour:
    """A server that is good, bad, or not there, and changes its mind whenever it is asked to."""

    def __init__(self, server: ServerProcess, chance: random.Random) -> None:
        self._server, self._chance = server, chance
        self._down_for = 0

    def change(self) -> None:
        """Another mood."""
        chance = self._chance
        if self._down_for:
            self._down_for -= 1
            if not self._down_for:
                self._server.start()
            return
        if chance.random() < 0.08:
            self._down_for = chance.randint(1, 4)
            self._server.stop()
            return
        steps = [chance.choice(_FAULTS) for _ in range(chance.randint(0, 8))]
        self._server.behave(
            *steps,
            then=chance.choice(("good", "good", "good", "echo", chance.choice(_FAULTS))),
            encodings=chance.choice(((), ("gzip",), ("gzip", "zstd"))),
            batch=chance.choice((None, "/api/metrics/batch")),
            options=chance.choice(("good", "good", "close", "garbage")),
        )

    def be_good(self) -> None:
        """Up, and good from now on."""
        if self._down_for:
            self._down_for = 0
            self._server.start()
        self._server.behave(encodings=("gzip",))


def kill_again_and_again(folder: Path, plan: Plan, config: Path, server: ServerProcess, say: Say) -> None:
    """The killed agent's whole life; returns when its last run has stopped properly."""
    chance = random.Random(plan.seed)
    moods = Misbehaviour(server, chance)
    store = folder / "gpu_metrics.db"
    for number in range(1, plan.kills + 1):
        moods.change()
        with running(folder, plan.words(config)) as process:
            seconds = chance.uniform(0.05, _LONGEST_LIFE) + (
                _SPARED_SECONDS if chance.random() < _SPARED else 0.0
            )
            _live(process, seconds, folder, moods, chance)
            process.kill()
            process.wait()
        if number % 10 == 0:
            say(f"{number} kills: {_standing(store)}")
    moods.be_good()
    with running(folder, plan.words(config)) as process:
        _finish(process, store, say)
        stop(process)
        if process.returncode != 0:
            raise RuntimeError(f"the last run ended with {process.returncode}")


def _live(
    process: subprocess.Popen[bytes], seconds: float, folder: Path, moods: Misbehaviour, chance: random.Random
) -> None:
    """Let it run; the server changes its mind half way through some lives."""
    halves = [seconds * part for part in ((0.5, 0.5) if chance.random() < 0.3 else (1.0,))]
    for place, half in enumerate(halves):
        if place:
            moods.change()
        try:
            process.wait(timeout=half)
        except subprocess.TimeoutExpired:
            continue
        words = (folder / "console.txt").read_text(errors="replace")[-1500:]
        raise RuntimeError(f"the agent ended by itself with {process.returncode}: {words}")


def _finish(process: subprocess.Popen[bytes], store: Path, say: Say) -> None:
    """Let everything be delivered: each hour that was closed when this run began, in its newest revision."""
    closed = int(str(query(store, "SELECT max(id) >> 20 FROM samples_raw")[0][0])) // 3600 * 3600 + 3600
    owed = (
        f"SELECT (SELECT count(DISTINCT period) FROM reports WHERE node = 1 AND period < {closed}) ="
        f" (SELECT count(*) FROM (SELECT state, max(revision) FROM reports WHERE node = 1 AND period < {closed}"
        f" GROUP BY period) WHERE state = 'sent') AND (SELECT max(period) >= {closed - 3600} FROM reports)"
        f" AND NOT EXISTS (SELECT 1 FROM periods WHERE node = 1 AND dirty = 1 AND start < {closed})"
    )
    began = time.monotonic()
    while not query(store, owed)[0][0]:
        if process.poll() is not None:
            raise RuntimeError(f"the last run ended by itself with {process.returncode}")
        if time.monotonic() - began > _FINISH_SECONDS:
            raise RuntimeError(f"not everything was delivered in {_FINISH_SECONDS:.0f} s: {_standing(store)}")
        time.sleep(0.25)
    say(f"delivered: {_standing(store)}")


def _standing(store: Path) -> str:
    found = query(
        store,
        "SELECT (SELECT count(*) FROM samples_raw), (SELECT count(*) FROM gaps), (SELECT count(*) FROM attempts),"
        " (SELECT group_concat(state || ' ' || n, ', ') FROM (SELECT state, count(*) n FROM reports GROUP BY state)),"
        " (SELECT (max(id) >> 20) - min(id >> 20) FROM samples_raw)",
    )
    if not found or found[0][4] is None:
        return "no row yet"
    rows, gaps, attempts, states, seconds = found[0]
    return (
        f"{int(str(seconds)) / 3600:.1f} h, {rows} rows, {gaps} gaps, {attempts} attempts; reports: {states}"
    )


def run_twin(folder: Path, plan: Plan, until: int, say: Say) -> Path:
    """The unkilled twin's store."""
    for number in range(1, 4):
        store = _run_twin(folder / str(number), plan, until)
        stalls = twin.gaps_of(store)
        if not stalls:
            return store
        say(f"the twin was held up {len(stalls)} times by a busy machine: once more")
    raise RuntimeError("this machine is too busy for an undisturbed twin")


def _run_twin(folder: Path, plan: Plan, until: int) -> Path:
    words = [*plan.words(configure(folder)), "--offline"]
    words += ["--until", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until))]
    words[words.index("--speed") + 1] = _TWIN_SPEED
    with (folder / "console.txt").open("wb") as console:
        subprocess.run(
            [*PROGRAM, *words], cwd=folder, env=environment(folder), stdout=console, stderr=console, check=True,
            timeout=600,
        )  # fmt: skip
    return folder / "gpu_metrics.db"


def compare(store: Path, other: Path, server: ServerProcess, end: int) -> dict[str, list[str]]:
    """What each check found wrong."""
    held = server.held()
    return {
        "SQLite finds the store sound": twin.check_integrity(store),
        # The first minute begins with the first reading, a hair after the minute itself.
        "whole minutes equal the twin's": twin.check_rows(store, other, START + twin.INTERVAL, end),
        "every second is in a row or in a gap": twin.check_seconds(store, START, end),
        "every missing minute lies in one gap, with its cause": twin.check_gaps(
            store, ["agent killed"], START, end
        ),
        "whole hours equal the twin's": twin.check_hours(store, other),
        "every hour is delivered, once": twin.check_ledger(store, START, end),
        "ledger and server hold the same reports": twin.check_server(store, held, server.received()),
        "the server's hours are the store's, byte for byte": twin.check_bytes(store, held),
    }


def summary(store: Path, server: ServerProcess, end: int) -> list[str]:
    """What happened, in figures."""
    rows = twin.rows_of(store)
    whole = sum(1 for (start, _), (seconds, _) in rows.items() if seconds == twin.WHOLE and start < end)
    uids = len({uid for _, uid in rows})
    every = (end - START) // 60 * uids
    gaps = twin.gaps_of(store)
    verdicts = query(store, "SELECT verdict, count(*) FROM attempts GROUP BY verdict ORDER BY 2 DESC")
    revisions = query(store, "SELECT count(*), count(DISTINCT period), max(revision) FROM reports")[0]
    received = server.received()
    hours = query(store, "SELECT sum(coverage = 1.0), count(*) FROM aggregates")[0]
    return [
        f"simulated: {(end - START) / 3600:.0f} h of {uids} GPUs; {whole} of {every} minutes whole, "
        f"{len(rows) - whole} cut, {len(gaps)} gaps; {hours[0]} of {hours[1]} hours whole",
        f"reports: {revisions[1]} hours, {revisions[0]} revisions (at most {revisions[2]} of one hour)",
        "attempts: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts),
        f"the server saw {len(received)} requests, {sum(1 for one in received if one.status != 200)} not answered with 200",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, finish, compare, tell."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=200, help="how often the agent is killed (200)")
    parser.add_argument(
        "--seed", type=int, default=20240320, help="of the GPUs, the kills and the server's moods"
    )
    parser.add_argument("--keep", metavar="FOLDER", help="work here, and leave it for looking into")
    args = parser.parse_args(argv)
    compile_program()
    if args.keep:
        Path(args.keep).mkdir(parents=True)
        return soak(Path(args.keep), Plan(args.kills, args.seed))
    with tempfile.TemporaryDirectory(prefix="gpu_monitor-soak-") as folder:
        return soak(Path(folder), Plan(args.kills, args.seed))


def soak(folder: Path, plan: Plan) -> int:
    """One whole soak in `folder`."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"soak: {time.monotonic() - began:4.0f} s: {text}", flush=True)

    say(f"{plan.kills} kills, seed {plan.seed}")
    with ServerProcess(folder) as server:
        agent = folder / "agent"
        config = configure(
            agent,
            server={
                "url": server.url,
                "contract_number": CONTRACT,
                "spread_seconds": 5,
                "timeout_seconds": 1.0,
            },
        )
        kill_again_and_again(agent, plan, config, server, say)
    store = agent / "gpu_metrics.db"
    end = int(str(query(store, "SELECT max(period) + 3600 FROM reports WHERE state = 'sent'")[0][0]))
    say("the twin runs")
    found = compare(store, run_twin(folder / "twin", plan, end, say), server, end)
    print("\n".join(["", *summary(store, server, end), ""]))
    width = max(map(len, found))
    for what, wrong in found.items():
        print(f"{what.ljust(width)}  {'yes' if not wrong else 'NO'}")
        for one in wrong:
            print(f"    {one}")
    print(f"\n{'all of it holds' if not any(found.values()) else 'SOMETHING IS WRONG'}: {plan.kills} kills, "
          f"seed {plan.seed}, {time.monotonic() - began:.0f} s")  # fmt: skip
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
