"""Nodes that wait to be judged, and for how long they may: reports while many come, live minutes never."""

from __future__ import annotations

from gpu_monitor.server.alerts.judge import Touch

BUSY_REPORTS = 100.0
"""So many reports a second are a rush: taking them costs a quarter of a core."""
HOURS_SECONDS = 10.0
"""So long in a rush reports wait for each other: a node is judged once for many of its hours."""


class TouchQueue:
    """Why each node is to be looked at."""

    def __init__(self) -> None:
        self._touches: dict[int, Touch] = {}
        self._oldest: float | None = None
        self._noted: float | None = None
        self._is_busy = False

    def __len__(self) -> int:
        return len(self._touches)

    def of(self, agent: int) -> Touch:
        """The node's, to add to."""
        touch = self._touches.get(agent)
        if touch is None:
            touch = self._touches[agent] = Touch()
        return touch

    def note(self, reports: int, now: float) -> None:
        """So many reports came since the last note, which was a second ago or longer."""
        passed = 1.0 if self._noted is None else max(1.0, now - self._noted)
        self._noted = now
        self._is_busy = reports / passed >= BUSY_REPORTS
        if reports and self._oldest is None:
            self._oldest = now

    def take(self, now: float) -> dict[int, Touch]:
        """What is to be judged now; in a rush the hours of reports stay for a while, and all else is taken."""
        found = self._touches
        if not self._is_busy or self._oldest is None or now - self._oldest >= HOURS_SECONDS:
            self._touches, self._oldest = {}, None
            return found
        ready: dict[int, Touch] = {}
        self._touches = {}
        for agent, touch in found.items():
            if touch.is_due or not touch.hours:
                ready[agent] = touch
                continue
            self._touches[agent] = Touch(touch.hours)
            if touch.is_live or touch.is_absent:
                ready[agent] = Touch(is_live=touch.is_live, is_absent=touch.is_absent)
        if not self._touches:
            self._oldest = None
        return ready
