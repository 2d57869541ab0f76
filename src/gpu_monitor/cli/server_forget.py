"""`gpu_monitor server forget-node`: everything of one machine taken out of the server's database."""

from __future__ import annotations

import argparse
from typing import Any

from gpu_monitor.cli.consent import agrees
from gpu_monitor.cli.output import json_text, note
from gpu_monitor.cli.server_database import actor, opened
from gpu_monitor.core.clock import SystemClock
from gpu_monitor.core.errors import EXIT_DONE, EXIT_FAILED
from gpu_monitor.core.terminal_text import clean
from gpu_monitor.core.times import format_time
from gpu_monitor.server.store.forget import Known, Progress, find_node, forget_node

_NAMES = {
    "gpus": "GPUs",
    "receipts": "reports",
    "aggregates": "hours of GPUs",
    "host_hours": "hours of the machine",
    "samples": "live minutes",
}
"""Of tables, where they are not what people call it; in the order in which they are told."""
_UNTOLD = ("nodes", "latest", "changes", "revisions", "deliveries", "outbox")
_STAYS = "The fleet's sums keep what it added, copies made before keep all of it, and if its agent still runs it comes back."


def add_forget(actions: Any) -> argparse.ArgumentParser:
    """Add the `forget-node` action."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "forget-node",
        help="remove everything of one node; asks first",
        description=f"Remove a node: its reports and rows, GPUs, tokens, alerts and silences. {_STAYS}",
    )
    parser.add_argument("node", metavar="NODE", help="its id, or its host name where one node alone has it")
    parser.add_argument("--yes", action="store_true", default=False, help="do not ask")
    return parser


def forget(args: argparse.Namespace, progress: Progress) -> int:
    """Do it; the exit code."""
    with opened(args) as store:
        with store.read() as connection:
            node = find_node(connection, args.node)
        told = f"{_described(node)} will be removed: {_counted(node.rows)}. {_STAYS}"
        if not args.yes and not agrees(told):
            note("nothing was changed")
            return EXIT_FAILED
        gone = forget_node(store, node, SystemClock().now(), actor(), progress)
    if args.json:
        print(json_text({"node": node.uuid, "hostname": node.hostname, "removed": gone}))
    else:
        print(f"{_described(node)} was removed: {_counted(gone)}")
    return EXIT_DONE


def _described(node: Known) -> str:
    last = (
        "never reported" if node.last_report is None else f"last report {format_time(int(node.last_report))}"
    )
    name = "" if node.hostname is None else f" ({clean(node.hostname)})"
    return f"node {node.uuid}{name} of contract {clean(node.contract_number)}, {last},"


def _counted(rows: dict[str, int]) -> str:
    order = [*(name for name in _NAMES if name in rows), *(name for name in rows if name not in _NAMES)]
    parts = [f"{rows[name]} {_NAMES.get(name, name)}" for name in order if name not in _UNTOLD]
    return ", ".join(parts) or "it has nothing but its name"
