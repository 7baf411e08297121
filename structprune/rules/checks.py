"""Checks: that pruning a value and then moving it equals moving it and then pruning it.

They run on index numbers alone, with the sizes that the pruned model will really pass, for every plan
before a weight is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ..labels import BoolArray, Couplings, IntArray, Labels, collapse, compress
from ..nodes import Node
from ..sizes import AttributeOf, Computed, DimOf, Guard, Size, evaluate
from .widths import kept_by


class View:
    """The model under a plan: which indices are kept, and what every size becomes."""

    def __init__(
        self,
        removed: BoolArray,  # by unit
        couplings: Couplings,
        values: Mapping[Node, Any],
        attribute: Callable[[View, AttributeOf], int],
    ) -> None:
        self._removed = removed
        self._roots = couplings.roots()
        self.couplings = couplings
        self.values = values
        self.attributes: dict[AttributeOf, int] = {}
        self._attribute = attribute
        self._kept: dict[int, dict[int, IntArray]] = {}
        self._left: dict[int, tuple[IntArray, IntArray | None]] = {}  # by id: units in a row, and which of them stay

    def gone(self, labels: IntArray) -> BoolArray:
        """Whether each of these labels is removed."""
        return self._removed[self._roots[labels]]

    def kept(self, labels: Labels) -> dict[int, IntArray]:
        """The indices that stay, for each dimension that shrinks."""
        found = self._kept.get(id(labels))
        if found is None:
            found = self._kept[id(labels)] = {}
            for coordinate in labels.coordinates:
                if 1 < coordinate.size == max(coordinate.shape):
                    left = self.left(coordinate)
                    if left is not None:
                        found[coordinate.shape.index(coordinate.size)] = left
                elif (gone := self.gone(coordinate)).any():
                    found.update(self._kept_of_grid(gone))
        return found

    def left(self, vector: IntArray) -> IntArray | None:
        """The indices of a coordinate along one dimension that stay; None if all do."""
        units = self._roots.row(vector)  # one array for all that have the same
        if id(units) not in self._left:
            self._left[id(units)] = units, _left(self._removed[units])
        return self._left[id(units)][1]

    @staticmethod
    def _kept_of_grid(gone: BoolArray) -> dict[int, IntArray]:
        found = {}
        for dim in (d for d, size in enumerate(gone.shape) if size > 1):
            lost = gone.all(axis=tuple(d for d in range(gone.ndim) if d != dim))
            if lost.any():
                found[dim] = np.flatnonzero(~lost)
        return found

    def shape(self, labels: Labels) -> tuple[int, ...]:
        """The pruned shape of a value."""
        shape = list(labels.shape)
        for dim, left in self.kept(labels).items():
            shape[dim] = len(left)
        return tuple(shape)

    def size(self, labels: Labels, dim: int) -> int:
        """The pruned size of a dimension of a value."""
        kept = self.kept(labels).get(dim)
        return labels.shape[dim] if kept is None else len(kept)

    def leaf(self, origin: DimOf | AttributeOf) -> int:
        """The pruned size of a dimension, or the new value of an attribute."""
        if isinstance(origin, DimOf):
            labels = self.values.get(origin.value)
            return (
                self.size(labels, origin.dim) if isinstance(labels, Labels) else origin.value.meta["shape"][origin.dim]
            )
        if origin in self.attributes:
            return self.attributes[origin]
        return self._attribute(self, origin)

    def evaluate(self, argument: Any) -> Any:
        """Arguments with the sizes that the pruned model will pass."""
        if isinstance(argument, Size):
            return evaluate(argument, self.leaf)
        if isinstance(argument, list | tuple):
            return type(argument)(self.evaluate(a) for a in argument)
        if isinstance(argument, dict):
            return {k: self.evaluate(v) for k, v in argument.items()}
        if isinstance(argument, slice):
            return slice(*(self.evaluate(a) for a in (argument.start, argument.stop, argument.step)))
        return argument


def _left(gone: BoolArray) -> IntArray | None:
    return (~gone).nonzero()[0] if gone.any() else None


def take(array: IntArray, kept: Mapping[int, IntArray]) -> IntArray:
    """The array without what is not kept, along the dimensions over which it varies."""
    for dim, indices in kept.items():
        if array.shape[dim] > 1:
            array = array.take(indices, axis=dim)
    return array


Pairs = list[tuple[IntArray, IntArray]]
Reader = Callable[[Any], IntArray | None]  # the labels of the dimension that a size was read from


def alike(sizes: Iterable[Any], read: Reader, coordinates: Iterable[IntArray]) -> Pairs:
    """The coordinates along one dimension that are as long as one that a size was read from, with that one."""
    found = [source for size in sizes if (source := read(size)) is not None]
    along = [c.reshape(-1) for c in coordinates if c.size == max(c.shape)]
    return [(c, source) for source in found for c in along if c.size == source.size]


class Check(Protocol):
    """Something that must hold under a plan; `labels` are fixed if it does not."""

    @property
    def node(self) -> Node | None: ...

    @property
    def labels(self) -> list[IntArray]: ...

    @property
    def why(self) -> str: ...

    def holds(self, view: View) -> bool:
        """Whether the plan behind `view` passes."""
        ...

    def equals(self, read: Reader) -> Pairs:
        """Dimensions that agree, and so pass, if they are coupled: those that a value has and those that its sizes are
        read from."""
        ...


@dataclass
class Requirement:
    """A size that the code passes must be what the pruned value has."""

    node: Node
    size: Size
    expected: Callable[[View], int]
    labels: list[IntArray]
    why: str

    def holds(self, view: View) -> bool:
        try:
            return bool(view.evaluate(self.size) == self.expected(view))
        except ArithmeticError:  # it divides by what became 0
            return False

    def equals(self, read: Reader) -> Pairs:
        return alike([self.size], read, self.labels)


@dataclass
class GuardCheck:
    """What the model's Python saw of a size must not change."""

    guard: Guard
    labels: list[IntArray]
    node: Node | None = None

    @property
    def why(self) -> str:
        return f"Python looks at its size ({self.guard.where})"

    def holds(self, view: View) -> bool:
        try:
            return bool(evaluate(self.guard.origin, view.leaf) == self.guard.expected)
        except ArithmeticError:  # it divides by what became 0
            return False

    def equals(self, read: Reader) -> Pairs:
        one, other = (read(operand) for operand in self._equal() or (None, None))
        return [] if one is None or other is None else [(one, other)]

    def demands(self) -> tuple[AttributeOf, Any] | None:
        """An attribute that is compared with something and equal to it, or is added to what shrinks: it can follow."""
        added = kept_by(self.guard.origin)
        if added is not None:
            return added
        equal = self._equal()
        for one, other in (equal, equal[::-1]) if equal else ():
            if isinstance(one, Size) and isinstance(one.origin, AttributeOf):
                return one.origin, other
        return None

    def _equal(self) -> tuple[Any, ...]:
        """Two sizes that were compared and are the same."""
        origin = self.guard.origin
        if not isinstance(origin, Computed):
            return ()
        name, operands = origin.function.__name__, origin.operands
        if name in _ORDERING and all(isinstance(o, int) for o in operands):
            return operands if int.__int__(operands[0]) == int.__int__(operands[1]) else ()
        return operands if (name, self.guard.expected) in (("eq", True), ("ne", False)) else ()


def told_by(check: Check) -> Any:
    """The attribute (or another origin) that a check says what it must be; None if it says no such thing."""
    if isinstance(check, Requirement):
        return check.size.origin
    demand = check.demands() if isinstance(check, GuardCheck) else None
    return demand[0] if demand else None


_ORDERING = frozenset({"lt", "le", "gt", "ge"})


@dataclass
class Movement:
    """One value is moved about: `run` maps an index array and arguments to the moved array or arrays."""

    node: Node
    run: Callable[..., Any]
    source: Labels
    results: dict[int, Labels]
    labels: list[IntArray]
    why: str

    def holds(self, view: View) -> bool:
        kept, small_shape = view.kept(self.source), view.shape(self.source)
        try:
            arguments = view.evaluate(self.node.args[1:]), view.evaluate(self.node.kwargs)
            moved = [self.run(take(index, kept), small_shape, *arguments) for index in self._indices]
        except (RuntimeError, IndexError, ValueError, ArithmeticError):  # the sizes do not fit: what the check is for
            return False
        for small, (count, full) in zip(moved, self._moved, strict=True):
            if len(small) != count:
                return False
            for i, labels in self.results.items():
                if small[i].shape != view.shape(labels):
                    return False
                if not (collapse(small[i]) == take(full[i], view.kept(labels))).all():
                    return False
        return True

    @cached_property
    def _indices(self) -> list[IntArray]:
        """Numbers along each labelled part of the source, and along each of its other dimensions."""
        shapes = (*(c.shape for c in self.source.coordinates), *self._unlabelled())
        return [np.arange(1, math.prod(shape) + 1).reshape(shape) for shape in shapes]

    @cached_property
    def _moved(self) -> list[tuple[int, dict[int, IntArray]]]:
        """How many results each of them is moved to in the model as it is, and the results that have labels."""
        found = []
        for index in self._indices:
            full = self.run(index, self.source.shape, self.node.args[1:], self.node.kwargs)
            results = {i: compress(np.broadcast_to(full[i], labels.shape)) for i, labels in self.results.items()}
            found.append((len(full), results))
        return found

    def equals(self, read: Reader) -> Pairs:
        return alike(
            self.node.meta.get("sizes", ()), read, (c for labels in self.results.values() for c in labels.coordinates)
        )

    def _unlabelled(self) -> list[tuple[int, ...]]:
        """The shapes of index arrays along the other dimensions: what goes elsewhere must not move these about."""
        shape = self.source.shape
        free = [d for d, n in enumerate(shape) if n > 1 and self.source.along(d) is None]
        return [tuple(n if d == dim else 1 for d, n in enumerate(shape)) for dim in free]
