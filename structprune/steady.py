"""Random numbers held constant: what is drawn for channels differs between models that have not equally many of them.

Two models can be compared over noise that no seed gives to both alike, with one number in place of all: low in its
distribution in one run, high in another, and in between, so that a coin falls on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .ops import Operation

LEVELS = (2**-20, 0.53, 1 - 2**-20)  # how far from the lower end of what may be drawn


def drawn(
    known: Operation, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], level: float
) -> Any:
    """What a function that draws numbers returns if they are all those of a level; None if it draws none."""
    named = {name: value for name, value in kwargs.items() if name != "generator"}
    if known.name == "gumbel_softmax":
        return _without_noise(*args, **named)
    if known.python and "fractional_max_pool" in known.name and named.get("_random_samples", *args[5:]) is None:
        rank = int(known.name.partition("pool")[2][0])
        return function(*args[:5], **{**named, "_random_samples": _places(level, args[0], rank)})
    if known.python:  # it calls the others
        return None
    if known.inplace and known.name in _FILLED:
        return args[0].copy_(_FILLED[known.name](level, *args[1:], **named))
    if not known.inplace and known.name in _MADE:
        out = function(*args, **kwargs)
        return out.copy_(_MADE[known.name](level, *args, **named))
    return None


def _coin(level: float, p: Any) -> Tensor:
    """One where it falls on the side that has the probability `p`."""
    return (torch.as_tensor(p, dtype=None if isinstance(p, Tensor) else torch.float64) > level).double()


def _unit(level: float, *args: Any, **kwargs: Any) -> Tensor:
    return torch.tensor(level)


def _standard(level: float, *args: Any, **kwargs: Any) -> Tensor:
    return torch.tensor(2 * level - 1)


def _normal(level: float, mean: Any = 0.0, std: Any = 1.0, *args: Any, **kwargs: Any) -> Tensor:
    return torch.as_tensor(mean) + (2 * level - 1) * torch.as_tensor(std)


def _bernoulli(level: float, input: Tensor, p: Any = None, **kwargs: Any) -> Tensor:
    return _coin(level, input if p is None else p)


# By name: the numbers that stand for those of a new tensor.
_MADE: dict[str, Callable[..., Tensor]] = {
    "rand": _unit, "rand_like": _unit, "randn": _standard, "randn_like": _standard, "normal": _normal,
    "bernoulli": _bernoulli,
}  # fmt: skip


def _uniform(level: float, low: float = 0.0, high: float = 1.0, **named: float) -> Tensor:
    low, high = named.get("from", low), named.get("to", high)
    return torch.tensor(low + (high - low) * level)


def _exponential(level: float, lambd: float = 1.0) -> Tensor:
    return torch.tensor(2 * level / lambd)


# By name: what is written into a tensor that is filled in place.
_FILLED: dict[str, Callable[..., Tensor]] = {
    "normal": _normal, "uniform": _uniform, "exponential": _exponential,
    "bernoulli": lambda level, p=0.5: _coin(level, p),
}  # fmt: skip


def _places(level: float, input: Tensor, rank: int) -> Tensor:
    """Where the windows of a fractional pooling lie, [N, C, rank]."""
    return input.new_full((input.shape[0] if input.ndim > rank + 1 else 1, input.shape[-rank - 1], rank), level)


def _without_noise(logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Tensor:
    """`F.gumbel_softmax` with equal noise everywhere, which is none."""
    soft = F.softmax(logits / tau, dim)
    return torch.zeros_like(soft).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0) if hard else soft
