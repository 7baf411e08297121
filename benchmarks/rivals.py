"""Torch-Pruning with the help that its examples give it."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from .analysis_speed import heads


def magnitude_pruner(model: nn.Module, example: Tensor, **options: Any) -> Any:
    """Its `MagnitudePruner` with the L1 norm; output layers stay, and heads of a fused projection are told."""
    tp = importlib.import_module("torch_pruning")
    return tp.pruner.MagnitudePruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=1), ignored_layers=heads(model),
        num_heads={m.qkv: m.num_heads for m in attentions(model)}, **options,
    )  # fmt: skip


def set_sizes(model: nn.Module, pruner: Any) -> None:
    """Sets the sizes that attentions with a fused projection, and torchvision's ViT, hold as attributes."""
    for attention in attentions(model):
        attention.num_heads = pruner.num_heads[attention.qkv]
        width = attention.qkv.out_features // 3
        _set_if_there(attention, head_dim=width // attention.num_heads, attn_dim=width)
    if hasattr(model, "conv_proj"):
        _set_if_there(model, hidden_dim=model.conv_proj.out_channels)


def attentions(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(getattr(m, "qkv", None), nn.Linear) and hasattr(m, "num_heads")]


def _set_if_there(module: nn.Module, **sizes: int) -> None:
    for name, size in sizes.items():
        if hasattr(module, name):
            setattr(module, name, size)
