"""Selection: scores and a ratio say how many units of each group go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .constraints import Constraints
from .graph import ALMOST, Group
from .importance import Scores
from .labels import BoolArray, IntArray

Positions = list[int]  # for each ladder the stop it is on


@dataclass(frozen=True, eq=False)
class Ladder:
    """The units of one group from the first to go to the last, and after how many it may stop."""

    group: Group
    units: IntArray
    scores: Scores  # comparable across groups, in the order of `units`
    stops: IntArray  # increasing
    free: bool  # no ratio of its own was given for it

    @property
    def last(self) -> int:
        return len(self.stops) - 1

    def position(self, count: int) -> int:
        """The stop that takes at least `count` units, or else the last."""
        return min(int(np.searchsorted(self.stops, count)), self.last)

    def removed(self, position: int) -> IntArray:
        """The units that are gone at a stop."""
        return self.units[: self.stops[position]]


def ladders(
    groups: Sequence[Group], scores: Sequence[Scores], constraints: Constraints, locked: BoolArray
) -> list[Ladder]:
    """One ladder for each group; `locked` says of each unit number whether it must stay.

    Ties go by index, the first unit first.
    """
    found = []
    some = locked.any()
    for group, values in zip(groups, scores, strict=True):
        order = values.argsort(kind="stable")
        order = order[~locked[group.units[order]]] if some else order
        stops = constraints.stops(group, len(order))
        free = constraints.ratio_of(group) is None
        found.append(Ladder(group, group.units[order], values[order], stops, free))
    return found


def removed(chosen: Sequence[Ladder], positions: Sequence[int]) -> IntArray:
    """All units that are gone at these stops."""
    gone = [ladder.removed(position) for ladder, position in zip(chosen, positions, strict=True)]
    return np.concatenate([np.zeros(0, np.int64), *gone])


def local(chosen: Sequence[Ladder], ratio: float) -> Positions:
    """The same fraction of every group, rounded down."""
    return [ladder.position(ladder.group.due(ratio)) if ladder.free else 0 for ladder in chosen]


def everywhere(chosen: Sequence[Ladder], ratio: float) -> Positions:
    """A fraction of all units together, the least important first."""
    free = [ladder for ladder in chosen if ladder.free]
    sizes = [int(ladder.stops[-1]) for ladder in free]
    forced = [np.arange(size) < ladder.stops[0] for ladder, size in zip(free, sizes, strict=True)]
    pool = [
        np.where(first, -np.inf, ladder.scores[:size]) for ladder, size, first in zip(free, sizes, forced, strict=True)
    ]
    owner = np.repeat(np.arange(len(free)), sizes)
    gone = sum(ladder.group.gone for ladder in free)
    count = max(math.floor(ratio * (gone + sum(len(ladder.group) for ladder in free)) + ALMOST) - gone, 0)
    taken = owner[np.argsort(np.concatenate([np.zeros(0), *pool]), kind="stable")[:count]]
    counts = iter(np.bincount(taken, minlength=len(free)))
    return [ladder.position(int(next(counts))) if ladder.free else 0 for ladder in chosen]
