"""Labels: a number for every index of every dimension of every parameter, and who shares its fate.

An element of a value is *removed* when one of its coordinates carries a removed label. Label 0 is never
removed: it means *fixed*.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
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


def collapse(coordinate: IntArray) -> IntArray:
    """The same coordinate with size 1 along every dimension where it was expanded."""
    if 0 not in coordinate.strides:
        return coordinate
    return coordinate[tuple(slice(None) if stride else slice(0, 1) for stride in coordinate.strides)]


def compress(coordinate: IntArray) -> IntArray:
    """The same coordinate with size 1 along every dimension where it is constant."""
    coordinate = collapse(coordinate)
    for dim, size in enumerate(coordinate.shape):
        if size > 1:
            first = coordinate[(slice(None),) * dim + (slice(0, 1),)]
            if bool((coordinate == first).all()):
                coordinate = first
    return coordinate


class NotANumberError(TypeError):
    """A tensor stands where a rule expects a number, or several."""


def _no_number(self: Labels, *args: Any) -> Any:
    raise NotANumberError("a tensor's labels are no number")


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

    __int__ = __index__ = __float__ = __len__ = __iter__ = _no_number
    __lt__ = __le__ = __gt__ = __ge__ = __mod__ = __mul__ = __rmul__ = _no_number


def place(vector: IntArray | None, rank: int, dim: int) -> list[IntArray]:
    """A coordinate along one dimension of a value of this rank."""
    return [] if vector is None else [vector.reshape([-1 if d == dim % rank else 1 for d in range(rank)])]


class Roots:
    """The number of every label's unit, from 1; 0 for everything that is fixed.

    Only the labels of leading blocks are solved. A block that was united with an earlier one has its numbers: they are
    looked up as a slice, and label by label only where labels do not come as whole blocks.
    """

    def __init__(self, couplings: Couplings, component: IntArray, place: Places) -> None:
        self.count = int(component.max()) + 1  # how many numbers there are, with 0
        self._couplings = couplings
        self._component = component
        self._place = place
        self._rows: dict[int, tuple[IntArray, IntArray]] = {}  # by id: labels along one dimension, and their units
        self._slices: dict[int, IntArray] = {}  # by the first label's place: one array for all blocks that were united

    def __getitem__(self, labels: IntArray) -> IntArray:
        """The units of labels, in their shape."""
        return self.row(labels).reshape(labels.shape)

    def row(self, labels: IntArray) -> IntArray:
        """The units of labels, in a row: one and the same array for all blocks that were united."""
        block = self._couplings.own(labels)
        if block is None:
            return self._scattered(labels)
        start = self._place.firsts[block]
        if start not in self._slices:
            self._slices[start] = self._component[start : start + labels.size]
        return self._slices[start]

    def _scattered(self, labels: IntArray) -> IntArray:
        """The units of labels that are no block, looked up once if they lie along one dimension."""
        known, units = self._rows.get(id(labels), (None, labels))
        if known is not labels:
            units = self._component[self._place.of(labels.reshape(-1))]
            if labels.size == max(labels.shape, default=1):
                self._rows[id(labels)] = labels, units
        return units

    @cached_property
    def all(self) -> IntArray:
        """The unit of every label there is."""
        return self._component[self._place.all]


class Places:
    """The labels of leading blocks numbered without gaps, every other label as its leader's."""

    def __init__(self, starts: Sequence[int], leaders: Sequence[int], count: int) -> None:
        self.starts = starts
        self._ends = [*starts[1:], count]
        self.firsts: list[int] = []  # by block: the place of its first label
        self.count = 0
        for block, leader in enumerate(leaders):  # leaders come before those they lead
            if leader == block:
                self.firsts.append(self.count)
                self.count += self._ends[block] - starts[block]
            else:
                self.firsts.append(self.firsts[leader])

    def of(self, labels: IntArray) -> IntArray:
        """The places of labels in a row."""
        if not labels.size:
            return labels
        low, high = int(labels.min()), int(labels.max())
        block = bisect_right(self.starts, low) - 1
        if high < self._ends[block]:
            return labels + (self.firsts[block] - self.starts[block])
        return self.all[labels]

    @cached_property
    def all(self) -> IntArray:
        """The place of every label."""
        starts = np.array(self.starts)
        sizes = np.diff(starts, append=self._ends[-1])
        return np.repeat(np.array(self.firsts) - starts, sizes) + np.arange(self._ends[-1])


class Couplings:
    """Collects which labels live or die together, and solves them all at once.

    Labels are handed out in blocks, one for each dimension of a parameter. Most operations couple whole blocks
    in order (filters, biases, statistics, the next layer's inputs): those are united as blocks, and only the
    irregular couplings (slices, shuffles, grids) are solved label by label.
    """

    def __init__(
        self,
        columns: Collection[Any] = (),
        whole: Collection[Any] = (),
        by_rows: bool = False,
        unlabelled: Collection[Any] = frozenset(),
    ) -> None:
        self.columns = columns  # the nodes whose grids are to lose columns, though their rows could leave whole
        self.by_whole_rows = whole  # those whose grids are to lose rows, though these are few and wide
        self.by_rows = by_rows  # whether a vector along the rows of a grid (a gain for each head) leaves with them
        self.met_rows = False  # whether there is any
        self.unlabelled = unlabelled  # dimensions of parameters, and attributes, whose labels need not be known
        self.named: list[tuple[Any, IntArray]] = []  # attributes that say how large something is, and its labels
        self.count = 1
        self.pairs: list[tuple[IntArray, IntArray, Any]] = []  # (labels, labels, the node that couples them)
        self.fixed: list[tuple[IntArray, str, Any]] = []  # (labels, why, the node that fixes them)
        self.producing: list[IntArray] = []  # output channels of filters
        self._whole: set[int] = set()  # the blocks among them
        self._partly: dict[int, list[IntArray]] = {}  # and the others, by the blocks that they are in
        self._roots: Roots | None = None
        self._starts = [0]  # by block: its first label; label 0 is a block of its own
        self._leader = [0]  # by block: the earlier block it was united with, or itself
        self._arrays: list[IntArray] = [np.zeros(1, np.int64)]  # by block: its labels
        self._blocks: dict[int, int] = {}  # id of a block's array, and of the one that it is a view of -> the block
        self._irregular: list[tuple[IntArray, IntArray]] = []
        self.grids: list[tuple[IntArray, Any]] = []  # (labels [rows, columns], the node that wants them balanced)
        self.whole: list[tuple[IntArray, Any]] = []  # (labels [rows, columns], the node whose rows leave whole)
        self.across: list[tuple[IntArray, Any]] = []  # (labels [rows, columns], the node whose columns leave whole)

    def new(self, size: int, dim: int = 0, ndim: int = 1) -> IntArray:
        """A coordinate of `size` labels that nobody has used yet, along one of several dimensions."""
        self._roots = None
        labels = np.arange(self.count, self.count + size)
        coordinate = labels.reshape((1,) * dim + (size,) + (1,) * (ndim - dim - 1))
        self._blocks[id(labels)] = self._blocks[id(coordinate)] = len(self._starts)
        self._arrays.append(coordinate)
        self._leader.append(len(self._starts))
        self._starts.append(self.count)
        self.count += size
        return coordinate

    def produce(self, labels: IntArray) -> None:
        """These are output channels of filters."""
        self.producing.append(labels.reshape(-1))
        own = self.own(labels)
        if own is not None:
            self._whole.add(own)
        else:
            for block in self._blocks_of(labels):
                self._partly.setdefault(block, []).append(labels)

    def produces(self, labels: IntArray) -> bool:
        """Whether any of these is an output channel of a filter."""
        own = self.own(labels)
        if own is not None:
            return own in self._whole or own in self._partly
        blocks = self._blocks_of(labels)
        return not blocks.isdisjoint(self._whole) or any(
            bool(np.isin(labels, part).any()) for block in blocks for part in self._partly.get(block, ())
        )

    def _blocks_of(self, labels: IntArray) -> set[int]:
        """The blocks that these labels are in."""
        return set((np.searchsorted(self._starts, labels.reshape(-1), "right") - 1).tolist())

    def couple(self, a: IntArray, b: IntArray, node: Any) -> None:
        """Element by element, the labels of `a` and `b` (which broadcast) become one unit."""
        if a is b:
            return
        self._roots = None
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        one, other = self.block(a), self.block(b)
        a, b = a.reshape(-1), b.reshape(-1)
        self.pairs.append((a, b, node))
        if one is None or other is None:
            self._irregular.append((a, b))
        elif one != other:
            self._leader[max(one, other)] = min(one, other)

    def couple_rows(self, grid: IntArray, node: Any) -> None:
        """Every row of `grid` leaves whole, or not at all."""
        self.couple(grid, grid[:, :1], node)
        self.whole.append((grid, node))

    def couple_columns(self, grid: IntArray, columns: IntArray, node: Any) -> None:
        """Every column of `grid` leaves whole, with one of `columns`."""
        self.couple(grid, columns.reshape(1, -1), node)
        self.across.append((grid, node))

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

    def own(self, labels: IntArray) -> int | None:
        """The block that `labels` are, whole and in order; None if they are none."""
        block = self._blocks.get(id(labels))
        if block is None:
            block = self._blocks.get(id(labels.base))
            if block is None or labels.size != self._arrays[block].size or not labels.flags.c_contiguous:
                return None
        return block

    def leading(self) -> list[IntArray]:
        """The blocks that were united with no earlier one: every other block has the units of one of these."""
        return [labels for block, labels in enumerate(self._arrays) if block and self._leader[block] == block]

    def block(self, labels: IntArray) -> int | None:
        """The first of the blocks united with the one that `labels` are: all of these have the same units, in order."""
        block = self.own(labels)
        while block is not None and self._leader[block] != block:
            block = self._leader[block]
        return block

    def fix(self, labels: IntArray, why: str, node: Any) -> None:
        """None of `labels` can be removed."""
        self._roots = None
        self.fixed.append((labels.reshape(-1), why, node))

    def roots(self) -> Roots:
        """For each label the number of its unit; 0 for everything that is fixed."""
        if self._roots is None:
            self._roots = self._solve()
        return self._roots

    def _solve(self) -> Roots:
        for block, first in enumerate(self._leader):  # leaders come first; later walks to them are short
            self._leader[block] = self._leader[first]
        place = Places(tuple(self._starts), self._leader, self.count)
        columns = [(grid[1:].reshape(-1), np.tile(grid[0], len(grid) - 1)) for grid, _ in self.grids]
        nowhere = np.zeros(1, np.int64)
        pairs = [(place.of(a), place.of(b)) for a, b in (*self._irregular, *columns)]
        fixed = np.concatenate([nowhere, *(self._placed(labels, place) for labels, _, _ in self.fixed)])
        pairs.append((fixed, np.zeros_like(fixed)))
        left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
        adjacency = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(place.count, place.count))
        _, component = connected_components(adjacency, directed=False)
        return Roots(self, component.astype(np.int64), place)  # label 0 comes first, so its component is number 0

    def _placed(self, labels: IntArray, place: Places) -> IntArray:
        """The places of labels in a row, which most often are a block."""
        block = self.own(labels)
        if block is None:
            return place.of(labels)
        first = place.firsts[block]
        return np.arange(first, first + labels.size)
