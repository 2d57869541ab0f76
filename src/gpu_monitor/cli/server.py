"""`gpu_monitor server`: a copy of the server's database, the way back, the check of what is in it, and forgetting."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from gpu_monitor.cli.consent import agrees
from gpu_monitor.cli.options import Formatter
from gpu_monitor.cli.output import json_text, note
from gpu_monitor.cli.server_database import add_place, files_folder, opened
from gpu_monitor.cli.server_forget import add_forget, forget
from gpu_monitor.config.server import load_server
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_FAILED, UsageError
from gpu_monitor.server.store.backup import (
    Copy,
    Progress,
    back_up,
    missing_after,
    restore_postgresql,
    restore_sqlite,
    verify_copy,
)
from gpu_monitor.server.store.blob_files import copy_files, count_files, file_faults
from gpu_monitor.server.store.check import CheckReport, Difference, check
from gpu_monitor.server.store.url import parse_url, shown

EXAMPLES = """examples:
  gpu_monitor server check                  is every report what it was when it was stored?
  gpu_monitor server backup week.backup     a verified copy, while the server runs
  gpu_monitor server restore week.backup    the copy back, after the server was stopped
  gpu_monitor server forget-node gpu-0001   a machine that is gone, with all it reported

Of PostgreSQL a copy is a dump of pg_dump, in its custom format; both tools must be installed."""
_BAR = 30
_SHOWN = 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `server` command."""
    parser = subparsers.add_parser(
        "server", help="back up, restore or check the server's database; forget a node",
        formatter_class=Formatter, epilog=EXAMPLES,
        description="Work on the server's database. backup and check may run beside the server.",
    )  # fmt: skip
    parser.set_defaults(handler=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    backup = actions.add_parser("backup", help="copy the database into one file, and verify the copy")
    backup.add_argument("file", metavar="FILE", type=Path, help="where to (not over another file)")
    backup.add_argument(
        "--files", metavar="DIR", type=Path,
        help="copy the files of experiments into this folder, too: those that it lacks, each verified",
    )  # fmt: skip
    restore = actions.add_parser("restore", help="put a copy in the place of the database")
    restore.add_argument("file", metavar="FILE", type=Path, help="what gpu_monitor server backup made")
    restore.add_argument("--yes", action="store_true", default=False, help="do not ask before overwriting")
    checking = actions.add_parser(
        "check", help="compare what is stored with what was acknowledged (exit 1 if it differs)"
    )
    for action in (backup, restore, checking, add_forget(actions)):
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        add_place(action)


def run(args: argparse.Namespace) -> int:
    """Do what `gpu_monitor server ACTION` asks; the exit code."""
    if args.action == "forget-node":
        return forget(args, _progress(sys.stderr))
    return {"backup": _backup, "restore": _restore, "check": _check}[args.action](args)


def _backup(args: argparse.Namespace) -> int:
    target = args.file.expanduser().absolute()
    if target.exists():
        raise UsageError(f"{target} is there already", "Name a new file; a copy never replaces another.")
    folder, progress = files_folder(args), _progress(sys.stderr)
    with opened(args) as store:
        copy = back_up(store, target, SystemClock(), progress)
        named, copied = count_files(store.read), None
        if args.files is not None:
            # After the database: what its copy names is in the folder, whatever came meanwhile.
            aside = args.files.expanduser().absolute()
            copied = copy_files(store.read, folder, aside, lambda done, total: progress("files", done, total))
    if args.json:
        found = {"file": str(copy.path), "bytes": copy.size, **_counts(copy)}
        print(json_text({**found, "files": named.count, "files_copied": copied and copied.count}))
        return EXIT_DONE
    print(f"{copy.path}: {copy.size} bytes, {_contents(copy)}, verified")
    if copied is not None:
        print(f"{args.files}: {named.count} files of experiments, {copied.count} of them new, verified")
    elif named.count:
        print(f"not in it: {named.count} files of experiments, {named.bytes} bytes in {folder} (--files DIR)")
    return EXIT_DONE


def _restore(args: argparse.Namespace) -> int:
    settings = load_server({"database_url": args.database}, args.directory)
    url = parse_url(settings.database_url, settings.directory)
    source, clock, progress = args.file.expanduser().absolute(), SystemClock(), _progress(sys.stderr)
    report = verify_copy(url, source, clock, progress)
    is_postgresql = url.get_backend_name() == "postgresql"
    is_there = is_postgresql or Path(str(url.database)).exists()
    if is_there and not args.yes and not agrees(f"Everything in {shown(url)} will be replaced."):
        note("nothing was changed")
        return EXIT_FAILED
    kept = None
    if is_postgresql:
        report = restore_postgresql(url, source, clock, progress)
    else:
        kept = restore_sqlite(url, source, clock)
    assert report is not None
    folder = settings.directory / settings.blobs_directory
    missing = missing_after(url, folder)
    if args.json:
        found = {"database": shown(url), **_counts(report)}
        print(json_text({**found, "kept": None if kept is None else str(kept), "files_missing": missing}))
        return EXIT_DONE
    print(f"{shown(url)}: {_contents(report)} are back")
    if kept is not None:
        print(f"what was there before is kept in {kept}")
    if missing:
        print(f"{missing} files of experiments are not in {folder}: copy them back into it")
    return EXIT_DONE


def _check(args: argparse.Namespace) -> int:
    progress = _progress(sys.stderr)
    with opened(args) as store:
        report = check(store.read, SystemClock(), lambda done, total: progress("checked", done, total))
        files = count_files(store.read).count
        faults = file_faults(
            store.read, files_folder(args), lambda done, total: progress("files", done, total)
        )
        report.add(Difference(fault) for fault in faults)
        name = str(store)
    if args.json:
        print(json_text(_as_json(name, report, files), indent=1))
    else:
        _print(name, report, files, sys.stdout)
    return EXIT_FAILED if report.count else EXIT_DONE


def _as_json(name: str, report: CheckReport, files: int) -> dict[str, object]:
    differences = [{**asdict(found), "period": found.period} for found in report.differences]
    counts = {**_counts(report), "files": files, "differences": report.count}
    return {"database": name, "ok": not report.count, **counts, "differs": differences}


def _counts(of: Copy | CheckReport) -> dict[str, object]:
    return {"receipts": of.receipts, "rows": of.rows, "experiments": of.experiments, "segments": of.segments}


def _contents(of: Copy | CheckReport) -> str:
    """How much there is, in words; experiments only where there are some."""
    reports = f"{of.receipts} reports with {of.rows} rows"
    if not of.experiments and not of.segments:
        return reports
    return f"{reports}, {of.experiments} experiments with {of.segments} segments"


def _print(name: str, report: CheckReport, files: int, stream: TextIO) -> None:
    for found in report.differences[:_SHOWN]:
        place = f"{found.node or '-'} {found.period}: " if found.period else ""
        print(f"{place}{found.what}", file=stream)
    if report.count > _SHOWN:
        print(f"... and {report.count - _SHOWN} more (--json lists up to 1000)", file=stream)
    verdict = f"{report.count} DIFFERENCES" if report.count else "all as it was written"
    more = f", {files} files" if report.segments or files else ""
    print(f"{name}: {_contents(report)}{more}: {verdict}", file=stream)


def _progress(stream: TextIO) -> Progress:
    """A bar on a terminal, nothing in a pipe."""
    if not stream.isatty():
        return lambda name, done, total: None

    def draw(name: str, done: int, total: int) -> None:
        share = done / total if total else 1.0
        bar = ("#" * round(share * _BAR)).ljust(_BAR, ".")
        end = "\r" + " " * (len(name) + _BAR + 12) + "\r" if done >= total else ""
        print(f"\r{name} [{bar}] {share:4.0%}", end=end, file=stream, flush=True)

    return draw
