"""`gpu_monitor demo`: server, agent and an example training in one terminal, with a day of history where GPUs are simulated."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import queue
import re
import shutil
import signal
import socket
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_monitor.cli.demo_parts import LINK, Asked, Ended, News, Program, Said, is_worth_showing
from gpu_monitor.cli.demo_training import NAME
from gpu_monitor.cli.logs import be_quiet
from gpu_monitor.cli.options import Formatter, port
from gpu_monitor.cli.sources import check_source_flags, open_machine
from gpu_monitor.config.load import Loaded
from gpu_monitor.config.model import Settings
from gpu_monitor.config.server import NAMES
from gpu_monitor.config.training import DIRECTORY, SERVER
from gpu_monitor.config.training import NAMES as TRAINING
from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import EXIT_DONE, ConfigError, GpuMonitorError
from gpu_monitor.core.times import format_time

EXAMPLES = """examples:
  gpu_monitor demo       this machine's GPUs, or four simulated ones
  gpu_monitor demo --simulate 8:l40s --port 9000
  gpu_monitor demo --directory ~/demo      keeps what it recorded

Everything lies in one folder, which goes at the end unless --directory names it.
Ctrl-C ends everything."""
_USUAL_PORT = 8000
_USUAL_GPUS = "4:h100"
_PACE_OF_SIMULATED, _PACE_OF_TRAINING = 30, "0.11"
"""Seconds: an agent looks at processes twice a minute, so that it sees a training of 33 s at least once."""
_SPEED, _BACK = "7200", "-24h"
"""A simulated day in a quarter of a minute."""
_FAULT = "gpu=1 at=+20h for=25m kind=lost"
"""So that there is a gap, an event and an alert to look at."""
_STOP_SECONDS = 4.0
"""With what is left to do after it, Ctrl-C takes less than 5 s."""
_HOUR = 3600
_MARKER = ".gpu_monitor-demo"
"""What an earlier demonstration left in its folder, so that another server's is not taken for one."""
_TRAINING = "training"
_NAMES = f"{NAME} {NAME}~2"
"""The two runs of the example."""
_READY = re.compile(r"gpu_monitor serves on (\S+)")
_OWN = (*TRAINING, "GPU_MONITOR_EXPERIMENT_ID", "STATE_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `demo` command."""
    parser = subparsers.add_parser(
        "demo",
        help="agent, server and a training together, to look at",
        description="Run an agent, a server and an example training that belong together, in a folder of their own.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    add = parser.add_argument
    add("--port", metavar="PORT", type=port, help="port of the server (default: 8000, or a free one)")
    add("--directory", metavar="DIR", type=Path, help="keep everything here (default: a temporary folder)")
    # The program itself has a --simulate, too; either place will do.
    add(
        "--simulate", metavar="N[:MODEL]", default=argparse.SUPPRESS,
        help="simulated GPUs, also where there are real ones",
    )  # fmt: skip
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run all until Ctrl-C, SIGTERM or SIGHUP; 1 where one of them ended by itself."""
    if importlib.util.find_spec("fastapi") is None:
        raise GpuMonitorError(
            "the server's packages are not installed", "Run: pip install 'gpu-monitor[server]'"
        )
    check_source_flags(args)
    be_quiet()
    clock = SystemClock()
    with _folder(args.directory) as folder, _news() as news:
        simulated = args.simulate or (None if _has_gpu(folder) else _USUAL_GPUS)
        demo = Demo(folder, simulated, clock, news, is_kept=args.directory is not None)
        return demo.run(_port(args.port))


@dataclass
class Demo:
    """One demonstration. `simulated`: what --simulate takes, None for this machine's GPUs."""

    folder: Path
    simulated: str | None
    clock: Clock
    news: queue.SimpleQueue[News]
    is_kept: bool = False
    link: str = ""
    programs: list[Program] = field(default_factory=list)

    def run(self, port: int) -> int:
        """Start them, tell where to look, end them."""
        try:
            url = self._start_server(port)
            if url is None:
                return EXIT_DONE  # asked to end before the server was ready
            self._start_agent(url)
            if self.simulated is None:
                self._start_training(url)
            self._tell(url)
            return self._follow(url)
        except _EndedAlone as found:
            name, code = found.ended.program.name, found.ended.code
            said = "".join(f"\n  {line}" for line in found.ended.program.last)
            raise GpuMonitorError(f"the {name} ended by itself with exit code {code}:{said}") from None
        finally:
            self._stop()

    def _start_server(self, port: int) -> str | None:
        words = ["serve", "--host", "127.0.0.1", "--port", str(port), "--directory", str(self.folder)]
        words += ["--database", f"sqlite:///{self.folder / 'server.db'}", "--link"]
        self._launch("server", words)
        url = None
        while True:
            news = self._next(None)
            if isinstance(news, Asked):
                return None
            if isinstance(news, Said) and (found := _READY.search(news.line)):
                url = found[1]
            elif isinstance(news, Said) and url is not None and (found := LINK.search(news.line)):
                self.link = found[0]
                return url

    def _start_agent(self, url: str) -> None:
        is_first = not (self.folder / "gpu_metrics.db").exists()
        collection: dict[str, float] = {"reading_seconds": 20.0}
        words = ["-c", str(self.folder / "config.json")]
        if self.simulated is None:
            collection = {"interval_seconds": 10, "reading_seconds": 5.0}
        else:
            words += ["--simulate", self.simulated, "--with-runs", "--speed", _SPEED]
            collection["interval_seconds"] = _PACE_OF_SIMULATED
        if self.simulated is not None and is_first:
            words += ["--start", _BACK]
            words += ["--fault", _FAULT] if _count(self.simulated) > 1 else []
        settings = {
            "server": {"url": f"{url}/api/metrics", "contract_number": "demo", "spread_seconds": 5},
            "collection": collection,
            "database": {"file": str(self.folder / "gpu_metrics.db")},
            "logging": {"file": None},
        }
        (self.folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        self._launch("agent", words)

    def _start_training(self, url: str) -> None:
        more = {SERVER: url, DIRECTORY: str(self.folder / "experiments")}
        pace = [] if self.simulated is None else [_PACE_OF_TRAINING]
        self._launch(_TRAINING, pace, "gpu_monitor.cli.demo_training", more)

    def _launch(
        self, name: str, words: list[str], module: str = "gpu_monitor", own: Mapping[str, str] | None = None
    ) -> None:
        """Start one of the programs, with none of the settings that the user's environment holds for others."""
        more = dict.fromkeys((*NAMES, *_OWN), "")
        state = str(self.folder / "state")
        more |= {"XDG_STATE_HOME": state, "LOCALAPPDATA": state, "NO_PROXY": "127.0.0.1,localhost"}
        more |= own or {}
        self.programs.append(Program(name, words, self.folder, self.news, more, module))

    def _tell(self, url: str) -> None:
        if self.simulated is not None:
            _say("=" * 78)
            _say(f"SIMULATED {_gpus(self.simulated)} ({self.simulated}): nothing that is shown was measured.")
            _say("=" * 78)
        else:
            _say("this machine's own GPUs; their history begins now")
        _say(f"the page       {url}/")
        _say(f"administer it  {self.link} (once)")
        fleet = f"{url}/api/fleet" + ("?include=simulated" if self.simulated is not None else "")
        _say(f"the API        {url}/docs    for example: curl '{fleet}'")
        _say(f"the training   gpu_monitor compare {_NAMES} --server {url}")
        _say(f"runs of yours  XDG_STATE_HOME={self.folder / 'state'} gpu_monitor sync --server {url}")
        _say(f"for Prometheus {url}/metrics")
        _say(f"the agent      gpu_monitor -c {self.folder / 'config.json'} -sc")
        _say(f"the folder     {self.folder} ({'is kept' if self.is_kept else 'goes at the end'})")
        _say("Ctrl-C ends everything")

    def _follow(self, url: str) -> int:
        """Show what goes wrong until the end is asked for; say when the simulated day has arrived."""
        is_full = self.simulated is None
        while True:
            news = self._next(None if is_full else 1.0)
            if isinstance(news, Asked):
                return EXIT_DONE
            if isinstance(news, Said) and is_full and is_worth_showing(news.line):
                _say(f"{news.program.name}: {news.line}")
            if news is None and self._has_arrived(url):
                is_full = True
                _say("a day of history is there")
                self._start_training(url)  # now, so that it meets the GPUs, whose time has come up with ours

    def _has_arrived(self, url: str) -> bool:
        """Whether the server holds the hour that ended last, and minutes of now: simulated time has come up with ours."""
        now = self.clock.now()
        hour, present = now // _HOUR * _HOUR - _HOUR, now - _PACE_OF_SIMULATED
        try:
            periods = [node["last_period"] for node in _asked(f"{url}/api/nodes")]
            times = [gpu["time"] for gpu in _asked(f"{url}/api/fleet?include=simulated")]
        except (OSError, ValueError, KeyError):
            return False
        return _reaches(periods, hour) and _reaches(times, present)

    def _next(self, seconds: float | None) -> News | None:
        """The next news, None after `seconds` without any; _EndedAlone where a program has ended."""
        try:
            news = self.news.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(news, Ended):
            if news.program.name != _TRAINING or news.code != 0:
                raise _EndedAlone(news)
            _say(
                f"the example training is over: gpu_monitor compare {_NAMES} --directory {self.folder / 'experiments'}"
            )
        return news

    def _stop(self) -> None:
        for program in reversed(self.programs):
            program.ask_to_end()
        deadline = self.clock.monotonic() + _STOP_SECONDS
        for program in reversed(self.programs):
            if not program.end_by(deadline, self.clock):
                _say(f"the {program.name} did not end in time and was killed")


class _EndedAlone(Exception):
    """A program ended and nobody had asked for it."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.program.name)
        self.ended = ended


def _asked(url: str) -> list[Any]:
    """The items of one of the API's lists, without the proxies of the environment: it is within the machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=2) as answer:
        return list(json.load(answer)["items"])


def _reaches(times: list[str | None], moment: float) -> bool:
    """Whether one of them is `moment` (seconds UTC) or later."""
    return any(time is not None and time >= format_time(int(moment)) for time in times)


def _say(line: str) -> None:
    print(f"demo: {line}", flush=True)


def _gpus(simulated: str) -> str:
    return "GPU" if _count(simulated) == 1 else "GPUs"


def _count(simulated: str) -> int:
    return int(simulated.partition(":")[0])


def _has_gpu(folder: Path) -> bool:
    """Whether NVML names a GPU on this machine now."""
    chosen = open_machine(Loaded(Settings(), None, folder))
    try:
        return chosen.warning is None
    finally:
        chosen.source.close()


def _port(wanted: int | None) -> int:
    """The port to listen on: what was asked for, else the usual one, else (0) a free one, and that is said."""
    if wanted is not None:
        return wanted
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", _USUAL_PORT))
        except OSError as error:
            _say(
                f"port {_USUAL_PORT} cannot be had ({error.strerror}): a free one is taken; --port names another"
            )
            return 0
    return _USUAL_PORT


@contextlib.contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    """The folder of everything: the named one, or a temporary one that goes at the end."""
    if named is not None:
        folder = named.expanduser().absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make {folder}: {error.strerror}", "Give another --directory."
            ) from error
        _refuse_another(folder)
        yield folder
        return
    made = Path(tempfile.mkdtemp(prefix="gpu_monitor-demo-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _refuse_another(folder: Path) -> None:
    """ConfigError where the folder holds something else than an earlier demonstration: its files would be ours."""
    marker = folder / _MARKER
    if not marker.exists() and any(folder.iterdir()) and not _is_ours(folder / "config.json"):
        raise ConfigError(
            f"{folder} holds files that are of no demonstration",
            "Give a --directory of its own: a new one, an empty one or an earlier demonstration's.",
        )
    marker.write_text("This folder belongs to gpu_monitor demo.\n", encoding="utf-8")


def _is_ours(config: Path) -> bool:
    """Whether a demonstration wrote it, before there was a marker."""
    try:
        return bool(json.loads(config.read_text(encoding="utf-8"))["server"]["contract_number"] == "demo")
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def _news() -> Iterator[queue.SimpleQueue[News]]:
    """Where news arrive, signals among them: the terminal's Ctrl-C, its end, and a service manager's stop."""
    news: queue.SimpleQueue[News] = queue.SimpleQueue()

    def ask(number: int, _frame: object) -> None:
        news.put(Asked(number))

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    wanted = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, ask) for number in wanted}
    try:
        yield news
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
