"""Memory: which values of a traced call are alive at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .nodes import Node

# Operations whose result lies in the memory of their first operand (`reshape` most often does).
VIEWS = frozenset(
    """view reshape _unsafe_view flatten unflatten ravel view_as reshape_as view_as_real view_as_complex permute
    transpose t T mT H mH adjoint movedim unsqueeze squeeze narrow tensor_split unbind
    select getitem diagonal unfold chunk split split_with_sizes unsafe_chunk unsafe_split expand expand_as
    broadcast_to contiguous detach""".split()
)
_IDLE = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})  # outside of training


@dataclass
class Life:
    """A value in memory of its own, from the step that makes it to the last that reads it or a view of it."""

    node: Node
    first: int
    last: int


def lives(nodes: Sequence[Node], training: bool) -> list[Life]:
    """The values of a call in the order of the trace; arguments live all along, parameters and constants not at all.

    Every operation is taken to be done by itself, with its operands and its result in memory, and a value to be
    freed as soon as nothing will read it: eager PyTorch without gradients.
    """
    found: dict[Node, Life] = {}
    homes: dict[Node, Node] = {}  # the value in whose memory another lies
    for step, node in enumerate(nodes):
        operands = node.all_input_nodes
        shares = node.meta["op"] in VIEWS or node.meta.get("inplace") or (node.meta["op"] in _IDLE and not training)
        if node.op == "call_function" and node.meta["op"] == "item":
            homes[node] = homes.get(operands[0], node)
        elif node.op == "call_function" and shares and operands:
            homes[node] = homes.get(operands[0], operands[0])
        home = homes.get(node, node)
        if home is node and "shape" in node.meta and node.op in ("call_function", "placeholder"):
            found[node] = Life(node, step, len(nodes) if node.op == "placeholder" else step)
        for operand in operands:
            life = found.get(homes.get(operand, operand))
            if life is not None:
                life.last = max(life.last, len(nodes) if node.op == "output" else step)
    return list(found.values())
