"""Torch-Pruning with the help that its examples give it."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from .compat import flat
from .harness import call


def output_layers(model: nn.Module, example: Tensor) -> list[nn.Module]:
    """The layers as wide as an output, auxiliary ones included: Torch-Pruning must be told."""
    with torch.no_grad():
        widths = {output.shape[1] for output in flat(call(model, example))}
    return [
        m for m in model.modules()
        if isinstance(m, nn.Linear | nn.Conv2d) and getattr(m, "out_features", getattr(m, "out_channels", 0)) in widths
    ]  # fmt: skip


def magnitude_pruner(model: nn.Module, example: Tensor, outputs: list[nn.Module], **options: Any) -> Any:
    """Its `MagnitudePruner` with the L1 norm: output layers stay, heads of a fused projection are told, and where
    there are `nn.MultiheadAttention`s, widths are multiples of their heads."""
    tp = importlib.import_module("torch_pruning")
    heads = [m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    return tp.pruner.MagnitudePruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=1), ignored_layers=outputs,
        num_heads={m.qkv: m.num_heads for m in attentions(model)}, round_to=math.lcm(*heads) if heads else None, **options,
    )  # fmt: skip


def set_sizes(model: nn.Module, pruner: Any) -> None:
    """Sets the sizes that attentions with a fused projection, and torchvision's ViT, hold as attributes."""
    for attention in attentions(model):
        attention.num_heads = pruner.num_heads[attention.qkv]
        width = attention.qkv.out_features // 3
        _set_if_there(attention, head_dim=width // attention.num_heads, attn_dim=width)
    first = getattr(model, "conv_proj", None)
    if isinstance(first, nn.Conv2d):
        _set_if_there(model, hidden_dim=first.out_channels)


def attentions(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(getattr(m, "qkv", None), nn.Linear) and hasattr(m, "num_heads")]


def _set_if_there(module: nn.Module, **sizes: int) -> None:
    for name, size in sizes.items():
        if hasattr(module, name):
            setattr(module, name, size)
