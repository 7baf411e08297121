"""Numbers in the arguments of operations that are not the same for every input: they depend on its size, are handed in
beside it, or are attributes that `forward` changes.

What is computed with such a number is no constant, though it was one in the traced calls. Once such a number has gone
to Python, any number that is no attribute may be made of it: `0.1 * x.shape[2]` asks nothing of the size.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from typing import Any

from .inventory import Inventory
from .nodes import Node
from .ops import is_pointwise
from .program import Program
from .renewal import set_in_forward
from .rules.widths import are_widths, is_width
from .sizes import AttributeOf, Constant, Size, leaves


class Numbers:
    """What is known of the numbers of one program of a model."""

    def __init__(self, program: Program, parts: Inventory) -> None:
        self.changing = changing_attributes(parts)
        numeric = any(_numeric(vars(module).get(name)) for module in parts.modules.values() for name in self.changing)
        told = any(_tells(node) for node in program.graph.nodes)
        self.loose = bool(numeric or told or program.numeric or _defaults(parts.model.forward))

    def same(self, node: Node) -> bool:
        """Whether an operation takes the same numbers for every input, as far as its values depend on them."""
        counts = is_pointwise(node.meta["op"])  # of others, whole numbers are sizes, places and dimensions
        numbers = [n for n in _numbers_in((node.args, dict(node.kwargs))) if counts or isinstance(n, float)]
        known = all(not self._varies(n) for n in numbers if isinstance(n, Size | Constant))
        others = {n for n in numbers if not isinstance(n, Size | Constant)}
        return known and (not self.loose or others <= _defaults(node.target))

    def sized(self, node: Node) -> bool:
        """Whether an operation takes a size that depends on the input."""
        return any(self._varies(size) for size in node.meta.get("sizes", ()))

    def _varies(self, number: Any) -> bool:
        """Whether a number, or an origin, is made of sizes of the input, or of an attribute that `forward` changes."""
        made_of = [number.origin] if isinstance(number, Constant) else list(leaves(number))
        changed = any(leaf.name in self.changing for leaf in made_of if isinstance(leaf, AttributeOf))
        return changed or (not isinstance(number, Constant) and not are_widths(number))


def changing_attributes(parts: Inventory) -> Collection[str]:
    """The names of attributes that the code of a model sets when it is called."""
    kinds = dict.fromkeys(type(module) for module in parts.modules.values())
    return {name for kind in kinds for name in set_in_forward(kind)}


def _tells(node: Node) -> bool:
    """Whether Python got to see sizes that depend on the input, or values."""
    if node.meta.get("reads"):
        return any(n.meta["op"] != "parameter" for n in node.all_input_nodes)
    return bool(node.meta.get("sized")) and not all(is_width(node, dim) for dim in range(len(node.meta["shape"])))


def _defaults(function: Any) -> frozenset[float]:
    """The numbers that a function takes where it is given none."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in
        return frozenset()
    return frozenset(parameter.default for parameter in parameters if _numeric(parameter.default))


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers_in(value: Any) -> Iterator[Any]:
    """The numbers in a nest of arguments."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers_in(item)
    elif isinstance(value, dict):
        yield from _numbers_in(list(value.values()))
    elif isinstance(value, slice):
        yield from _numbers_in([value.start, value.stop, value.step])
    elif _numeric(value):
        yield value
