"""Subscripts and gathers: slices are run on the labels, positions held in tensors are fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..labels import Labels
from ..sizes import AttributeOf, Size
from .checks import Requirement, View
from .movement import move
from .site import Site, labels_in, rule


def expand_index(index: Any, rank: int, consumed: Sequence[int]) -> list[tuple[Any, list[int]]]:
    """Each entry of a subscript with the dimensions of the input that it works on."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if not any(e is Ellipsis for e in entries):
        entries.append(Ellipsis)
    skipped = rank - sum(consumed)
    found, dim, widths = [], 0, iter(consumed)
    for entry in entries:
        width = skipped if entry is Ellipsis else next(widths) if entry is not None else 0
        found.append((entry, list(range(dim, dim + width))))
        dim += width
    return found


def _widths(site: Site, index: Any) -> list[int]:
    """How many dimensions each entry uses up (masks of rank k use k)."""
    entries = index if isinstance(index, tuple) else (index,)
    nodes = site.node.args[1] if len(site.node.args) > 1 else None
    raw = nodes if isinstance(nodes, tuple) else (nodes,)
    widths = []
    for entry, node in zip(entries, raw, strict=True):
        if entry is None or entry is Ellipsis:
            continue
        masked = isinstance(entry, Labels) and node.meta["dtype"] == torch.bool  # type: ignore[union-attr]
        widths.append(entry.ndim if masked else 1)
    return widths


@rule("getitem")
def getitem(site: Site, input: Labels, index: Any) -> Any:
    """x[:, 2:8], x[..., 0], x[mask], x[:, positions]"""
    given = index if isinstance(index, tuple) else (index,)
    if any(isinstance(e, bool) or (isinstance(e, slice) and any(labels_in(e))) for e in given):
        return site.unknown(input, index)
    entries = expand_index(index, input.ndim, _widths(site, index))
    site.freeze("it holds positions", index)
    touched: list[int] = []
    plain = []
    for entry, dims in entries:
        if isinstance(entry, Labels | list):
            input = site.hold(input, dims, "it is indexed by a tensor of positions")
            plain.extend(_stand_in(site, entry, len(dims)))
        else:
            plain.append(entry)
            if isinstance(entry, int) or (isinstance(entry, slice) and entry != slice(None)):
                touched.extend(dims)
    if not site.has_shape:
        return site.unknown(input)
    for entry, dims in entries:
        if isinstance(entry, slice) and input.along(dims[0]) is not None:
            for bound in (entry.start, entry.stop):
                follow_bound(site, bound, input, dims[0])
    return move(site, input, (tuple(plain),), {}, touched) if input.coordinates else Labels(site.shape)


def follow_bound(site: Site, bound: Any, input: Labels, dim: int) -> None:
    """An attribute that bounds a slice counts what is kept before it."""
    if isinstance(bound, Size) and isinstance(bound.origin, AttributeOf) and 0 < bound <= input.shape[dim]:
        position = int(bound)
        before = [c.take(range(position), axis=dim) for c in input.coordinates if c.shape[dim] > 1]

        def kept(view: View) -> int:
            stays = view.kept(input).get(dim)
            return position if stays is None else int((stays < position).sum())

        site.followed.add(id(bound))
        why = "it is the bound of a slice, and cannot be both the old size and the new one"
        site.checks.append(Requirement(site.node, bound, kept, before, why))


def _stand_in(site: Site, entry: Any, width: int) -> list[torch.Tensor]:
    """Any positions will do along dimensions that are held; a mask of rank k stands for k of them."""
    if isinstance(entry, list):
        return [torch.zeros(np.shape(entry), dtype=torch.int64)]
    if width == entry.ndim and width > 1:
        chosen = site.shape[0]  # masks come first in practice; otherwise the shapes disagree and the rule gives up
        return [torch.zeros(chosen, dtype=torch.int64)] * width
    return [torch.zeros(entry.shape, dtype=torch.int64)]


@rule("setitem", "index_put")
def setitem(site: Site, input: Labels, index: Any, value: Any, *args: Any) -> Labels:
    """What is written and what it is written into keep their sizes, unless whole dimensions are untouched."""
    site.freeze(f"it is written into by position ({site.name})", index, value, input)
    return Labels(site.shape)


@rule("index_select")
def index_select(site: Site, input: Labels, dim: int, index: Labels) -> Labels:
    """Positions along one dimension."""
    site.freeze("it holds positions", index)
    return Labels(site.shape, site.hold(input, (int(dim),), "it is indexed by a tensor of positions").coordinates)


@rule("gather", "take_along_dim")
def gather(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Positions along one dimension, different ones everywhere: the result is as large as the index."""
    given = (*args, *kwargs.values())
    index = next((a for a in given if isinstance(a, Labels)), None)
    dim = next((a for a in given if isinstance(a, int) and not isinstance(a, bool)), None)
    if index is None or dim is None or index.ndim != input.ndim:
        return site.unknown(input, args, kwargs)
    held = site.hold(input, (int(dim),), "it is gathered by position")
    return site.broadcast([Labels(site.shape, held.coordinates), Labels(site.shape, index.coordinates)], site.shape)


@rule("item")
def item(site: Site, values: Any, index: int) -> Any:
    """One of several results."""
    if isinstance(values, Labels):
        return values
    return values.get(index, Labels(site.shape)) if site.has_shape else values.get(index, values)


@rule("one_hot", "nonzero", "bincount", "unique", "isin", "searchsorted", "bucketize")
def positions(site: Site, *args: Any, **kwargs: Any) -> Any:
    """Values are turned into positions."""
    site.freeze(f"{site.name} turns it into positions", *labels_in((args, kwargs)))
    return site.plain()
