"""Costs: parameters, multiply-accumulates (MACs) and memory, counted from the traced graph.

The formulas are those of `torch.utils.flop_counter`, which counts two operations per MAC. Shapes of a pruned
model follow from the labels, so its cost is known without running it. Every cost is a sum of products of sizes,
and every size is a number plus so many for each unit that is kept: `Costs` writes that down once, and then
a thousand plans are counted by one product of matrices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .labels import IntArray, Labels
from .nodes import Node
from .rules.checks import View

if TYPE_CHECKING:
    from .graph import ChannelGraph

FloatArray = npt.NDArray[np.float64]
Dim = tuple[Node, int]
Shapes = Callable[[Node], tuple[int, ...]]

_GATED = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})


def dims(node: Node) -> list[Dim]:
    """All dimensions of a value; their product is its size."""
    return [(node, d) for d in range(len(node.meta["shape"]))]


def products(node: Node) -> list[list[Dim]]:
    """The multiply-accumulates of one node: a sum of products of sizes."""
    op = node.meta["op"]
    operands = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, Node)]
    if op in ("linear", "conv1d", "conv2d", "conv3d"):
        return [dims(node) + dims(operands[1])[1:]]
    if op in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        return [dims(operands[0]) + dims(operands[1])[1:]]
    if op in ("matmul", "bmm", "mm", "addmm", "baddbmm"):
        left = operands[-2] if op in ("addmm", "baddbmm") else operands[0]
        return [dims(node) + dims(left)[-1:]]
    if op == "scaled_dot_product_attention":
        query, key, value = map(dims, operands[:3])
        return [query[:-1] + key[-2:-1] + last for last in (query[-1:], value[-1:])]
    if op == "einsum":
        return _einsum(node)
    if op in _GATED or op in _CELLS:
        return _recurrent(node)
    return []


def _einsum(node: Node) -> list[list[Dim]]:
    """The product over all letters, where two operands meet and something is summed over."""
    equation, operands = node.args[0], node.all_input_nodes
    if not isinstance(equation, str) or "." in equation:
        return []
    terms, _, right = equation.replace(" ", "").partition("->")
    letters = {
        c: dim for t, o in zip(terms.split(","), operands, strict=False) for c, dim in zip(t, dims(o), strict=True)
    }
    return [list(letters.values())] if "," in terms and (not right or set(letters) - set(right)) else []


def _recurrent(node: Node) -> list[list[Dim]]:
    """Every weight matrix once for each step and example."""
    given: Any = node.args[2] if node.meta["op"] in _GATED else node.args[2:]
    if not isinstance(given, list | tuple):  # packed sequences come in another form
        return []
    weights = [w for w in given if isinstance(w, Node) and len(w.meta["shape"]) == 2]
    return [dims(node.all_input_nodes[0])[:-1] + dims(w) for w in weights]


def macs(graph: ChannelGraph, view: View | None = None) -> int:
    """The MACs of the first traced call, as it is or under a plan."""

    def size(dim: Dim) -> int:
        labels = graph.space.values.get(dim[0])
        shape = view.shape(labels) if view is not None and isinstance(labels, Labels) else dim[0].meta["shape"]
        return shape[dim[1]]

    return sum(math.prod(map(size, product)) for node in _calls(graph) for product in products(node))


def parameters(graph: ChannelGraph, view: View | None = None) -> int:
    """The number of parameters, as it is or under a plan."""
    total = 0
    for name, tensor in graph.model.named_parameters():
        labels = graph.space.parameters.get(name)
        total += math.prod(view.shape(labels)) if view is not None and labels is not None else tensor.numel()
    return total


def _calls(graph: ChannelGraph) -> Iterator[Node]:
    return (n for n in graph.space.programs[0].graph.nodes if n.op == "call_function")


# -- many plans at once ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sum:
    """A cost: `factors[i]` times the product of the sizes with the numbers `sizes[i]`, summed over i."""

    factors: FloatArray
    sizes: IntArray

    def __call__(self, sizes: FloatArray) -> FloatArray:
        """The cost of every column of `sizes`."""
        return self.factors @ self.each(sizes)

    def each(self, sizes: FloatArray) -> FloatArray:
        """The products, before they are weighted and summed."""
        found = np.ones((len(self.sizes), sizes.shape[1]))
        for column in self.sizes.T:
            found *= sizes[column]
        return found


class Costs:
    """What a model costs, as a function of how many units of each kind are kept.

    Units that occur equally often in every dimension that is counted are of one class: `classes[unit]`. A plan
    is a column of `totals`, the number of units by class, less those that it removes.

    >>> costs = Costs(graph)
    >>> costs.count(costs.totals - costs.of(units))     # {"macs": array([...]), "params": array([...])}
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._roots = graph.space.couplings.roots()
        self._vectors: list[IntArray] = [np.zeros(1, np.int64)]  # the units along each size; number 0 is a one
        self._numbers: dict[tuple[bytes, int], int] = {}
        self._values = graph.space.values
        sums = {"macs": self._macs(graph), "params": self._parameters(graph)}
        self._solve()
        width = max((len(sizes) for terms in sums.values() for sizes in terms), default=0)
        self.sums = {name: _padded(terms, width) for name, terms in sums.items()}

    def _macs(self, graph: ChannelGraph) -> Counter[tuple[int, ...]]:
        return self._terms((1, self._sizes(product)) for node in _calls(graph) for product in products(node))

    def _parameters(self, graph: ChannelGraph) -> Counter[tuple[int, ...]]:
        named = dict(graph.model.named_parameters())
        labelled = graph.space.parameters
        return self._terms(
            (1, [self._size(labelled.get(name), d, n) for d, n in enumerate(tensor.shape)])
            for name, tensor in named.items()
        )

    def _terms(self, rows: Iterable[tuple[int, list[int | tuple[int]]]]) -> Counter[tuple[int, ...]]:
        """Rows of plain numbers and size numbers; equal products are added."""
        found: Counter[tuple[int, ...]] = Counter()
        for factor, sizes in rows:
            plain = math.prod(s for s in sizes if isinstance(s, int))
            found[tuple(sorted(s[0] for s in sizes if isinstance(s, tuple)))] += factor * plain
        return found

    def _sizes(self, product: Iterable[Dim]) -> list[int | tuple[int]]:
        return [self._size(self._values.get(node), dim, node.meta["shape"][dim]) for node, dim in product]

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
        count = int(self._roots.max(initial=0)) + 1
        marks = np.random.default_rng(0).integers(1, 2**62, len(self._vectors), dtype=np.uint64)
        signature = np.zeros(count, np.uint64)
        for units, mark in zip(self._vectors, marks, strict=True):
            np.add.at(signature, units, mark)
        signature[0] = 0
        _, first, self.classes = np.unique(signature, return_index=True, return_inverse=True)
        self.totals = np.bincount(self.classes, minlength=len(first))
        self._fixed = np.zeros(len(self._vectors))
        self._each = np.zeros((len(self._vectors), len(first)))
        for i, units in enumerate(self._vectors):
            times = np.bincount(units, minlength=count)
            self._fixed[i] = times[0]
            self._each[i] = times[first]
        self._each[:, self.classes[0]] = 0  # what no size counts, and what is fixed
        self._fixed[0] = 1

    def of(self, units: IntArray) -> IntArray:
        """How many of these units there are in each class."""
        return np.bincount(self.classes[units], minlength=len(self.totals))

    def count(self, kept: npt.NDArray[Any]) -> dict[str, FloatArray]:
        """Every cost for numbers of kept units [classes] or [classes, plans]."""
        columns = kept.reshape(len(self.totals), -1)
        sizes = self._fixed[:, None] + self._each @ columns
        return {name: total(sizes) for name, total in self.sums.items()}

    def original(self) -> Mapping[str, int]:
        """Every cost of the model as it is."""
        return {name: round(float(values[0])) for name, values in self.count(self.totals).items()}


def _padded(terms: Counter[tuple[int, ...]], width: int) -> Sum:
    rows = [sizes + (0,) * (width - len(sizes)) for sizes in terms]
    return Sum(np.array(list(terms.values()), np.float64), np.array(rows, np.int64).reshape(len(rows), width))
