"""Slows guessing: after some failures each further try must wait, twice as long each time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from gpu_monitor.core.clock import Clock

_FORGET_SECONDS = 900.0
_KEYS = 20_000
"""Kept at most, about 200 bytes each; the oldest go first."""


@dataclass(frozen=True)
class Rule:
    """`free` failures cost nothing; after them a wait of 1, 2, 4 ... up to `longest` seconds."""

    free: int
    longest: float


PAIR = Rule(free=5, longest=300.0)
"""One account from one address."""
ACCOUNT = Rule(free=50, longest=30.0)
"""One account from anywhere: mild, or anybody could keep its owner out."""
ADDRESS = Rule(free=20, longest=300.0)
"""One address, whichever accounts it tries."""
TOKENS = Rule(free=1000, longest=60.0)
"""Unknown tokens from one address. Nobody guesses 256 bits: this only bounds the work, and a fleet behind one
address with an old token must not keep the others out."""
Key = tuple[str, ...]


class Throttle:
    """Counts failures in this process's memory; forgets a key after 15 quiet minutes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[Key, tuple[int, float]] = {}

    def wait(self, key: Key, rule: Rule) -> float:
        """Seconds until the next try is heard; 0.0 at once."""
        moment = self._clock.monotonic()
        with self._lock:
            count, last = self._failures.get(key, (0, moment))
        if moment - last >= _FORGET_SECONDS or count < rule.free:
            return 0.0
        pause = min(rule.longest, 2.0 ** min(count - rule.free, 30))
        return max(0.0, last + pause - moment)

    def failed(self, *keys: Key) -> None:
        """Count a failure under each key."""
        moment = self._clock.monotonic()
        with self._lock:
            for key in keys:
                count, last = self._failures.pop(key, (0, moment))
                self._failures[key] = (1 if moment - last >= _FORGET_SECONDS else count + 1, moment)
            while len(self._failures) > _KEYS:
                del self._failures[next(iter(self._failures))]

    def succeeded(self, *keys: Key) -> None:
        """Forget the failures under each key."""
        with self._lock:
            for key in keys:
                self._failures.pop(key, None)


def address_key(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 that an IPv6 customer has to himself."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or ip_network((parsed, 64), strict=False))
    return str(parsed)
