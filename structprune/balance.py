"""Balance: where every row of a grid must lose equally many channels, their scores say which.

The groups of a grouped convolution or of a group norm stay as wide as one another, and yet each may lose other
channels: the least important of one group go together with the least important of every other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .graph import ChannelGraph
from .importance import Scores
from .labels import BoolArray, IntArray

Rank = Callable[[ChannelGraph], list[Scores]]  # the scores of every group's units


def balanced(graph: ChannelGraph, rank: Rank) -> tuple[ChannelGraph, Scores]:
    """The graph whose units take from each row what `rank` scores least there, and the score of each unit number.

    Rows that other operations tie together by their index stay as they are. `rank` is asked once, for a graph whose
    rows are free; the scores of what belongs to one unit in the end add up.
    """
    if not graph.space.couplings.grids:
        return graph, _of_units(graph, rank)
    free = graph.arranged(None)
    scores = _of_units(free, rank)
    tight = graph.arranged(_links(graph, free, scores))
    if _movable(tight) < _movable(graph):  # some operation ties rows in a way that shows only now
        tight = graph
    return tight, _summed(free, tight, scores)


def _movable(graph: ChannelGraph) -> int:
    """How many units there are, which are numbered from 1."""
    return graph.space.couplings.roots().count - 1


def _of_units(graph: ChannelGraph, rank: Rank) -> Scores:
    scores = np.zeros(graph.space.couplings.roots().count)
    for group, found in zip(graph.groups, rank(graph), strict=True):
        scores[group.units] = found
    return scores


def _links(graph: ChannelGraph, free: ChannelGraph, scores: Scores) -> list[tuple[IntArray, Any]]:
    """Each grid that has to be tied, with the cells of every row in the order of their scores."""
    unit_of = free.space.couplings.roots()
    waiting = sorted(graph.space.couplings.grids, key=lambda item: -len(item[0]))  # many rows balance fewer, too
    links: list[tuple[IntArray, Any]] = []
    roots = unit_of
    while waiting:
        tied = np.zeros(roots.count, bool)
        later = []
        for grid, node in waiting:
            units = roots[grid]
            if tied[units].any():
                later.append((grid, node))
            elif not _even(units):
                links.append((_in_order(grid, units, scores[unit_of[grid]]), node))
                tied[units[units > 0]] = True
        waiting = later
        roots = graph.space.couplings.arranged(links).roots() if waiting else roots
    return links


def _even(units: IntArray) -> bool:
    """Whether every unit takes as much from each row as from any other."""
    rows = np.sort(units, axis=1)
    return bool((rows == rows[0]).all())


def _in_order(grid: IntArray, units: IntArray, scores: Scores) -> IntArray:
    """The grid with each row from what scores least to what is fixed; as it is, if a unit has several cells."""
    movable: BoolArray = units > 0
    found = np.sort(units[movable])
    if (found[1:] == found[:-1]).any():
        return grid
    order = np.argsort(np.where(movable, scores, np.inf), axis=1, kind="stable")
    return np.take_along_axis(grid, order, axis=1)


def _summed(free: ChannelGraph, tight: ChannelGraph, scores: Scores) -> Scores:
    """The scores of units, from those of the units they are made of."""
    before, after = free.space.couplings.roots(), tight.space.couplings.roots()
    into = np.zeros(before.count, np.int64)
    for labels in free.space.couplings.leading():  # every unit is in one of them
        into[before.row(labels)] = after.row(labels)
    return np.bincount(into, scores, after.count).astype(np.float64)
