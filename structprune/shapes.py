"""Shapes of the costly operations, so that a trace need not compute them.

A trace needs shapes, not values: convolutions, linear layers, pooling and attention are answered with zeros of the
right shape, and so is what is done to these zeros element by element. Only where a model looks at values
(`if x.max() > 0`) is it run for real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .program import map_tensors, tensors_in

Shape = tuple[int, ...]


def _spread(value: Any, rank: int) -> list[int] | None:
    """A stride or padding for each dimension, as plain numbers; None for what is given as a word.

    Sizes are plain numbers here, since their arithmetic, which remembers where they come from, is slow.
    """
    if isinstance(value, int):
        return [int.__int__(value)] * rank
    if isinstance(value, list | tuple):
        plain = [int.__int__(v) for v in value]
        return plain * rank if len(plain) == 1 else plain
    return None


def _slid(
    lengths: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, up: bool = False
) -> list[int] | None:
    """How many places windows have along each dimension; `up` counts those that begin inside and end outside, too."""
    rank = len(lengths)
    steps, edges, spaces = _spread(stride, rank), _spread(padding, rank), _spread(dilation, rank)
    if steps is None or edges is None or spaces is None:
        return None
    found = []
    for n, k, s, p, d in zip(lengths, kernel, steps, edges, spaces, strict=True):
        places, rest = divmod(n + 2 * p - d * (k - 1) - 1, s)
        found.append(places + 1 + (up and rest > 0 and (places + 1) * s < n + p))
    return found if min(found) > 0 else None


# -- by operation: the shape of the result, or None where PyTorch should say what is wrong -------------------------


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    """[..., I] x [O, I] -> [..., O]"""
    if weight.ndim != 2 or input.ndim == 0 or input.shape[-1] != weight.shape[1]:
        return None
    return (*input.shape[:-1], weight.shape[0])


def convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Shape | None:  # fmt: skip
    """[N, I, ...] x [O, I / groups, ...] -> [N, O, ...]"""
    if input.ndim != weight.ndim or input.ndim < 3:
        return None
    (batch, channels, *lengths), (outputs, inputs, *kernel) = input.shape, weight.shape
    count = int.__int__(groups)
    sizes = _slid(lengths, kernel, stride, padding, dilation)
    if sizes is None or channels != inputs * count or outputs % count:
        return None
    return (batch, outputs, *sizes)


def pooling(rank: int, input: Tensor, kernel_size: Any, stride: Any, padding: Any, up: bool) -> Shape | None:
    """Windows over the last dimensions, which may be of an image or of a batch of images."""
    kernel = _spread(kernel_size, rank)
    if kernel is None or input.ndim not in (rank + 1, rank + 2):
        return None
    sizes = _slid(input.shape[-rank:], kernel, stride or kernel, padding, 1, up)
    return None if sizes is None else (*input.shape[:-rank], *sizes)


def averaging(rank: int) -> Callable[..., Shape | None]:
    """`avg_pool1d` and its likes."""

    def shape(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
        ceil_mode: bool = False, *args: Any, **kwargs: Any,
    ) -> Shape | None:  # fmt: skip
        return pooling(rank, input, kernel_size, stride, padding, ceil_mode)

    return shape


def maximum(rank: int) -> Callable[..., Shape | None]:
    """`max_pool1d` and its likes."""

    def shape(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Shape | None:  # fmt: skip
        plain = not return_indices and dilation in (1, (1,) * rank)
        return pooling(rank, input, kernel_size, stride, padding, ceil_mode) if plain else None

    return shape


def resizing(rank: int) -> Callable[..., Shape | None]:
    """`adaptive_avg_pool1d` and its likes."""

    def shape(input: Tensor, output_size: Any) -> Shape | None:
        given = output_size if isinstance(output_size, list | tuple) else (output_size,) * rank
        if len(given) != rank or input.ndim not in (rank + 1, rank + 2):
            return None
        lengths = zip(given, input.shape[-rank:], strict=True)
        return (*input.shape[:-rank], *(n if size is None else int.__int__(size) for size, n in lengths))

    return shape


def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Shape | None:
    """[..., L, E] x [..., S, E] x [..., S, V] -> [..., L, V]"""
    fits = query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2] and query.ndim == value.ndim
    return (*query.shape[:-1], value.shape[-1]) if fits else None


SHAPES: dict[str, Callable[..., Shape | None]] = {
    "linear": linear,
    "scaled_dot_product_attention": attention,
    **{f"conv{rank}d": convolution for rank in (1, 2, 3)},
    **{f"avg_pool{rank}d": averaging(rank) for rank in (1, 2, 3)},
    **{f"max_pool{rank}d": maximum(rank) for rank in (1, 2, 3)},
    **{f"adaptive_avg_pool{rank}d": resizing(rank) for rank in (1, 2, 3)},
}

# What keeps the shape and dtype of its first argument.
_ALIKE = frozenset(
    """relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh softplus hardtanh hardsigmoid hardswish
    softmax log_softmax layer_norm group_norm instance_norm rms_norm dropout""".split()
)
_MEETING = frozenset({"add", "sub", "mul", "div"})
_HARMLESS = frozenset({"inplace", "dim", "alpha", "weight", "bias", "eps", "p", "training", "approximate"})


def stand_in(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], inplace: bool, blank: bool) -> Tensor | None:
    """Zeros instead of the result of a costly operation; None if it must be computed.

    `blank` says that an argument is such zeros, or was made from them: then what keeps shapes is not computed, either.
    A batch norm, and what works in place, give back their own input.
    """
    if name == "batch_norm":
        return _normalised(*args) if args else None
    shape_of = SHAPES.get(name)
    if shape_of is None and not (blank and (name in _ALIKE or name in _MEETING)):
        return None
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    first = tensors[0]
    if not first.is_floating_point() or len({(t.dtype, t.device) for t in tensors}) > 1:
        return None
    if shape_of is None:
        return _alike(name, args, kwargs, first, inplace)
    try:
        shape = shape_of(*args, **kwargs)
    except TypeError:  # a call that PyTorch will refuse, too
        return None
    return None if shape is None else first.new_zeros(shape)


def _alike(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], first: Tensor, inplace: bool) -> Tensor | None:
    """The stand-in for what is as large as its first argument, or as what meets there."""
    if not args or args[0] is not first or not set(kwargs) <= _HARMLESS:
        return None
    if any(a is True or isinstance(a, complex) for a in args):  # True may say, in its place, that it works in place
        return None
    shape = first.shape
    for other in args[1:] if name in _MEETING else ():
        if isinstance(other, Tensor) and other.shape != shape:
            shape = torch.broadcast_shapes(shape, other.shape)
    if inplace or kwargs.get("inplace"):
        return first if shape == first.shape else None
    return first.new_zeros(shape)


def _normalised(input: Tensor, mean: Tensor | None = None, *args: Any) -> Tensor | None:
    """[N, C, ...] as it is; None where PyTorch should say what is wrong."""
    fits = input.ndim > 1 and mean is not None and input.shape[1] == mean.shape[0]
    return input.detach() if fits else None


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
