"""What is written in place over a value before it is read."""

from __future__ import annotations

from collections.abc import Callable

from ..nodes import Node
from ..ops import VIEWS


def _shares(node: Node) -> bool:
    """Whether a node's result may be its first operand's memory."""
    return _writes(node) or node.meta["op"] in VIEWS


def _writes(node: Node) -> bool:
    """Whether an operation writes into its first operand: `relu_(x)`, `relu(x, inplace=True)`."""
    return bool(node.meta.get("inplace") or node.kwargs.get("inplace"))


def overwritten(source: Node, reader: Node, zero: Callable[[Node], bool]) -> bool:
    """Whether, before it is read, something else writes in place into what `source` shares memory with, values that may
    not be zero."""
    if not _shares(source) and not any(_shares(user) for user in source.users if user is not reader):
        return False
    chain = {source}
    base = source
    while base.all_input_nodes and _shares(base):
        base = base.all_input_nodes[0]
        chain.add(base)
    if base not in base.graph.writers:
        base.graph.writers[base] = writers_of(base)
    return any(n.place < reader.place and n not in chain and not zero(n) for n in base.graph.writers[base])


def writers_of(base: Node) -> list[Node]:
    """What writes into the memory of a value, or of its views."""
    family, queue = {base}, [base]
    while queue:
        for user in queue.pop().users:
            if _shares(user) and user not in family and user.all_input_nodes[0] in family:
                family.add(user)
                queue.append(user)
    return [n for n in family if _writes(n)]
