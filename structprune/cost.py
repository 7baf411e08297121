"""Costs: parameters and multiply-accumulates (MACs), counted from the traced graph.

The formulas are those of `torch.utils.flop_counter`, which counts two operations per MAC. Shapes of a pruned
model follow from the labels, so its cost is known without running it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .labels import Labels
from .nodes import Node
from .rules.checks import View

if TYPE_CHECKING:
    from .graph import ChannelGraph

Shapes = Callable[[Node], tuple[int, ...]]


def node_macs(node: Node, shape: Shapes) -> int:
    """The multiply-accumulates of one node, given the shape of every value."""
    op = node.meta["op"]
    operands = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, Node)]
    if op in ("linear", "conv1d", "conv2d", "conv3d"):
        return math.prod(shape(node)) * math.prod(shape(operands[1])[1:])
    if op in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        return math.prod(shape(operands[0])) * math.prod(shape(operands[1])[1:])
    if op in ("matmul", "bmm", "mm", "addmm", "baddbmm"):
        left = operands[-2] if op in ("addmm", "baddbmm") else operands[0]
        return math.prod(shape(node)) * shape(left)[-1]
    if op == "scaled_dot_product_attention":
        query, key, value = (shape(o) for o in operands[:3])
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


def macs(graph: ChannelGraph, view: View | None = None) -> int:
    """The MACs of the first traced call, as it is or under a plan."""

    def shape(node: Node) -> tuple[int, ...]:
        labels = graph.space.values.get(node)
        return view.shape(labels) if view is not None and isinstance(labels, Labels) else node.meta["shape"]

    return sum(node_macs(n, shape) for n in graph.space.programs[0].graph.nodes if n.op == "call_function")


def parameters(graph: ChannelGraph, view: View | None = None) -> int:
    """The number of parameters, as it is or under a plan."""
    total = 0
    for name, tensor in graph.model.named_parameters():
        labels = graph.space.parameters.get(name)
        total += math.prod(view.shape(labels)) if view is not None and labels is not None else tensor.numel()
    return total
