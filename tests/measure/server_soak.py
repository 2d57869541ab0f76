"""`scripts/soak server`: servers killed at random instants, again and again, while several senders deliver.

On SQLite one server; on PostgreSQL two on one database, of which one is killed, and sometimes PostgreSQL itself is
stopped, in order or as by a crash. Afterwards: what was answered is there; what was not was asked again; twice is
once; the rows are those of a twin that got every report once and was never killed; `server check` is clean.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.measure.bed import compile_program
from tests.measure.server_ledger import Ledger, compare, deliver_to_twin
from tests.measure.server_senders import Sender, Targets
from tests.server.postgres import WHY_NOT, Cluster, running_cluster
from tests.server.rig import PATIENCE, Server, launch, serving

_EARLY = 0.15
"""Share of kills that come while the server still starts."""
_LONGEST_LIFE = 0.7
_DATABASE_STOPS = 25
"""On PostgreSQL the database is stopped after each so many kills."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is asked for. `seconds`: no kill begins later than this after the start."""

    kills: int
    seed: int
    senders: int = 4
    nodes: int = 3
    seconds: float = 600.0


@dataclass
class Story:
    """What happened."""

    kills: int = 0
    early: int = 0
    database_stops: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.found.values())


class Killer:
    """Keeps `targets` served by one or two processes, and kills them."""

    def __init__(self, folder: Path, targets: Targets, database: str, chance: random.Random) -> None:
        self._folder, self._targets, self._database, self._chance = folder, targets, database, chance
        self._servers: list[Server] = [self._launch(port) for port in targets.ports]

    def _launch(self, port: int) -> Server:
        return launch(self._folder, "--port", str(port), database=self._database)

    def wait_ready(self) -> None:
        """Return when every process serves."""
        for server in self._servers:
            assert server.ready.wait(PATIENCE)
            if not server.url:
                raise RuntimeError(f"a server ended by itself: {server.said[-2000:]}")

    def kill_one(self) -> bool:
        """Let one live a little, kill it, start it again; whether it was killed before it was ready."""
        place = self._chance.randrange(len(self._servers))
        server = self._servers[place]
        is_early = self._chance.random() < _EARLY
        if is_early:
            time.sleep(self._chance.uniform(0.0, 0.8))
        else:
            server.ready.wait(PATIENCE)
            time.sleep(self._chance.uniform(0.01, _LONGEST_LIFE))
        is_early = not server.url
        if server.process.poll() is not None:
            raise RuntimeError(f"a server ended by itself: {server.said[-2000:]}")
        _bury(server)
        self._servers[place] = self._launch(self._targets.ports[place])
        return is_early

    def end(self) -> None:
        """Stop in order."""
        for server in self._servers:
            if server.process.poll() is None:
                code = server.stop()
                if code != 0:
                    raise RuntimeError(f"a server ended with {code}: {server.said[-2000:]}")
            _bury(server)

    def close(self) -> None:
        """Kill what is left."""
        for server in self._servers:
            _bury(server)


def _bury(server: Server) -> None:
    """Kill it, and let go of all that belonged to it."""
    server.kill()
    server.ended.wait(PATIENCE)
    if server.output is not None:
        server.output.close()


def soak(folder: Path, plan: Plan, cluster: Cluster | None, say: Say) -> Story:
    """One whole soak in `folder`: on PostgreSQL where there is a cluster, else on SQLite."""
    began, chance, story = time.monotonic(), random.Random(plan.seed), Story()
    database = f"sqlite:///{folder / 'server.db'}" if cluster is None else cluster.create()
    targets = Targets.free(1 if cluster is None else 2)
    ledger = Ledger()
    with contextlib.closing(Killer(folder, targets, database, chance)) as killer:
        killer.wait_ready()
        tokens = _tokens(folder, database)
        senders = [
            Sender(number, plan.nodes, targets, tokens, ledger, random.Random(f"{plan.seed}-{number}"))
            for number in range(plan.senders)
        ]
        for sender in senders:
            sender.start()
        try:
            _storm(plan, story, killer, senders, cluster, began, say)
        finally:
            for sender in senders:
                sender.finish()
        for sender in senders:
            sender.join(PATIENCE)
            if sender.is_alive():
                raise RuntimeError("a sender could not deliver what it had begun")
        killer.wait_ready()
        killer.end()
    story.told = [*ledger.told(), f"{story.kills} kills, {story.early} of them before the server was ready"]
    if cluster is not None:
        story.told.append(f"PostgreSQL itself was stopped {story.database_stops} times")
    say("the twin gets every report once")
    twin = folder / "twin"
    twin.mkdir()
    with serving(twin) as server:
        deliver_to_twin(server, ledger)
        server.stop()
    story.found = {
        "what senders saw": ledger.wrong,
        **compare(folder, database, f"sqlite:///{twin / 'server.db'}", ledger),
    }
    return story


def _tokens(folder: Path, database: str) -> dict[str, str]:
    """A token for all nodes of the contract, and one for enrolling."""
    held = Server(None, folder, database, None)  # type: ignore[arg-type]  # commands need no process
    return {"all": held.token("--contract", "12345"), "enrol": held.token("--contract", "12345", "--enrol")}


def _storm(
    plan: Plan,
    story: Story,
    killer: Killer,
    senders: Sequence[Sender],
    cluster: Cluster | None,
    began: float,
    say: Say,
) -> None:
    chance = random.Random(f"{plan.seed}-database")
    while story.kills < plan.kills:
        if time.monotonic() - began > plan.seconds:
            say(f"stopped after {story.kills} of {plan.kills} kills: {plan.seconds:.0f} s are over")
            break
        story.early += killer.kill_one()
        story.kills += 1
        if cluster is not None and story.kills % _DATABASE_STOPS == 0:
            killer.wait_ready()
            how = chance.choice(("INT", "QUIT"))
            cluster.stop(how)
            cluster.start()
            story.database_stops += 1
        for sender in senders:
            if sender.trouble is not None:
                raise RuntimeError("a sender ended") from sender.trouble
        if story.kills % 10 == 0:
            say(f"{story.kills} kills; {senders[0].ledger.count()} reports answered")
    killer.wait_ready()


@contextlib.contextmanager
def place(keep: str | None) -> Iterator[Path]:
    if keep:
        Path(keep).mkdir(parents=True)
        yield Path(keep)
        return
    with tempfile.TemporaryDirectory(prefix="gpu_monitor-soak-") as folder:
        yield Path(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Both databases side by side; 0 where everything holds."""
    parser = argparse.ArgumentParser(prog="scripts/soak server", description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=200, help="on each database (200)")
    parser.add_argument("--seed", type=int, default=20240320, help="of what is sent and when it is killed")
    parser.add_argument("--only", choices=("sqlite", "postgresql"), help="one of both")
    parser.add_argument("--minutes", type=float, default=10.0, help="no kill begins later than this (10)")
    parser.add_argument("--keep", metavar="FOLDER", help="work here, and leave it for looking into")
    args = parser.parse_args(argv)
    compile_program()
    plan, began = Plan(args.kills, args.seed, seconds=args.minutes * 60), time.monotonic()

    def run(kind: str, folder: Path) -> Story:
        def say(text: str) -> None:
            print(f"soak: {time.monotonic() - began:4.0f} s: {kind}: {text}", flush=True)

        say(f"{plan.kills} kills, seed {plan.seed}")
        folder.mkdir()
        if kind == "sqlite":
            return soak(folder, plan, None, say)
        with running_cluster(fsync=True) as cluster:
            return soak(folder, plan, cluster, say)

    kinds = [args.only] if args.only else ["sqlite", "postgresql"]
    if WHY_NOT and "postgresql" in kinds:
        print(f"soak: NOT RUN on PostgreSQL: {WHY_NOT}", flush=True)
        kinds.remove("postgresql")
    with place(args.keep) as folder, ThreadPoolExecutor(len(kinds) or 1) as pool:
        running = {kind: pool.submit(run, kind, folder / kind) for kind in kinds}
        stories = {kind: one.result() for kind, one in running.items()}
    return _tell(stories, plan, time.monotonic() - began)


def _tell(stories: dict[str, Story], plan: Plan, seconds: float) -> int:
    for kind, story in stories.items():
        print("\n".join(["", f"{kind}:", *(f"  {line}" for line in story.told)]))
        width = max(map(len, story.found))
        for what, wrong in story.found.items():
            print(f"  {what.ljust(width)}  {'yes' if not wrong else 'NO'}")
            for one in wrong[:20]:
                print(f"      {one}")
    holds = bool(stories) and all(story.holds for story in stories.values())
    print(f"\n{'all of it holds' if holds else 'SOMETHING IS WRONG'}: seed {plan.seed}, {seconds:.0f} s")
    return 0 if holds else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
