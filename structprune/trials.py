"""Trials: removals that are tried out on the checks, before it is known what a plan will ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .labels import BoolArray, IntArray

_CHOICES: tuple[Callable[[IntArray, IntArray], IntArray], ...] = (  # of units, shuffled and in order
    lambda shuffled, units: shuffled[: len(units) // 2],
    lambda shuffled, units: shuffled[: -(-len(units) // 4)],
    lambda shuffled, units: units[:1],
    lambda shuffled, units: units[-1:],
)


def removals(families: Sequence[IntArray], count: int) -> Iterator[BoolArray]:
    """Masks over `count` units: of every family half and a quarter at random, the first, the last."""
    random = np.random.default_rng(0)
    for choose in _CHOICES:
        removed = np.zeros(count, bool)
        for units in families:
            if len(units) > 1:
                removed[choose(random.permutation(units), units)] = True
        yield removed


def unequal_removals(families: Sequence[IntArray], count: int) -> Iterator[BoolArray]:
    """Masks over `count` units that remove half of some families and nothing of others, any two told apart by one."""
    for bit in range(len(families).bit_length()):
        removed = np.zeros(count, bool)
        for units in (units for i, units in enumerate(families) if i >> bit & 1):
            removed[units[: len(units) // 2]] = True
        yield removed


def coupled_alike(units: IntArray, others: IntArray) -> bool:
    """Whether the same places share a unit, whatever its number; both begin with the unit of what is fixed."""
    if units.shape != others.shape:
        return False
    there, back = np.zeros(units.max() + 1, np.int64), np.zeros(others.max() + 1, np.int64)
    there[units], back[others] = others, units
    return bool((there[units] == others).all() and (back[others] == units).all())
