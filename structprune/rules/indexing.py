"""Subscripts and gathers: slices are run on the labels, positions held in tensors are fixed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..labels import IntArray, Labels, varying
from ..nodes import Node
from ..sizes import AttributeOf, Computed, Size
from .checks import Requirement, View
from .movement import EMPTY, demand_numbers, move, watch
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


def _written(entry: Any) -> Any:
    """Sequences and arrays of positions as an array, NumPy's integers as plain ones; all else as it is."""
    if isinstance(entry, np.integer):
        return int(entry)
    if isinstance(entry, np.ndarray) or (isinstance(entry, list | tuple | range) and not any(labels_in(entry))):
        return np.asarray(entry)
    return entry


def _is_mask(entry: Any, node: Any) -> bool:
    if isinstance(entry, Labels):
        return node.meta["dtype"] in (torch.bool, torch.uint8)
    return isinstance(entry, np.ndarray) and entry.dtype.kind == "b"


def _understood(entry: Any) -> bool:
    """Whether this is an entry of a subscript that is known, and no tensor where a number is usual."""
    if isinstance(entry, slice):
        return not any(labels_in(entry))
    if isinstance(entry, np.ndarray):
        return entry.dtype.kind in "ib"  # NumPy's bytes are masks to PyTorch
    return entry is None or entry is Ellipsis or (isinstance(entry, Labels | int) and not isinstance(entry, bool))


@rule("getitem")
def getitem(site: Site, input: Labels, index: Any) -> Any:
    """x[:, 2:8], x[..., 0], x[mask], x[:, positions]"""
    several = isinstance(index, tuple)
    given = [_written(e) for e in (index if several else (index,))]
    if _nested(index) or not site.has_shape or not all(map(_understood, given)):
        return site.unknown(input, index)
    nodes: Any = site.node.args[1] if several else site.node.args[1:]
    masks = {id(e): e.ndim for e, node in zip(given, nodes, strict=True) if _is_mask(e, node)}
    if 0 in masks.values():
        return site.unknown(input, index)
    used = [masks.get(id(e), 1) for e in given if e is not None and e is not Ellipsis]
    entries = expand_index(tuple(given), input.ndim, used)
    site.freeze("it holds positions", index)
    touched: list[int] = []
    plain: list[Any] = []
    for entry, dims in entries:
        if isinstance(entry, Labels | np.ndarray):
            input = site.hold(input, dims, "it is indexed by a tensor of positions")
            plain.extend(_stand_in(entry.ndim, id(entry) in masks))
        elif isinstance(entry, slice) and not range(*entry.indices(input.shape[dims[0]])):
            along = input.along(dims[0])
            if along is not None and len(varying(along)) > 1:
                input, along = site.hold(input, dims, EMPTY), None
            plain.append(slice(1) if along is None else entry)  # along the others what is left has labels still
        else:
            plain.append(entry)
            if isinstance(entry, int) or (isinstance(entry, slice) and entry != slice(None)):
                touched.extend(dims)
    for entry, dims in entries:
        if isinstance(entry, slice) and input.along(dims[0]) is not None:
            follow_bounds(site, entry, input, dims[0])
    return move(site, input, (tuple(plain),), {}, touched) if input.coordinates else Labels(site.shape)


def follow_bounds(site: Site, entry: slice, input: Labels, dim: int) -> None:
    """What is known of the sizes that bound a slice of a labelled dimension."""
    for bound in (entry.start, entry.stop):
        if isinstance(bound, Size):
            _count_before(site, bound, input, dim)
            _balance_shares(site, bound, input, dim)


def _count_before(site: Site, bound: Size, input: Labels, dim: int) -> None:
    """An attribute that bounds a slice counts what is kept before it."""
    if isinstance(bound.origin, AttributeOf) and 0 < bound <= input.shape[dim]:
        position = int(bound)
        before = [c.take(range(position), axis=dim) for c in input.coordinates if c.shape[dim] > 1]

        def kept(view: View) -> int:
            stays = view.kept(input).get(dim)
            return position if stays is None else int((stays < position).sum())

        site.followed.add(id(bound))
        why = "it is the bound of a slice, and cannot be both the old size and the new one"
        site.checks.append(Requirement(site.node, bound, kept, before, why))


def _balance_shares(site: Site, bound: Size, input: Labels, dim: int) -> None:
    """`x[:, : c // 8]` of c channels: every eighth of them must lose equally many."""
    labels = input.along(dim)
    if labels is None or labels.size != labels.shape[dim]:
        return
    row = labels.reshape(-1)
    for whole, parts in _shares(bound):
        source = site.sized_like(whole) if 1 < parts < row.size and row.size % parts == 0 else None
        if source is not None and np.array_equal(source, row):
            site.balance(row.reshape(parts, -1))


def _shares(size: Any) -> Iterator[tuple[Size, int]]:
    """The sizes that an expression divides, and by what."""
    origin = size.origin if isinstance(size, Size) else None
    if isinstance(origin, Computed):
        whole, parts = (*origin.operands, None)[:2]
        if origin.function is operator.floordiv and isinstance(whole, Size) and isinstance(parts, int):
            yield whole, int.__int__(parts)
        for operand in origin.operands:
            yield from _shares(operand)


def _stand_in(rank: int, mask: bool) -> list[torch.Tensor]:
    """Any positions will do along dimensions that are held, and a single one; a mask of rank k stands for k of them."""
    shape = (1,) if mask else (1,) * rank
    return [torch.zeros(shape, dtype=torch.int64)] * (rank if mask else 1)


@rule("setitem", "index_put")
def setitem(site: Site, input: Labels, index: Any, value: Any, *args: Any, **kwargs: Any) -> Labels:
    """What is written and what it is written into keep their sizes, except along dimensions that are written whole, or
    from one size to another."""
    why = f"it is written into by position ({site.name})"
    several = isinstance(index, tuple) or site.name == "index_put"
    given = [_written(e) for e in (index if several else (index,))]
    nodes: Any = site.node.args[1] if several else site.node.args[1:2]
    masks = {id(e): e.ndim for e, node in zip(given, nodes, strict=True) if _is_mask(e, node)}
    if given[0] is index and masks.get(id(index)) == input.ndim and all(v.ndim == 0 for v in labels_in(value)):
        return site.broadcast([input, index, *labels_in(value)], site.shape)  # one number wherever a condition is met
    if (not several and _nested(index)) or 0 in masks.values() or not _writable(given, masks):
        site.freeze(why, index, value, input)
        return Labels(site.shape)
    site.freeze("it holds positions", index)
    used = [masks.get(id(e), 1) for e in given if e is not None and e is not Ellipsis]
    entries = expand_index(tuple(given), input.ndim, used)
    spans = _spans([e for e, _ in entries], masks)
    bounded = _bounded_by_sizes(site, input, entries)
    input = site.hold(input, [d for e, dims in entries if not _is_whole(e) for d in dims if d not in bounded], why)
    region = tuple(
        n
        for (e, dims), span in zip(entries, spans, strict=True)
        for n in _region(e, [input.shape[d] for d in dims], span)
    )
    met = [Labels(region, tuple(c[_taken(entries, c, spans)] for c in input.coordinates))]
    if bounded:
        watch(site, input, {0: met[0]}, bounded, run=_subscript)
    for written in labels_in(value):  # it may have more dimensions, of size 1
        extra = max(written.ndim - len(region), 0)
        plain = Labels(written.shape[extra:], tuple(c.reshape(c.shape[extra:]) for c in written.coordinates))
        chosen = [d for d in range(-plain.ndim, 0) if region[d] == 1]  # as many as there are positions
        met.append(site.hold(plain, chosen, why))
        site.alias(written, met[-1])
    site.broadcast(met, np.broadcast_shapes(*(labels.shape for labels in met)))
    return Labels(site.shape, input.coordinates)


def _nested(index: Any) -> bool:
    """Whether this is a list that some take for a tuple."""
    return isinstance(index, list) and any(not isinstance(e, int) for e in index)


def _writable(given: Sequence[Any], masks: Mapping[int, int]) -> bool:
    """Whether these are slices and numbers, or slices and tensors next to one another: one, or several of positions."""
    places = [i for i, e in enumerate(given) if isinstance(e, Labels | np.ndarray)]
    together = len(places) < 2 or (places == list(range(places[0], places[-1] + 1)) and not masks)
    return all(map(_understood, given)) and (not places or (together and not any(isinstance(e, int) for e in given)))


def _spans(given: Sequence[Any], masks: Mapping[int, int]) -> list[int]:
    """How many dimensions of what is selected come from each entry that is a tensor: of several, from the first."""
    ranks = [1 if id(e) in masks else e.ndim for e in given if isinstance(e, Labels | np.ndarray)]
    left = iter([max(ranks, default=0)] + [0] * len(ranks))
    return [next(left) if isinstance(e, Labels | np.ndarray) else 0 for e in given]


def _is_whole(entry: Any) -> bool:
    return entry is None or entry is Ellipsis or (isinstance(entry, slice) and entry == slice(None))


def _region(entry: Any, sizes: Sequence[int], span: int) -> Sequence[int]:
    """The sizes of what an entry selects; 1 for positions, however many there are."""
    if isinstance(entry, slice):
        return [len(range(*entry.indices(sizes[0])))]
    if isinstance(entry, Labels | np.ndarray):
        return [1] * span
    return sizes if entry is Ellipsis else [] if isinstance(entry, int) else [1]


def _bounded_by_sizes(site: Site, input: Labels, entries: Sequence[tuple[Any, list[int]]]) -> list[int]:
    """The labelled dimensions of which a range is written from one size to another, and nothing by tensors."""
    if any(isinstance(e, Labels | np.ndarray) for e, _ in entries):
        return []
    found = [(e, dims[0]) for e, dims in entries if isinstance(e, slice) and input.along(dims[0]) is not None]
    found = [(e, dim) for e, dim in found if isinstance(e.start, Size) or isinstance(e.stop, Size)]
    for entry, dim in found:
        follow_bounds(site, entry, input, dim)
    return [dim for _, dim in found]


def _subscript(array: IntArray, shape: tuple[int, ...], args: Any, kwargs: Any) -> list[IntArray]:
    """What an index selects, of an array that is expanded to a shape."""
    return [np.broadcast_to(array, shape)[args[0]]]


def _taken(entries: Sequence[tuple[Any, list[int]]], labels: IntArray, spans: Sequence[int]) -> tuple[Any, ...]:
    """What selects the labels of a region: they are constant along whatever is not selected whole, or by a range."""
    parts: list[Any] = []
    for (entry, dims), span in zip(entries, spans, strict=True):
        if isinstance(entry, slice):
            parts.append(entry if labels.shape[dims[0]] > 1 else slice(None))
        elif entry is Ellipsis:
            parts += [slice(None)] * len(dims)
        elif isinstance(entry, Labels | np.ndarray):
            parts += [slice(None) if span else 0, *[0] * (len(dims) - 1), *[None] * (span - 1)]
        else:
            parts.append(0 if isinstance(entry, int) else None)
    return tuple(parts)


@rule("masked_scatter")
def masked_scatter(site: Site, input: Labels, mask: Labels, source: Labels) -> Labels:
    """Elements of a source in order, where a mask says so: rows, if it is the same all along the last dimension."""
    rows = input.shape[-1:] == source.shape[-1:] and _alike_along_last(site.node_of(mask))
    if not rows or input.shape != site.shape:
        return site.unknown(input, mask, source)
    why = "it is written into by position (masked_scatter)"
    values = [site.hold(v, range(v.ndim - 1), why) for v in (input, mask, source)]
    together = site.broadcast(
        [Labels(v.shape[-1:], tuple(c.reshape(-1) for c in v.coordinates)) for v in values], input.shape[-1:]
    )
    return Labels(site.shape, tuple(c.reshape([1] * (input.ndim - 1) + [-1]) for c in together.coordinates))


def _alike_along_last(node: Node | None) -> bool:
    """Whether all values along the last dimension are one and the same."""
    while node is not None and node.meta["shape"][-1:] != (1,):
        if node.meta["op"] not in _SPREADING:
            return False
        node = node.all_input_nodes[0]
    return node is not None


_SPREADING = frozenset({"expand", "expand_as", "broadcast_to", "to", "bool", "contiguous", "clone", "type"})


@rule("index_add", "index_copy", "index_fill", "index_reduce", "scatter", "scatter_add", "scatter_reduce")
def write_at(site: Site, input: Labels, dim: Any, index: Any, *args: Any, **kwargs: Any) -> Any:
    """Positions along one dimension; along the others what is written, if it is no number, meets what it replaces or is
    added to."""
    why = f"it is written into by position ({site.name})"
    source = next(iter(labels_in((args, kwargs))), None)
    everywhere = site.name.startswith("scatter")  # positions for every element
    values = [input, *([index] if everywhere else []), *([source] if source is not None else [])]
    whole = all(isinstance(v, Labels) and v.ndim == input.ndim for v in values) and isinstance(dim, int)
    dim = int(dim) % max(input.ndim, 1) if whole else 0
    if not whole or len({(*v.shape[:dim], *v.shape[dim + 1 :]) for v in values}) > 1 or not input.ndim:
        site.freeze(why, input, index, source)
        return site.plain()
    if not everywhere:
        site.freeze("it holds positions", index)
    held = [Labels(site.shape, site.hold(v, (dim,), why).coordinates) for v in values]
    return site.broadcast(held, site.shape)


@rule("slice_scatter", "select_scatter")
def write_slice(site: Site, input: Labels, src: Labels, dim: int = 0, *args: Any, **kwargs: Any) -> Labels:
    """A copy in which a range of one dimension, or one index of it, is replaced; along the others both meet."""
    demand_numbers(dim, args, kwargs)
    dim = int(dim) % input.ndim
    if site.name == "select_scatter":
        lifted = tuple(np.expand_dims(c, dim) for c in src.coordinates)
        site.alias(src, src := Labels((*src.shape[:dim], 1, *src.shape[dim:]), lifted))
    values = [site.hold(v, (dim,), "it is written into by position") for v in (input, src)]
    return site.broadcast([Labels(site.shape, v.coordinates) for v in values], site.shape)


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
