"""Where two models first differ, module by module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .program import Call, tensors_in
from .running import errors, outcome
from .steady import LEVELS

Outputs = list[tuple[str, list[Tensor]]]


def first_difference(pair: Sequence[nn.Module], call: Call, mode: str) -> str | None:
    """The first module, in the order of execution, whose output differs in every way of aligning its channels."""
    (expected, _), (found, failure) = (observe(model, call, mode) for model in pair)
    if failure:
        return failure
    for (path, large), (_, small) in zip(expected, found, strict=False):
        if any(not _contained(a, b) for a, b in zip(small, large, strict=False)):
            return path or "the model"
    return None


def observe(model: nn.Module, call: Call, mode: str) -> tuple[Outputs, str]:
    """What every module returned, in order, and the module that failed and how, if one did."""
    outputs: Outputs = []
    entered: list[str] = []
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, a, path=path: entered.append(path)))
        handles.append(
            module.register_forward_hook(lambda m, a, out, path=path: outputs.append((path, [*tensors_in(out)])))
        )
    try:
        outcome(model, call, mode, LEVELS[0])
    except Exception as error:  # whatever the user's code raises
        return outputs, f"{(entered and entered[-1]) or 'the model'}, which fails: {said(error)}"
    finally:
        for handle in handles:
            handle.remove()
    return outputs, ""


def _contained(small: Tensor, large: Tensor) -> bool:
    """Whether the values of `small` occur in `large`: channels that went leave the others' values behind."""
    if small.shape == large.shape:
        return bool(errors([small], [large])[1] <= 1e-9)
    values = torch.sort(large.flatten().double()).values
    wanted = small.flatten().double()
    at = torch.searchsorted(values, wanted).clamp(max=len(values) - 1)
    near = torch.minimum((values[at] - wanted).abs(), (values[(at - 1).clamp(min=0)] - wanted).abs())
    return bool((near <= 1e-9 * values.abs().max()).all())


def said(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
