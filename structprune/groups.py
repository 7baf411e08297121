"""Groups of norms and of convolutions leave whole where they are many and narrow, and lose channels each where they are
few and wide. Where both kinds meet, in one stream, nothing could go: there all of them lose channels."""

from __future__ import annotations

from collections.abc import Sequence

from .analysis import Space
from .inventory import Inventory
from .program import Program


def solved(parts: Inventory, programs: Sequence[Program], stock: bool) -> Space:
    """The labels of a model, solved with whatever leaves more of them free."""
    space = Space(parts, programs, stock)
    while stuck := space.stuck():
        other = Space(parts, programs, stock, space.columns | stuck)
        if other.couplings.roots().count <= space.couplings.roots().count:
            break
        space = other
    return space
