"""Labels: a number for every index of every dimension of every parameter, and who shares its fate.

An element of a value is *removed* when one of its coordinates carries a removed label. Label 0 is never
removed: it means *fixed*.
"""

from __future__ import annotations

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
        dim %= max(self.ndim, 1)
        return next((c for c in self.coordinates if c.shape[dim] > 1), None)

    def without(self, dims: Iterable[int]) -> tuple[IntArray, ...]:
        """The coordinates that vary along none of `dims`."""
        dims = [d % self.ndim for d in dims]
        return tuple(c for c in self.coordinates if all(c.shape[d] == 1 for d in dims))


class Couplings:
    """Collects which labels live or die together, and solves them all at once."""

    def __init__(self) -> None:
        self.count = 1
        self.pairs: list[tuple[IntArray, IntArray, Any]] = []  # (labels, labels, the node that couples them)
        self.fixed: list[tuple[IntArray, str, Any]] = []  # (labels, why, the node that fixes them)
        self._produced = np.zeros(1024, bool)
        self._solved: tuple[tuple[int, int, int], IntArray] | None = None

    def new(self, size: int) -> IntArray:
        """`size` labels that nobody has used yet."""
        self.count += size
        if self.count > len(self._produced):
            self._produced = np.concatenate([self._produced, np.zeros(self.count, bool)])
        return np.arange(self.count - size, self.count)

    def produce(self, labels: IntArray) -> None:
        """These are output channels of filters."""
        self._produced[labels] = True

    @property
    def produced(self) -> BoolArray:
        """By label: whether it is an output channel of a filter."""
        return self._produced[: self.count]

    def couple(self, a: IntArray, b: IntArray, node: Any) -> None:
        """Element by element, the labels of `a` and `b` (which broadcast) become one unit."""
        if a is b:
            return
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        self.pairs.append((a.reshape(-1), b.reshape(-1), node))

    def fix(self, labels: IntArray, why: str, node: Any) -> None:
        """None of `labels` can be removed."""
        self.fixed.append((labels.reshape(-1), why, node))

    def roots(self) -> IntArray:
        """For each label the number of its unit; 0 for everything that is fixed."""
        state = (self.count, len(self.pairs), len(self.fixed))
        if self._solved is None or self._solved[0] != state:
            self._solved = (state, self._solve())
        return self._solved[1]

    def _solve(self) -> IntArray:
        left = [a for a, _, _ in self.pairs] + [a for a, _, _ in self.fixed]
        right = [b for _, b, _ in self.pairs] + [np.zeros_like(a) for a, _, _ in self.fixed]
        if not left:
            return np.arange(self.count)
        rows, columns = np.concatenate(left).astype(np.int32), np.concatenate(right).astype(np.int32)
        adjacency = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(self.count, self.count))
        _, component = connected_components(adjacency, directed=False)
        # Label 0 comes first, so its component is number 0.
        return component.astype(np.int64)
