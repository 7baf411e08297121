"""Whether the removed elements of a value are exactly zero in the masked original.

Producers are masked, so a removed channel starts as zero; a bias-free convolution or a ReLU keeps it so, a
sigmoid does not. Sums over channels and the statistics of norms are exact only over zeros. Everything not
known to be zero is taken not to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx

from ..labels import Labels
from ..ops import is_pointwise

Values = Mapping[fx.Node, Any]

# f(0, ...) = 0 whenever the first operand is zero, whatever the others are.
_KEEP = frozenset(
    """permute transpose t T mT H mH adjoint swapaxes swapdims movedim moveaxis unsqueeze squeeze flip fliplr flipud roll narrow
    tensor_split unbind select unfold chunk split split_with_sizes unsafe_chunk unsafe_split repeat tile repeat_interleave
    expand broadcast_to expand_as view reshape _unsafe_view flatten ravel view_as reshape_as unflatten getitem index_select
    gather take_along_dim item clone contiguous detach to float double half bfloat16 type type_as data cpu cuda requires_grad
    sum mean amax amin max min cumsum dropout dropout1d dropout2d dropout3d feature_dropout interpolate im2col col2im
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle linalg_vector_norm zeros_like grid_sampler
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d pad constant_pad_nd
    div true_divide rms_norm""".split()
)
_PRODUCERS = frozenset({"parameter", "embedding", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})


def is_zero(node: fx.Node, values: Values, memo: dict[fx.Node, bool] | None = None) -> bool:
    """True if every removed element of what `node` computes is zero in the masked original."""
    memo = {} if memo is None else memo
    if node not in memo:
        memo[node] = False  # a cycle through in-place operations is not known to be zero
        memo[node] = _labelled(node, values) and _decide(node, values, lambda n: is_zero(n, values, memo))
    return memo[node]


def _labelled(node: fx.Node, values: Values) -> bool:
    found = values.get(node)
    if isinstance(found, dict):
        return any(part.coordinates for part in found.values() if isinstance(part, Labels))
    return isinstance(found, Labels) and bool(found.coordinates)


def _decide(node: fx.Node, values: Values, zero: Callable[[fx.Node], bool]) -> bool:
    op = node.meta["op"]
    inputs = [n for n in node.all_input_nodes if not _overwritten(n, node, values, zero)]
    if len(inputs) < len(node.all_input_nodes):
        return False
    if op in _PRODUCERS:
        return True
    if op == "linear":  # rows that a weight makes are zero; rows that come with the input need a zero input and no bias
        source = values[node.args[0]]  # type: ignore[index]
        carried = source.without((-1,)) if isinstance(source, Labels) and source.ndim else ()
        return not carried or (zero(inputs[0]) and len(inputs) == 2)
    if op in ("batch_norm", "instance_norm", "layer_norm", "group_norm"):  # a masked scale and shift leave nothing
        return any(n.meta["op"] == "parameter" for n in inputs[1:]) or zero(inputs[0])
    if op in ("matmul", "bmm", "mm"):
        return _product(inputs, values, zero)
    if op in ("addmm", "baddbmm"):
        return len(inputs) == 3 and zero(inputs[0]) and _product(inputs[1:], values, zero)
    if op == "scaled_dot_product_attention":
        return zero(inputs[min(2, len(inputs) - 1)])
    if op in ("cat", "concat", "concatenate", "stack"):
        return all(zero(n) for n in inputs if _labelled(n, values))
    if op in ("mul", "multiply"):
        return any(zero(n) and _covers(n, inputs, values) for n in inputs)
    if op == "where" or op == "masked_fill":
        data = [n for n in inputs if n.meta.get("dtype") != torch.bool]
        return all(zero(n) for n in data) and len(data) == (2 if op == "where" else 1) and not _fills(node)
    if op in _KEEP:
        padded = op in ("pad", "constant_pad_nd") and node.kwargs.get("value", (*node.args, None, None, None)[3])
        return zero(inputs[0]) and not padded
    return is_pointwise(op) and all(zero(n) for n in inputs) and _at_zero(node)


def _fills(node: fx.Node) -> bool:
    value = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 1)
    return node.meta["op"] == "masked_fill" and value != 0


def _covers(node: fx.Node, inputs: list[fx.Node], values: Values) -> bool:
    """Whether this operand is labelled wherever the others are, so that its zeros cover theirs."""
    mine = values[node]
    rank = max(len(n.meta["shape"]) for n in inputs)

    def dims(labels: Any) -> set[int]:
        return {d + rank - labels.ndim for c in labels.coordinates for d in range(c.ndim) if c.shape[d] > 1}

    return all(dims(values[n]) <= dims(mine) for n in inputs if isinstance(values.get(n), Labels))


def _product(inputs: list[fx.Node], values: Values, zero: Callable[[fx.Node], bool]) -> bool:
    """[..., M, K] x [..., K, N]: a side whose removed slices are zero makes the product zero there."""
    left, right = (inputs * 2)[:2]
    a, b = values[left], values[right]
    rows = any(c.ndim > 1 and c.shape[-2] > 1 for c in a.coordinates)
    columns = any(c.shape[-1] > 1 for c in b.coordinates)
    batch_a = any(max(c.shape[:-2], default=1) > 1 for c in a.coordinates)
    batch_b = any(max(c.shape[:-2], default=1) > 1 for c in b.coordinates)
    zero_a, zero_b = zero(left), zero(right)
    if zero_a and zero_b:
        return True
    return (zero_b and not rows and (batch_b or not batch_a)) or (zero_a and not columns and (batch_a or not batch_b))


def _overwritten(source: fx.Node, reader: fx.Node, values: Values, zero: Callable[[fx.Node], bool]) -> bool:
    """Whether something else writes into `source` in place, values that may not be zero."""
    for user in source.users:
        writes = user.meta.get("inplace") and user is not reader and user.args and user.args[0] is source
        if writes and not zero(user):
            return True
    return False


def _at_zero(node: fx.Node) -> bool:
    """f(0) = 0, by asking the function itself."""
    name, function = node.meta["op"], node.target
    constants = tuple(a for a in node.args if not isinstance(a, fx.Node))
    try:
        return _value_at_zero(name, function, len(node.args) - len(constants), constants, tuple(sorted(node.kwargs.items())))
    except TypeError:  # an argument that cannot be hashed, or a signature that needs more than positions
        return False


@cache
def _value_at_zero(name: str, function: Any, operands: int, constants: tuple[Any, ...], kwargs: tuple[Any, ...]) -> bool:
    if any(isinstance(v, fx.Node) for _, v in kwargs):
        return False
    out = function(*(torch.zeros(1) for _ in range(operands)), *constants, **dict(kwargs))
    return isinstance(out, torch.Tensor) and bool((out == 0).all())
