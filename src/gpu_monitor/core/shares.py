# SPDX-License-Identifier: MIT
"""Whose processes were on which GPU when: cuts each GPU's time into stretches with the same users on it.

Process lists are taken at the end of an interval, at most every 30 s, so a process that was seen from
A to B was there from one such distance before A until B. Time with several users is split equally.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

SIGHTING_SECONDS = 30.0
"""Process lists are read at most this often (agent/beat)."""

Users = frozenset[str]
NOBODY: Users = frozenset()


@dataclass(frozen=True)
class Sighting:
    """A user's process on a GPU: seen from `first` to `last` (UTC epoch), every `every` seconds."""

    uid: str
    user: str
    first: float
    last: float
    every: float


class Presence:
    """The users on each GPU, by time. MIG instances count for the GPU they are part of as well."""

    def __init__(self, sightings: Iterable[Sighting], parents: Mapping[str, str]) -> None:
        changes: dict[str, list[tuple[float, str, int]]] = {}
        for one in sightings:
            begin, end = one.first - max(one.every, SIGHTING_SECONDS), one.last
            for uid in {one.uid, parents.get(one.uid, one.uid)}:
                changes.setdefault(uid, []).extend(((begin, one.user, 1), (end, one.user, -1)))
        self._stretches = {uid: _stretches(found) for uid, found in changes.items()}

    def parts(self, uid: str, start: float, end: float) -> Iterator[tuple[Users, float]]:
        """Who was on the GPU over [start, end), and for which part of it; the parts add up to 1."""
        times, users = self._stretches.get(uid, ((), ()))
        place = bisect_right(times, start) - 1
        moment, length = start, end - start
        while moment < end:
            until = min(end, times[place + 1]) if place + 1 < len(times) else end
            yield (users[place] if place >= 0 else NOBODY), (until - moment) / length
            moment, place = until, place + 1


def _stretches(changes: list[tuple[float, str, int]]) -> tuple[tuple[float, ...], tuple[Users, ...]]:
    """Times at which the users change, ascending, and the users from each time on."""
    times: list[float] = []
    users: list[Users] = []
    present: dict[str, int] = {}
    for moment, user, step in sorted(changes):
        present[user] = present.get(user, 0) + step
        if not present[user]:
            del present[user]
        now = frozenset(present)
        if times and times[-1] == moment:
            users[-1] = now
        elif not users or users[-1] != now:
            times.append(moment)
            users.append(now)
    return tuple(times), tuple(users)
