"""Reshaping in all its spellings: dimensions are regrouped, and labels with them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..labels import IntArray, Labels, compress, varying
from ..nodes import Node
from ..sizes import Computed, Size
from .checks import Pairs, Reader, View, alike, take
from .following import follow
from .movement import EMPTY, demand_numbers
from .site import Site, rule

Regrouping = list[tuple[list[int], list[int]]]


def regroup(source: Sequence[int], target: Sequence[int]) -> Regrouping:
    """The finest groups of dimensions with equal products: (2, 6, 5) -> (2, 3, 2, 5) is [0|0], [1|1 2], [2|3]."""
    groups: Regrouping = []
    i = j = 0
    while i < len(source) or j < len(target):
        left, right = [], []
        a = b = 1
        if i < len(source):
            a, left, i = source[i], [i], i + 1
        if j < len(target):
            b, right, j = target[j], [j], j + 1
        while a != b:
            if a < b and i < len(source):
                a, left, i = a * source[i], [*left, i], i + 1
            elif j < len(target):
                b, right, j = b * target[j], [*right, j], j + 1
            else:
                a, left, i = a * source[i], [*left, i], i + 1
        groups.append((left, right))
    return groups


def reshape_index(array: IntArray, source: Sequence[int], target: Sequence[int]) -> IntArray:
    """Reshapes an array that is constant along some dimensions, filling up only the groups over which it varies."""
    full, shape = list(array.shape), [1] * len(target)
    for left, right in regroup(source, target):
        if any(array.shape[d] > 1 for d in left):
            for d in left:
                full[d] = source[d]
            for d in right:
                shape[d] = target[d]
    return np.broadcast_to(array, full).reshape(shape)


@dataclass
class Reshaping:
    """The pruned value, reshaped with the sizes that the code will pass, must be the reshaped value, pruned."""

    site: Site
    source: Labels
    result: Labels
    labels: list[IntArray]
    why: str
    sizes: Sequence[Any] = ()
    offset: int = 0

    def __post_init__(self) -> None:
        self.node = self.site.node

    def holds(self, view: View) -> bool:
        small_source, small_result = view.shape(self.source), view.shape(self.result)
        if 0 in small_source and 0 not in self.source.shape:
            return False
        try:
            args, kwargs = view.evaluate(self.node.args[1:]), view.evaluate(dict(self.node.kwargs))
            others = [
                torch.empty(view.shape(self.site.values[a]), device="meta") if isinstance(a, Node) else a for a in args
            ]
            out = self.node.target(torch.empty(small_source, device="meta"), *others, **kwargs)  # type: ignore
        except (RuntimeError, ValueError, ArithmeticError):  # the sizes do not fit: what the check is for
            return False
        if tuple(out.shape) != small_result:
            return False
        if 0 in small_source:
            return small_source == small_result
        for index, full in self._regrouped:
            small = reshape_index(take(index, view.kept(self.source)), small_source, small_result)
            if not np.array_equal(small, take(full, view.kept(self.result))):
                return False
        return True

    @cached_property
    def _regrouped(self) -> list[tuple[IntArray, IntArray]]:
        """Index arrays of what is regrouped and has labels, and what they are reshaped to."""
        found = []
        for dims, _ in regroup(self.source.shape, self.result.shape):
            if any(self.source.along(d) is not None for d in dims):
                shape = [n if d in dims else 1 for d, n in enumerate(self.source.shape)]
                index = np.arange(math.prod(shape)).reshape(shape)
                found.append((index, reshape_index(index, self.source.shape, self.result.shape)))
        return found

    def equals(self, read: Reader) -> Pairs:
        """`x.reshape(b, n, c)` joins heads into a width that was read from a stream: if both shrink, then together."""
        along = [(size, self.result.along(dim)) for dim, size in enumerate(self.sizes, self.offset)]
        return [pair for size, labels in along if labels is not None for pair in alike([size], read, [labels])]

    def divides(self, read: Reader) -> Pairs:
        """`x.view(b, n, heads, c // heads)` divides a width by what was read from another: they may agree without being
        coupled, where what goes on from here is coupled with it."""
        found: Pairs = []
        for dim, size in enumerate(self.sizes, self.offset):
            origin = size.origin if isinstance(size, Size) else None
            if isinstance(origin, Computed) and origin.function is operator.floordiv:
                whole = read(origin.operands[0])
                factors = (self._together(first) for first in (dim - 1, dim))
                found += [(f, whole) for f in factors if f is not None and whole is not None and f.size == whole.size]
        return found

    def _together(self, first: int) -> IntArray | None:
        """The labels of two neighbouring dimensions of the result, as if they were one."""
        dims = range(max(first, 0), min(first + 2, self.result.ndim))
        labelled = [c for c in self.result.coordinates if any(d in varying(c) for d in dims)]
        if len(dims) < 2 or len(labelled) != 1:
            return None
        corner = labelled[0][tuple(slice(None) if d in dims else 0 for d in range(self.result.ndim))]
        return np.broadcast_to(corner, [self.result.shape[d] for d in dims]).reshape(-1)


def literal_dims(sizes: Sequence[Any]) -> list[int]:
    """The dimensions of the result whose size is a number in the code."""
    return [d for d, n in enumerate(sizes) if type(n) is int and n != -1]


def _one_of_each(site: Site, input: Labels) -> Labels:
    """Where several labelled dimensions become one, one stays free: coupled crosswise, none would. It is what varies
    over others besides, as heads and their channels do, or the first that filters make."""
    coordinates = list(input.coordinates)
    for left, _ in regroup(input.shape, site.shape):
        met = [c for d in left for c in coordinates if c.shape[d] > 1]
        vectors = [c for c in met if len(varying(c)) == 1]
        vectors.sort(key=lambda c: not site.couplings.produces(c))
        for other in vectors[1:] if len(vectors) == len(met) else vectors:
            site.fix(other, "it is joined with another dimension")
            coordinates = [c for c in coordinates if c is not other]
    if len(coordinates) == len(input.coordinates):
        return input
    result = Labels(input.shape, tuple(coordinates))
    site.alias(input, result)
    return result


def _is_row(site: Site, size: Any) -> bool:
    """Whether a size is that of a dimension along which every index has a label of its own."""
    source = site.read_from(size)
    along = source[0].along(source[1]) if source is not None and source[0].ndim else None
    return along is not None and along.size == size


def _as_rows(site: Site, coordinate: IntArray, dim: int) -> IntArray:
    """`x.view(b, -1, d)` makes rows that are as wide as something else: each loses what that loses, and none goes."""
    dims = varying(coordinate)
    return site.hold_coordinate(coordinate, set(dims) - {dim}, "") if dim in dims else coordinate


def reshaped(site: Site, input: Labels, sizes: Sequence[Any], offset: int = 0, joining: bool = False) -> Labels:
    """`sizes` are the sizes that the code passes for the dimensions of the result from `offset` on.

    What only joins neighbouring dimensions, whatever their sizes, commutes with removing channels.
    """
    if not input.coordinates:
        return Labels(site.shape)
    if 0 in input.shape and input.shape != site.shape:  # dimensions cannot be told apart by their sizes
        site.freeze(EMPTY, input)
        return Labels(site.shape)
    demand_numbers(sizes)
    input = _one_of_each(site, input)
    coordinates = list(input.coordinates)
    if input.shape != site.shape:
        coordinates = [compress(reshape_index(c, input.shape, site.shape)) for c in coordinates]
    literal = [d + offset for d in literal_dims(sizes)]
    if literal:
        written = ", ".join(str(site.shape[d]) for d in literal)
        why = f"{site.name} is given the size {written}, written in the code"
        coordinates = [site.hold_coordinate(c, literal, why) for c in coordinates]
    for d, size in enumerate(sizes, offset):
        if _is_row(site, size):
            coordinates = [_as_rows(site, c, d) for c in coordinates]
    result = site.merge(site.shape, coordinates)
    for d, size in enumerate(sizes, offset):
        if isinstance(size, Size):
            follow(site, size, result, d)
    if not joining:
        why = f"{site.name} with these sizes does not commute with removing channels"
        site.checks.append(Reshaping(site, input, result, list(input.coordinates), why, sizes, offset))
    return result


@rule("view", "reshape", "_unsafe_view")
def view(site: Site, input: Labels, *sizes: Any, **kwargs: Any) -> Any:
    """x.view(2, -1), x.view((2, -1)), x.view(dtype)"""
    if not sizes:
        sizes = (kwargs.get("size", kwargs.get("shape", kwargs.get("dtype"))),)
    if isinstance(sizes[0], torch.dtype):
        return site.unknown(input)
    return reshaped(site, input, sizes[0] if isinstance(sizes[0], list | tuple) else sizes)


@rule("flatten", "ravel")
def flatten(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Dimensions next to one another become one."""
    return reshaped(site, input, (), joining=True)


@rule("view_as", "reshape_as")
def reshape_as(site: Site, input: Labels, other: Labels) -> Labels:
    """The sizes are those of another value, and shrink with these."""
    return site.broadcast([reshaped(site, input, ()), other], site.shape)


@rule("unflatten")
def unflatten(site: Site, input: Labels, dim: int, sizes: Any, *args: Any) -> Labels:
    """One dimension becomes several."""
    return reshaped(site, input, list(sizes), int(dim) % input.ndim)
