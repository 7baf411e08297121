"""Labels: a number for every index of every dimension of every parameter, and who shares its fate.

An element of a value is *removed* when one of its coordinates carries a removed label. Label 0 is never
removed: it means *fixed*.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def varying(coordinate: IntArray) -> tuple[int, ...]:
    """The dimensions along which a coordinate is not constant."""
    return tuple(d for d, size in enumerate(coordinate.shape) if size > 1)


def compress(coordinate: IntArray) -> IntArray:
    """The same coordinate with size 1 along every dimension where it is constant."""
    for dim, size in enumerate(coordinate.shape):
        if size > 1:
            first = coordinate[(slice(None),) * dim + (slice(0, 1),)]
            if coordinate.strides[dim] == 0 or bool((coordinate == first).all()):
                coordinate = first
    return coordinate


@dataclass(frozen=True)
class Labels:
    """The labels of one value: its shape, and coordinates over disjoint sets of its dimensions.

    A coordinate is an integer array of the value's rank, with size 1 along the dimensions where it is
    constant: the output [N, C, H, W] of a convolution has one coordinate of shape [1, C, 1, 1].
    A dimension over which no coordinate varies is fixed.
    """

    shape: tuple[int, ...]
    coordinates: tuple[IntArray, ...] = ()

    @staticmethod
    def of(shape: Iterable[int], coordinates: Iterable[IntArray]) -> Labels:
        """Drops the coordinates that are zero or constant everywhere; constants must have been fixed before."""
        return Labels(tuple(shape), tuple(c for c in coordinates if c.size > 1 and c.any()))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def along(self, dim: int) -> IntArray | None:
        """The coordinate that varies along `dim`, if there is one."""
        for coordinate in self.coordinates:
            if coordinate.shape[dim] > 1:
                return coordinate
        return None

    def without(self, dims: Iterable[int]) -> tuple[IntArray, ...]:
        """The coordinates that vary along none of `dims`."""
        dims = [d % self.ndim for d in dims]
        return tuple(c for c in self.coordinates if all(c.shape[d] == 1 for d in dims))


class Couplings:
    """Collects which labels live or die together, and solves them all at once.

    Labels are handed out in blocks, one for each dimension of a parameter. Most operations couple whole blocks
    in order (filters, biases, statistics, the next layer's inputs): those are united as blocks, and only the
    irregular couplings (slices, shuffles, grids) are solved label by label.
    """

    def __init__(self) -> None:
        self.count = 1
        self.pairs: list[tuple[IntArray, IntArray, Any]] = []  # (labels, labels, the node that couples them)
        self.fixed: list[tuple[IntArray, str, Any]] = []  # (labels, why, the node that fixes them)
        self._produced = np.zeros(1024, bool)
        self._producing: set[int] = set()  # blocks that are produced as a whole
        self._roots: IntArray | None = None
        self._units: dict[int, IntArray] = {}  # by leading block: the units of it and of all that it leads
        self._starts = [0]  # by block: its first label; label 0 is a block of its own
        self._leader = [0]  # by block: the earlier block it was united with, or itself
        self._blocks: dict[int, tuple[int, IntArray]] = {}  # id of a block's array -> the block
        self._irregular: list[tuple[IntArray, IntArray]] = []
        self.grids: list[tuple[IntArray, Any]] = []  # (labels [rows, columns], the node that wants them balanced)

    def new(self, size: int) -> IntArray:
        """`size` labels that nobody has used yet."""
        self._roots = None
        labels = np.arange(self.count, self.count + size)
        self._blocks[id(labels)] = (len(self._starts), labels)
        self._leader.append(len(self._starts))
        self._starts.append(self.count)
        self.count += size
        if self.count > len(self._produced):
            self._produced = np.concatenate([self._produced, np.zeros(self.count, bool)])
        return labels

    def produce(self, labels: IntArray) -> None:
        """These are output channels of filters."""
        self._produced[labels] = True
        if (own := self._own(labels)) is not None:
            self._producing.add(own)

    @property
    def produced(self) -> BoolArray:
        """By label: whether it is an output channel of a filter."""
        return self._produced[: self.count]

    def produces(self, labels: IntArray) -> bool:
        """Whether any of these is an output channel of a filter."""
        return self._own(labels) in self._producing or bool(self._produced[labels].any())

    def couple(self, a: IntArray, b: IntArray, node: Any) -> None:
        """Element by element, the labels of `a` and `b` (which broadcast) become one unit."""
        if a is b:
            return
        self._roots = None
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        a, b = a.reshape(-1), b.reshape(-1)
        self.pairs.append((a, b, node))
        one, other = self.block(a), self.block(b)
        if one is None or other is None:
            self._irregular.append((a, b))
        elif one != other:
            self._leader[max(one, other)] = min(one, other)

    def balance(self, grid: IntArray, node: Any) -> None:
        """Every row of `grid` must lose equally many labels: column by column, until `arranged` says otherwise."""
        self._roots = None
        self.grids.append((grid, node))
        self.pairs.append((grid.reshape(-1), np.broadcast_to(grid[:1], grid.shape).reshape(-1), node))

    def arranged(self, links: Iterable[tuple[IntArray, Any]]) -> Couplings:
        """The same couplings, with the columns of these arrays in place of those of all balanced grids."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | dict | set):
                setattr(other, name, value.copy())
        other.grids, other._roots = [], None
        for rows, node in links:
            other.couple(rows, np.broadcast_to(rows[:1], rows.shape), node)
        return other

    def _own(self, labels: IntArray) -> int | None:
        """The block that `labels` are, whole and in order; None if they are none."""
        found = self._blocks.get(id(labels if labels.base is None else labels.base))
        if found is None or labels.size != found[1].size or not labels.flags.c_contiguous:
            return None
        return found[0]

    def block(self, labels: IntArray) -> int | None:
        """The first of the blocks united with the one that `labels` are: all of these have the same units, in order."""
        block = self._own(labels)
        while block is not None and self._leader[block] != block:
            block = self._leader[block]
        return block

    def fix(self, labels: IntArray, why: str, node: Any) -> None:
        """None of `labels` can be removed."""
        self._roots = None
        self.fixed.append((labels.reshape(-1), why, node))

    def roots(self) -> IntArray:
        """For each label the number of its unit; 0 for everything that is fixed."""
        if self._roots is None:
            self._roots = self._solve()
            self._units = {}
        return self._roots

    def units(self, labels: IntArray) -> IntArray:
        """The units of labels, in a row: one and the same array for all blocks that were united."""
        roots, block = self.roots(), self.block(labels)
        if block is None:
            return roots[labels.reshape(-1)]
        if block not in self._units:
            self._units[block] = roots[labels.reshape(-1)]
        return self._units[block]

    def _solve(self) -> IntArray:
        short, leading = self._shortened()
        columns = [(grid[1:].reshape(-1), np.tile(grid[0], len(grid) - 1)) for grid, _ in self.grids]
        left = [short[a] for a, _ in (*self._irregular, *columns)] + [short[a] for a, _, _ in self.fixed]
        right = [short[b] for _, b in (*self._irregular, *columns)]
        right += [np.zeros(len(a), np.int32) for a, _, _ in self.fixed]
        if not left:
            return short.astype(np.int64)
        ends = np.concatenate(left), np.concatenate(right)
        adjacency = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(leading, leading))
        _, component = connected_components(adjacency, directed=False)
        # Label 0 comes first, so its component is number 0.
        return component[short].astype(np.int64)

    def _shortened(self) -> tuple[npt.NDArray[np.int32], int]:
        """The labels of leading blocks numbered without gaps, every other label as its leader's; and their count."""
        leader = self._leader
        for block, first in enumerate(leader):  # leaders come before those they lead
            leader[block] = leader[first]
        starts = np.array(self._starts, np.int32)
        sizes = np.diff(starts, append=np.int32(self.count))
        leading = sizes * (np.arange(len(starts)) == leader)
        first = np.cumsum(leading, dtype=np.int32) - leading
        short = np.repeat(first[leader] - starts, sizes)
        short += np.arange(self.count, dtype=np.int32)
        return short, int(leading.sum())
