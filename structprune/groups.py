"""What a model can lose depends on choices that are made before it is known what they lead to: other ones are tried.

Groups of norms and of convolutions leave whole where they are many and narrow, and lose channels each where they are
few and wide. Where both kinds meet, in one stream, nothing could go: there all of them lose channels. Where few and
wide ones are heads, which leave whole, they leave with them. Learned queries
[rows, width], of which no row may go in the end, hold the width too where only what goes of that would be zero: then no
row is labelled. A number for each head, which meets all channels of heads, leaves with them or stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .analysis import Space
from .inventory import Inventory
from .labels import IntArray
from .nodes import Node
from .program import Program


def solved(parts: Inventory, programs: Sequence[Program], stock: bool) -> Space:
    """The labels of a model, solved with whatever leaves more of them free."""
    space = Space(parts, programs, stock)
    while stuck := _stuck(space):
        other = better(space, Space(parts, programs, stock, space.columns | stuck))
        if other is space:
            break
        space = other
    if heads := _jammed(space):
        space = better(space, Space(parts, programs, stock, space.columns, heads))
    if space.couplings.met_rows:
        space = better(space, Space(parts, programs, stock, space.columns, space.whole, by_rows=True))
    if rows := _held_in_vain(space):
        space = better(space, Space(parts, programs, stock, space.columns, space.whole, rows, space.by_rows))
    return space


def _stuck(space: Space) -> frozenset[Node]:
    """The operations whose groups are to leave whole, and are coupled with one another, so that all would go."""
    return frozenset(node for grid, node in space.couplings.whole if grid.shape[1] > 1 and _is_one(space, grid))


def _jammed(space: Space) -> frozenset[Node]:
    """The operations whose groups are to lose channels, and where all channels would go at once."""
    grids = (*space.couplings.grids, *space.couplings.across)
    return frozenset(node for grid, node in grids if len(grid) > 1 and _is_one(space, grid))


def _is_one(space: Space, grid: IntArray) -> bool:
    units = space.couplings.roots()[grid]
    return bool(units[0, 0]) and bool((units == units[0, 0]).all())


def _held_in_vain(space: Space) -> frozenset[Any]:
    """Dimensions of parameters, and attributes that are sizes, that stay and hold others, as if they could go."""
    roots = space.couplings.roots()
    labels = np.concatenate([[0], *(c.reshape(-1) for c in space.doubted if not roots[c].any())])
    known = [*(((name, dim), own) for name, dim, own in space.dimensions), *space.couplings.named]
    return frozenset(key for key, own in known if len(labels) > 1 and np.isin(own, labels).any())


def better(one: Space, other: Space) -> Space:
    """The second, if more may go of it."""
    return other if _movable(other) > _movable(one) else one


def _movable(space: Space) -> int:
    """How many indices of all dimensions of parameters may go, though not all at once."""
    roots = space.couplings.roots()
    chosen = np.zeros(roots.count, bool)
    for units in space.families():
        chosen[units] = len(units) > 1
    return sum(int(chosen[roots.row(labels)].sum()) for _, _, labels in space.dimensions)
