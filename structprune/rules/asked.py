"""What functions give for zeros, by asking them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..nodes import Node, map_nodes


def zero_at_zero(node: Node) -> bool:
    """Whether f(0) = 0."""
    return _at_zero(node)[0]


def true_at_zero(node: Node) -> bool:
    """Whether f(0) is true, of a condition."""
    return _at_zero(node)[1]


def value_at(node: Node, numbers: Mapping[Node, Any]) -> float | None:
    """What f gives where its operands are these numbers, if that is one finite number."""
    given: Any = map_nodes(lambda n: torch.tensor(numbers[n], dtype=torch.float64), (node.args, dict(node.kwargs)))
    try:
        out = node.target(*given[0], **given[1])  # type: ignore[operator]
    except (TypeError, RuntimeError):  # an argument that does not fit numbers
        return None
    return float(out) if isinstance(out, Tensor) and out.is_floating_point() and bool(out.isfinite()) else None


def endless(node: Node, place: int) -> bool:
    """Whether the result is not finite where the operand at this place is zero."""
    try:
        return _endless(node.target, _given(node), tuple(node.kwargs.items()), place)
    except (TypeError, RuntimeError):  # an argument that cannot be hashed, or that does not fit zeros
        return False


def _at_zero(node: Node) -> tuple[bool, bool]:
    try:
        return _zero_or_true(node.target, _given(node), tuple(node.kwargs.items()))
    except (TypeError, RuntimeError):  # the same
        return False, False


def _given(node: Node) -> tuple[Any, ...]:
    """Constants in a tuple of one, and where there is a tensor, whether it is complex."""
    return tuple(a.meta["dtype"].is_complex if isinstance(a, Node) else (a,) for a in node.args)


@lru_cache(maxsize=1024)
def _endless(function: Any, args: tuple[Any, ...], kwargs: tuple[Any, ...], place: int) -> bool:
    """The other operands are one."""
    if any(isinstance(v, Node) for _, v in kwargs):
        return False
    values = [torch.tensor([0.0 if i == place else 1.0]) if isinstance(a, bool) else a[0] for i, a in enumerate(args)]
    out = function(*values, **dict(kwargs))
    return isinstance(out, Tensor) and not bool(out.isfinite().all())


@lru_cache(maxsize=1024)
def _zero_or_true(function: Any, args: tuple[Any, ...], kwargs: tuple[Any, ...]) -> tuple[bool, bool]:
    """Zeros have signs, and each may meet any other."""
    if any(isinstance(v, Node) for _, v in kwargs):
        return False, False
    signs = torch.tensor([0.0, -0.0])
    zeros = {False: signs, True: torch.complex(*torch.meshgrid(signs, signs, indexing="ij")).flatten()}
    tensors = iter(torch.meshgrid(*(zeros[a] for a in args if isinstance(a, bool)), indexing="ij"))
    with torch.random.fork_rng(devices=[]):
        out = function(*(next(tensors).clone() if isinstance(a, bool) else a[0] for a in args), **dict(kwargs))
    return isinstance(out, Tensor) and not out.any(), isinstance(out, Tensor) and out.dtype == torch.bool and bool(
        out.all()
    )
