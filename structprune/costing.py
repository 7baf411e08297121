"""Counting: what a model costs under many plans at once.

Every cost is a sum of products of sizes, and every size is a number plus so many for each unit that is kept. That
is written down once for a graph, and then a thousand plans are counted by one product of matrices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from .cost import Dim, calls, dims, products
from .labels import IntArray, Labels
from .memory import Life, lives

if TYPE_CHECKING:
    from .graph import ChannelGraph

FloatArray = npt.NDArray[np.float64]
Term = tuple[int, tuple[int, ...]]  # a factor, and the numbers of the sizes that it is multiplied with


@dataclass(frozen=True, eq=False)
class Sum:
    """`factors[i]` times the product of the sizes with the numbers `sizes[i]`, summed over i."""

    factors: FloatArray
    sizes: IntArray

    @staticmethod
    def of(terms: Sequence[Term]) -> Sum:
        """Number 0 is the size 1, which fills short rows up."""
        width = max((len(sizes) for _, sizes in terms), default=0)
        rows = [sizes + (0,) * (width - len(sizes)) for _, sizes in terms]
        return Sum(np.array([f for f, _ in terms], np.float64), np.array(rows, np.int64).reshape(len(rows), width))

    def __call__(self, sizes: FloatArray) -> FloatArray:
        """The sum for every column of `sizes`."""
        return self.factors @ self.products(sizes)

    def products(self, sizes: FloatArray) -> FloatArray:
        """The products, before they are weighted and summed."""
        found = np.ones((len(self.sizes), sizes.shape[1]))
        for column in self.sizes.T:
            found *= sizes[column]
        return found


@dataclass(frozen=True, eq=False)
class Peak:
    """What is always there, and the largest sum of what is alive at the same time."""

    always: Sum
    values: Sum
    alive: csr_array  # [steps, values]

    def __call__(self, sizes: FloatArray) -> FloatArray:
        live = self.alive @ (self.values.factors[:, None] * self.values.products(sizes))
        return self.always(sizes) + live.max(axis=0, initial=0)

    @staticmethod
    def presence(alive: Sequence[Life]) -> csr_array:
        """Which value is there at which step."""
        spans = [np.arange(life.first, life.last + 1) for life in alive]
        steps = np.concatenate([np.zeros(0, np.int64), *spans])
        owners = np.repeat(np.arange(len(alive)), [len(span) for span in spans])
        return csr_array((np.ones(len(steps)), (steps, owners)), shape=(int(steps.max(initial=0)) + 1, len(alive)))


class Costs:
    """What a model costs, as a function of how many units of each class are kept.

    Units that occur equally often in every dimension that is counted are of one class: `classes[unit]`. A plan
    is a column of `totals`, the number of units by class, less those that it removes.

    >>> costs = Costs(graph)
    >>> costs.count(costs.totals - costs.of(units))     # {"macs": array([...]), "params": array([...]), ...}

    `memory` is in bytes: parameters and buffers, and the largest sum of the values that are alive at the same time
    in the traced call (see `structprune.memory.lives`). What kernels allocate for themselves is not in it.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._roots = graph.space.couplings.roots()
        self._vectors: list[IntArray] = [np.zeros(1, np.int64)]  # the units along each size; number 0 is a one
        self._numbers: dict[tuple[bytes, int], int] = {}
        self._values = graph.space.values
        labelled, program = graph.space.parameters, graph.space.programs[0]
        alive = lives(program.graph.nodes, program.training)
        macs = [self._value(product) for node in calls(graph) for product in products(node)]
        weights = [self._term(labelled.get(name), t.shape) for name, t in graph.model.named_parameters()]
        stored = graph.parts.registered.items()
        bytes_ = [self._term(labelled.get(name), t.shape, t.element_size()) for name, t in stored]
        values = [self._value(dims(life.node), life.node.meta["dtype"].itemsize) for life in alive]
        self._solve()
        self.measures: dict[str, Callable[[FloatArray], FloatArray]] = {
            "macs": Sum.of(_added(macs)),
            "params": Sum.of(_added(weights)),
            "memory": Peak(Sum.of(_added(bytes_)), Sum.of(values), Peak.presence(alive)),
        }

    def _value(self, product: Iterable[Dim], factor: int = 1) -> Term:
        """The product of sizes of values, times a factor."""
        return _term(
            [self._size(self._values.get(node), dim, node.meta["shape"][dim]) for node, dim in product], factor
        )

    def _term(self, labels: Any, shape: Sequence[int], factor: int = 1) -> Term:
        """The number of elements of a parameter, times a factor."""
        return _term([self._size(labels, dim, size) for dim, size in enumerate(shape)], factor)

    def _size(self, labels: Any, dim: int, size: int) -> int | tuple[int]:
        """A number if the dimension cannot shrink, otherwise the number of its size."""
        coordinate = labels.along(dim) if isinstance(labels, Labels) and size > 1 else None
        if coordinate is None:
            return size
        line = coordinate[tuple(slice(None) if d == dim else 0 for d in range(coordinate.ndim))]
        units = self._roots[line]
        if (units == units[0]).all():  # all of it or nothing, and nothing is no plan
            return size
        key = (units.tobytes(), len(units))
        if key not in self._numbers:
            self._numbers[key] = len(self._vectors)
            self._vectors.append(units)
        return (self._numbers[key],)

    def _solve(self) -> None:
        """Sorts the units into classes, and writes every size as `fixed + kept @ units of each class`."""
        count = self._roots.count
        marks = np.random.default_rng(0).integers(1, 2**62, len(self._vectors), dtype=np.uint64)
        signature = np.zeros(count, np.uint64)
        for units, mark in zip(self._vectors, marks, strict=True):
            np.add.at(signature, units, mark)
        signature[0] = 0
        _, first, self.classes = np.unique(signature, return_index=True, return_inverse=True)
        self.totals = np.bincount(self.classes, minlength=len(first))
        self._fixed = np.zeros(len(self._vectors))
        each = np.zeros((len(self._vectors), len(first)))
        for i, units in enumerate(self._vectors):
            times = np.bincount(units, minlength=count)
            self._fixed[i] = times[0]
            each[i] = times[first]
        each[:, self.classes[0]] = 0  # what no size counts, and what is fixed
        self._each = csr_array(each)  # most sizes count few classes
        self._fixed[0] = 1

    def of(self, units: IntArray) -> IntArray:
        """How many of these units there are in each class."""
        return np.bincount(self.classes[units], minlength=len(self.totals))

    def count(self, kept: npt.NDArray[Any], names: Iterable[str] | None = None) -> dict[str, FloatArray]:
        """The costs of these names, or all, for numbers of kept units [classes] or [classes, plans]."""
        columns = kept.reshape(len(self.totals), -1)
        sizes = self._fixed[:, None] + self._each @ columns
        return {name: self.measures[name](sizes) for name in (self.measures if names is None else names)}

    def original(self) -> Mapping[str, int]:
        """Every cost of the model as it is."""
        return {name: round(float(values[0])) for name, values in self.count(self.totals).items()}


def _term(sizes: Sequence[int | tuple[int]], factor: int) -> Term:
    """Plain numbers go into the factor, the others are numbers of sizes."""
    plain = math.prod(size for size in sizes if isinstance(size, int))
    return factor * plain, tuple(sorted(size[0] for size in sizes if isinstance(size, tuple)))


def _added(terms: Iterable[Term]) -> list[Term]:
    """Equal products once, with their factors added."""
    found: Counter[tuple[int, ...]] = Counter()
    for factor, sizes in terms:
        found[sizes] += factor
    return [(factor, sizes) for sizes, factor in found.items()]
