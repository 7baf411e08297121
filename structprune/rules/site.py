"""The place where a rule is applied, and the vocabulary rules are written in."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from torch import nn

from ..compensation import extended, norm_functions
from ..errors import ArgumentError, ArgumentTypeError
from ..labels import Couplings, IntArray, Labels, varying
from ..nodes import Node
from ..sizes import Constant, DimOf, Size
from .checks import Check, Requirement
from .only import Only, among
from .zeros import reads_true, reads_zero, unmasked

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule under the names of its operations: those of ATen, or of your own `torch.library` operators.

    Raises ArgumentError if an operation has a rule already, and ArgumentTypeError for what is no name.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if not isinstance(name, str):
                raise ArgumentTypeError(f"rule takes the names of operations, not {name!r}")
            if name in RULES:
                raise ArgumentError(f"there is a rule for {name!r} already")
            RULES[name] = function
        return function

    return register


# The dimension that a norm counts, if it is not the last; a batch norm does so where it standardises weights.
_CHANNELS = {"group_norm": 1, "batch_norm": 2}


class Site:
    """One node of the traced graph, as its rule sees it."""

    def __init__(
        self,
        node: Node,
        values: dict[Node, Any],
        couplings: Couplings,
        checks: list[Check | Requirement],
        modules: Mapping[str, nn.Module],
        stock: bool,
        zeros: dict[Node, bool],
    ) -> None:
        self.node = node
        self.name: str = node.meta["op"]
        self.path: str = node.meta["path"]
        self.values = values
        self.couplings = couplings
        self.checks = checks
        self.modules = modules
        self.zeros = zeros  # what is known of the zeros of values so far
        self.stock = stock  # norms stay as they are, and may deviate
        self.doubted: list[IntArray] = []  # coordinates of values whose channels stay, for they may not be zero
        self.norms: list[Any] = []  # what `rules.normalization` asks of surgery
        self._aliases: dict[int, tuple[Labels, Labels]] = {}  # by id: what it is the id of, and what that stands for
        self.followed: set[int] = set()  # sizes (by id) that are known to come out right

    # -- facts -------------------------------------------------------------------------------------------

    @property
    def has_shape(self) -> bool:
        return "shape" in self.node.meta

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return self.node.meta["shape"]

    @property
    def parts(self) -> dict[int, tuple[int, ...]]:
        """The shapes of the tensors among several results, by position."""
        return {user.args[1]: user.meta["shape"] for user in self.node.users if "shape" in user.meta}  # type: ignore

    def alias(self, value: Labels, derived: Labels) -> None:
        """`derived` stands for the argument `value` from now on."""
        if derived is not value:
            self._aliases[id(derived)] = derived, self._origin(value)

    def _origin(self, value: Labels) -> Labels:
        return self._aliases[id(value)][1] if id(value) in self._aliases else value

    def node_of(self, value: Labels) -> Node | None:
        """The node that an argument of this operation comes from."""
        value = self._origin(value)
        return next((n for n in self.node.all_input_nodes if self.values.get(n) is value), None)

    def is_parameter(self, value: Labels) -> bool:
        """Whether an argument is a parameter or buffer itself."""
        node = self.node_of(value)
        return node is not None and node.meta["op"] == "parameter"

    def zero(self, *values: Labels) -> bool:
        """Whether what is removed of at least one of these arguments is zero in the masked original."""
        nodes = (self.node_of(v) for v in values)
        return any(n is not None and reads_zero(n, self.node, self.values, self.zeros) for n in nodes)

    def zero_along(self, value: Labels, dims: Iterable[int]) -> bool:
        """Whether what is removed along these dimensions is zero, whatever is where something goes along others."""
        along = [c for c in value.coordinates if any(c.shape[d] > 1 for d in dims)]
        if len(along) == len(value.coordinates) or self.zero(value):
            return self.zero(value)
        node, roots = self.node_of(value), self.couplings.roots()
        same = among(np.concatenate([np.zeros(1, np.int64), *(roots[c].reshape(-1) for c in along)]))
        chosen = Only(self.values, lambda c: same(roots[c]))
        return node is not None and reads_zero(node, self.node, chosen)

    def true(self, value: Labels) -> bool:
        """Whether a condition is met for what is removed, in the masked original."""
        node = self.node_of(value)
        return node is not None and reads_true(node, self.node, self.values, self.zeros)

    def not_zero(self, value: Labels, dim: int) -> str:
        """That what is removed of an argument may not be zero, as a sum over `dim` needs it to be, and since when."""
        self.doubted += [c for c in value.coordinates if c.shape[dim] == 1]
        node = self.node_of(value)
        source = node and unmasked(node, self.values, self.zeros)
        if source is None:
            return "what is removed may not be zero"
        if source.meta["op"] == "parameter":
            return f"what is removed may not be zero: {source.meta['tensor']} is no buffer, which could be masked"
        where = f" in {source.meta['path']}" if source.meta["path"] else ""
        return f"what is removed may not be zero after {source.meta['op']}{where}"

    def describe(self, value: Labels) -> str:
        """Where an argument comes from, in words: what it was before it was moved about, if that has labels no more."""
        node = self.node_of(value)
        while node is not None and node.op == "call_function" and len(node.all_input_nodes) == 1:
            before = self.values[node.all_input_nodes[0]]
            if not isinstance(before, Labels) or before.coordinates:
                break
            (node,) = node.all_input_nodes
        if node is None or node.meta["op"] == "constant":
            return "a constant"
        if node.meta["op"] == "input":
            return "the model's input"
        if node.meta["op"] == "parameter":
            return f"{node.meta['tensor']}"
        if node.meta["op"] == "item":  # one of several results
            (node,) = node.all_input_nodes
        return f"the result of {node.meta['op']}"

    def stands_in(self, name: str) -> bool:
        """Whether the calling module makes such calls in its own methods, all for equally many channels, so that a
        substitute can make them."""
        dim = _CHANNELS.get(name, -1)
        module = self.modules[self.path]
        calls = self.node.graph.calls.get((name, self.path), ())
        kinds = (type(module), *extended(type(module)))
        reached = [function for kind in kinds for function in chain(*norm_functions(kind, (name,)).values())]
        known = {function.__code__ for function in reached}
        alike = all(n.meta["caller"].code in known for n in calls)
        return alike and "forward" not in vars(module) and len({n.meta["shape"][dim:][:1] for n in calls}) == 1

    def attribute_holding(self, value: Any) -> str:
        """The attribute of the calling module that this float is; empty if it is from elsewhere."""
        own = isinstance(value, Constant) and value.origin.module == self.path
        return value.origin.name if own else ""

    # -- couplings ---------------------------------------------------------------------------------------

    def couple(self, a: IntArray, b: IntArray) -> None:
        """Labels that meet here live or die together."""
        self.couplings.couple(a, b, self.node)

    def loses_rows(self, rows: int, columns: int) -> bool:
        """Whether a grid of channels loses whole rows, as suits many narrow ones; few wide ones lose columns."""
        many = rows >= columns or self.node in self.couplings.by_whole_rows
        return many and self.node not in self.couplings.columns

    def couple_rows(self, grid: IntArray) -> None:
        """Every row of the grid leaves whole, or not at all."""
        self.couplings.couple_rows(grid, self.node)

    def balance(self, grid: IntArray) -> None:
        """Every row of the grid must lose equally many labels."""
        self.couplings.balance(grid, self.node)

    def fix(self, labels: IntArray, why: str) -> None:
        """Labels that cannot be removed."""
        self.couplings.fix(labels, why, self.node)

    def hold_coordinate(self, coordinate: IntArray, dims: Iterable[int], why: str) -> IntArray:
        """The dimensions `dims` cannot shrink: the coordinate becomes constant along them, or fixed."""
        dims = [d for d in dims if coordinate.shape[d] > 1]
        if not dims:
            return coordinate
        first = coordinate[tuple(slice(0, 1) if d in dims else slice(None) for d in range(coordinate.ndim))]
        if first.size == 1:
            self.fix(coordinate, why)
            return np.zeros_like(first)
        self.couple(coordinate, np.broadcast_to(first, coordinate.shape))
        return first

    def hold(self, value: Labels, dims: Iterable[int], why: str) -> Labels:
        """The same value with `dims` held at their size."""
        if not value.coordinates:
            return value
        dims = [d % value.ndim for d in dims]
        held = [self.hold_coordinate(c, dims, why) for c in value.coordinates]
        if all(map(operator.is_, held, value.coordinates)):
            return value
        return Labels.of(value.shape, held)

    def held(self, value: Labels, dims: Iterable[int], why: str) -> Labels:
        """`hold`, of an argument that goes on to stand for itself."""
        result = self.hold(value, dims, why)
        self.alias(value, result)
        return result

    def vector(self, value: Labels, dim: int) -> IntArray | None:
        """One label for each index of `dim`, the other dimensions sharing it; None if the dimension is fixed."""
        coordinate = value.along(dim)
        if coordinate is None:
            return None
        dim %= value.ndim
        if coordinate.size == coordinate.shape[dim]:
            return coordinate if coordinate.ndim == 1 else coordinate.reshape(-1)
        others = [d for d in varying(coordinate) if d != dim]
        return self.hold_coordinate(coordinate, others, "").reshape(-1)

    def join(self, a: Labels, dim: int, b: Labels, other_dim: int, why: str = "") -> IntArray | None:
        """Dimension `dim` of `a` is summed or multiplied with `other_dim` of `b`; the labels they now share."""
        left, right = self.vector(a, dim), self.vector(b, other_dim)
        if left is not None and right is not None:
            self.couple(left, right)
        elif left is not None:
            self.fix(left, why or f"it meets {self.describe(b)}, whose size is fixed")
            return None
        elif right is not None:
            self.fix(right, why or f"it meets {self.describe(a)}, whose size is fixed")
            return None
        return left

    def contract(self, a: Labels, dim: int, weight: Labels, other_dim: int) -> IntArray | None:
        """Dimension `dim` of `a` is summed against a weight: exact where the removed terms are zero on one side."""
        if not self.zero(weight, a):
            for labels in (a.along(dim), weight.along(other_dim)):
                if labels is not None:
                    self.fix(labels, f"{self.name} sums over it, and {self.not_zero(a, dim)}")
            return None
        return self.join(a, dim, weight, other_dim)

    def merge(self, shape: Sequence[int], coordinates: Iterable[IntArray], why: str = "one index is picked") -> Labels:
        """A value from coordinates: those that share a dimension become one, single numbers are fixed."""
        coordinates = list(coordinates)
        if len(coordinates) == 1 and coordinates[0].size > 1:
            return Labels.of(shape, coordinates)
        merged: list[IntArray] = []
        for coordinate in sorted(coordinates, key=lambda c: len(varying(c))):  # vectors find their kind before grids
            if coordinate.size == 1:
                if coordinate.any():
                    self.fix(coordinate, why)
                continue
            for other in list(merged):
                if set(varying(other)) & set(varying(coordinate)):
                    merged = [m for m in merged if m is not other]
                    coordinate = self._met(coordinate, other)
            merged.append(coordinate)
        return Labels.of(shape, merged)

    def _met(self, a: IntArray, b: IntArray) -> IntArray:
        """Two coordinates over common dimensions become one, which varies over these alone: the heads of queries and
        keys, say, whose every channel meets every other.

        A mere vector (rotary frequencies, the weight of a norm inside each head) that meets a grid does not
        couple the rows of the grid: it is fixed, and the grid held along it. One that has a number for each row leaves
        with the rows, where that is tried.
        """
        small, large = sorted((a, b), key=lambda c: len(varying(c)))
        dims = varying(small)
        if set(dims) < set(varying(large)) and not self.couplings.produces(small):
            rows = is_outermost(large, dims)
            self.couplings.met_rows |= rows
            if rows and self.couplings.by_rows:
                leaving = self.hold_coordinate(large, set(varying(large)) - set(dims), "")
                self.couple(leaving, small)
                return leaving
            self.fix(small, "it meets every row of a grid of labels (each head, say)")
            return self.hold_coordinate(large, dims, "")
        if not set(dims) <= set(varying(large)):
            a, b = (self.hold_coordinate(c, set(varying(c)) - set(varying(o)), "") for c, o in ((a, b), (b, a)))
        self.couple(a, b)
        return np.broadcast_to(a if self.couplings.produces(a) else b, np.broadcast_shapes(a.shape, b.shape))

    def broadcast(self, values: Sequence[Labels], shape: tuple[int, ...]) -> Labels:
        """Values that meet element by element, after broadcasting to `shape`."""
        live = [v for v in values if v.coordinates]
        if not live:
            return Labels(shape)
        if len(live) == 1 and live[0].ndim == len(shape) and all(v is live[0] or not any(v.shape) for v in values):
            return Labels(shape, live[0].coordinates)
        rank = len(shape)
        met: list[IntArray] = []
        for value in live:
            for coordinate in value.coordinates:
                coordinate = coordinate.reshape((1,) * (rank - value.ndim) + coordinate.shape)
                for other in values:
                    if other is not value:
                        coordinate = self._against(coordinate, other, rank)
                met.append(coordinate)
        return self.merge(shape, met)

    def _against(self, coordinate: IntArray, other: Labels, rank: int) -> IntArray:
        """A dimension that shrinks here and has a fixed size over there is held."""
        missing = rank - other.ndim
        dims = [
            d
            for d in varying(coordinate)
            if d >= missing and other.shape[d - missing] > 1 and other.along(d - missing) is None
        ]
        if not dims:
            return coordinate
        return self.hold_coordinate(coordinate, dims, f"it meets {self.describe(other)}, whose size is fixed")

    def produce(self, labels: IntArray | None) -> None:
        """These are output channels of a filter: what rankings by norm look at."""
        if labels is not None:
            self.couplings.produce(labels)

    # -- sizes -------------------------------------------------------------------------------------------

    def read_from(self, size: Any) -> tuple[Labels, int] | None:
        """The value and the dimension that a size was read from, `x.shape[1]`."""
        origin = size.origin if isinstance(size, Size) else None
        value = self.values.get(origin.value) if isinstance(origin, DimOf) else None
        return (value, origin.dim) if isinstance(value, Labels) else None  # type: ignore[union-attr]

    def sized_like(self, size: Any) -> IntArray | None:
        """The labels of the dimension that a size was read from."""
        source = self.read_from(size)
        vector = self.vector(*source) if source is not None else None
        if vector is not None:
            self.followed.add(id(size))
        return vector

    # -- the unknown -------------------------------------------------------------------------------------

    def unknown(self, *args: Any, **kwargs: Any) -> Any:
        """No rule: everything that comes in is fixed, everything that goes out is plain."""
        seen = self.node.meta.get("reads")
        self.freeze(f"Python reads its values ({self.name})" if seen else f"{self.name} has no rule", args, kwargs)
        return self.plain()

    def freeze(self, why: str, *arguments: Any) -> None:
        """Fixes every label in `arguments`."""
        for value in labels_in(arguments):
            for coordinate in value.coordinates:
                self.fix(coordinate, why)

    def plain(self) -> Any:
        """A result without labels."""
        if self.has_shape:
            return Labels(self.shape)
        return {i: Labels(shape) for i, shape in self.parts.items()}


def is_outermost(grid: IntArray, dims: Sequence[int]) -> bool:
    """Whether labels are handed out row by row: a step along these dimensions is longer than along the others."""
    corner = grid[(0,) * grid.ndim]
    steps = {d: abs(int(grid[tuple(int(d == e) for e in range(grid.ndim))] - corner)) for d in varying(grid)}
    return min(steps[d] for d in dims) > max(steps[d] for d in steps if d not in dims)


def labels_in(value: Any) -> Iterable[Labels]:
    """The labelled values in nested arguments."""
    if isinstance(value, Labels):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from labels_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from labels_in(item)
    elif isinstance(value, slice):
        yield from labels_in((value.start, value.stop, value.step))
