"""Random numbers held constant: what is drawn for channels differs between models that have not equally many of them.

Two models can be compared over noise that no seed gives to both alike: with half of every distribution's spread in
place of each number, or with the likelier side of a coin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .ops import Operation

HALF = 0.5


def drawn(known: Operation, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a function that draws numbers returns if each is what `_MADE` and `_FILLED` say; None if it draws none."""
    if known.python:  # it calls the others
        return None
    if known.inplace and known.name in _FILLED:
        return _FILLED[known.name](*args, **_without_generator(kwargs))
    if not known.inplace and known.name in _MADE:
        out = function(*args, **kwargs)
        return out.copy_(_MADE[known.name](*args, **_without_generator(kwargs)))
    return None


def _without_generator(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "generator"}


def _likely(p: Any) -> Tensor:
    return (torch.as_tensor(p, dtype=None if isinstance(p, Tensor) else torch.float64) >= HALF).double()


def _half(*args: Any, **kwargs: Any) -> Tensor:
    return torch.tensor(HALF)


def _normal(mean: Any = 0.0, std: Any = 1.0, *args: Any, **kwargs: Any) -> Tensor:
    return torch.as_tensor(mean) + HALF * torch.as_tensor(std)


def _bernoulli(input: Tensor, p: Any = None, **kwargs: Any) -> Tensor:
    return _likely(input if p is None else p)


# By name: the numbers that stand for those of a new tensor.
_MADE: dict[str, Callable[..., Tensor]] = {
    "rand": _half, "randn": _half, "rand_like": _half, "randn_like": _half, "normal": _normal, "bernoulli": _bernoulli,
}  # fmt: skip


def _fill_normal(into: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return into.fill_(mean + HALF * std)


def _fill_uniform(into: Tensor, low: float = 0.0, high: float = 1.0, **named: float) -> Tensor:
    return into.fill_((named.get("from", low) + named.get("to", high)) * HALF)


def _fill_bernoulli(into: Tensor, p: Any = HALF) -> Tensor:
    return into.copy_(_likely(p))


def _fill_exponential(into: Tensor, lambd: float = 1.0) -> Tensor:
    return into.fill_(HALF / lambd)


# By name: what is written into a tensor that is filled in place.
_FILLED: dict[str, Callable[..., Tensor]] = {
    "normal": _fill_normal, "uniform": _fill_uniform, "bernoulli": _fill_bernoulli, "exponential": _fill_exponential,
}  # fmt: skip
