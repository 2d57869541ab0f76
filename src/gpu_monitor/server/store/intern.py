"""Gives each distinct identity and state its number, once; most rows share a handful of them."""

from __future__ import annotations

from collections.abc import Iterable

from gpu_monitor.server.store.rows import Rows
from gpu_monitor.server.store.schema import facts
from gpu_monitor.server.store.shape import Fact

_HELD = 200_000
"""Numbers kept in memory, some 150 bytes each."""


class FactBook:
    """The numbers of facts. What a transaction added counts only once `keep` says that it was committed."""

    def __init__(self) -> None:
        self._held: dict[bytes, int] = {}
        self._new: dict[bytes, int] = {}

    def number(self, digest: bytes) -> int:
        """The number of a fact that was interned."""
        found = self._held.get(digest)
        return self._new[digest] if found is None else found

    def intern(self, rows: Rows, wanted: Iterable[Fact]) -> None:
        """See that every fact is in the table, within the transaction of `rows`."""
        held, new = self._held, self._new
        missing = {fact.digest: fact for fact in wanted if fact.digest not in held and fact.digest not in new}
        digests = list(missing)
        for start in range(0, len(digests), 500):
            part = digests[start : start + 500]
            there = {bytes(digest): number for number, digest in rows.facts_of(part)}
            fresh = [digest for digest in part if digest not in there]
            if fresh:
                rows.insert(facts, ("digest", "body"), [(digest, missing[digest].body) for digest in fresh])
                there.update((bytes(digest), number) for number, digest in rows.facts_of(fresh))
            new.update(there)

    def keep(self) -> None:
        """The transaction was committed."""
        if len(self._held) + len(self._new) > _HELD:
            self._held = {}
        self._held.update(self._new)
        self._new = {}

    def undo(self) -> None:
        """The transaction was rolled back, and may be tried again."""
        self._new = {}
