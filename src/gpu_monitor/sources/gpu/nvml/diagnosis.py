"""What became of a child: which GPU it was at, how it ended, and the events that say so."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from gpu_monitor.core.model import Event, Status
from gpu_monitor.sources.gpu.nvml.hangs import LeftOut
from gpu_monitor.sources.gpu.nvml.roster import Roster
from gpu_monitor.sources.gpu.nvml.worker import Spot, Worker

_TOLD = 500
"""Characters of a child's last words that an event keeps."""


def locate(spot: Spot, worker: Worker, bound: Sequence[str], roster: Roster) -> str | None:
    """The address of the GPU that a child is at; None where it is at none, or that cannot be told.

    `bound`: the addresses that the kernel module holds, in NVML's order.
    """
    if spot.uid is not None:
        return roster.address_of(spot.uid)
    if spot.number is None:
        return None
    if spot.by_address:
        asked = worker.addresses or ()
        return asked[spot.number] if spot.number < len(asked) else None
    if spot.count == len(bound):
        return bound[spot.number]  # NVML counts by address, too
    uid = roster.uid_with_index(spot.number)
    return roster.address_of(uid) if uid is not None else None


def ending(status: int | None) -> str:
    """How a process ended, in words."""
    if status is None:
        return "nothing we know of"
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def crash_event(now: float, status: int | None, call: str, last_words: str, uid: str | None) -> Event:
    """The child ended by itself in `call`, on the GPU `uid` if on one."""
    how = ending(status)
    text = f"the NVML child was ended by {how} in {call}"
    detail = {"how": how, "call": call, "stderr": last_words[-_TOLD:]}
    return Event(now, "child_crashed", text, "error", uid, detail)


def hang_event(left_out: LeftOut) -> Event:
    """A GPU is left alone whose UUID is not known: it never answered."""
    kind = "gpu_hung" if left_out.status is Status.HUNG else "gpu_lost"
    detail = {"pci_bus_id": left_out.address, "cause": left_out.cause}
    text = f"GPU at {left_out.address}: {left_out.cause}"
    return Event(left_out.since, kind, text, "error", None, detail)
