"""What is known of the result of an operation, from what is known of its arguments.

A rule is a function of the node and of the operation's own arguments, with knowns (see `constants`) in place of
tensors. It is registered under the operation's name; pointwise operations share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .labels import Labels
from .nodes import Node
from .program import map_tensors, tensors_in
from .rules.reduction import dims_of

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
_NAN = float("nan")

RANDOM = frozenset(
    """dropout alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d dropout3d bernoulli normal
    uniform exponential random rand_like randn_like empty_like rand randn empty new_empty""".split()
)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule, a function of the node and of its arguments with knowns in place of tensors."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return register


def unknown(rank: int) -> Tensor:
    """Nothing is known of a value of this rank."""
    return torch.full((1,) * rank, _NAN, dtype=torch.float64, device="cpu")


# -- element by element ----------------------------------------------------------------------------------------


@rule("hardswish", "log_sigmoid", "tanhshrink", "softsign")
def pointwise(node: Node, *args: Any, **kwargs: Any) -> Tensor:
    """The operation itself, on the knowns; a product with zero is zero."""
    given = list(tensors_in((args, kwargs)))
    meeting = [t.clone() for t in torch.broadcast_tensors(*given)]
    hidden = torch.stack([t.isnan() for t in meeting]).any(0)
    if node.meta["op"] == "mul":
        hidden &= ~torch.stack([t == 0 for t in meeting]).any(0)
        meeting = [t.nan_to_num() for t in meeting]
    elif node.meta["op"] in RANDOM or bool(hidden.all()):
        return torch.full_like(meeting[0], _NAN)
    rest = iter(meeting)
    out = node.target(*map_tensors(lambda t: next(rest), args), **map_tensors(lambda t: next(rest), kwargs))  # type: ignore[operator]
    return torch.where(hidden, _NAN, out)


@rule("dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
def dropout(node: Node, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:
    """Nothing in eval mode; where it is always on, zeros stay zero."""
    if not training:
        return input
    return None if "alpha" in node.meta["op"] else _zeros_of(input)


@rule(
    "clone", "contiguous", "detach", "float", "double", "half", "bfloat16", "cpu", "cuda", "data", "to", "type_as",
    "positive",
)  # fmt: skip
def unchanged(node: Node, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The value itself; the dtype does not matter here."""
    return input


@rule("prelu")
def prelu(node: Node, input: Tensor, weight: Tensor) -> Tensor:
    """One slope for all, or one for each index of dimension 1."""
    return torch.where(input > 0, input, _along(weight, input) * input)


@rule("zeros_like", "new_zeros", "zero")
def zeros(node: Node, *args: Any, **kwargs: Any) -> Tensor:
    """Zero, whatever the size."""
    return torch.zeros_like(unknown(len(node.meta["shape"])))


@rule("ones_like", "new_ones")
def ones(node: Node, *args: Any, **kwargs: Any) -> Tensor:
    """One, whatever the size."""
    return torch.ones_like(unknown(len(node.meta["shape"])))


# -- data movement ---------------------------------------------------------------------------------------------


@rule(
    "permute", "transpose", "t", "T", "mT", "H", "mH", "adjoint", "movedim",
    "unsqueeze", "flip", "fliplr", "flipud", "squeeze", "roll", "narrow", "tensor_split", "unbind", "select", "tril",
    "triu", "diagonal", "rot90", "unfold", "chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split",
    "repeat", "tile", "repeat_interleave", "expand", "broadcast_to", "view", "reshape", "_unsafe_view", "flatten",
    "ravel", "unflatten", "getitem", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
    "pad", "constant_pad_nd",
)  # fmt: skip
def move(node: Node, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The operation itself, on the known at full size."""
    if any(True for _ in tensors_in((args, kwargs))):
        return None  # positions, of which nothing is known
    if input.numel() == 1 and bool(input.isnan().all()):
        return unknown(len(node.meta["shape"])) if "shape" in node.meta else None
    return node.target(input.expand(node.args[0].meta["shape"]), *args, **kwargs)  # type: ignore


@rule("view_as", "reshape_as", "expand_as")
def like(node: Node, input: Tensor, other: Tensor) -> Tensor:
    """The shape comes from another value."""
    full = input.expand(node.args[0].meta["shape"])  # type: ignore[union-attr]
    shape = node.meta["shape"]
    return full.expand(shape) if node.meta["op"] == "expand_as" else full.reshape(shape)


@rule("cat")
def cat(node: Node, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Laid end to end along `dim`, at the size of the most varied along the others."""
    dim %= len(node.meta["shape"])
    shapes = [n.meta["shape"] for n in node.args[0] if n.meta["shape"] != (0,)]  # type: ignore[union-attr]
    tensors = [t for t in tensors if t.ndim == len(node.meta["shape"])]
    widest = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
    full = [[s[d] if d == dim else n for d, n in enumerate(widest)] for s in shapes]
    return torch.cat([t.expand(size) for t, size in zip(tensors, full, strict=True)], dim)


@rule("stack")
def stack(node: Node, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Along a new dimension."""
    return torch.stack(torch.broadcast_tensors(*tensors), dim)


@rule("item")
def item(node: Node, values: Any, index: int) -> Any:
    """One of several results."""
    return values if isinstance(values, Tensor) else None if values is None else values[index]


@rule("embedding")
def embedding(node: Node, *args: Any, **kwargs: Any) -> Tensor | None:
    """A column of the table that holds one number gives that number."""
    tables = [t for t in tensors_in((args, kwargs)) if t.ndim == 2 and t.numel() > 1]
    if len(tables) != 1:
        return None
    table = tables[0]
    column = torch.where((table == table[:1]).all(0), table[0], _NAN)
    return column.reshape((1,) * (len(node.meta["shape"]) - 1) + (-1,))


# -- windows and reductions ------------------------------------------------------------------------------------


@rule(
    *(f"{kind}_pool{rank}d" for rank in (1, 2, 3) for kind in ("max", "avg", "adaptive_max", "adaptive_avg")),
    *(f"{kind}_pool{rank}d_with_indices" for rank in (1, 2, 3) for kind in ("max", "adaptive_max")),
)
def pool(node: Node, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A constant plane stays what it is, unless zeros around it are averaged in, or it is divided by another number."""
    rank = int(node.meta["op"].partition("pool")[2][0])
    plane = _same(input, range(input.ndim - rank, input.ndim))
    if node.meta["op"].startswith("avg"):
        padding = kwargs.get("padding", args[2] if len(args) > 2 else 0)
        counted = kwargs.get("count_include_pad", args[4] if len(args) > 4 else True)
        divisor = kwargs.get("divisor_override", args[5] if len(args) > 5 else None)
        if divisor is not None or (counted and padding not in (0, (0,) * rank, (0,))):
            plane = _zeros_of(plane)
    return plane if "shape" in node.meta else [plane, unknown(plane.ndim)]


@rule("interpolate", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")
def interpolate(node: Node, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Weights that sum to one."""
    return _same(input, range(2, input.ndim))


@rule("mean", "amax", "amin")
def reduction(node: Node, input: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """Of equal numbers these give that number."""
    return _reduced(node, input, dim, kwargs, lambda value: value)


@rule("max", "min")
def extremum(node: Node, input: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """x.max(dim) with its positions; max(x, y) element by element."""
    if isinstance(dim, Tensor):
        return pointwise(node, input, dim, **kwargs)
    if "shape" in node.meta:
        return _reduced(node, input, dim, kwargs, lambda value: value)
    return None


@rule("sum", "nansum", "linalg_vector_norm")
def total(node: Node, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Zeros sum to zero; of other numbers it counts how many there are."""
    dim = kwargs.get("dim", args[1:2] or None) if node.meta["op"] == "linalg_vector_norm" else (args or (None,))[0]
    dim = dim[0] if isinstance(dim, tuple) and len(dim) == 1 else dim
    return _reduced(node, input, dim, kwargs, _zeros_of)


def _reduced(
    node: Node, input: Tensor, dim: Any, kwargs: Mapping[str, Any], change: Callable[[Tensor], Tensor]
) -> Tensor:
    dims = dims_of(Labels(node.all_input_nodes[0].meta["shape"]), kwargs.get("dim", dim))
    same = change(_same(input, dims))
    return same if len(node.meta["shape"]) == input.ndim else same.squeeze(dims)


def _same(known: Tensor, dims: Sequence[int]) -> Tensor:
    """The number that is constant along `dims`, or NaN, with size 1 there."""
    first = known
    for dim in dims:
        first = first.narrow(dim, 0, 1)
    return torch.where((known == first).all(tuple(dims), keepdim=True), first, _NAN) if len(dims) else known


def _zeros_of(known: Tensor) -> Tensor:
    """Zeros where there are zeros; nothing else is known."""
    return torch.where(known == 0, known, _NAN)


# -- products of values ----------------------------------------------------------------------------------------


@rule("matmul", "bmm", "mm")
def product(node: Node, a: Tensor, b: Tensor) -> Tensor | None:
    """Zero where one side of every product is zero."""
    if a.ndim < 2 or b.ndim < 2:
        return None
    length = node.all_input_nodes[0].meta["shape"][-1]
    left = (a != 0).double().expand(*a.shape[:-1], length)
    right = (b != 0).double().expand(*b.shape[:-2], length, b.shape[-1])
    return torch.where(left @ right == 0, 0.0, _NAN)


@rule("scaled_dot_product_attention")
def attention(node: Node, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Zero where every value is; heads of the values may be shared."""
    shape = node.args[2].meta["shape"] if len(node.args) > 2 else ()  # type: ignore[union-attr]
    if shape[:-2] != node.meta["shape"][:-2]:
        return None
    return _zeros_of(_same(value, (value.ndim - 2,)))


# -- normalisations --------------------------------------------------------------------------------------------


@rule("batch_norm")
def batch_norm(
    node: Node, input: Tensor, running_mean: Any = None, running_var: Any = None,
    weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *rest: Any,
) -> Tensor:  # fmt: skip
    """Pointwise with running statistics; nothing is known of those of a batch."""
    if node.target is torch.batch_norm:  # its order is another
        running_mean, running_var, weight, bias = weight, bias, running_mean, running_var
    if training or running_mean is None:
        return _affine(torch.full_like(input, _NAN), _along(weight, input), _along(bias, input))
    return _running(input, running_mean, running_var, weight, bias, eps)


@rule("instance_norm")
def instance_norm(
    node: Node, input: Tensor, running_mean: Any = None, running_var: Any = None,
    weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *rest: Any,
) -> Tensor:  # fmt: skip
    """A constant plane does not deviate from its own mean."""
    if running_mean is not None and not use_input_stats:
        return _running(input, running_mean, running_var, weight, bias, eps)
    plane = _same(input, range(2, input.ndim)) * 0
    return _affine(plane, _along(weight, input), _along(bias, input))


def _running(input: Tensor, mean: Tensor, variance: Tensor, weight: Any, bias: Any, eps: float) -> Tensor:
    mean, root = _along(mean, input), (_along(variance, input) + eps).sqrt()
    return _affine((input - mean) / root, _along(weight, input), _along(bias, input))


def _along(vector: Any, input: Tensor) -> Any:
    """A vector laid along dimension 1."""
    return None if vector is None else vector.reshape([-1 if d == 1 else 1 for d in range(input.ndim)])


@rule("layer_norm")
def layer_norm(
    node: Node, input: Tensor, shape: Any, weight: Any = None, bias: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    """A scale of zero leaves the shift."""
    return _affine(torch.full_like(input, _NAN), weight, bias)


@rule("group_norm")
def group_norm(
    node: Node, input: Tensor, groups: int, weight: Any = None, bias: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    """A scale of zero leaves the shift."""
    return _affine(torch.full_like(input, _NAN), _along(weight, input), _along(bias, input))


@rule("rms_norm")
def rms_norm(node: Node, input: Tensor, shape: Any, weight: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """Zeros stay zero."""
    return _affine(_zeros_of(input), weight, None)


def _affine(normal: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = normal if weight is None else torch.where(weight == 0, 0.0, normal * weight)
    return scaled if bias is None else scaled + bias
