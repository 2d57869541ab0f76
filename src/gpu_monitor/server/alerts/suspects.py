"""Which GPUs and machines need to be judged by which rules: what a screen finds, and what has an alert."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection

from gpu_monitor.server.alerts.book import RuleBook
from gpu_monitor.server.alerts.rules.lost import is_fault
from gpu_monitor.server.store.alert_screen import holes_of, live_xids_of, unwell, xids_of

Mark = tuple[str, "int | str | None"]
"""A rule's id, and a GPU by its ordinal or uid; None: the machine and each of its GPUs."""
Marks = dict[int, set[Mark]]
Ranges = Mapping[tuple[int, int], Sequence[int]]
"""Agents by the hours that are looked at."""
Search = Callable[[Connection, RuleBook, Sequence[int], float, Ranges], Marks]


def find_marks(
    connection: Connection, book: RuleBook, live: Sequence[int], since: float, ranges: Ranges
) -> Marks:
    """What the database finds: `live` are the agents whose minutes since then, and states, are looked at."""
    found: Marks = {}

    def mark(agent: int, of: int | str | None, rules: Sequence[str]) -> None:
        found.setdefault(agent, set()).update((rule, of) for rule in rules)

    if live:
        for agent, gpu, rules in book.screens.live(connection, live, since):
            mark(agent, gpu, rules)
        if book.lost:
            for agent, gpu, status in unwell(connection, live):
                if is_fault(status):
                    mark(agent, gpu, book.lost)
        if book.xid:
            for agent, name in live_xids_of(connection, live, since):
                mark(agent, name, book.xid)
    for (first, last), agents in ranges.items():
        for agent, gpu, rules in book.screens.hours(connection, agents, first, last):
            mark(agent, gpu, rules)
        for agent, _, rules in book.screens.hosts(connection, agents, first, last):
            mark(agent, None, rules)
        if book.lost:
            for agent, uid, cause in holes_of(connection, agents, first, last):
                if is_fault(cause, uid is None):
                    mark(agent, uid, book.lost)
        if book.xid:
            for agent, uid in xids_of(connection, agents, first, last):
                mark(agent, uid, book.xid)
    return found
