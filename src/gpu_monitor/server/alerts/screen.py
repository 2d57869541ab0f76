"""What the database can look for, so that most GPUs need not be judged: terms that a reading must meet. Pure data.

A rule's screen is never narrower than its `judge`: where no reading meets it there is no episode, and a
subject without an episode and without an active alert needs nothing. It may be wider: what it finds is judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Limit(NamedTuple):
    """A metric (its `stat`, in its own unit) is above or below a limit."""

    name: str
    is_above: bool
    limit: float
    stat: Literal["mean", "min", "max"] = "mean"


class Bits(NamedTuple):
    """One of these flags is set."""

    name: str
    mask: int


class Share(NamedTuple):
    """`part` is at least `least` of `whole`, both kept with the same decimals."""

    part: str
    whole: str
    least: float


Term = Limit | Bits | Share
Terms = tuple[Term, ...]


@dataclass(frozen=True)
class Screen:
    """Terms, all of which a live minute, an hour of a GPU or of a machine meets where the condition may hold.

    None: the rule looks at no such readings. `is_lost`: it looks at states and gaps; `is_xid`: at Xids.
    """

    live: Terms | None = None
    hours: Terms | None = None
    hosts: Terms | None = None
    is_lost: bool = False
    is_xid: bool = False
