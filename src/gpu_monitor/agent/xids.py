"""Gives Xid events their meaning, and lets each through once though two ways tell of it."""

from __future__ import annotations

from dataclasses import replace

from gpu_monitor.core.model import Event, Round, Span
from gpu_monitor.core.xid import EVENT_KIND, xid_event
from gpu_monitor.sources.host.kernel_log import KernelLog, XidDeduplicator, canonical_pci


class XidWatch:
    """Completes rounds: NVML's bare Xid numbers are explained, the kernel log's are added. One thread."""

    def __init__(self, log: KernelLog | None) -> None:
        self._log = log
        self._once = XidDeduplicator()

    def complete(self, found: Round, span: Span) -> Round:
        """`found` with its Xid events explained and those of the kernel log that NVML did not tell of."""
        told = [self._explained(event, found) for event in found.events]
        events = [event for event in told if event is not None]
        if self._log is not None and span is not Span.FAST:
            events += self._logged(found)
        return replace(found, events=tuple(events)) if events or found.events else found

    def _explained(self, event: Event, found: Round) -> Event | None:
        number = event.detail.get("xid")
        if event.kind != EVENT_KIND or not isinstance(number, int):
            return event
        pci = _pci_of(event.uid, found)
        if not self._once.is_new(pci or event.uid or "", number, event.time):
            return None
        if "meaning" in event.detail:
            return event
        return xid_event(event.time, number, uid=event.uid, pci_bus_id=pci)

    def _logged(self, found: Round) -> list[Event]:
        logged = self._log.read() if self._log is not None else []
        if not logged:
            return []
        by_pci = {canonical_pci(d.identity.pci_bus_id or ""): d.identity.uid for d in found.devices}
        events = []
        for xid in logged:
            if not self._once.is_new(xid.pci, xid.xid, xid.time or 0.0):
                continue
            events.append(
                xid_event(
                    xid.time or 0.0, xid.xid, uid=by_pci.get(xid.pci), pci_bus_id=xid.pci,
                    pid=xid.pid, process=xid.process, text=xid.text, via="kernel_log",
                )
            )  # fmt: skip
        return events

    def close(self) -> None:
        """Close the kernel log."""
        if self._log is not None:
            self._log.close()


def _pci_of(uid: str | None, found: Round) -> str | None:
    for device in found.devices:
        if device.identity.uid == uid:
            return canonical_pci(device.identity.pci_bus_id or "")
    return None
