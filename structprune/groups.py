"""What a model can lose depends on choices that are made before it is known what they lead to: other ones are tried.

Groups of norms and of convolutions leave whole where they are many and narrow, and lose channels each where they are
few and wide. Where both kinds meet, in one stream, nothing could go: there all of them lose channels. Learned queries
[rows, width], of which no row may go in the end, hold the width too where only what goes of that would be zero: then no
row is labelled. A number for each head, which meets all channels of heads, leaves with them or stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .analysis import Space
from .inventory import Inventory
from .program import Program


def solved(parts: Inventory, programs: Sequence[Program], stock: bool) -> Space:
    """The labels of a model, solved with whatever leaves more of them free."""
    space = Space(parts, programs, stock)
    while stuck := space.stuck():
        other = better(space, Space(parts, programs, stock, space.columns | stuck))
        if other is space:
            break
        space = other
    if space.couplings.met_rows:
        space = better(space, Space(parts, programs, stock, space.columns, by_rows=True))
    if rows := space.held_in_vain():
        space = better(space, Space(parts, programs, stock, space.columns, rows, space.by_rows))
    return space


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
