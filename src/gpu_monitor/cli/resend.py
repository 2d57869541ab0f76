"""`gpu_monitor resend`: rejected and parked reports again, acknowledged ones on request, imported history."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gpu_monitor.agent.resend import Owed, ask, find, find_unasked, node_number
from gpu_monitor.cli.asking import find_store
from gpu_monitor.cli.options import Formatter, add_config
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_NOTHING, UsageError
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.core.times import format_time, parse_moment, parse_range
from gpu_monitor.storage.database import Reader, Writer

_EXAMPLES = """examples:
  gpu_monitor resend                           everything that was rejected or is parked
  gpu_monitor resend --rejected                only what the server refused, after its cause was mended
  gpu_monitor resend 2024-03-20T14:00          the report of that hour, whatever became of it
  gpu_monitor resend 2024-03-20..2024-03-22    the reports of two days
  gpu_monitor resend --all --dry-run           what would go if everything went again
  gpu_monitor resend --node trainer            send imported history, under a node of its own

A running agent sees it within a minute; without one, the reports go when it next runs."""
_NAMES = {
    "rejected": "rejected", "parked": "parked", "pending": "waiting already", "sent": "acknowledged already",
    None: "never sent",
}  # fmt: skip
_FOREVER = 2.0**62
_SHOWN = 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `resend` command."""
    parser = subparsers.add_parser(
        "resend", help="send rejected or parked reports again", formatter_class=Formatter, epilog=_EXAMPLES,
        description="Send reports again: each gets ten fresh attempts.",
    )  # fmt: skip
    parser.set_defaults(handler=run)
    add = parser.add_argument
    add("when", nargs="?", metavar="TIME", help="the period that contains TIME, or A..B (default: all times)")
    add("--rejected", action="store_true", default=False, help="reports that the server refused for good")
    add("--parked", action="store_true", default=False, help="reports that failed ten times")
    add("--all", action="store_true", default=False, help="all reports, acknowledged ones too (asks first)")
    add("--node", metavar="NAME", default=None, help="an imported node; sends what was never sent too")
    add("--dry-run", action="store_true", default=False, help="say what would go, change nothing")
    add("--yes", action="store_true", default=False, help="do not ask before sending acknowledged ones again")
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Make the chosen reports pending; exit 3 where there is none."""
    if args.all and (args.rejected or args.parked):
        raise UsageError("--all already means every report", "Leave --rejected and --parked out.")
    now = SystemClock().now()
    spans = _spans(args.when, now)
    path = find_store(args.config)[1]
    # Looking changes nothing, and works where one may not write.
    reader = Reader(path)
    try:
        node, chosen = _look(reader, args, spans)
    finally:
        reader.close()
    if not chosen:
        print("there is no report to send again", file=sys.stderr)
        return EXIT_NOTHING
    if args.dry_run:
        _list(chosen)
        return EXIT_DONE
    acknowledged = sum(one.state == "sent" for one in chosen)
    if acknowledged and not args.yes and not _agrees(acknowledged):
        print("nothing was changed", file=sys.stderr)
        return EXIT_FAILED
    return _resend(path, node, chosen, now)


def _look(
    reader: Reader, args: argparse.Namespace, spans: Sequence[tuple[float, float]]
) -> tuple[int, list[Owed]]:
    """The number of the node that is meant, and which of its reports."""
    node = node_number(reader, args.node)
    if node is None:
        raise UsageError(
            f"the store knows no node {args.node!r}", "gpu_monitor import gives a node its name."
        )
    return node, _chosen(reader, node, args, spans)


def _resend(path: Path, node: int, chosen: Sequence[Owed], now: float) -> int:
    writer = Writer(path)
    try:
        asked, gone = ask(writer, node, chosen, now)
    finally:
        writer.close()
    counts = Counter(_NAMES[one.state] for one in chosen)
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{_reports(asked)} will be sent ({said}); a running agent begins within a minute")
    if gone:
        print(f"{_reports(gone)} cannot be built any more: past their age", file=sys.stderr)
    return EXIT_DONE if asked else EXIT_FAILED


def _spans(text: str | None, now: float) -> list[tuple[float, float]]:
    """The stretches of time that `text` means: all, a range, or moments (two where the clock was put back)."""
    if text is None:
        return [(0.0, _FOREVER)]
    found = parse_range(text, now)
    if found is not None:
        # A range does not hold the period that begins at its end; times are kept to the millisecond.
        return [(found[0], max(found[0], found[1] - 0.001))]
    return [(moment, moment) for moment in parse_moment(text, now).candidates]


def _chosen(
    reader: Reader, node: int, args: argparse.Namespace, spans: Sequence[tuple[float, float]]
) -> list[Owed]:
    if args.all:
        states = {"rejected", "parked", "pending", "sent"}
    elif args.rejected or args.parked:
        states = {name for name in ("rejected", "parked") if getattr(args, name)}
    elif args.when is not None:
        states = {"rejected", "parked", "sent"}
    else:
        states = {"rejected", "parked"}
    found: dict[int, Owed] = {}
    for start, end in spans:
        chosen = find(reader, node, start, end, states)
        if args.node is not None and not (args.rejected or args.parked):
            chosen += find_unasked(reader, node, start, end)
        found.update({one.period.start: one for one in chosen})
    return [found[start] for start in sorted(found)]


def _list(chosen: Sequence[Owed]) -> None:
    for one in chosen[:_SHOWN]:
        reason = f": {clean(one.reason)}" if one.reason else ""
        print(f"{format_time(one.period.start)}  {_NAMES[one.state]}{reason}")
    if len(chosen) > _SHOWN:
        print(f"... and {len(chosen) - _SHOWN} more")
    print(f"{_reports(len(chosen))} would be sent; nothing was changed")


def _reports(count: int) -> str:
    return f"{count} report{'' if count == 1 else 's'}"


def _agrees(count: int) -> bool:
    """Ask on the terminal; UsageError where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"{count} of these reports are acknowledged already, and nobody is here to be asked",
            "Say --yes if you mean it, or choose with --rejected or --parked.",
        )
    print(
        f"{count} of these reports are acknowledged already. Type yes to send them again: ",
        end="",
        file=sys.stderr,
    )
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() == "yes"
