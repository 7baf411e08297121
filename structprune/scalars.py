"""Scalars: counts that meet sizes inside of tensors, until Python asks what came out.

`if mask.sum() * h.shape[-1] != features.numel(): raise ...` multiplies a tensor of one integer by a size. What Python
is told in the end is a function of sizes, and watched like any other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .nodes import Node
from .sizes import Computed

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floor_divide": operator.floordiv,
    "bitwise_and": operator.and_,
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge")},
    **dict.fromkeys(("all", "any", "_is_all_true", "_is_any_true"), bool),
}


def computed(name: str, operands: tuple[Any, ...], node: Callable[[Tensor], Node]) -> Computed | None:
    """What this operation makes of integers, sizes, and tensors of a single integer; None if it has others."""
    function = _FUNCTIONS.get(name)
    if function is None or not all(isinstance(o, int) or _is_count(o) for o in operands):
        return None
    return Computed(function, tuple(_known(node(o), o) if isinstance(o, Tensor) else o for o in operands))


def _is_count(value: Any) -> bool:
    plain = isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta
    return plain and not value.is_floating_point() and not value.is_complex()


def _known(node: Node, value: Tensor) -> Any:
    """What a tensor was computed from, if that is known, or else the number that it holds."""
    return node.meta.get("scalar") or int(value)


def is_merely_asked(node: Node) -> bool:
    """Whether what a node computes goes nowhere but to Python, which is watched."""
    return "scalar" in node.meta and all(user.meta.get("reads") or is_merely_asked(user) for user in node.users)
