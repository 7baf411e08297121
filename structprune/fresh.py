"""Fresh models: weights of zeros, as at the ends of residual branches or of the model, hide what leads to them."""

from __future__ import annotations

from torch import Tensor, nn

from .copying import deep_copy
from .running import deterministic


def hides(model: nn.Module) -> bool:
    """Whether weights hold zeros alone: scales, gates or matrices; biases hide nothing."""
    return any(not name.endswith("bias") and _is_blank(tensor) for name, tensor in model.named_parameters())


def awakened(model: nn.Module) -> nn.Module:
    """A copy with small random numbers in place of parameters that hold zeros alone; they have roots and logarithms."""
    awake = deep_copy(model)
    with deterministic():
        for parameter in filter(_is_blank, awake.parameters()):
            parameter.uniform_(0.01, 0.2)
    return awake


def _is_blank(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and not bool(tensor.any())
