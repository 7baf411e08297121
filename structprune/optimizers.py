"""Optimizers kept in step: the small model's parameters in place of the old, with their momenta cut alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ArgumentTypeError, UnsupportedModelError
from .plan import PruningPlan
from .surgery import Slicer

Dims = Mapping[int, tuple[int, ...]]


def follow(optimizer: torch.optim.Optimizer, plan: PruningPlan, before: Mapping[str, Tensor], small: nn.Module) -> None:
    """Makes `optimizer`, built for a model before `plan` was applied, go on with `small`.

    Whatever it keeps for each element of a parameter (momentum, Adam's moments, Adafactor's rows and columns)
    is cut as the parameter is; counters and settings stay, and so does a scheduler that holds the optimizer.
    Where a plan folds a norm into its weight (`plan.scales`), the moments stay as they are.

    Args:
        before: the parameters of the model by name, as they were before the plan was applied.

    Raises UnsupportedModelError, before anything is changed, for state of another shape (L-BFGS's history).
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentTypeError(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    names = {id(tensor): name for name, tensor in before.items()}
    after = dict(small.named_parameters(remove_duplicate=False))
    slicer = Slicer()
    pairs = [(p, names[id(p)]) for group in optimizer.param_groups for p in group["params"] if id(p) in names]
    states = {
        name: {
            key: _cut(value, tuple(parameter.shape), plan.kept.get(name, {}), slicer, f"{name}: {key}")
            for key, value in optimizer.state[parameter].items()
        }
        for parameter, name in pairs
        if parameter in optimizer.state
    }
    for group in optimizer.param_groups:
        group["params"][:] = [after[names[id(p)]] if id(p) in names else p for p in group["params"]]
    for parameter, name in pairs:
        optimizer.state.pop(parameter, None)
        if name in states:
            optimizer.state[after[name]] = states[name]


def _cut(value: Any, shape: tuple[int, ...], kept: Dims, slicer: Slicer, where: str) -> Any:
    """State of a parameter's shape, with size 1 where it is shared along a dimension, is cut as the parameter is."""
    if not kept or not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if value.ndim != len(shape) or any(n not in (1, size) for n, size in zip(value.shape, shape, strict=True)):
        raise UnsupportedModelError(
            f"the optimizer keeps {where} of shape {tuple(value.shape)} for a parameter of shape {shape}, which cannot "
            "be cut with it; build a new optimizer for each step's model"
        )
    return slicer.cut(value, {dim: indices for dim, indices in kept.items() if value.shape[dim] == shape[dim]})
