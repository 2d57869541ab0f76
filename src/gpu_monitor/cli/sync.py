"""`gpu_monitor sync`: uploads experiments that lie on this machine."""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from gpu_monitor.cli.options import Formatter
from gpu_monitor.cli.output import json_text, note
from gpu_monitor.config.training import SERVER, TrainingSettings, load_training
from gpu_monitor.core.clock import Clock, SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_FAILED, ConfigError, NothingFound
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.sinks.experiments import ExperimentServer
from gpu_monitor.training.sync import Sync, Synced, find_experiments

_EXAMPLES = """examples:
  gpu_monitor sync                               what ./experiments (or GPU_MONITOR_DIR) still owes
  gpu_monitor sync --server https://gpus:8000    to this server; the token is in GPU_MONITOR_TOKEN
  gpu_monitor sync runs/a runs/b                 other directories, or single experiments
  gpu_monitor sync --watch 30                    again and again, until Ctrl-C

It may be interrupted and repeated: what was sent is not sent again, and nothing here is deleted.

exit codes: 0 the server holds everything, 1 something is still only here, 3 no experiments, 78 no server"""
_BAR_SECONDS = 0.1
_BAR_WIDTH = 24
_UNITS = ("B", "kB", "MB", "GB", "TB")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `sync` command."""
    parser = subparsers.add_parser(
        "sync", help="upload experiments that lie on this machine", formatter_class=Formatter, epilog=_EXAMPLES,
        description="Upload what the experiments in directories still owe a server.",
    )  # fmt: skip
    parser.set_defaults(handler=run)
    add = parser.add_argument
    add("directories", nargs="*", metavar="DIR", help="where experiments lie (default: ./experiments)")
    add("--server", metavar="URL", default=None, help=f"the server (default: {SERVER}, .env, the agent's)")
    add(
        "--again", action="store_true", default=False,
        help="send everything again, whatever is remembered here; it changes nothing there",
    )  # fmt: skip
    add("--watch", metavar="SECONDS", type=_seconds, default=None, help="do it again and again, so often")
    add("--json", action="store_true", default=False, help="print what became of each experiment as JSON")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r}: seconds from 1 to 86400 were expected")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Upload; exit 0 where the server holds everything then."""
    settings = load_training(server=args.server)
    if settings.server is None:
        raise ConfigError("there is no server to upload to", f"Give --server URL, or set {SERVER}.")
    directories = [Path(name).expanduser() for name in args.directories] or [settings.directory]
    server = _connect(settings, settings.server)
    clock = SystemClock()
    try:
        while True:
            try:
                code = _sync(args, server, directories, clock)
            except NothingFound:
                if args.watch is None:
                    raise
                code = EXIT_DONE  # there may be one later
            if args.watch is None:
                return code
            clock.wait(threading.Event(), clock.monotonic() + args.watch)
    except KeyboardInterrupt:
        if args.watch is not None:
            return EXIT_DONE
        note("interrupted: what was sent is held, the rest is still here; the same command goes on")
        return EXIT_FAILED
    finally:
        server.close()


def _connect(settings: TrainingSettings, base: str) -> ExperimentServer:
    server = ExperimentServer(base, settings.read_token, settings.ca_file)
    settings.read_token()  # a token file that cannot be used is told of before anything is tried
    server.prepare()
    return server


def _sync(
    args: argparse.Namespace, server: ExperimentServer, directories: Sequence[Path], clock: Clock
) -> int:
    folders = find_experiments(directories)
    bar = Bar(sys.stderr, clock)
    sync = Sync(server, again=args.again, moved=bar.moved, clock=clock)
    bar.total = sync.owed(folders)
    found: list[Synced] = []
    try:
        for one in sync.run(folders):
            found.append(one)
            has_news = (
                one.uploaded_bytes or one.uploaded_files or one.reasons or one.is_crashed or one.more_bytes
            )
            if not args.json and (has_news or not one.is_done):
                bar.clear()
                print(_line(one), flush=True)
    finally:
        bar.clear()
        if args.json:
            print(json_text(_record(server, found), indent=2), flush=True)
    if not args.json and not (args.watch is not None and not any(one.uploaded_bytes for one in found)):
        note(_summary(server, found))
    return EXIT_DONE if all(one.is_done for one in found) else EXIT_FAILED


class Bar:
    """How far it is, in one line of a terminal; nothing where the stream is none."""

    def __init__(self, stream: TextIO, clock: Clock, width: Callable[[], int] | None = None) -> None:
        self.total = 0
        self._done = 0
        self._stream = stream
        self._clock = clock
        self._width = width or (lambda: shutil.get_terminal_size().columns)
        self._is_on = stream.isatty()
        self._is_drawn = False
        self._drawn = float("-inf")

    def moved(self, size: int, experiment_id: str) -> None:
        """So many bytes more have gone."""
        self._done += size
        # Files come on top of what was known at the start.
        self.total = max(self.total, self._done)
        now = self._clock.monotonic()
        if not self._is_on or now - self._drawn < _BAR_SECONDS:
            return
        self._drawn, self._is_drawn = now, True
        part = self._done / self.total if self.total else 0.0
        full = round(part * _BAR_WIDTH)
        text = f"[{'#' * full}{'.' * (_BAR_WIDTH - full)}] {part:4.0%}  {size_text(self._done)} of {size_text(self.total)}"
        self._stream.write("\r\x1b[K" + f"{text}  {experiment_id}"[: self._width() - 1])
        self._stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._is_drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._is_drawn = False


def size_text(size: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _line(one: Synced) -> str:
    words = [f"{size_text(one.uploaded_bytes)} uploaded"] if one.uploaded_bytes or one.uploaded_files else []
    if one.uploaded_files:
        words.append(f"{one.uploaded_files} file{'' if one.uploaded_files == 1 else 's'}")
    if one.local_bytes:
        words.append(f"{size_text(one.local_bytes)} still local")
    if one.local_files:
        words.append(f"{one.local_files} file{'' if one.local_files == 1 else 's'} not uploaded")
    if one.more_bytes:
        words.append(f"cut short here: the server holds {size_text(one.more_bytes)} more")
    if one.is_crashed:
        words.append("crashed")
    reason = f" ({clean(one.reasons[0])})" if one.reasons else ""
    name = f"  {clean(one.name)}" if one.name else ""
    return f"{clean(one.experiment_id)}{name}: {', '.join(words or ['nothing to send'])}{reason}"


def _summary(server: ExperimentServer, found: Sequence[Synced]) -> str:
    count = len(found)
    uploaded, local = sum(one.uploaded_bytes for one in found), sum(one.local_bytes for one in found)
    text = f"{count} experiment{'' if count == 1 else 's'}, {size_text(uploaded)} uploaded to {server.name}"
    missing = sum(one.local_files for one in found)
    if local or missing:
        files = [f"{missing} file{'' if missing == 1 else 's'}"] if missing else []
        text += f"; still local: {' and '.join([size_text(local), *files] if local else files)}"
        if any(one.is_refused for one in found):
            return text + ". All of it stays here; the lines above say what has to be mended before it can go"
        return text + ". Nothing is lost: the same command goes on from here"
    if any(not one.is_done for one in found):
        return text + "; something could not be read, as said above"
    if any(one.reasons for one in found):
        return text + "; it holds everything but what was deleted there"
    return text + "; it holds everything"


def _record(server: ExperimentServer, found: Sequence[Synced]) -> dict[str, object]:
    return {
        "server": server.name,
        "uploaded_bytes": sum(one.uploaded_bytes for one in found),
        "local_bytes": sum(one.local_bytes for one in found),
        "experiments": [
            {
                "id": one.experiment_id, "name": one.name, "folder": str(one.folder),
                "uploaded_bytes": one.uploaded_bytes, "uploaded_files": one.uploaded_files,
                "local_bytes": one.local_bytes, "local_files": one.local_files, "torn_bytes": one.torn_bytes,
                "reasons": list(one.reasons), "written": one.is_written, "crashed": one.is_crashed,
                "refused": one.is_refused, "more_bytes_there": one.more_bytes,
            }
            for one in found
        ],
    }  # fmt: skip
