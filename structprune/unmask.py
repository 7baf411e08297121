"""Masks of `torch.nn.utils.prune`, made permanent on a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from .copying import deep_copy
from .errors import UnsupportedModelError
from .inventory import modules_of


class Masked(NamedTuple):
    """A parameter that carries a mask: `module.name` is `original * mask`."""

    path: str  # of the module
    module: nn.Module
    name: str
    hook: int  # the key of its forward pre-hook
    original: nn.Parameter
    mask: Tensor

    @property
    def qualified(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name


def masks_of(model: nn.Module) -> Iterator[Masked]:
    """Every mask on a model's parameters; several prunings of one parameter have one mask."""
    for path, module in modules_of(model).items():
        for key, hook in module._forward_pre_hooks.items():
            if isinstance(hook, BasePruningMethod):
                name = hook._tensor_name
                original, mask = module._parameters[name + "_orig"], module._buffers[name + "_mask"]
                if original is not None and mask is not None:
                    yield Masked(path, module, name, key, original, mask)


def lay_masks(model: nn.Module, inputs: Any) -> None:
    """A hook that lays on every mask in a model before it runs: a mask's own hook waits for the `forward` of the module
    that has the parameter, which is never called where another module reads it, as `nn.MultiheadAttention` does."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                hook(module, inputs)


def unmask(model: nn.Module) -> nn.Module:
    """A deep copy in which every mask is permanent: plain parameters that hold zeros, and no hooks.

    Parameters that are tied, with equal masks or with none, stay tied. The copy has the fingerprint of a model that
    was never masked.

    Raises UnsupportedModelError if the model cannot be copied, or is on the meta device and has no values.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UnsupportedModelError(
                f"{name} is on the meta device, where it has no values: none is known to be zero"
            )
    found = list(masks_of(model))
    computed = {id(value): _placeholder(value) for m in found if (value := vars(m.module).get(m.name)) is not None}
    copied = deep_copy(model, dict(computed))
    made: list[tuple[nn.Parameter, Tensor, nn.Parameter]] = []
    for masked in list(masks_of(copied)):
        module, name = masked.module, masked.name
        del module._forward_pre_hooks[masked.hook]
        del module._parameters[name + "_orig"], module._buffers[name + "_mask"]
        vars(module).pop(name, None)
        setattr(module, name, _permanent(masked.original, masked.mask, made))
    for module in copied.modules():
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is lay_masks]:
            del module._forward_pre_hooks[key]
    return copied


def _placeholder(value: Tensor) -> Tensor:
    """In place of a product with a mask, which has a history and cannot be copied."""
    return torch.empty_like(value, device="meta", requires_grad=False)


def _permanent(
    original: nn.Parameter, mask: Tensor, made: list[tuple[nn.Parameter, Tensor, nn.Parameter]]
) -> nn.Parameter:
    """One parameter for each original and mask."""
    for other, its_mask, parameter in made:
        if other is original and torch.equal(its_mask, mask):
            return parameter
    with torch.no_grad():
        parameter = nn.Parameter((original * mask.to(original.dtype)).detach(), original.requires_grad)
    made.append((original, mask, parameter))
    return parameter
