"""Widths: sizes that weights tell, however large batches and images are, and the numbers that rewriting adds to them.

`x.shape[2] + self.code_sizes[1]` is right for all inputs only where `x.shape[2]` is a width.
"""

from __future__ import annotations

import operator
from typing import Any

from ..nodes import Node
from ..ops import is_pointwise
from ..sizes import NUMBERS, AttributeOf, Computed, DimOf, Size, is_attribute, leaves

# Where the channels are of what a weight is applied to, and of what it makes, counted from the end or the beginning.
_CHANNELS = {
    **dict.fromkeys(("linear", "embedding", "layer_norm", "rms_norm"), -1),
    **dict.fromkeys(("batch_norm", "instance_norm", "group_norm"), 1),
    **{f"conv{way}{rank}d": -rank - 1 for way in ("", "_transpose") for rank in (1, 2, 3)},
}
_ALIKE = frozenset({"dropout", "contiguous", "to", "clone", "float", "double", "half", "bfloat16"})


def is_width(node: Node, dim: int) -> bool:
    """Whether a weight says how long this dimension is: one that makes the value, or is applied to it, or to a value
    that it is made from element by element."""
    waiting, met, shape = [node], {node}, node.meta["shape"]
    for value in waiting:
        readers = [n for n in value.users if n.args and n.args[0] is value and n.meta["op"] != "embedding"]
        found = {_CHANNELS[n.meta["op"]] % len(shape) for n in (value, *readers) if n.meta["op"] in _CHANNELS}
        if dim % len(shape) in found:
            return True
        op = value.meta["op"]
        if op in _CHANNELS or op in _ALIKE or is_pointwise(op):
            alike = [n for n in value.all_input_nodes if n.meta.get("shape") == shape and n not in met]
            waiting += alike
            met.update(alike)
    return False


def are_widths(size: Any) -> bool:
    """Whether all dimensions that a size is computed from are widths."""
    return all(is_width(leaf.value, leaf.dim) for leaf in leaves(size) if isinstance(leaf, DimOf))


def is_added(origin: Any) -> bool:
    """Whether this is a sum with a number of a class that was rewritten."""
    if not isinstance(origin, Computed) or origin.function is not operator.add or len(origin.operands) != 2:
        return False
    number: Any = origin.operands[1]
    return is_attribute(number) and number.origin.name == NUMBERS


def kept_by(origin: Any) -> tuple[AttributeOf, Size] | None:
    """The number of a rewritten class that keeps what is computed as it is, and what it must be for that."""
    if is_added(origin):
        whole, number = origin.operands
        value = int.__int__(whole) + int.__int__(number)
        return (number.origin, Size(0, Computed(operator.sub, (value, whole)))) if are_widths(whole) else None
    inner = (operand.origin for operand in getattr(origin, "operands", ()) if isinstance(operand, Size))
    return next((found for found in map(kept_by, inner) if found is not None), None)
