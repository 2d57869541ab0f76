"""What GPUs were used for over a span: the figures of the agent's `report`, of whole periods of many nodes.

A period counts where all of it lies in the span; one that reaches over an end is left out, and that is said.
Coverage is counted against the whole span of every GPU that was seen in it. By user, the time of an hour is
shared among those whose processes were there, by how long; how busy each one's minutes were an hour does not say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    literal_column,
    select,
    tuple_,
)

from gpu_monitor.core.shares import Presence, Sighting, Users
from gpu_monitor.core.tally import Tally
from gpu_monitor.server.auth.principal import Principal
from gpu_monitor.server.auth.visible import contract_filter
from gpu_monitor.server.store.gpus import GpuFilter, Place
from gpu_monitor.server.store.schema import (
    aggregates,
    contracts,
    facts,
    gaps,
    gpus,
    nodes,
    processes,
    receipts,
)
from gpu_monitor.server.store.span import DAY, HOUR, Span
from gpu_monitor.server.store.values import identity_of

REAL, PLAYED = "real", ("simulated", "replay")
NOBODY, UNKNOWN_USER = "(nobody)", "(unknown user)"
_BY_USER = (
    "by user: the server holds whole hours, each shared among those whose processes were there by how long they were"
    " in what of it was recorded; the agent's own report goes by minutes and may differ"
)
_NOTES, _NAMED_IN_NOTE = 5, 4
_LONGEST_HOURS = 24
"""No period is longer, so only those that begin within a day of the end can reach over it."""


Key = tuple[str, str, str]


class By(str, Enum):
    """What a line is about."""

    GPU = "gpu"
    NODE = "node"
    CONTRACT = "contract"
    USER = "user"
    MODEL = "model"
    DAY = "day"


class Card(msgspec.Struct, frozen=True):
    """A GPU as usage names it: of several places, the one where it was seen last."""

    uid: str
    origin: str
    name: str | None
    source: str
    index: int | None
    parent_uid: str | None
    node: str
    hostname: str | None
    contract: str
    period_seconds: int
    interval_seconds: int
    apart: str = ""

    @property
    def key(self) -> Key:
        """What makes it one GPU: in several places it is the same, unless two tell of the same hour (`apart`)."""
        return self.uid, self.origin, self.apart


@dataclass(frozen=True)
class Line:
    """One line: what it is about, what was recorded of it, and of how many possible GPU-seconds.

    `known` is what coverage is counted of. `day`: the UTC midnight it starts at, epoch s.
    """

    key: str
    origin: str
    tally: Tally
    known: Tally
    possible: float
    card: Card | None = None
    day: int | None = None


@dataclass
class Usage:
    """The lines, one total per origin, and what a reader must know; how many simulated GPUs were left out."""

    lines: list[Line] = field(default_factory=list)
    totals: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    excluded: int = 0


def usage(
    connection: Connection, who: Principal, wanted: GpuFilter, span: Span, by: By, simulated: bool
) -> Usage:
    """The answer to a question; no lines where nothing is known of the span."""
    result = Usage()
    cards = _cards(connection, who, wanted, span)
    if not simulated:
        result.excluded = len({card.uid for card in cards.values() if card.origin != REAL})
        cards = {place: card for place, card in cards.items() if card.origin == REAL}
    if not cards:
        return result
    cut = _cut(connection, span)
    result.notes = cut.notes(connection, span, {agent for agent, _ in cards})
    if by is By.USER:
        result.notes.append(_BY_USER)
    cards, told = _tell_apart(connection, cards, span)
    result.notes += told
    whole = _tallies(connection, cards, span, cut)
    found = _Found(cards, whole, span)
    for origin in found.origins:
        total = found.total(origin)
        result.totals.append(total)
        if by is By.DAY:
            result.lines += _day_lines(connection, found, total, span, cut)
        elif by is By.USER:
            result.lines += _user_lines(connection, found, total, span, cut)
        else:
            result.lines += found.lines(total, by)
    return result


# --- which GPUs ----------------------------------------------------------------------------------------


def _cards(connection: Connection, who: Principal, wanted: GpuFilter, span: Span) -> dict[Place, Card]:
    """Every place of a GPU with a row in the span, or a gap of its own."""
    has_row = exists().where(
        aggregates.c.agent == gpus.c.agent,
        aggregates.c.gpu == gpus.c.ordinal,
        aggregates.c.hour >= span.first_hour,
        aggregates.c.hour < span.end_hour,
    )
    has_gap = exists().where(
        gaps.c.agent == gpus.c.agent,
        gaps.c.uid == gpus.c.uid,
        gaps.c.start < span.until,
        gaps.c.stop > span.since,
        gaps.c.hour >= span.first_hour - _LONGEST_HOURS,
        gaps.c.hour < span.end_hour,
    )
    query = (
        select(
            gpus.c.agent, gpus.c.ordinal, gpus.c.uid, gpus.c.source, gpus.c.simulated, gpus.c.name, facts.c.body,
            nodes.c.uuid, nodes.c.hostname, contracts.c.number, nodes.c.period_seconds, nodes.c.interval_seconds,
        )
        .join(nodes, nodes.c.id == gpus.c.agent)
        .join(contracts, contracts.c.id == nodes.c.contract)
        .outerjoin(facts, facts.c.id == gpus.c.identity)
        .where(contract_filter(who, nodes.c.contract), *wanted.conditions(), has_row | has_gap)
        .order_by(gpus.c.last_hour, gpus.c.agent, gpus.c.ordinal)
    )  # fmt: skip
    found = {}
    for agent, ordinal, uid, source, is_played, name, body, *place in connection.execute(query).all():
        identity = identity_of(body)
        node, hostname, contract, period, interval = place
        found[agent, ordinal] = Card(
            uid, source if is_played else REAL, name, source, identity.index, identity.parent_uid, node, hostname,
            contract, period or HOUR, interval or 60,
        )  # fmt: skip
    return found


def _tell_apart(
    connection: Connection, cards: dict[Place, Card], span: Span
) -> tuple[dict[Place, Card], list[str]]:
    """The cards with GPUs of which several nodes tell the same hour held apart by node, and a note that says so.

    Added up they were one GPU with twice the hours there are. One that only moved to another node stays one.
    """
    places: dict[tuple[str, str], list[Place]] = {}
    for place, card in cards.items():
        places.setdefault((card.uid, card.origin), []).append(place)
    several = {key: found for key, found in places.items() if len({agent for agent, _ in found}) > 1}
    changed, notes = dict(cards), []
    for (uid, _), found in sorted(several.items()):
        if _has_common_hour(connection, found, span):
            changed.update(
                (place, msgspec.structs.replace(cards[place], apart=cards[place].node)) for place in found
            )
            names = sorted({cards[place].hostname or cards[place].node for place in found})
            notes.append(
                f"{uid} is reported by {len(found)} nodes for the same hours ({', '.join(names[:_NAMED_IN_NOTE])}):"
                " each has a line of its own"
            )
    if len(notes) > _NOTES:
        notes[_NOTES:] = [f"so are {len(notes) - _NOTES} more GPUs"]
    return changed, notes


def _has_common_hour(connection: Connection, places: list[Place], span: Span) -> bool:
    """Whether periods of two nodes overlap."""
    query = (
        select(aggregates.c.agent, aggregates.c.hour, receipts.c.period_seconds)
        .join(receipts, and_(receipts.c.agent == aggregates.c.agent, receipts.c.hour == aggregates.c.hour))
        .where(
            tuple_(aggregates.c.agent, aggregates.c.gpu).in_(places),
            aggregates.c.hour >= span.first_hour - _LONGEST_HOURS,
            aggregates.c.hour < span.end_hour,
        )
    )
    owner: dict[int, int] = {}
    for agent, hour, seconds in connection.execute(query):
        if any(owner.setdefault(one, agent) != agent for one in range(hour, hour + seconds // HOUR)):
            return True
    return False


# --- which periods -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """Periods that reach over the span's end (agent, hour): they are left out."""

    over: frozenset[tuple[int, int]]

    def conditions(self, span: Span) -> list[ColumnElement[bool]]:
        """What rows of aggregates must meet to be whole in the span."""
        at = aggregates.c.hour
        found: list[ColumnElement[bool]] = [at >= span.first_hour, at < span.end_hour]
        if self.over:
            found.append(tuple_(aggregates.c.agent, at).not_in(sorted(self.over)))
        return found

    def notes(self, connection: Connection, span: Span, agents: set[int]) -> list[str]:
        """What a reader must know of the ends."""
        begun = _reaching(connection, span.since, span.first_hour)
        out = sum(agent in agents for agent, _ in (*begun, *self.over))
        if not out:
            return []
        return [
            f"{out} periods reach over an end of the span; only whole periods are kept, so they are left out"
        ]


def _cut(connection: Connection, span: Span) -> _Cut:
    return _Cut(frozenset(_reaching(connection, span.until, span.end_hour)))


def _reaching(connection: Connection, moment: float, before_hour: int) -> list[tuple[int, int]]:
    """(agent, hour) of periods that begin before a moment and end after it."""
    end = cast(receipts.c.hour, BigInteger) * HOUR + receipts.c.period_seconds
    query = select(receipts.c.agent, receipts.c.hour).where(
        receipts.c.hour >= before_hour - _LONGEST_HOURS, receipts.c.hour < before_hour, end > moment
    )
    return [(row.agent, row.hour) for row in connection.execute(query)]


# --- sums ----------------------------------------------------------------------------------------------


def _sums() -> list[ColumnElement[Any]]:
    """The fields of a Tally, in order, in units of the stored integers: the agent's definitions (its HOUR_SUMS)."""
    row = aggregates.c
    idle, held, energy_seconds = row.idle_seconds, row.held_idle_seconds, func.coalesce(row.energy_seconds, 0)
    rest = row.seconds - energy_seconds
    has_rest = and_(rest > 0, row.power_usage.is_not(None))
    return [
        row.seconds,
        case((idle.is_(None), 0), else_=row.seconds),
        case((idle.is_(None), 0), else_=cast(row.gpu_utilization, BigInteger) * row.seconds),
        func.coalesce(idle, 0),
        case((held.is_(None), 0), else_=row.seconds),
        func.coalesce(held, 0),
        energy_seconds,
        func.coalesce(row.energy, 0),
        case((has_rest, rest), else_=0),
        case((has_rest, cast(row.power_usage, BigInteger) * rest), else_=0),
    ]


_SUMS = _sums()
# Tenths of seconds; per cent and joules in tenths; watts in hundredths.
_UNITS = (10.0, 10.0, 100.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 1000.0)


def _tally(sums: Iterable[Any], share: float = 1.0, into: Tally | None = None) -> Tally:
    tally = into or Tally()
    tally.add([float(one or 0) / unit for one, unit in zip(sums, _UNITS, strict=True)], share)
    return tally


def _tallies(connection: Connection, cards: dict[Place, Card], span: Span, cut: _Cut) -> dict[Place, Tally]:
    query = (
        select(aggregates.c.agent, aggregates.c.gpu, *(func.sum(one) for one in _SUMS))
        .where(*cut.conditions(span), *_only(cards))
        .group_by(aggregates.c.agent, aggregates.c.gpu)
    )
    return {
        (row[0], row[1]): _tally(row[2:]) for row in connection.execute(query) if (row[0], row[1]) in cards
    }


_NAMED_AT_MOST = 32
"""Nodes in one IN list; where more are meant, all rows are summed and those of others dropped: one scan."""


def _only(cards: dict[Place, Card]) -> list[ColumnElement[bool]]:
    agents = sorted({agent for agent, _ in cards})
    return [aggregates.c.agent.in_(agents)] if len(agents) <= _NAMED_AT_MOST else []


class _Found:
    """Tallies by GPU, with MIG instances told from the GPUs they are part of."""

    def __init__(self, cards: dict[Place, Card], tallies: dict[Place, Tally], span: Span) -> None:
        self.places = cards
        self.cards: dict[Key, Card] = {card.key: card for card in cards.values()}
        self._span = span
        self._tallies: dict[Key, Tally] = {}
        self.by_place = tallies
        for place, tally in tallies.items():
            self._tallies.setdefault(cards[place].key, Tally()).add(tally.values())
        uids = {uid for uid, _, _ in self.cards}
        self.counted = {key for key, card in self.cards.items() if card.parent_uid not in uids}
        self.origins = sorted({origin for _, origin, _ in self.cards}, key=(REAL, *PLAYED).index)

    def tally(self, key: Key) -> Tally:
        """What was recorded of a GPU."""
        return self._tallies.get(key) or Tally()

    def count(self, origin: str) -> int:
        """How many GPUs there are of an origin, instances not counted beside their GPU."""
        return sum(own == origin for _, own, _ in self.counted)

    def total(self, origin: str) -> Line:
        """All GPUs of an origin together."""
        tally = _sum(self.tally(key) for key in self.counted if key[1] == origin)
        return Line("total", origin, tally, tally, self._span.seconds * self.count(origin))

    def counted_places(self, origin: str) -> list[Place]:
        """Where the rows of the counted GPUs of an origin are."""
        return [
            place for place, card in self.places.items() if card.origin == origin and card.key in self.counted
        ]  # fmt: skip

    def lines(self, whole: Line, by: By) -> list[Line]:
        """Lines by GPU (instances have lines of their own), node, contract or model."""
        if by is By.GPU:
            keys = [key for key in self.cards if key[1] == whole.origin]
            made = [
                Line(
                    key[0],
                    whole.origin,
                    self.tally(key),
                    self.tally(key),
                    self._span.seconds,
                    self.cards[key],
                )
                for key in keys
            ]
            return sorted(made, key=_gpu_order)
        groups: dict[str, list[Place]] = {}
        examples: dict[str, Card] = {}
        for place in self.counted_places(whole.origin):
            card = self.places[place]
            key = {By.NODE: card.node, By.CONTRACT: card.contract}.get(by, card.name or "(unknown model)")
            groups.setdefault(key, []).append(place)
            examples[key] = card
        lines = []
        for key, places in groups.items():
            tally = _sum(self.by_place.get(place) or Tally() for place in places)
            count = len({self.places[place].key for place in places})
            lines.append(Line(key, whole.origin, tally, tally, self._span.seconds * count, examples[key]))
        return sorted(lines, key=lambda line: (-line.tally.recorded, line.key))


def _key_of(line: Line) -> Key:
    assert line.card is not None
    return line.card.key


def _gpu_order(line: Line) -> tuple[Any, ...]:
    card = line.card
    assert card is not None
    return (card.hostname or "", card.node, card.index is None, card.index or 0, line.key)


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.add(tally.values())
    return total


def idle_gpus(
    connection: Connection,
    who: Principal,
    wanted: GpuFilter,
    span: Span,
    simulated: bool,
    held: bool,
    limit: int,
) -> tuple[list[Line], int]:
    """The `limit` GPUs that idled longest (`held`: with memory held), and how many simulated ones were left out.

    They are ranked by an index alone, and looked up after that.
    """
    cards = _cards(connection, who, wanted, span)
    counted = cards if simulated else {place: card for place, card in cards.items() if card.origin == REAL}
    excluded = len({card.uid for card in cards.values()} - {card.uid for card in counted.values()})
    if not counted:
        return [], excluded
    counted, _ = _tell_apart(connection, counted, span)
    conditions = _cut(connection, span).conditions(span)
    idle: dict[Key, int] = {}
    for place, seconds in _ranked(connection, counted, conditions, held):
        key = counted[place].key
        idle[key] = idle.get(key, 0) + seconds
    shown = set(sorted(idle, key=lambda key: (-idle[key], key))[:limit])
    chosen = {place: card for place, card in counted.items() if card.key in shown}
    sums = (
        select(gpus.c.agent, gpus.c.ordinal, *(func.sum(one) for one in _SUMS))
        .join(aggregates, _OF_GPU)
        .where(tuple_(gpus.c.agent, gpus.c.ordinal).in_(list(chosen)), *conditions)
        .group_by(gpus.c.agent, gpus.c.ordinal)
    )
    tallies = {(row[0], row[1]): _tally(row[2:]) for row in connection.execute(sums)}
    found = _Found(chosen, tallies, span)
    lines = [line for origin in found.origins for line in found.lines(found.total(origin), By.GPU)]
    return sorted(lines, key=lambda line: (-idle[_key_of(line)], line.key)), excluded


_OF_GPU = and_(aggregates.c.agent == gpus.c.agent, aggregates.c.gpu == gpus.c.ordinal)


def _ranked(
    connection: Connection, cards: dict[Place, Card], conditions: list[ColumnElement[bool]], held: bool
) -> Iterator[tuple[Place, int]]:
    """The idle time of each of these GPUs with a row in the span (where none says it, 0), in tenths of seconds.

    GPU by GPU, so that an index alone tells it, whether or not the database has counted its rows.
    """
    seconds = aggregates.c.held_idle_seconds if held else aggregates.c.idle_seconds
    each = select(func.sum(func.coalesce(seconds, 0))).where(_OF_GPU, *conditions).correlate(gpus)
    query = select(gpus.c.agent, gpus.c.ordinal, each.scalar_subquery())
    agents = sorted({agent for agent, _ in cards})
    if len(agents) <= _NAMED_AT_MOST:
        query = query.where(gpus.c.agent.in_(agents))
    for agent, ordinal, total in connection.execute(query):
        if total is not None and (agent, ordinal) in cards:
            yield (agent, ordinal), int(total)


# --- by day --------------------------------------------------------------------------------------------


def _day_lines(connection: Connection, found: _Found, whole: Line, span: Span, cut: _Cut) -> list[Line]:
    """One line per UTC day, from the first with anything recorded to the end of the span."""
    day = aggregates.c.hour // literal(24)
    places = set(found.counted_places(whole.origin))
    keys = (day, aggregates.c.agent, aggregates.c.gpu)
    query = (
        select(*keys, *(func.sum(one) for one in _SUMS))
        .where(*cut.conditions(span), *_only(found.places))
        .group_by(*keys)
    )
    tallies: dict[int, Tally] = {}
    for number, agent, gpu, *sums in connection.execute(query):
        if (agent, gpu) in places:
            start = number * DAY
            tallies[start] = _tally(sums, into=tallies.get(start))
    if not tallies:
        return []
    lines = []
    for start in range(min(tallies), int(-(-span.until // 1)), DAY):
        tally = tallies.get(start) or Tally()
        seconds = min(span.until, start + DAY) - max(span.since, start)
        lines.append(Line("", whole.origin, tally, tally, seconds * found.count(whole.origin), day=start))
    return lines


# --- by user -------------------------------------------------------------------------------------------


def _user_lines(connection: Connection, found: _Found, whole: Line, span: Span, cut: _Cut) -> list[Line]:
    """One line per user, most GPU-hours first; the time nobody was there comes last."""
    places = found.counted_places(whole.origin)
    presence, seen = _presence(connection, found, span)
    parts: dict[Users, Tally] = {}
    busy = []
    for place in places:
        if found.places[place].uid in seen:
            busy.append(place)
        else:
            parts.setdefault(frozenset(), Tally()).add((found.by_place.get(place) or Tally()).values())
    for place in busy:
        _share(connection, found.places[place], place, presence, parts, [*cut.conditions(span)])
    tallies: dict[str, Tally] = {}
    for users, tally in parts.items():
        for name in users or (NOBODY,):
            tallies.setdefault(name, Tally()).add(tally.values(), 1 / max(1, len(users)))
    names = sorted(tallies, key=lambda name: (name == NOBODY, -tallies[name].recorded, name))
    return [Line(name, whole.origin, tallies[name], whole.tally, whole.possible) for name in names]


def _share(
    connection: Connection,
    card: Card,
    place: Place,
    presence: Presence,
    parts: dict[Users, Tally],
    conditions: list[ColumnElement[bool]],
) -> None:
    """Share the periods of one GPU among the users who were there."""
    query = (
        select(aggregates.c.hour, receipts.c.period_seconds, *_SUMS)
        .join(receipts, and_(receipts.c.agent == aggregates.c.agent, receipts.c.hour == aggregates.c.hour))
        .where(aggregates.c.agent == place[0], aggregates.c.gpu == place[1], *conditions)
    )
    for hour, seconds, *sums in connection.execute(query):
        start = hour * HOUR
        shares = list(presence.parts(card.uid, start, start + seconds))
        for users, share in _of_recorded(shares, float(sums[0] or 0) / _UNITS[0] / seconds):
            parts[users] = _tally(sums, share, parts.get(users))


def _of_recorded(shares: list[tuple[Users, float]], recorded: float) -> list[tuple[Users, float]]:
    """Shares of an hour as shares of the part of it that was `recorded` (0 to 1).

    Whoever was seen was there while it was recorded; nobody was there in what is left of that, if anything is.
    """
    there = [(users, share) for users, share in shares if users]
    sum_of = sum(share for _, share in there)
    whole = max(min(recorded, 1.0), sum_of)
    if not whole:
        return [(frozenset(), 1.0)]
    return [*((users, share / whole) for users, share in there), (frozenset(), 1.0 - sum_of / whole)]


def _presence(connection: Connection, found: _Found, span: Span) -> tuple[Presence, set[str]]:
    """Who was where in the span, and the GPUs on which somebody was. A process is one, over all its reports."""
    agents = sorted({agent for agent, _ in found.places})
    row = processes.c
    # In the statement, not beside it: PostgreSQL does not see that two parameters are one.
    user = func.coalesce(row.user, literal_column(f"'{UNKNOWN_USER}'"))
    query = (
        select(
            row.agent, row.uid, user.label("user"), func.min(row.first_seen).label("first"),
            func.max(row.last_seen).label("last"),
        )
        .where(row.last_seen >= span.since, row.first_seen < span.until + DAY, row.hour >= span.first_hour - _LONGEST_HOURS,
               row.hour < span.end_hour + _LONGEST_HOURS, row.agent.in_(agents))
        .group_by(row.agent, row.uid, user, row.boot_id, row.pid, row.start_ticks)
    )  # fmt: skip
    every = {agent: float(card.interval_seconds) for (agent, _), card in found.places.items()}
    parents = {card.uid: card.parent_uid for card in found.places.values() if card.parent_uid is not None}
    sightings = [
        Sighting(one.uid, one.user, one.first, one.last, every[one.agent])
        for one in connection.execute(query)
    ]
    seen = {one.uid for one in sightings}
    return Presence(sightings, parents), seen | {parents[uid] for uid in seen if uid in parents}
