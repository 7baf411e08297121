"""Costs: parameters and multiply-accumulates (MACs), counted from the traced graph.

The formulas are those of `torch.utils.flop_counter`, which counts two operations per MAC. Shapes of a pruned
model follow from the labels, so its cost is known without running it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .einsum import einsum_of
from .labels import Labels
from .nodes import Node
from .rules.checks import View

if TYPE_CHECKING:
    from .graph import ChannelGraph

Dim = tuple[Node, int]

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
    if op in ("matmul", "bmm", "mm", "grouped_mm", "addmm", "baddbmm"):
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
    """The product over all letters, where operands meet and something is summed over."""
    terms, right, operands = einsum_of(node)
    letters = {c: dim for t, o in zip(terms, operands, strict=True) for c, dim in zip(t, dims(o), strict=True)}
    return [list(letters.values())] if len(terms) > 1 and set(letters) - set(right) else []


def _recurrent(node: Node) -> list[list[Dim]]:
    """Every weight matrix once for each step and example."""
    packed = any(isinstance(a, list | tuple) for a in node.args[3:4])  # then the second argument says how
    given: Any = node.args[3 if packed else 2] if node.meta["op"] in _GATED else node.args[2:]
    weights = [w for w in given if isinstance(w, Node) and len(w.meta["shape"]) == 2]
    return [dims(node.all_input_nodes[0])[:-1] + dims(w) for w in weights]


def macs(graph: ChannelGraph, view: View | None = None) -> int:
    """The MACs of the first traced call, as it is or under a plan."""

    def shape(node: Node) -> tuple[int, ...]:
        labels = graph.space.values.get(node)
        return view.shape(labels) if view is not None and isinstance(labels, Labels) else _shape(node)

    return sum(macs_of(node, shape) for node in calls(graph))


def _shape(node: Node) -> tuple[int, ...]:
    return node.meta["shape"]


def macs_of(node: Node, shape: Callable[[Node], tuple[int, ...]] = _shape) -> int:
    """The MACs of one operation, given the shapes of values."""
    return sum(math.prod(shape(n)[dim] for n, dim in product) for product in products(node))


def parameters(graph: ChannelGraph, view: View | None = None) -> int:
    """The number of parameters, as it is or under a plan."""
    total = 0
    for name, tensor in graph.model.named_parameters():
        labels = graph.space.parameters.get(name)
        total += math.prod(view.shape(labels)) if view is not None and labels is not None else tensor.numel()
    return total


def calls(graph: ChannelGraph) -> Iterator[Node]:
    """The operations of the first traced call."""
    return (n for n in graph.space.programs[0].graph.nodes if n.op == "call_function")
