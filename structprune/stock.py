"""Stock norms: with `norm="stock"` they stay as they are, and see only the channels that are kept.

The small model then deviates from the masked original, whose statistics count zeros. What it must equal, exactly,
is `over_kept`: the masked original with norms that look at the kept channels alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .counting import EXTREMES, STATISTICS
from .errors import ArgumentError
from .inventory import modules_of
from .ops import in_place, operation
from .plan import PruningPlan

NORMS = ("exact", "stock")
_DIMS = {"layer_norm": -1, "rms_norm": -1, "group_norm": 1}  # where the channels are


def check_norm(norm: Any) -> bool:
    """Whether norms stay stock; raises ArgumentError for anything but the two words."""
    if not isinstance(norm, str) or norm not in NORMS:
        raise ArgumentError(
            f"norm must be 'exact' (norms go on counting the original channels) or 'stock' (they stay as they are, "
            f"and deviate from the masked original), not {norm!r}"
        )
    return norm == "stock"


def over_kept(plan: PruningPlan, masked: nn.Module) -> nn.Module:
    """Turns the masked original, in place, into the one whose stock norms see kept channels only."""
    modules = modules_of(masked)
    for path, dims in plan.stock.items():
        module, kept = modules[path], torch.tensor(dims[0])
        vars(module)["forward"] = partial(_run, module.forward, _KeptOnly(kept, plan.sizes[path][0]))
    return masked


def _run(forward: Callable[..., Any], mode: _KeptOnly, *args: Any, **kwargs: Any) -> Any:
    with mode:
        return forward(*args, **kwargs)


class _KeptOnly(TorchFunctionMode):
    """Runs a norm on the kept channels, and leaves zeros in the others."""

    def __init__(self, kept: Tensor, channels: int) -> None:
        super().__init__()
        self.kept = kept
        self.channels = channels

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operation(function).name
        args, kwargs = in_place(name, args, kwargs or {})
        if name in _DIMS and args[0].shape[_DIMS[name]] == self.channels:
            return self.normed(function, _DIMS[name], *args, **kwargs)
        along = name not in EXTREMES or "dim" in kwargs or isinstance((*args, None)[1], int)
        if name in STATISTICS and along and len(args[0].shape) and self.channels in args[0].shape:
            return function(self.selected(args[0]), *args[1:], **kwargs)
        return function(*args, **kwargs)

    def normed(
        self, function: Callable[..., Any], dim: int, input: Tensor, shape: Any, *args: Any, **kw: Any
    ) -> Tensor:
        """Input and vectors are cut; the second argument is a normalised shape, or a number of groups."""
        shape = shape if isinstance(shape, int) else [len(self.kept)]
        index = self.kept.to(input.device)
        vectors = [a.index_select(0, index) if isinstance(a, Tensor) else a for a in args]
        named = {k: v.index_select(0, index) if isinstance(v, Tensor) else v for k, v in kw.items()}
        out = function(input.index_select(dim, index), shape, *vectors, **named)
        return torch.zeros_like(input).index_copy(dim, index, out)

    def selected(self, input: Tensor) -> Tensor:
        """The kept channels, of a norm written by hand."""
        dim = max(d for d, n in enumerate(input.shape) if n == self.channels)
        return input.index_select(dim, self.kept.to(input.device))
