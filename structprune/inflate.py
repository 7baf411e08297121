"""Inflation: a small model in the shapes of the original, with zeros where it was cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .copying import deep_copy
from .errors import ArgumentTypeError, PlanError
from .fitting import check_fits
from .inventory import Inventory, modules_of, named_tensors
from .nn import width_of_bias
from .plan import Kept, PruningPlan
from .prepare import check_values, unwrap
from .surgery import replace_tensors
from .swaps import BIAS, swap


def inflate(plan: PruningPlan, small: nn.Module, make_model: Callable[[], nn.Module] | nn.Module) -> nn.Module:
    """The masked original of a small model: every kept slice holds what `small` holds, every other one zeros.

    It computes what `small` computes, after fine-tuning as before it, in the original's shapes and with its own
    module classes: for a checkpoint that old code reads, or to compare the two layer by layer.

    Args:
        plan: the plan that `small` was made with.
        small: the pruned model, trained further or not. It is left as it is.
        make_model: the original model, or a callable that makes one. A model is copied, not changed.

    Biases that `shrink` added are added here, too. Scales that were folded into a weight are divided out again, up to
    the last bit of the weight. What was changed beside parameters and buffers (a module put in, a number like `eps`
    set anew) does not come along, and tensors that are neither keep the original's values where they were cut.
    Training the inflated model moves it away from the small one, since nothing holds the zeros: give it the masks of
    `structprune.mask` for that.

    Raises PlanError if the plan is for another original, or `small` is not what it makes of one;
    UnsupportedModelError for an original on the meta device; ArgumentTypeError.

    >>> result = structprune.prune(model, images, ratio=0.5)
    >>> train(result.model)
    >>> full = structprune.inflate(result.plan, result.model, model)
    """
    makes = callable(make_model) and not isinstance(make_model, nn.Module | torch.export.ExportedProgram)
    original: Any = make_model() if makes else make_model  # type: ignore[operator]
    for name, given in (("small", small), ("make_model", original)):
        if not isinstance(given, nn.Module):
            raise ArgumentTypeError(f"{name} must be (or make) a torch.nn.Module, not {type(given).__name__}")
    small, original = unwrap(small), unwrap(original)
    check_values(original)
    check_fits(plan, Inventory(original))
    full = deep_copy(original)
    replace_tensors(full, _values(plan, full, small))
    training = {path: module.training for path, module in modules_of(small).items()}
    for path, module in modules_of(full).items():
        module.training = training.get(path, module.training)
    return full


def _values(plan: PruningPlan, full: nn.Module, small: nn.Module) -> dict[int, Tensor]:
    """What takes the place of each tensor of `full`, by its id."""
    cut = {**plan.cut, **_give_biases(plan, full)}
    found, tensors, registered = named_tensors(small), named_tensors(full), set(Inventory(full).registered)
    _check_small(cut, found, tensors, registered)
    made = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name in found:
                value = found[name].detach()
                if name in plan.scales:
                    value = (value - plan.shifts.get(name, 0.0)) / plan.scales[name]
                made[id(tensor)] = _spread(cut.get(name, {}), tensor, value, blank=name in registered)
    return made


def _give_biases(plan: PruningPlan, full: nn.Module) -> Kept:
    """The biases that `shrink` adds to modules without one, and which of their numbers the small model has."""
    cut: Kept = {}
    modules, names = modules_of(full), {id(tensor): name for name, tensor in named_tensors(full).items()}
    for path in (path for path, (name, _) in plan.swaps.items() if name == BIAS):
        module: Any = modules[path]
        dim = 1 if getattr(module, "transposed", False) else 0
        if dim and module.groups > 1:
            raise PlanError(f"the bias that {path} was given cannot be placed: it is a grouped transposed convolution")
        swap(module, BIAS, getattr(module, width_of_bias(module)))
        dims = plan.cut.get(names[id(module.weight)], {})
        cut[f"{path}.bias"] = {0: dims[dim]} if dim in dims else {}
    return cut


def _check_small(cut: Kept, small: dict[str, Tensor], full: dict[str, Tensor], registered: set[str]) -> None:
    for name in registered - set(small):
        raise PlanError(f"small is not a model that this plan makes: it has no {name!r}")
    for name, tensor in full.items():
        dims = cut.get(name, {})
        shape = tuple(len(dims[d]) if d in dims else size for d, size in enumerate(tensor.shape))
        if name in small and tuple(small[name].shape) != shape:
            raise PlanError(
                f"small is not a model that this plan makes: {name} has the shape {tuple(small[name].shape)}, "
                f"the plan leaves {shape}"
            )


def _spread(dims: Mapping[int, tuple[int, ...]], like: Tensor, value: Tensor, *, blank: bool) -> Tensor:
    """The values at their original indices; the others are zero, or as they were."""
    old = (torch.zeros_like if blank else torch.clone)(like.detach()).to(value.device, value.dtype)
    places = {dim: torch.tensor(indices, device=value.device) for dim, indices in sorted(dims.items())}
    full = value.clone()
    for dim, place in places.items():  # one dimension grows at a time
        around = old
        for later in (d for d in places if d > dim):
            around = around.index_select(later, places[later])
        full = around.index_copy(dim, place, full)
    return nn.Parameter(full, like.requires_grad) if isinstance(like, nn.Parameter) else full
