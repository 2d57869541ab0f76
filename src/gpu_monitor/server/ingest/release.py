"""Takes up reports that came from the future once their time has come."""

from __future__ import annotations

import logging

from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.store.early import due, keep_for_good
from gpu_monitor.server.store.engine import Store
from gpu_monitor.server.store.shape import Shaper
from gpu_monitor.server.store.write import Committed, GroupRecorder, Submission
from gpu_monitor.wire.intake import Malformed, read_report

_LOG = logging.getLogger("writer")
_AT_ONCE, _BYTES_AT_ONCE = 64, 8 << 20
"""As much as one request may bring: meanwhile the others' reports wait."""
_OURSELVES = Principal("local", "the quarantine", frozenset(("report:write",)))
"""Whoever brought them was asked for a token then."""


def release_due(store: Store, recorder: GroupRecorder, now: float) -> list[Committed]:
    """Write those that are due, a few at once; what was committed, empty where none was due."""
    with store.read() as connection:
        found = due(connection, now, _AT_ONCE, _BYTES_AT_ONCE)
    if not found:
        return []
    shaper = Shaper()
    group: list[Submission] = []
    refused: list[tuple[int, str]] = []
    for number, raw, received in found:
        try:
            shaped = shaper.shape(read_report(bytes(raw)))
        except Malformed as error:  # it was well formed when it came, for the version that took it
            refused.append((number, error.message))
        else:
            group.append(Submission(shaped, _OURSELVES, received, early=number))
    store.make_room({one.shaped.intake.hour for one in group}, now=now)
    with store.write() as connection:
        store.lock_sequence(connection)
        for number, reason in refused:
            keep_for_good(connection, number, reason)
        written = recorder.write_group(connection, group, now)
    recorder.keep()
    _LOG.info("took up %d reports that had come from the future", len(group))
    return [] if written.committed is None else [written.committed]
