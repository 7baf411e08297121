"""Readers: operations that sum channels against weights, in one form.

A linear layer, a convolution and a transposed convolution all compute

    out[o] = bias[o] + sum over inputs i of o's group and taps t:  weight[o, i, t] * x[i, shifted by t]

so what a constant channel contributes, and where, is asked of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .nodes import Node


@dataclass(frozen=True, eq=False)
class Reader:
    """One call of such an operation.

    `view` brings its weight into the shape [groups, outputs of a group, inputs of a group, taps], sharing memory.
    `inside` says of each tap whether it lies inside the input for every output position and every input size.
    """

    node: Node
    source: Node
    weight: Node
    bias: Node | None
    view: Callable[[Tensor], Tensor]
    inside: Tensor
    source_dim: int  # the channels of what is read
    dim: int  # the channels of the result


def reader_of(node: Node) -> Reader | None:
    """The node as a reader; None if it is something else."""
    make = _FORMS.get(node.meta["op"])
    try:
        return make(node, *node.args, **node.kwargs) if make and "shape" in node.meta else None
    except TypeError:  # an unusual way to call it
        return None


def _linear(node: Node, input: Node, weight: Node, bias: Node | None = None) -> Reader | None:
    if len(weight.meta["shape"]) != 2:
        return None
    last = len(input.meta["shape"]) - 1
    return Reader(node, input, weight, bias, lambda w: w[None, :, :, None], _always(1), last, last)


def _product(node: Node, input: Node, other: Node) -> Reader | None:
    """x @ weight"""
    if len(other.meta["shape"]) != 2 or len(input.meta["shape"]) < 2:
        return None
    last = len(input.meta["shape"]) - 1
    return Reader(node, input, other, None, lambda w: w.T[None, :, :, None], _always(1), last, last)


def _addmm(node: Node, input: Node, mat1: Node, mat2: Node, **factors: Any) -> Reader | None:
    if factors or input.meta["shape"] != node.meta["shape"][1:]:
        return None
    return Reader(node, mat1, mat2, input, lambda w: w.T[None, :, :, None], _always(1), 1, 1)


def _convolution(
    node: Node, input: Node, weight: Node, bias: Node | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Reader:  # fmt: skip
    kernel = weight.meta["shape"][2:]
    steps = _spread(dilation, len(kernel))
    reach = [d * (k - 1) for d, k in zip(steps, kernel, strict=True)]
    if isinstance(padding, str):
        before = [r // 2 if padding == "same" else 0 for r in reach]
        after = [r - b if padding == "same" else 0 for r, b in zip(reach, before, strict=True)]
    else:
        before = after = _spread(padding, len(kernel))
    channel = len(input.meta["shape"]) - len(kernel) - 1
    view = lambda w: w.reshape(int(groups), w.shape[0] // int(groups), w.shape[1], -1)  # noqa: E731
    return Reader(node, input, weight, bias, view, _inside(kernel, steps, before, after), channel, channel)


def _transposed(
    node: Node, input: Node, weight: Node, bias: Node | None = None,
    stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Reader:  # fmt: skip
    """With stride 1 it is a convolution with the flipped kernel; other strides reach each position differently."""
    kernel = weight.meta["shape"][2:]
    rank = len(kernel)
    steps, cut = _spread(dilation, rank), _spread(padding, rank)
    border = [d * (k - 1) - p for d, k, p in zip(steps, kernel, cut, strict=True)]
    inside = _inside(kernel, steps, border, border)
    if any(s != 1 for s in _spread(stride, rank)) or any(_spread(output_padding, rank)):
        inside = torch.zeros_like(inside)
    channel = len(input.meta["shape"]) - rank - 1

    def view(w: Tensor) -> Tensor:
        return w.reshape(int(groups), w.shape[0] // int(groups), w.shape[1], -1).transpose(1, 2)

    return Reader(node, input, weight, bias, view, inside, channel, channel)


def _always(taps: int) -> Tensor:
    return torch.ones(taps, dtype=torch.bool, device="cpu")


def _spread(value: Any, rank: int) -> list[int]:
    """A stride or padding for each dimension."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [int(v) for v in (values * rank if len(values) == 1 else values)]


def _inside(kernel: Sequence[int], steps: Sequence[int], before: Sequence[int], after: Sequence[int]) -> Tensor:
    """A tap is never over the padding if it is as far from either end of the kernel as the padding is wide."""
    sides = [
        [t * d >= a and (k - 1 - t) * d >= b for t in range(k)]
        for k, d, a, b in zip(kernel, steps, before, after, strict=True)
    ]
    return torch.tensor([all(tap) for tap in product(*sides)], device="cpu")


_FORMS: dict[str, Callable[..., Reader | None]] = {
    "linear": _linear,
    "matmul": _product,
    "mm": _product,
    "addmm": _addmm,
    **{f"conv{n}d": _convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _transposed for n in (1, 2, 3)},
}
