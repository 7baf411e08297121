"""What a tensor tells of its sizes and of its memory, in numbers that remember which dimensions they are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .nodes import Node
from .ops import VIEWS
from .sizes import DimOf, Size

Report = Callable[[Any, Any], None]


def answer(name: str, out: Any, tensor: Tensor, node: Node, args: Any, kwargs: Any, report: Report) -> Any:
    """`out`, which `tensor`, computed by `node`, answered to `name`; what cannot be told is reported as seen."""
    sizes = [Size(n, DimOf(node, d)) for d, n in enumerate(node.meta["shape"])]
    if isinstance(out, torch.Size):
        return torch.Size(sizes)
    if name == "len":  # Python makes it a plain integer
        report(sizes[0].origin, out)
        return out
    if name == "size":
        return sizes[_dim(args, kwargs)]
    if name == "stride":
        found = _strides(tensor, sizes)
        dim = _dim(args, kwargs)
        told = [n if s is None else s for n, s in zip(tensor.stride(), found, strict=True)]
        asked = range(len(sizes)) if dim is None else [dim]
        if any(found[d] is None for d in asked):
            _report_memory(node, report)
        return tuple(told) if dim is None else told[dim]
    if name in ("numel", "nelement", "nbytes"):
        total: Any = tensor.element_size() if name == "nbytes" else 1
        for size in sizes:
            total = size * total
        return total
    if not isinstance(out, int) or out:  # an offset other than zero, or the memory itself
        _report_memory(node, report)
    return out


def _dim(args: Any, kwargs: Any) -> Any:
    return kwargs.get("dim", args[1] if len(args) > 1 else None)


def _strides(tensor: Tensor, sizes: list[Size]) -> list[Any]:
    """For each dimension the product of the sizes of those that lie inside it; None where it is not that."""
    found: list[Any] = [1 if n == 1 else None for n in tensor.stride()]
    product: Any = 1
    for dim in sorted(range(tensor.ndim), key=lambda d: (tensor.stride(d), -d)):
        if tensor.stride(dim) == int.__int__(product):
            found[dim] = product
            product = sizes[dim] * product
    return found


def _report_memory(node: Node, report: Report) -> None:
    """The sizes of a value and of what it may be a view of went to Python."""
    while True:
        for dim, size in enumerate(node.meta["shape"]):
            report(DimOf(node, dim), size)
        if node.meta["op"] not in VIEWS or not node.all_input_nodes:
            return
        node = node.all_input_nodes[0]
        if "shape" not in node.meta:  # several results: of one value
            node = node.all_input_nodes[0]
