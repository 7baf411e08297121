"""Trials: removals that are tried out on the checks, before it is known what a plan will ask for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .labels import BoolArray, IntArray, Roots

_CHOICES: tuple[Callable[[IntArray, IntArray], IntArray], ...] = (  # of units, shuffled and in order
    lambda shuffled, units: shuffled[: len(units) // 2],
    lambda shuffled, units: shuffled[: -(-len(units) // 4)],
    lambda shuffled, units: units[:1],
    lambda shuffled, units: units[-1:],
)


def families(dimensions: Sequence[IntArray], roots: Roots) -> list[IntArray]:
    """Units that occupy the same of these dimensions of parameters. Every dimension marks the units in it with a random
    number; equal sums are a family."""
    marks = np.random.default_rng(0).integers(1, 2**62, len(dimensions), dtype=np.uint64).tolist()
    sums: dict[int, int] = {}  # dimensions with the same units are marked together
    units: dict[int, IntArray] = {}
    for labels, mark in zip(dimensions, marks, strict=True):
        same = roots.row(labels)
        units[id(same)] = same
        sums[id(same)] = sums.get(id(same), 0) + mark
    signature = np.zeros(roots.count, np.uint64)
    for key, same in units.items():
        signature[same] += np.uint64(sums[key] % 2**64)  # a unit that occurs twice in a dimension is marked once
    signature[0] = 0
    present = np.flatnonzero(signature)
    if not len(present):
        return []
    order = np.argsort(signature[present], kind="stable")
    return np.split(present[order], np.flatnonzero(np.diff(signature[present][order])) + 1)


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
    """Masks over `count` units that remove half of some families, nothing of others: of any two, one and the other."""
    for bit, side in itertools.product(range(len(families).bit_length()), (0, 1)):
        removed = np.zeros(count, bool)
        for units in (units for i, units in enumerate(families) if i >> bit & 1 == side):
            removed[units[: len(units) // 2]] = True
        yield removed


def coupled_alike(units: IntArray, others: IntArray) -> bool:
    """Whether the same places share a unit, whatever its number; both begin with the unit of what is fixed."""
    if units.shape != others.shape:
        return False
    there, back = np.zeros(units.max() + 1, np.int64), np.zeros(others.max() + 1, np.int64)
    there[units], back[others] = others, units
    return bool((there[units] == others).all() and (back[others] == units).all())
