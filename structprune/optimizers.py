"""Optimizers kept in step: the small model's parameters in place of the old, with their momenta cut alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedModelError
from .plan import PruningPlan
from .surgery import Slicer

Dims = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class Follower:
    """An optimizer, and the state that it will have for the parameters of the small model, by name."""

    optimizer: torch.optim.Optimizer
    names: dict[int, str]  # of the parameters it was built for, by id
    states: dict[str, dict[str, Any]]

    def move(self, small: nn.Module) -> None:
        """The optimizer goes on with the parameters of `small`."""
        after = dict(small.named_parameters(remove_duplicate=False))
        for group in self.optimizer.param_groups:
            for i, parameter in enumerate(group["params"]):
                name = self.names.get(id(parameter))
                if name is not None:
                    group["params"][i] = after[name]
                    self.optimizer.state.pop(parameter, None)
                    if name in self.states:
                        self.optimizer.state[after[name]] = self.states[name]


def follower(optimizer: torch.optim.Optimizer, plan: PruningPlan, model: nn.Module) -> Follower:
    """Prepares `optimizer`, built for `model`, to go on with the model that `plan` leaves.

    Whatever it keeps for each element of a parameter (momentum, Adam's moments, Adafactor's rows and columns)
    is cut as the parameter is; counters and settings stay, and so does a scheduler that holds the optimizer.
    Where a plan folds a norm into its weight (`plan.scales`), the moments stay as they are.

    >>> following = follower(optimizer, plan, model)
    >>> following.move(structprune.apply(plan, model))

    Raises UnsupportedModelError for state of another shape (L-BFGS's history). Nothing is changed yet.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    slicer = Slicer()
    states = {
        names[id(parameter)]: {
            key: _cut(value, tuple(parameter.shape), plan.kept.get(names[id(parameter)], {}), slicer, key)
            for key, value in optimizer.state[parameter].items()
        }
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names and parameter in optimizer.state
    }
    return Follower(optimizer, names, states)


def _cut(value: Any, shape: tuple[int, ...], kept: Dims, slicer: Slicer, key: str) -> Any:
    """State of a parameter's shape, with size 1 where it is shared along a dimension, is cut as the parameter is."""
    if not kept or not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if value.ndim != len(shape) or any(n not in (1, size) for n, size in zip(value.shape, shape, strict=True)):
        raise UnsupportedModelError(
            f"the optimizer keeps {key!r} of shape {tuple(value.shape)} for a parameter of shape {shape}, which cannot "
            "be cut with it; build a new optimizer for each step's model"
        )
    return slicer.cut(value, {dim: indices for dim, indices in kept.items() if value.shape[dim] == shape[dim]})
