"""The masked original: the same model with everything the plan removes set to zero.

This is the oracle that surgery is measured against, and it shares no code with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from .copying import deep_copy
from .fitting import check_fits
from .inventory import Inventory, distinct
from .plan import PruningPlan
from .unmask import lay_masks


def mask_of(plan: PruningPlan, name: str, like: Tensor) -> Tensor:
    """Ones where a parameter is kept and zeros where it goes, in its shape."""
    mask = torch.ones_like(like, requires_grad=False)
    for dim, indices in plan.removed(name).items():
        mask.index_fill_(dim, torch.tensor(indices, dtype=torch.int64, device=like.device), 0)
    return mask


def zeroed(plan: PruningPlan, model: nn.Module) -> nn.Module:
    """A deep copy of `model` in which every removed slice holds zeros."""
    check_fits(plan, Inventory(model))
    masked = deep_copy(model)
    named = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for name in plan.kept:
            tensor = named[name]
            if distinct(tensor).shape != tensor.shape:  # an expanded buffer: its channels get memory of their own
                tensor.data = tensor.data.clone()
            tensor.masked_fill_(mask_of(plan, name, tensor) == 0, 0)  # also where there was infinity
    return masked


def mask(plan: PruningPlan, model: nn.Module) -> nn.Module:
    """The masked original with standard `torch.nn.utils.prune` masks on its parameters.

    Buffers such as running statistics, which cannot carry a mask, hold zeros. `torch.nn.utils.prune.remove`
    works on every masked parameter, and while the model is trained the masks hold the zeros. Producers and consumers
    are both masked, so that an activation with f(0) != 0 does not leak. Raises PlanError if the plan was made for
    another model.
    """
    masked = zeroed(plan, model)
    canonical = {id(p): name for name, p in masked.named_parameters()}
    masks = {name: mask_of(plan, name, parameter) for name, parameter in masked.named_parameters() if name in plan.kept}
    for module in list(masked.modules()):
        for local, parameter in list(module._parameters.items()):
            name = canonical.get(id(parameter), "") if parameter is not None else ""
            if name in masks:
                prune.custom_from_mask(module, local, masks[name])
        _put_first(module)
    if masks:
        masked.register_forward_pre_hook(lay_masks, prepend=True)
    return masked


def _put_first(module: nn.Module) -> None:
    """Masks are laid on before other hooks compute with the parameter, as `torch.nn.utils.spectral_norm` does.

    `torch.nn.utils.prune` registers its hooks itself, and last; there is no public way to move one.
    """
    hooks: Any = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, prune.BasePruningMethod)]:
        hooks.move_to_end(key, last=False)
