"""A clock that ends a run at a set time, whatever the readings give until then."""

from __future__ import annotations

import threading

from gpu_monitor.core.clock import Clock

_CLOSE_SECONDS = 1.0
"""A reading due so soon after the end is still made: the one that is due exactly then closes an interval."""


class EndingClock:
    """The clock of `clock`, but a wait that would go on past `until` (UTC epoch) sets its event there."""

    def __init__(self, clock: Clock, until: float) -> None:
        self._clock = clock
        self._until = until
        self.now = clock.now
        self.monotonic = clock.monotonic
        self.suspended = clock.suspended

    def wait(self, event: threading.Event, deadline: float) -> bool:
        """True once `event` is set, at `until` the latest; False at the monotonic `deadline`."""
        now = self._clock.now()
        # Asked in this order, being held up between the two puts the end off and never forward.
        end = self._clock.monotonic() + self._until - now
        if deadline - end < _CLOSE_SECONDS:
            return self._clock.wait(event, deadline)
        if not self._clock.wait(event, end):
            event.set()
        return True
