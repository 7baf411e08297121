"""Constraints: which groups may shrink, and to which widths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import ArgumentError, ArgumentTypeError, UnknownNameError, closest
from .graph import ALMOST, ChannelGraph, Group
from .inventory import named_tensors
from .kinds import KINDS
from .labels import IntArray

Selector = str | type[nn.Module] | nn.Module


@dataclass(frozen=True)
class Choice:
    """What selectors name: parameters, the norms and biases of those that name no filter, and kinds of groups."""

    names: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()

    def touches(self, group: Group) -> bool:
        """Whether filters of the group are named, or one of its kinds."""
        return (bool(self.kinds) and not self.kinds.isdisjoint(group.kinds)) or any(
            s.name in (self.names if s.produces else self.others) for s in group.slices
        )

    def covers(self, group: Group) -> bool:
        """Whether all filters of the group are named, or all its kinds."""
        return (
            (bool(self.kinds) and self.kinds.issuperset(group.kinds))
            or all(s.name in self.names for s in group.slices if s.produces)
            or any(s.name in self.others for s in group.slices)
        )


@dataclass(frozen=True)
class Constraints:
    """Checked settings: what may go of which group."""

    exclude: Choice = Choice()
    include: Choice | None = None
    ratios: tuple[tuple[Choice, float], ...] = ()
    min_ratio: float = 0.0
    max_ratio: float = 1.0
    round_to: int = 1
    useful: Mapping[int, IntArray] = field(default_factory=dict)  # by a group's first unit: how many to keep

    def allow(self, group: Group) -> bool:
        """Whether the group may shrink at all."""
        return not self.exclude.touches(group) and (self.include is None or self.include.covers(group))

    def ratio_of(self, group: Group) -> float | None:
        """The ratio that was given for this group: the last that names it."""
        return next((ratio for choice, ratio in reversed(self.ratios) if choice.touches(group)), None)

    def stops(self, group: Group, movable: int) -> IntArray:
        """The numbers of units that may go, if `movable` of them can, in increasing order."""
        size = len(group)
        low = max(math.ceil(self.min_ratio * (size + group.gone) - ALMOST) - group.gone, 0)
        high = group.due(self.max_ratio)
        ratio = self.ratio_of(group)
        if ratio is not None:
            low, high = max(group.due(ratio), 0), size
        high = max(min(high, size - 1, movable), 0)
        low = min(low, high)
        numbers = np.arange(size if ratio is not None else high + 1)
        if self.round_to > 1:
            numbers = numbers[(numbers == 0) | ((size - numbers) % stride(group, self.round_to) == 0)]
        numbers = numbers[numbers <= movable]
        if ratio is not None:  # the next that is at least as small
            return numbers[min(int(np.searchsorted(numbers, low)), len(numbers) - 1)][None]
        allowed = numbers[numbers >= low]
        useful = self.useful.get(int(group.units[0]))
        worthy = allowed if useful is None else allowed[np.isin(size - allowed, useful)]
        return worthy if len(worthy) else allowed if len(allowed) else np.array([low])


def stride(group: Group, round_to: int) -> int:
    """How many units make widths that are multiples of `round_to`, in every layer that produces them."""
    widths = {int(n) for s in group.slices if s.produces for n in np.unique(np.bincount(s.units)) if n}
    return math.lcm(*(round_to // math.gcd(round_to, width) for width in widths))


# -- reading what the user gave -------------------------------------------------------------------------------


def read_constraints(
    graph: ChannelGraph, exclude: Any, include: Any, ratios: Any, min_ratio: Any, max_ratio: Any, round_to: Any
) -> Constraints:
    """The settings, checked against the model."""
    least = check_fraction(min_ratio, "min_ratio")
    most = check_fraction(max_ratio, "max_ratio")
    if least > most:
        raise ArgumentError(f"min_ratio must not be above max_ratio; {min_ratio!r} and {max_ratio!r} were given")
    return Constraints(
        choose(graph, exclude, "exclude"),
        None if include is None else choose(graph, include, "include"),
        _read_ratios(graph, ratios),
        least,
        most,
        read_rounding(graph, round_to),
    )


def check_ratio(ratio: Any, name: str = "ratio") -> float:
    """A number from 0 up to, but not including, 1."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float | np.number):
        raise ArgumentTypeError(f"{name} must be a number in [0, 1), not {ratio!r}")
    if not 0 <= ratio < 1:
        raise ArgumentError(f"{name} must be in [0, 1): the fraction of channels to remove; {ratio!r} was given")
    return float(ratio)


def check_fraction(value: Any, name: str) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ArgumentTypeError(f"{name} must be a number in [0, 1], not {value!r}")
    if not 0 <= value <= 1:
        raise ArgumentError(f"{name} must be in [0, 1]: a fraction of the units of each group; {value!r} was given")
    return float(value)


def choose(graph: ChannelGraph, selectors: Any, argument: str) -> Choice:
    """What one selector names, or several: patterns, kinds, modules, types of modules."""
    single = isinstance(selectors, str | type | nn.Module | Tensor | np.ndarray) or not isinstance(selectors, Iterable)
    names: set[str] = set()
    others: set[str] = set()
    kinds: set[str] = set()
    for selector in [selectors] if single else list(selectors):
        if isinstance(selector, str) and selector.startswith("kind:"):
            kinds.add(_kind(selector, argument))
            continue
        named = graph.matching(selector) if isinstance(selector, str) else _inside(graph, selector, argument)
        names.update(named)
        if graph.filters.isdisjoint(named):
            others.update(name for name in named if graph.space.tensors[name].ndim < 2)
    return Choice(frozenset(names), frozenset(others), frozenset(kinds))


def _kind(selector: str, argument: str) -> str:
    kind = selector.removeprefix("kind:")
    if kind not in KINDS:
        raise ArgumentError(f"{argument}: there is no kind {kind!r}; the kinds are {', '.join(KINDS)}")
    return kind


def _inside(graph: ChannelGraph, selector: Any, argument: str) -> set[str]:
    """The parameters inside of a module, or inside of all modules of a type."""
    modules = graph.space.modules.values()
    if isinstance(selector, nn.Module):
        found = [selector] if any(m is selector for m in modules) else []
        missing = f"the {type(selector).__name__} that was given is not a part of this model"
    elif isinstance(selector, type) and issubclass(selector, nn.Module):
        found = [m for m in modules if isinstance(m, selector)]
        known = sorted({type(m).__name__ for m in modules})
        missing = f"the model has no {selector.__name__}; {closest(selector.__name__, known)}"
    else:
        raise ArgumentTypeError(
            f"{argument} must be a pattern, a kind ('kind:head'), a module of the model or a type of modules, "
            f"or several of these; {selector!r} was given"
        )
    if not found:
        raise UnknownNameError(f"{argument}: {missing}")
    inside = {id(tensor) for module in found for tensor in named_tensors(module).values()}
    return {name for name, tensor in graph.space.tensors.items() if id(tensor) in inside}


def _read_ratios(graph: ChannelGraph, ratios: Any) -> tuple[tuple[Choice, float], ...]:
    if ratios is None:
        return ()
    if not isinstance(ratios, Mapping):
        raise ArgumentTypeError(f"ratios must map patterns to ratios, {{'layer1.*': 0.2}}; {ratios!r} was given")
    return tuple(
        (choose(graph, selector, "ratios"), check_ratio(ratio, f"the ratio of {selector!r}"))
        for selector, ratio in ratios.items()
    )


def read_rounding(graph: ChannelGraph, round_to: Any) -> int:
    """A positive number of channels; "auto" is what the model's device and dtype compute at once."""
    if isinstance(round_to, str) and round_to == "auto":
        return preferred_multiple(graph.model)
    if isinstance(round_to, bool) or not isinstance(round_to, int | np.integer):
        raise ArgumentTypeError(f"round_to must be a positive integer or 'auto', not {round_to!r}")
    if round_to < 1:
        raise ArgumentError(f"round_to must be at least 1; {round_to!r} was given")
    return int(min(round_to, 2**31))  # wider than any layer


_VECTOR_BYTES = {"AVX512": 64, "AVX2": 32}  # others, NEON among them, have 16


def preferred_multiple(model: nn.Module) -> int:
    """Channels that the hardware computes at once: a tile of tensor cores on CUDA, a vector register on a CPU.

    Tensor cores want multiples of 16 bytes (NVIDIA, "Matrix Multiplication Background User's Guide"): 8 channels
    of float16 or bfloat16, 4 of float32 (TF32), 2 of float64.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is None:
        return 1
    capability = torch.backends.cpu.get_cpu_capability() if weight.device.type == "cpu" else ""
    return max(_VECTOR_BYTES.get(capability, 16) // weight.element_size(), 1)
