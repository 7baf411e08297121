"""Shapes of the costly operations, so that a trace need not compute them.

A trace needs shapes, not values: convolutions and linear layers are answered with zeros of the right shape.
Only where a model looks at values (`if x.max() > 0`) is it run for real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .program import map_tensors, tensors_in

Shape = tuple[int, ...]


def _spread(value: Any, rank: int) -> Sequence[int] | None:
    """A stride or padding for each dimension; None for what is given as a word."""
    if isinstance(value, int):
        return [value] * rank
    if isinstance(value, list | tuple):
        return list(value) * rank if len(value) == 1 else list(value)
    return None


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    """[..., I] x [O, I] -> [..., O]"""
    if weight.ndim != 2 or input.ndim == 0 or input.shape[-1] != weight.shape[1]:
        return None
    return (*input.shape[:-1], weight.shape[0])


def convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Shape | None:  # fmt: skip
    """[N, I, ...] x [O, I / groups, ...] -> [N, O, ...]; None where PyTorch should say what is wrong."""
    rank = weight.ndim - 2
    steps, edges, spaces = (_spread(v, rank) for v in (stride, padding, dilation))
    if steps is None or edges is None or spaces is None or input.ndim != weight.ndim:
        return None
    if input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(input.shape[2:], edges, spaces, weight.shape[2:], steps, strict=True)
    ]
    return (input.shape[0], weight.shape[0], *sizes) if min(sizes) > 0 else None


SHAPES: dict[str, Callable[..., Shape | None]] = {
    "linear": linear,
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
}


def _normalised(input: Tensor, mean: Tensor | None = None, *args: Any) -> Tensor | None:
    """[N, C, ...] as it is; None where PyTorch should say what is wrong."""
    fits = input.ndim > 1 and mean is not None and input.shape[1] == mean.shape[0]
    return input.detach() if fits else None


def stand_in(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Zeros (a batch norm's own input) instead of the result of a costly operation; None if it must be computed."""
    if name == "batch_norm":
        return _normalised(*args) if args else None
    shape_of = SHAPES.get(name)
    if shape_of is None:
        return None
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    if any(t.dtype != tensors[0].dtype or t.device != tensors[0].device for t in tensors):
        return None
    try:
        shape = shape_of(*args, **kwargs)
    except TypeError:  # a call that PyTorch will refuse, too
        return None
    return None if shape is None else tensors[0].new_zeros(shape)


def together(arguments: Any) -> Any:
    """A model on the meta device takes real inputs: where the two meet, both are on meta.

    What is made from nothing (positions, masks) is made for real, since models look at it.
    """
    found = list(tensors_in(arguments))
    if not found:
        args, kwargs = arguments
        return args, {k: "cpu" if str(v) == "meta" else v for k, v in kwargs.items()}
    if all(t.is_meta for t in found) or not any(t.is_meta for t in found):
        return arguments
    return map_tensors(lambda t: t.to("meta") if t.ndim else t, arguments)
