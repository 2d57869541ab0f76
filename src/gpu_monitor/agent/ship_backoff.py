"""When to try again: the waits of one report, and the gate before a server that takes nothing.

tenacity says how long and how often; it does not do the waiting, because the count of attempts lives in
the ledger and must survive restarts.
"""

from __future__ import annotations

from gpu_monitor.core.clock import Clock
from gpu_monitor.core.outcome import Outcome, Verdict

ATTEMPTS = 10
PACE_SECONDS = 600.0
"""A server that refuses us, or has parked everything, is tried at most this often (design section 7)."""
_FIRST_SECONDS, _HALF_LONGEST = 5.0, PACE_SECONDS / 2
"""Half of each wait is fixed and half is random: 5 to 10 s, 10 to 20 s ... 5 to 10 min."""

_LONG_AGO = float("-inf")
"""Before every monotonic time: that of a sped-up clock may be negative."""

_FAILING = (Verdict.RETRY, Verdict.UNREACHABLE)
_SILENT = (Verdict.INTERRUPTED, Verdict.UNCOMPRESSED, Verdict.SPLIT)


def wait_seconds(attempt: int) -> float:
    """The wait after the attempt of this number (from 1): doubled each time, with jitter, at most 10 min."""
    # Imported at the first failure: an agent that delivers never needs it.
    import tenacity

    state = _state(attempt)
    fixed = tenacity.wait_exponential(multiplier=_FIRST_SECONDS, max=_HALF_LONGEST)
    random = tenacity.wait_random_exponential(multiplier=_FIRST_SECONDS, max=_HALF_LONGEST)
    return float((fixed + random)(state))


def is_last(attempt: int) -> bool:
    """Whether a report is given up for now after the attempt of this number."""
    import tenacity  # see wait_seconds

    return bool(tenacity.stop_after_attempt(ATTEMPTS)(_state(attempt)))


def _state(attempt: int):  # type: ignore[no-untyped-def]  # the type is tenacity's, which is not loaded yet
    import tenacity  # see wait_seconds

    state = tenacity.RetryCallState(retry_object=tenacity.Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    return state


def wait_after(attempt: int, outcome: Outcome) -> float | None:
    """Seconds until a report is tried again after its failed attempt number `attempt`; None: not by itself."""
    if is_last(attempt):
        return None
    if outcome.verdict is Verdict.REFUSED:
        return PACE_SECONDS
    if outcome.after is not None:
        return outcome.after
    return wait_seconds(attempt)


class Gate:
    """Whether the server is worth trying now, whatever the report. Times are monotonic.

    Open: everything due goes out. A first failure may be the report's own fault, so another one is tried
    at once; when that fails too, or nothing can be reached, the gate closes for a growing while. After it
    one report probes; the first answer of a working server opens the gate.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._closed_until = _LONG_AGO
        self._failures = 0
        self.is_probing = False
        self.is_cut_off = False
        """Nothing could be reached: the oldest report probes, the others burn no attempts."""

    def wait(self) -> float:
        """Seconds until something may be sent, 0.0 where it may now."""
        return max(0.0, self._closed_until - self._clock.monotonic())

    @property
    def is_doubtful(self) -> bool:
        """The server answers, but badly; whether to this report or to all, the least tried one should show."""
        return self._failures > 0 and not self.is_cut_off

    def close(self, seconds: float) -> None:
        """Send nothing for `seconds`, then probe."""
        self._closed_until = self._clock.monotonic() + seconds
        self.is_probing = True

    def cut_off(self) -> None:
        """Begin as one who could reach nothing when last it tried (before a restart)."""
        self.is_cut_off = self.is_probing = True

    def open(self) -> None:
        """Forget what was wrong."""
        self._closed_until, self._failures = _LONG_AGO, 0
        self.is_probing = self.is_cut_off = False

    def note(self, outcome: Outcome) -> None:
        """Take in what came of one request (for a batch: of its most telling report)."""
        verdict = outcome.verdict
        if verdict in _SILENT:
            return
        self.is_cut_off = verdict is Verdict.UNREACHABLE
        if verdict is Verdict.WAIT and outcome.after is not None:
            self.close(outcome.after)
        elif verdict is Verdict.REFUSED:
            self.close(PACE_SECONDS)
        elif verdict in _FAILING:
            self._failures += 1
            if self.is_cut_off or self.is_probing or self._failures > 1:
                self.close(wait_seconds(self._failures))
        else:
            self.open()
