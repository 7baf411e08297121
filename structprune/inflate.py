"""Inflation: a small model in the shapes of the original, with zeros where it was cut."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .copying import deep_copy
from .errors import ArgumentTypeError, PlanError
from .fitting import check_fits
from .plan import PruningPlan
from .program import modules_of, named_tensors, registered_tensors
from .surgery import replace_tensors


def inflate(plan: PruningPlan, small: nn.Module, make_model: Callable[[], nn.Module] | nn.Module) -> nn.Module:
    """The masked original of a small model: every kept slice holds what `small` holds, every other one zeros.

    It computes what `small` computes, after fine-tuning as before it, in the original's shapes and with its own
    module classes: for a checkpoint that old code reads, or to compare the two layer by layer.

    Args:
        plan: the plan that `small` was made with.
        small: the pruned model, trained further or not. It is left as it is.
        make_model: the original model, or a callable that makes one. A model is copied, not changed.

    Scales that were folded into a weight are divided out again, in the last bit of the weight. What training changed
    beside parameters and buffers (a module put in, a number like `eps` set anew) does not come along, and tensors
    that are neither keep the original's values where they were cut. Training the inflated model moves it away from the
    small one, since nothing holds the zeros: give it the masks of `structprune.mask` for that.

    Raises PlanError if the plan is for another original, or `small` is not what it makes of one; ArgumentTypeError.

    >>> result = structprune.prune(model, images, ratio=0.5)
    >>> train(result.model)
    >>> full = structprune.inflate(result.plan, result.model, model)
    """
    original = make_model if isinstance(make_model, nn.Module) or not callable(make_model) else make_model()
    for name, given in (("small", small), ("make_model", original)):
        if not isinstance(given, nn.Module):
            raise ArgumentTypeError(f"{name} must be (or make) a torch.nn.Module, not {type(given).__name__}")
    check_fits(plan, original)
    full = deep_copy(original)
    values, registered = named_tensors(small), set(registered_tensors(full))
    _check_small(plan, values, named_tensors(full), registered)
    with torch.no_grad():
        made = {
            id(tensor): _spread(plan, name, tensor, values[name], blank=name in registered)
            for name, tensor in named_tensors(full).items()
            if name in values
        }
    replace_tensors(full, made)
    training = {path: module.training for path, module in modules_of(small).items()}
    for path, module in modules_of(full).items():
        module.training = training.get(path, module.training)
    return full


def _check_small(plan: PruningPlan, small: dict[str, Tensor], full: dict[str, Tensor], registered: set[str]) -> None:
    for name in registered - set(small):
        raise PlanError(f"small is not a model that this plan makes: it has no {name!r}")
    for name, tensor in full.items():
        dims = plan.cut.get(name, {})
        shape = tuple(len(dims[d]) if d in dims else size for d, size in enumerate(tensor.shape))
        if name in small and tuple(small[name].shape) != shape:
            raise PlanError(
                f"small is not a model that this plan makes: {name} has the shape {tuple(small[name].shape)}, "
                f"the plan leaves {shape}"
            )


def _spread(plan: PruningPlan, name: str, like: Tensor, value: Tensor, *, blank: bool) -> Tensor:
    """The values at their original indices; the others are zero, or as they were."""
    dims = plan.cut.get(name, {})
    value = value.detach()
    if name in plan.scales:
        value = (value - plan.shifts.get(name, 0.0)) / plan.scales[name]
    old = (torch.zeros_like if blank else torch.clone)(like.detach()).to(value.device, value.dtype)
    places = {dim: torch.tensor(indices, device=value.device) for dim, indices in sorted(dims.items())}
    full = value.clone()
    for dim, place in places.items():  # one dimension grows at a time
        around = old
        for later in (d for d in places if d > dim):
            around = around.index_select(later, places[later])
        full = around.index_copy(dim, place, full)
    return nn.Parameter(full, like.requires_grad) if isinstance(like, nn.Parameter) else full
