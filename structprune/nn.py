"""Modules that take the place of rigid ones after surgery: same parameter names, same arguments, free sizes.

Norms whose statistics ran over channels that are gone divide by the original count, so that the result is
that of the masked original, which saw zeros there. `nn.MultiheadAttention` gets an inner width of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from .errors import UnsupportedModelError

NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm")  # that have a counting function of the same name here


def refuse_script(self: nn.Module) -> NoReturn:
    """What `torch.jit.script` asks of a module first: it would compile the source, of which the class is no more."""
    raise UnsupportedModelError(
        f"torch.jit.script reads source code, which says something else than {type(self).__name__} does: use "
        "torch.compile, torch.export or torch.jit.trace"
    )


class Unannounced:
    """A first base of substitutes, whose other bases do not hear of them."""

    def __init_subclass__(cls) -> None:
        pass


def unannounced(kind: type[nn.Module], *others: type) -> tuple[type, ...]:
    """The bases of a substitute for `kind`, which is none of those that it may keep a register of."""
    listens = any("__init_subclass__" in vars(base) for base in kind.__mro__ if base is not object)
    return (Unannounced, kind, *others) if listens else (kind, *others)


def widened(input: Tensor) -> Tensor:
    """Statistics of half precision are taken in float32, as PyTorch does."""
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


def _laid_out(input: Tensor) -> Tensor:
    """The same, laid out in memory as PyTorch's norms over the last dimensions leave it: what follows may view it."""
    return widened(input).contiguous()


def _standardise(input: Tensor, dims: Sequence[int], count: int, missing: int, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) over `dims`, as if `missing` further elements, of `count` in all, were zero."""
    dims = list(dims)
    mean = input.sum(dims, keepdim=True) / count
    centred = input - mean
    variance = (centred.square().sum(dims, keepdim=True) + missing * mean.square()) / count
    return centred * torch.rsqrt(variance + eps)


def _affine(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Times the weight, plus the bias, in one pass if there are both."""
    if weight is None:
        return input if bias is None else input + bias
    return input * weight if bias is None else torch.addcmul(bias, input, weight)


def _trailing(input: Tensor, normalized_shape: Sequence[int], channels: int | None) -> tuple[list[int], int, int]:
    """The last dimensions, how many elements they held, and how many they hold.

    A shape that is the input's own is no longer that of what they held, where the first of them had `channels`.
    """
    dims = list(range(-len(normalized_shape), 0))
    width = math.prod([input.shape[d] for d in dims])
    if channels is not None and (len(dims) == 1 or tuple(normalized_shape) == input.shape[-len(dims) :]):
        return dims, width // input.shape[dims[0]] * channels, width
    return dims, math.prod(normalized_shape), width


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    channels: int | None = None,
) -> Tensor:
    """`F.layer_norm` over `normalized_shape` elements, or `channels` in one dimension, of which the last dimensions of
    `input` hold the rest."""
    if has_torch_function((input,)):  # a tracer sees one operation
        options = {} if channels is None else {"channels": channels}
        return handle_torch_function(layer_norm, (input,), input, normalized_shape, weight, bias, eps, **options)
    if input.is_nested:
        rest: dict[str, Any] = {"weight": weight, "bias": bias, "eps": eps, "channels": channels}
        return torch.nested.as_nested_tensor([layer_norm(one, normalized_shape, **rest) for one in input.unbind()])
    dims, count, width = _trailing(input, normalized_shape, channels)
    if count == width:
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return _affine(_standardise(_laid_out(input), dims, count, count - width, eps).to(input.dtype), weight, bias)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    channels: int | None = None,
) -> Tensor:
    """`F.rms_norm` over `normalized_shape` elements, or `channels` in one dimension, of which the last dimensions of
    `input` hold the rest."""
    if has_torch_function((input,)):
        options = {} if channels is None else {"channels": channels}
        return handle_torch_function(rms_norm, (input,), input, normalized_shape, weight, eps, **options)
    dims, count, width = _trailing(input, normalized_shape, channels)
    if count == width:
        return F.rms_norm(input, normalized_shape, weight, eps)
    wide = _laid_out(input)
    eps = torch.finfo(wide.dtype).eps if eps is None else eps
    out = (wide * torch.rsqrt(wide.square().sum(dims, keepdim=True) / count + eps)).to(input.dtype)
    return out if weight is None else out * weight


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    channels: int,
) -> Tensor:
    """`F.group_norm` over `channels` channels of which dimension 1 of `input` holds the rest, as many in each group."""
    if has_torch_function((input,)):
        return handle_torch_function(group_norm, (input,), input, num_groups, weight, bias, eps, channels=channels)
    width = input.shape[1]
    if width == channels:
        return F.group_norm(input, num_groups, weight, bias, eps)
    grouped = widened(input).reshape(input.shape[0], num_groups, -1)
    each = grouped.shape[-1]
    count = each // (width // num_groups) * (channels // num_groups)
    out = _standardise(grouped, [-1], count, count - each, eps).reshape(input.shape).to(input.dtype)
    shape = [1, -1] + [1] * (input.ndim - 2)
    return _affine(out, *(part if part is None else part.reshape(shape) for part in (weight, bias)))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    channels: int,
) -> Tensor:
    """`F.batch_norm` of standardised weights [1, O, N]: statistics over `channels` entries, of which N are left."""
    if running_mean is not None or not training or input.ndim != 3 or input.shape[2] == channels:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    out = _standardise(widened(input), [0, 2], channels, channels - input.shape[2], eps).to(input.dtype)
    return _affine(out, *(part if part is None else part[:, None] for part in (weight, bias)))


def attend(
    self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
    need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """`nn.MultiheadAttention.forward` with the inner width taken from the weights instead of the outer width."""
    if isinstance(query, fx.Proxy):  # of a tracer, to which the module is one operation, as those of PyTorch are
        given: dict[str, Any] = {
            "key_padding_mask": key_padding_mask, "need_weights": need_weights, "attn_mask": attn_mask,
            "average_attn_weights": average_attn_weights, "is_causal": is_causal,
        }  # fmt: skip
        path = query.tracer.path_of_module(self)  # type: ignore[attr-defined]
        return query.tracer.create_proxy("call_module", path, (query, key, value), given)  # type: ignore[return-value]
    if query.is_nested:  # as nn.TransformerEncoder makes them of padded sequences
        each = zip(query.unbind(), key.unbind(), value.unbind(), strict=True)
        return torch.nested.as_nested_tensor([attend(self, *one, need_weights=False)[0] for one in each]), None
    batched = query.dim() == 3
    same = query is key, key is value
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    elif self.batch_first:
        query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    q, k, v = _project(self, query, query if same[0] else key, (query if same[0] else key) if same[1] else value)
    mask = _mask(self, query, key, key_padding_mask, attn_mask)
    if self.bias_k is not None and self.bias_v is not None:
        k = torch.cat([k, self.bias_k.expand(-1, k.shape[1], -1)])
        v = torch.cat([v, self.bias_v.expand(-1, v.shape[1], -1)])
        mask = F.pad(mask, (0, 1)) if mask is not None else None
    if self.add_zero_attn:
        k, v = torch.cat([k, torch.zeros_like(k[:1])]), torch.cat([v, torch.zeros_like(v[:1])])
        mask = F.pad(mask, (0, 1)) if mask is not None else None
    q, k, v = (t.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))
    dropout = self.dropout if self.training else 0.0
    weights = None
    if need_weights:
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        out = weights @ v
    else:
        causal = is_causal and attn_mask is not None and key_padding_mask is None
        out = F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)
    out = F.linear(out.permute(2, 0, 1, 3).flatten(-2), self.out_proj.weight, self.out_proj.bias)
    if weights is not None:
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if batched else weights.squeeze(0)
    if not batched:
        return out.squeeze(1), weights
    return (out.transpose(0, 1) if self.batch_first else out), weights


def _project(self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed or separate projections of [positions, batch, width]."""
    bias = self.in_proj_bias
    biases = bias.chunk(3) if bias is not None else (None, None, None)
    if self.in_proj_weight is None:
        weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
    elif query is key and key is value:
        q, k, v = F.linear(query, self.in_proj_weight, bias).chunk(3, -1)
        return q, k, v
    else:
        weights = list(self.in_proj_weight.chunk(3))
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    return q, k, v


def _mask(
    self: nn.MultiheadAttention, query: Tensor, key: Tensor, padding: Tensor | None, mask: Tensor | None
) -> Tensor | None:
    """Both masks as one that is added to scores of shape [batch, heads, positions, keys]."""
    if mask is not None:
        mask = _additive(mask, query.dtype)
        if mask.dim() == 3:
            mask = mask.unflatten(0, (-1, self.num_heads))
    if padding is not None:
        padding = _additive(padding, query.dtype).reshape(-1, 1, 1, key.shape[0])
        mask = padding if mask is None else mask + padding
    return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    return mask.to(dtype)


class MultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with heads and inner width free of the outer width; see `attend`."""

    forward = attend
    __prepare_scriptable__ = refuse_script
    # nn.TransformerEncoderLayer asks this before it takes a path that reads the weights with the old sizes.
    _qkv_same_embed_dim = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


# Modules whose forward takes a bias or None, with the attribute that says how many numbers it holds.
BIASED: dict[type[nn.Module], str] = {
    nn.Linear: "out_features",
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "out_channels"),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "out_channels"),
}


def width_of_bias(module: nn.Module) -> str:
    """The attribute that says how long a bias of this module is; empty if it has one, or would not use it."""
    found = [a for kind, a in BIASED.items() if isinstance(module, kind) and type(module).forward is kind.forward]
    return found[0] if found and module.bias is None and "forward" not in vars(module) else ""
