"""Rounding: how coarse what a model computes is, where values come to nothing but for it.

The sum of what a norm has centred, or the running mean of what another batch norm has, is zero up to rounding, and
cannot be compared with itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .copying import deep_copy
from .inventory import named_tensors
from .program import Call
from .running import outcome
from .steady import LEVELS

COARSE = 2**7  # times the difference that float32 makes
_NARROWER = {torch.float64: torch.float32, torch.complex128: torch.complex64}
_SPREAD = (1.0, 1.03, 0.97)  # weights are multiplied by each, since rounding may come to nothing by chance


@torch.no_grad()
def grains(model: nn.Module, call: Call, mode: str, names: Iterable[str]) -> list[float]:
    """What to divide a difference by at least, for each output of a model in float64 and each of these buffers.

    Float32 shows what rounding does; float64 is finer by 2**29. What differs by 1e-9 of this differs by sixty times the
    rounding of float64. Empty if the model does not run in float32.
    """
    found: list[list[float]] = []
    for factor in _SPREAD:
        wide = deep_copy(model)
        for parameter in wide.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.mul_(factor)
        narrow = deep_copy(wide)
        for tensor in named_tensors(narrow).values():
            tensor.data = _narrow(tensor.data)
        smaller = call.mapped(_narrow)
        try:
            runs = [outcome(one, given, mode, LEVELS[0]) for one, given in ((wide, call), (narrow, smaller))]
            exact, coarse = ([*outputs, *(buffers[name] for name in names)] for outputs, buffers in runs)
        except Exception:  # whatever the user's code raises
            return []
        found.append([COARSE * _apart(a, b) for a, b in zip(exact, coarse, strict=True)])
    return [max(column) for column in zip(*found, strict=True)]


def _narrow(tensor: Tensor) -> Tensor:
    return tensor.to(_NARROWER.get(tensor.dtype, tensor.dtype))


def _apart(exact: Tensor, coarse: Tensor) -> float:
    """The largest difference; 0 where there is none that is finite."""
    apart = float((exact - coarse).abs().max()) if exact.shape == coarse.shape and exact.numel() else 0.0
    return apart if math.isfinite(apart) else 0.0
