"""Shapes of results, from the shapes of what goes in: None, or False, where PyTorch should say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

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
    if steps is None or edges is None or spaces is None or min(*steps, *spaces) < 1 or min(edges) < 0:
        return None
    found = []
    for n, k, s, p, d in zip(lengths, kernel, steps, edges, spaces, strict=True):
        places, rest = divmod(n + 2 * p - d * (k - 1) - 1, s)
        found.append(places + 1 + (up and rest > 0 and (places + 1) * s < n + p))
    return found if min(found) > 0 else None


# -- by operation: the shape of the result, or None where PyTorch should say what is wrong -------------------------


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    """[..., I] x [O, I] -> [..., O]"""
    fits = weight.ndim == 2 and input.ndim > 0 and input.shape[-1] == weight.shape[1]
    return (*input.shape[:-1], weight.shape[0]) if fits and as_long_as(weight.shape[0], bias) else None


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
    if sizes is None or channels != inputs * count or outputs % count or not as_long_as(outputs, bias):
        return None
    return (batch, outputs, *sizes)


def pooling(rank: int, input: Tensor, kernel_size: Any, stride: Any, padding: Any, up: bool) -> Shape | None:
    """Windows over the last dimensions, which may be of an image or of a batch of images."""
    kernel = _spread(kernel_size, rank)
    if kernel is None or input.ndim not in (rank + 1, rank + 2):
        return None
    edges = _spread(padding, rank)
    if edges is None or any(2 * p > k for p, k in zip(edges, kernel, strict=True)):
        return None
    sizes = _slid(input.shape[-rank:], kernel, stride or kernel, edges, 1, up)
    return None if sizes is None else (*input.shape[:-rank], *sizes)


def averaging(rank: int) -> Callable[..., Shape | None]:
    """`avg_pool1d` and its likes."""

    def shape(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
        ceil_mode: bool = False, count_include_pad: bool = True,
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


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None,
) -> Shape | None:  # fmt: skip
    """[..., L, E] x [..., S, E] x [..., S, V] -> [..., L, V]"""
    alike = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    fits = query.shape[-1] == key.shape[-1] and value.shape[-2] == key.shape[-2]
    return (*query.shape[:-1], value.shape[-1]) if attn_mask is None and alike and fits else None


SHAPES: dict[str, Callable[..., Shape | None]] = {
    "linear": linear,
    "scaled_dot_product_attention": attention,
    **{f"conv{rank}d": convolution for rank in (1, 2, 3)},
    **{f"avg_pool{rank}d": averaging(rank) for rank in (1, 2, 3)},
    **{f"max_pool{rank}d": maximum(rank) for rank in (1, 2, 3)},
    **{f"adaptive_avg_pool{rank}d": resizing(rank) for rank in (1, 2, 3)},
}


def joined(tensors: Sequence[Tensor], dim: Any = 0) -> Shape | None:
    """`cat`: end to end along one dimension, alike along the others."""
    shapes = [list(t.shape) for t in tensors]
    rank = len(shapes[0])
    if not isinstance(dim, int) or not -rank <= dim < rank or any(len(shape) != rank for shape in shapes):
        return None
    place = int.__int__(dim) % rank
    length = sum(shape.pop(place) for shape in shapes)
    rest = shapes[0]
    return (*rest[:place], length, *rest[place:]) if all(shape == rest for shape in shapes) else None


# -- what keeps the shape and dtype of its first argument: whether PyTorch takes the arguments ----------------------


def plain(input: Tensor) -> bool:
    """`sigmoid` and `tanh`."""
    return True


def activation(input: Tensor, inplace: bool = False) -> bool:
    """`relu` and its likes."""
    return True


def sloped(input: Tensor, slope: float = 1.0, inplace: bool = False) -> bool:
    """`leaky_relu`, `elu` and `celu`, with their slope in its place."""
    return True


def gelu(input: Tensor, *, approximate: str = "none") -> bool:
    return approximate in ("none", "tanh")


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> bool:
    return min_val <= max_val


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> bool:
    return 0 <= p <= 1


def added(input: Any, other: Any, *, alpha: float = 1) -> bool:
    """`add` and `sub`."""
    return True


def multiplied(input: Any, other: Any) -> bool:
    """`mul` and `div`."""
    return True


def softmax(input: Tensor, dim: Any = None, *, _stacklevel: int = 3, dtype: Any = None) -> bool:
    return dtype is None and isinstance(dim, int) and -input.ndim <= dim < input.ndim


def layer_norm(input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> bool:
    shape = tuple(normalized_shape)
    alike = all(v is None or tuple(v.shape) == shape for v in (weight, bias))
    return alike and tuple(input.shape[-len(shape) :]) == shape


def rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> bool:
    return layer_norm(input, normalized_shape, weight)


def group_norm(input: Tensor, num_groups: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> bool:
    return input.ndim > 1 and input.shape[1] % int.__int__(num_groups) == 0 and as_long_as(input.shape[1], weight, bias)


ALIKE: dict[str, Callable[..., bool]] = {
    **dict.fromkeys(("sigmoid", "tanh"), plain),
    **dict.fromkeys(("relu", "relu6", "selu", "silu", "mish", "hardsigmoid", "hardswish"), activation),
    **dict.fromkeys(("leaky_relu", "elu", "celu"), sloped),
    **dict.fromkeys(("add", "sub"), added),
    **dict.fromkeys(("mul", "div"), multiplied),
    **dict.fromkeys(("softmax", "log_softmax"), softmax),
    **{check.__name__: check for check in (gelu, hardtanh, dropout, layer_norm, rms_norm, group_norm)},
}
MEETING = frozenset({"add", "sub", "mul", "div"})


def as_long_as(size: int, *vectors: Any) -> bool:
    """Whether these are vectors of this size, as far as they are there."""
    return all(v is None or tuple(v.shape) == (size,) for v in vectors)
