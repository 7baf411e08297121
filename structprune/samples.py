"""Inputs that two models are compared on: random numbers like those of the examples, or the examples themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .program import Call, tensors_in
from .running import deterministic, in_float64, run


@dataclass(frozen=True)
class Sample:
    """What a call is compared on: in float64, and in the dtypes of the example."""

    wide: Call
    plain: Call


def sampled(model: nn.Module, calls: Sequence[Call], device: torch.device) -> list[Sample]:
    """A sample for each call of a model in float64: random numbers, or the example where the model does not take these,
    as one that needs positive numbers, or gives fewer finite ones for them.

    Raises what the model raises for the example.
    """
    with deterministic():
        return [_sample(model, call, device) for call in calls]


def _sample(model: nn.Module, call: Call, device: torch.device) -> Sample:
    own = call.mapped(lambda tensor: tensor.to(device))
    renewed = own.mapped(fresh)
    try:
        outputs = run(model, renewed.mapped(in_float64), "eval")
    except Exception:  # whatever the user's code raises
        run(model, own.mapped(in_float64), "eval")  # raises what the model raises
        return Sample(own.mapped(in_float64), own)
    if not all(bool(output.isfinite().all()) for output in outputs):
        expected = run(model, own.mapped(in_float64), "eval")
        if _finite(expected) > _finite(outputs):
            return Sample(own.mapped(in_float64), own)
    return Sample(renewed.mapped(in_float64), renewed)


def _finite(outputs: Sequence[Tensor]) -> int:
    return sum(int(output.isfinite().sum()) for output in outputs)


def fresh(tensor: Tensor) -> Tensor:
    """Random numbers with the mean and spread of an example. Integers and masks (two numbers alone, 0 and -inf, say)
    stay as they are, and so does what is not finite."""
    if not tensor.is_floating_point():
        return tensor
    values = tensor.double()
    finite = values.isfinite()
    numbers = values[finite]
    if not len(numbers) or (values.numel() > 2 and _is_mask(values)):
        return tensor
    spread = numbers.std(correction=0).clamp(min=0.1) if len(numbers) > 1 else 1.0
    renewed = torch.randn_like(values) * spread + numbers.mean()
    return torch.where(finite, renewed, values).to(tensor.dtype)


def _is_mask(values: Tensor) -> bool:
    low, high = values.min(), values.max()
    return bool(low < high) and bool(((values == low) | (values == high)).all())


def variants(call: Call) -> Iterator[tuple[Call, str, int | None]]:
    """As it is, one larger in the batch, and in train mode with a batch of at least two.

    The batch is what the first tensor has along its first dimension; times and labels [batch] grow along with images.
    """
    first = next(tensors_in((call.args, dict(call.kwargs))), None)
    rank = first.ndim if first is not None else 0
    size = first.shape[0] if first is not None and rank else None

    def enlarge(tensor: Tensor) -> Tensor:
        alike = tensor.ndim and tensor.shape[0] == size and max(tensor.ndim, rank) > 1
        return torch.cat([tensor, tensor[:1].flip(-1)]) if alike else tensor

    larger = call.mapped(enlarge)
    yield call, "eval", size
    if size is not None:
        yield larger, "eval", size + 1
    yield larger, "train", size
