"""The program's entry: parses the command line, loads only what the command needs, maps errors to exit codes."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import gc
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from gpu_monitor import __version__
from gpu_monitor.cli.options import Formatter, join_times
from gpu_monitor.core.errors import EXIT_DONE, EXIT_FAILED, GpuMonitorError
from gpu_monitor.core.terminal_text import clean_lines

COMMANDS: dict[str, tuple[str, str]] = {
    "service": (
        "gpu_monitor.cli.service",
        "install, look at or remove the agent as a service of this machine",
    ),
    "doctor": ("gpu_monitor.cli.doctor", "check everything an operator would check"),
    "report": ("gpu_monitor.cli.report", "GPU-hours, idle hours, energy and money"),
    "events": ("gpu_monitor.cli.events", "what happened: Xids, lost GPUs, throttling, gaps"),
    "export": ("gpu_monitor.cli.export", "rows or hours as CSV or JSON"),
    "import": ("gpu_monitor.cli.import_", "recorded nvidia-smi logs into the store, TensorBoard's runs"),
    "resend": ("gpu_monitor.cli.resend", "send rejected or parked reports again"),
    "experiments": ("gpu_monitor.cli.experiments", "list, show, export, archive and delete experiments"),
    "compare": ("gpu_monitor.cli.compare", "experiments side by side"),
    "sync": ("gpu_monitor.cli.sync", "upload experiments that lie on this machine"),
    "demo": ("gpu_monitor.cli.demo", "agent, server and a training together, to look at"),
    "serve": ("gpu_monitor.cli.serve", "run the central server"),
    "token": ("gpu_monitor.cli.token", "make, list or revoke the server's tokens"),
    "user": ("gpu_monitor.cli.user", "the people who may log in to the server"),
    "server": ("gpu_monitor.cli.server", "back up, restore or check the server's database"),
    "completion": ("gpu_monitor.cli.completion", "print shell completion (bash, zsh, fish)"),
}
"""Command, the module that adds its parser and handles it, and a line of help. Loaded by name, one per call."""

_EXAMPLES = """examples:
  gpu_monitor                          run the agent in the foreground
  gpu_monitor --once                   one reading, printed, not stored
  gpu_monitor -sc                      the last stored collection
  gpu_monitor -sc -2h -f csv           the collection two hours ago, as CSV
  gpu_monitor -sc 2024-03-20T14:00     the aggregates of that hour
  gpu_monitor -sc yesterday..today --hourly --fields all
  gpu_monitor -ls                      what was sent, tried and is still owed
  gpu_monitor report --since -7d       GPU-hours, idle hours, energy of a week
  gpu_monitor --simulate 8:h100        run on simulated GPUs

exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing found, 78 bad configuration"""


class _Parser(argparse.ArgumentParser):
    """The whole program's: names the nearest option or command where there is none of that name."""

    _given: tuple[str, ...] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; exit 2 where something is left over."""
        self._given = tuple(sys.argv[1:] if args is None else args)
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            options = [name for one in self._all_parsers(found) for name in one._option_string_actions]
            near = "".join(_nearest(word.partition("=")[0], options) for word in rest if word[:1] == "-")
            self.error(f"unrecognized arguments: {' '.join(rest)}{near}")
        return found

    def _all_parsers(self, found: argparse.Namespace) -> Iterator[argparse.ArgumentParser]:
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and found.command in action.choices:
                yield action.choices[found.command]

    def error(self, message: str) -> NoReturn:
        """Exit 2; a command that there is not gets the nearest one instead of all."""
        wrong = re.match(r"argument COMMAND: invalid choice: '([^']*)'", message)
        if wrong:
            # What follows a misspelt option looks like a command.
            given = self._given[: self._given.index(wrong[1])] if wrong[1] in self._given else ()
            unknown = [word.partition("=")[0] for word in given if word[:2] == "--"]
            unknown = [word for word in unknown if word not in self._option_string_actions]
            if unknown:
                near = _nearest(unknown[0], self._option_string_actions)
                super().error(f"unrecognized arguments: {unknown[0]}{near}")
            message = f"there is no command '{wrong[1]}'{_nearest(wrong[1], COMMANDS)}; --help lists them"
        super().error(message)


def _nearest(word: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(names), 1)
    return f" (did you mean {found[0]}?)" if found else ""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole program; only `command` (None: no command; `*`: all) gets its own options."""
    parser = _Parser(
        prog="gpu_monitor", formatter_class=Formatter, allow_abbrev=False, epilog=_EXAMPLES,
        description="The flight recorder and the ledger of a GPU fleet. Without a command it runs the agent.",
    )  # fmt: skip
    _add_agent_options(parser)
    _add_asking_options(parser)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", parser_class=argparse.ArgumentParser
    )
    for name, (module, text) in COMMANDS.items():
        if command == name or (command == "*" and _is_there(module)):
            _load(name, module).add_parser(commands)
        else:
            commands.add_parser(name, help=text, add_help=False)
    return parser


def _load(name: str, module: str) -> ModuleType:
    """The module of a command; GpuMonitorError where it needs packages that are not installed."""
    gc.disable()  # a tenth of a server's start went into looking for cycles among what loading makes, which stays
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("gpu_monitor"):
            raise
        raise GpuMonitorError(
            f"gpu_monitor {name} needs {error.name}, which is not installed",
            "Run: pip install 'gpu-monitor[server]'",
        ) from error
    finally:
        gc.enable()


def _is_there(module: str) -> bool:
    """Whether all that a command's module needs is installed: an agent's machine has no server."""
    try:
        return bool(_load(module, module))
    except GpuMonitorError:
        return False


def _add_agent_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("agent").add_argument
    parser.add_argument("--version", action="version", version=f"gpu_monitor {__version__}")
    add("-c", "--config", metavar="CONFIG", help="configuration file (JSON)")
    add("-o", "--offline", action="store_true", help="collect and aggregate, send nothing")
    add("-v", "--verbose", action="store_true", help="DEBUG on the console")
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    add("-l", "--log-level", choices=levels, help="least level on console and in the file")
    add("--once", action="store_true", help="take one reading, print it, store nothing")
    add("--dry-run", action="store_true", help="say what would be collected, stored and sent")
    add(
        "--simulate",
        metavar="N[:MODEL]",
        help="simulated GPUs, labelled as such (models: h100, l40s, rtx4090 ...)",
    )
    add(
        "--with-runs",
        action="store_true",
        help="trainings of this machine take the place of made-up jobs on simulated GPUs",
    )
    add("--seed", type=int, default=0, metavar="S", help="which simulated world (default 0)")
    add(
        "--fault",
        action="append",
        default=[],
        metavar="SPEC",
        help="a simulated fault, e.g. 'gpu=1 at=+10m for=5m kind=lost'",
    )
    add("--replay", metavar="FILE", help="a recorded log in place of GPUs")
    add(
        "--speed",
        type=float,
        default=1.0,
        metavar="X",
        help="simulated or replayed time runs X times as fast",
    )
    add("--start", metavar="TIME", help="when simulated time begins (default with --speed: -24h)")
    add("--until", metavar="TIME", help="stop the agent at this time (or after a duration, e.g. +2h)")


def _add_asking_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("asking (needs no GPU, no driver, no running agent)").add_argument
    add("-ls", "--list-sends", action="store_true", help="all periods and how their delivery stands")
    add("-ss", "--search-send", metavar="TIME", help="the delivery of the period that contains TIME")
    add(
        "-sc", "--show-collection", metavar="TIME", nargs="?", const="",
        help="the last collection; a full hour: its aggregates; else the nearest; A..B a range",
    )  # fmt: skip
    add("-f", "--output-format", choices=("json", "csv"), default="json", help="format of -sc (default json)")
    add(
        "--fields",
        metavar="LIST",
        help="columns of -sc: all, or names with commas (default: the twelve main ones)",
    )
    add("--raw", action="store_true", help="rows of each interval, also for a full hour")
    add("--hourly", action="store_true", help="aggregates, also for a range or the newest")
    add("--host", action="store_true", help="the machine (CPU, memory, disk, network) instead of its GPUs")
    add("--node", metavar="NAME", help="an imported node instead of this machine")
    add("--naive", action="store_true", help="print local times without offset")
    add("--json", action="store_true", help="-ls and -ss as JSON")


def _named_command(argv: Sequence[str]) -> str | None:
    return next((word for word in argv if word in COMMANDS), None)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, parsed. GpuMonitorError where the command's packages are missing, after its help where asked for."""
    command = _named_command(words)
    try:
        parser = build_parser(command)
    except GpuMonitorError as error:
        if command is None or not {"-h", "--help"} & set(words):
            raise
        print(f"usage: gpu_monitor {command} ...\n\n{COMMANDS[command][1]}\n")
        print(f"{error.message}: its options are shown once it is. {error.hint}")
        print("All of them stand in docs/cli.md.")
        raise SystemExit(EXIT_DONE) from None
    return parser.parse_args(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    words = join_times(sys.argv[1:] if argv is None else argv)
    try:
        args = _parse(words)
    except GpuMonitorError as error:
        print(f"gpu_monitor: {error}", file=sys.stderr)
        return error.exit_code
    module = "gpu_monitor.cli.asking" if _is_question(args) else "gpu_monitor.cli.agent"
    handler = getattr(args, "handler", None) or importlib.import_module(module).run
    try:
        return int(handler(args))
    except GpuMonitorError as error:
        print(f"gpu_monitor: {clean_lines(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gpu_monitor: interrupted", file=sys.stderr)
        return EXIT_FAILED


def _is_question(args: argparse.Namespace) -> bool:
    return bool(args.list_sends or args.search_send is not None or args.show_collection is not None)


def entry() -> None:
    """The console script: like `main`, quiet when the reader of a pipe goes away, clear when stdout is full."""
    if sys.stdout is None:  # started with stdout closed: results have nowhere to go, the agent needs none
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        code = EXIT_FAILED  # the reader has what it wanted (head, less)
    except OSError as error:
        print(f"gpu_monitor: cannot write the result: {error}", file=sys.stderr)
        code = EXIT_FAILED
    if code == EXIT_FAILED:
        # What stdout still holds cannot go where it was meant to; Python must not try once more at its end.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
