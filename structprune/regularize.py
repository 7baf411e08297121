"""Sparsity learning: penalties that act on the same units as pruning does, to be added to the loss.

>>> graph = structprune.analyze(model, example_inputs)
>>> penalty = structprune.regularize.GroupLasso(graph, strength=1e-4)
>>> for images, classes in loader:
...     loss = cross_entropy(model(images), classes) + penalty()
...     ...

A penalty reads the parameters of the model that the graph was made of (in a wrapper such as DDP, too), so it
follows the training; it is a scalar tensor with gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .constraints import Selector, choose
from .errors import ArgumentError, ArgumentTypeError
from .graph import ChannelGraph, Group, Slice, check_graph
from .importance.base import Criterion
from .importance.weights import is_scale
from .plan import PruningPlan


class GroupLasso:
    """The sum of the L2 norms of all units, each over all its coupled slices and times the root of its size.

    Yuan & Lin, "Model selection and estimation in regression with grouped variables", 2006; for filters Wen et
    al., "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016; over coupled layers Fang et al.,
    "DepGraph", CVPR 2023. Whole units go to zero; a unit that is zero has the gradient 0.

    Args:
        strength: what the sum is multiplied by.
        slices: the slices that count: `"producers"`, `"consumers"` or `"all"`, as for importances.
        exclude: whose units are left alone, as for `plan`.

    Raises ArgumentError, ArgumentTypeError, UnknownNameError (an `exclude` pattern matches nothing).
    """

    def __init__(
        self,
        graph: ChannelGraph,
        strength: float = 1e-4,
        *,
        slices: str = "all",
        exclude: Selector | Iterable[Selector] = (),
    ) -> None:
        self.strength = _nonnegative("strength", strength)
        choice = Criterion(slices)
        self._groups = [(group, choice.parts(group)) for group in _groups(graph, exclude)]

    def __call__(self) -> Tensor:
        """The penalty for the parameters as they are now, a scalar."""
        return self.strength * _total(self._norms(group, parts).sum() for group, parts in self._groups)

    def _norms(self, group: Group, parts: list[Slice]) -> Tensor:
        squares, sizes = torch.zeros(len(group), device=parts[0].tensor.device), np.zeros(len(group))
        for part in parts:
            values, size = _real(part.tensor).square(), part.tensor.shape[part.dim]
            sums = values.movedim(part.dim, 0).reshape(size, -1).sum(1)
            indices, units = (torch.from_numpy(x).to(values.device) for x in (part.indices, part.units))
            squares = squares.to(sums).index_add(0, units, sums[indices])
            sizes += np.bincount(part.units, minlength=len(group)) * (part.tensor.numel() // size)
        norms = squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()  # no gradient below: that at 0 is infinite
        return norms * torch.from_numpy(sizes).to(norms).sqrt()


class BNScale:
    """The L1 norm of the scales of all norms that belong to a unit, |gamma|, with its subgradient, sign(gamma).

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017. Goes with
    `structprune.importance.BNScale`.

    Args:
        strength: what the sum is multiplied by.
        exclude: whose units are left alone, as for `plan`.

    Raises ArgumentError, also if no group has a norm with a scale, ArgumentTypeError, UnknownNameError.
    """

    def __init__(
        self, graph: ChannelGraph, strength: float = 1e-4, *, exclude: Selector | Iterable[Selector] = ()
    ) -> None:
        self.strength = _nonnegative("strength", strength)
        self._scales = [part for group in _groups(graph, exclude) for part in group.slices if is_scale(part)]
        if not self._scales:
            raise ArgumentError("no unit is multiplied by the scale of a norm; use GroupLasso")

    def __call__(self) -> Tensor:
        """The penalty for the scales as they are now, a scalar."""
        return self.strength * _total(
            _real(part.tensor)[torch.from_numpy(part.indices).to(part.tensor.device)].abs().sum()
            for part in self._scales
        )


class Growing:
    """An L2 penalty on what a plan will remove, whose strength grows: it goes to zero slowly, and the rest learns
    to do without before anything is cut.

    Wang et al., "Neural Pruning via Growing Regularization" (GReg-1), ICLR 2021.

    >>> penalty = structprune.regularize.Growing(graph, plan, growth=1e-4)
    >>> for images, classes in loader:
    ...     loss = cross_entropy(model(images), classes) + penalty()
    ...     ...                                # step the optimizer
    ...     penalty.grow()                     # every step, or every few
    >>> small = structprune.apply(plan, model)

    Args:
        plan: what will be removed; every parameter in it is penalised, with the slices surgery cuts.
        strength: what half the sum of squares is multiplied by, at first.
        growth: how much `grow` adds to it.
        ceiling: where it stops growing.

    Raises ArgumentError, ArgumentTypeError, and PlanError for a plan made for another model.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        plan: PruningPlan,
        *,
        strength: float = 0.0,
        growth: float = 1e-4,
        ceiling: float = 1.0,
    ) -> None:
        check_graph(graph)
        graph.check_plan(plan)
        self.strength = _nonnegative("strength", strength)
        self.growth = _nonnegative("growth", growth)
        self.ceiling = _nonnegative("ceiling", ceiling)
        learned = dict(graph.model.named_parameters())
        self._parts = [(learned[name], dims) for name, dims in plan.kept.items() if name in learned]

    def grow(self) -> float:
        """Raises the strength by one step, up to the ceiling, and returns it."""
        self.strength = max(self.strength, min(self.strength + self.growth, self.ceiling))
        return self.strength

    def __call__(self) -> Tensor:
        """The penalty for the parameters as they are now, a scalar."""
        squares = (block.square().sum() for tensor, dims in self._parts for block in _removed(_real(tensor), dims))
        return self.strength / 2 * _total(squares)


def _removed(tensor: Tensor, dims: dict[int, tuple[int, ...]]) -> Iterable[Tensor]:
    """The blocks of a tensor that are cut, without overlap: rows, then columns of the rows that stay, and so on."""
    for dim, kept in dims.items():
        index = torch.tensor(kept, device=tensor.device)
        gone = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
        gone[index] = False
        yield tensor.index_select(dim, gone.nonzero().flatten())
        tensor = tensor.index_select(dim, index)


def _real(tensor: Tensor) -> Tensor:
    """Real numbers wide enough for their squares: a complex dimension is followed by one of real and imaginary part."""
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _total(values: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, which may lie on several devices."""
    total: Tensor | None = None
    for value in values:
        total = value if total is None else total + value.to(total.device)
    return torch.zeros(()) if total is None else total


def _groups(graph: ChannelGraph, exclude: Selector | Iterable[Selector]) -> list[Group]:
    """The groups that have something to remove and are not excluded."""
    check_graph(graph)
    out = choose(graph, exclude, "exclude")
    return [group for group in graph.groups if len(group) > 1 and not out.touches(group)]


def _nonnegative(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(f"{name} must be a number, not {value!r}")
    if not 0 <= value <= sys.float_info.max:
        raise ArgumentError(f"{name} must be finite and at least 0; {value!r} was given")
    return float(value)
