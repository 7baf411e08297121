"""Constants: what every value of a traced program is known to be, whatever the input.

A *known* is a float64 tensor of a value's rank, with size 1 along the dimensions where it is constant, and NaN
where the value depends on the input. A filter of zeros gives its bias, batch norm and activation turn that into
another number, and so on. Rules (`constant_rules`) are keyed by the names of operations; the result of an operation
without one is known only if it is made of parameters alone.

Batch norms and dropout count as they are in eval mode, in programs that were traced in train mode, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .constant_rules import RANDOM, RULES, pointwise, unknown
from .inventory import Inventory
from .nodes import Node, map_nodes
from .numbers import Numbers
from .ops import is_pointwise
from .program import Program, map_tensors
from .readers import Reader, reader_of
from .rules.overwritten import overwritten, writers_of

_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)
_NAN = float("nan")


def compress(value: Tensor) -> Tensor:
    """The same value with size 1 along every dimension where it is constant."""
    for dim, size in enumerate(value.shape):
        if size > 1:
            first = value.narrow(dim, 0, 1)
            if value.stride(dim) == 0 or bool(((value == first) | (value.isnan() & first.isnan())).all()):
                value = first
    return value


class Knowns:
    """The knowns of one program of a model."""

    def __init__(self, program: Program, parts: Inventory) -> None:
        self.training = program.training
        self.values: dict[Node, Any] = {}
        self.fixed: set[Node] = set()  # made of parameters alone
        self._tensors = parts.tensors
        self._numbers = Numbers(program, parts)
        for node in program.graph.nodes:
            if node.op != "output":
                self.values[node] = self._value(node)

    def read(self, source: Node, reader: Node) -> Any:
        """What `reader` finds in `source`: nothing is known of what something else may have written into."""
        known = map_tensors(Tensor.double, self.values[source])
        if _overwritten(source, reader):
            return map_tensors(lambda t: torch.full_like(t, _NAN), known)
        return known

    def reader(self, node: Node) -> Reader | None:
        """The node as a reader of channels, if its weight is made of parameters alone."""
        reader = reader_of(node)
        known = reader is not None and reader.weight in self.fixed
        return reader if known and not _overwritten(reader.weight, node) else None  # type: ignore[union-attr]

    def channels(self, source: Node, reader: Node, dim: int) -> Tensor:
        """One number for each index of `dim`; NaN where it varies along any other dimension."""
        known = self.read(source, reader).movedim(dim, 0)
        known = known.reshape(len(known), -1)
        same = torch.where((known == known[:, :1]).all(1), known[:, 0], _NAN)
        return same.expand(source.meta["shape"][dim])

    def _value(self, node: Node) -> Any:
        op = node.meta["op"]
        rank = len(node.meta.get("shape", ()))
        if op == "parameter":
            tensor = self._tensors[node.meta["tensor"]]
            if not tensor.is_floating_point() or tensor.is_meta or self._changes(node):
                return unknown(rank)
            self.fixed.add(node)
            return tensor.detach().cpu()  # in its own dtype: large weights are read by readers alone
        if op in ("input", "constant") or not node.all_input_nodes:
            return torch.full_like(unknown(rank), _MADE.get(op, _NAN))
        if not node.meta.get("dtype", torch.float32).is_floating_point:
            return unknown(rank)
        if not self._numbers.same(node) or self._chooses(node):
            return self._shaped(node, None)
        if all(n in self.fixed for n in node.all_input_nodes) and op not in RANDOM and op != "item":
            self.fixed.add(node)
        return self._shaped(node, self._apply(node))

    def _changes(self, node: Node) -> bool:
        """Whether a call may leave something else in a buffer than it found."""
        return bool(writers_of(node)) or node.meta["tensor"].rpartition(".")[2] in self._numbers.changing

    def _chooses(self, node: Node) -> bool:
        """Whether it depends on the size of the input how much is taken of a table, which may be constant in part."""
        if node.meta["op"] not in ("getitem", "narrow", "select") or not self._numbers.sized(node):
            return False
        table = compress(self.values[node.all_input_nodes[0]])
        return sum(size > 1 for size in table.shape) > 1

    def _apply(self, node: Node) -> Any:
        op = node.meta["op"]
        if node not in self.fixed and (reader := self.reader(node)) is not None:
            return self._sum(reader)
        args: Any = map_nodes(lambda n: self.read(n, node), node.args)
        kwargs: Any = map_nodes(lambda n: self.read(n, node), node.kwargs)
        if self.training and op in _MODES:
            args, kwargs = _in_eval_mode(_MODES[op], *args, **kwargs)
        try:
            if node in self.fixed:
                return node.target(*_cloned(args), **_cloned(kwargs))  # type: ignore[operator]
            known = RULES.get(op, pointwise if is_pointwise(op) else None)
            return known(node, *args, **kwargs) if known is not None else None
        except _FAILURES:  # arguments that the rule does not know, or that do not fit knowns
            return None

    def _shaped(self, node: Node, found: Any) -> Any:
        """A tensor of the node's rank; for several results a list of them."""
        if node.meta["op"] == "item" and node.all_input_nodes[0] in self.fixed:
            self.fixed.add(node)
        if "shape" not in node.meta:
            return found
        rank = len(node.meta["shape"])
        valid = isinstance(found, Tensor) and found.is_floating_point() and found.ndim == rank
        if not valid:
            self.fixed.discard(node)
            return unknown(rank)
        return found.double() if node in self.fixed else compress(found.double())

    def _sum(self, reader: Reader) -> Tensor:
        """Where all that is summed is known, the sum is; over padding it must be zero, or it would differ there."""
        node = reader.node
        weight = reader.view(self.values[reader.weight])
        groups, outputs, inputs, _ = weight.shape
        x = self.channels(reader.source, node, reader.source_dim).reshape(groups, inputs)
        varies = ((weight != 0).any(3) & x.isnan()[:, None]).any(2)
        columns = [torch.nonzero((row != 0) & ~row.isnan())[:, 0] for row in x]
        parts = [w[:, at].double() * row[at][:, None] for w, row, at in zip(weight, x, columns, strict=True)]
        shares = torch.stack([part.sum(1) for part in parts])
        varies |= (shares[:, :, ~reader.inside] != 0).any(2)
        out = torch.where(varies, _NAN, shares.sum(2)).flatten()
        if reader.bias is not None:
            out = out + self.read(reader.bias, node).expand(groups * outputs)
        return out.reshape([-1 if d == reader.dim else 1 for d in range(len(node.meta["shape"]))])


# Values that are made from nothing.
_MADE = {"zeros": 0.0, "ones": 1.0}


def _overwritten(source: Node, reader: Node) -> bool:
    """Whether something else writes into the memory of `source`, which `reader` reads."""
    return overwritten(source, reader, lambda node: False)


def _cloned(value: Any) -> Any:
    """In-place operations must not write into what is known of other values."""
    return map_tensors(Tensor.clone, value)


# The position of the argument `training`.
_MODES = {"batch_norm": 5, **{name: 2 for name in RULES if "dropout" in name}}


def _in_eval_mode(position: int, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that an operation which was traced in train mode would have in eval mode."""
    if len(args) > position:
        return (*args[:position], False, *args[position + 1 :]), kwargs
    return args, {**kwargs, "training": False}
