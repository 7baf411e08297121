"""Values laid end to end, or beside one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..labels import IntArray, Labels, compress, varying
from .site import Site, rule


@rule("cat", "hstack", "column_stack", "vstack", "dstack")
def cat(site: Site, tensors: Sequence[Labels], dim: int = 0, **kwargs: Any) -> Labels:
    """Labels are laid end to end along `dim` and meet along the others."""
    rank = len(site.shape)
    dim = int(dim) % rank
    values = [t for t in tensors if t.shape != (0,)] or list(tensors)
    if site.name in _STACKED:
        dim, raised = _STACKED[site.name]
        dim, values = min(dim, rank - 1), [_raised(site, value, raised) for value in values]
    spread = {d for v in values for c in [v.along(dim)] if c is not None for d in varying(c)} - {dim}
    ends: list[IntArray] = []
    across: list[Labels] = []
    for value in values:
        end, rest = _end(site, value, dim, spread)
        ends.append(end)
        across.append(Labels((*value.shape[:dim], 1, *value.shape[dim + 1 :]), rest))
    together = site.broadcast(across, (*site.shape[:dim], 1, *site.shape[dim + 1 :]))
    laid = compress(np.concatenate(ends, axis=dim))
    return site.merge(site.shape, [*together.coordinates, *([laid] if laid.any() else [])])


# By name: the dimension along which they lay values, if there is one, and what they first do to those of fewer
# dimensions; NumPy and PyTorch agree on that.
_STACKED: dict[str, tuple[int, Callable[[IntArray], IntArray]]] = {
    "hstack": (1, np.atleast_1d),
    "vstack": (0, np.atleast_2d),
    "dstack": (2, np.atleast_3d),
    "column_stack": (1, lambda array: array if array.ndim > 1 else array.reshape(-1, 1)),
}


def _raised(site: Site, value: Labels, raise_: Callable[[IntArray], IntArray]) -> Labels:
    """A value with dimensions of size 1 more."""
    shape = raise_(np.broadcast_to(np.int64(0), value.shape)).shape
    raised = Labels(shape, tuple(map(raise_, value.coordinates)))
    site.alias(value, raised)
    return raised


def _end(site: Site, value: Labels, dim: int, spread: set[int]) -> tuple[IntArray, tuple[IntArray, ...]]:
    """What a value contributes along `dim`, filled up over the dimensions `spread`, and its other coordinates."""
    own = [c for c in value.coordinates if c.shape[dim] > 1 or any(c.shape[d] > 1 for d in spread)]
    merged = site.merge(value.shape, own).coordinates
    along = next((c for c in merged if c.shape[dim] > 1 or set(varying(c)) <= spread), None)
    shape = [n if d == dim or d in spread else 1 for d, n in enumerate(value.shape)]
    rest = tuple(c for c in value.coordinates if not any(c is o for o in own))
    if along is None:
        return np.zeros(shape, np.int64), rest + tuple(merged)
    along = site.hold_coordinate(
        along, [d for d in varying(along) if d != dim and d not in spread], "it is concatenated"
    )
    return np.broadcast_to(along, shape), rest + tuple(
        c for c in merged if c is not along and not np.shares_memory(c, along)
    )


@rule("stack")
def stack(site: Site, tensors: Sequence[Labels], dim: int = 0) -> Labels:
    """Values meet, along a new dimension that is fixed."""
    together = site.broadcast(list(tensors), tensors[0].shape)
    return Labels(site.shape, tuple(np.expand_dims(c, int(dim) % len(site.shape)) for c in together.coordinates))
