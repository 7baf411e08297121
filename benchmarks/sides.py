"""Both libraries made to prune a network to given shares of its MACs, with an importance of theirs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import structprune as sp
from structprune import importance as imp

from .rivals import attentions, set_sizes
from .tasks import BATCH, Data, macs

Pruned = Iterator[tuple[float, nn.Module]]  # the share of the MACs, and the model that meets it
Prune = Callable[[nn.Module, Data, Sequence[float]], Pruned]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def smallest(fits: Callable[[float], bool], parts: int = 16, steps: int = 4) -> float | None:
    """The smallest ratio below 1 that fits, if one does: the first of `parts`, then bisection below it.

    Torch-Pruning spares layers that a ratio would empty, so that larger ratios may remove less.
    """
    high = next((ratio for i in range(parts) if fits(ratio := (i + 1) / parts - 1e-9)), None)
    if high is None:
        return None
    low = max(high - 1 / parts, 0.0)
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def ours(make: Callable[[list[Any]], Any]) -> Prune:
    """structprune, with the importance that `make` returns for some batches."""

    def prune(model: nn.Module, data: Data, levels: Sequence[float]) -> Pruned:
        graph = sp.analyze(model, data.images[:1])
        criterion = make(data.batches(BATCH))
        if hasattr(criterion, "prepare"):
            criterion.prepare(graph)
        scores = {id(group): criterion(group) for group in graph.groups}

        def stored(group: sp.Group) -> Any:
            return scores[id(group)]

        stored.normalize = imp.normalization_of(criterion)  # type: ignore[attr-defined]
        return _levels(model, data, levels, lambda ratio: sp.apply(sp.plan(graph, stored, ratio, "global"), model))

    return prune


def theirs(
    make: Callable[[], Any], prepare: Callable[[Any, nn.Module, Data], None] | None = None, **options: Any
) -> Prune:
    """Torch-Pruning, with a fresh copy of the model for each ratio that is tried."""
    import torch_pruning as tp

    def prune(model: nn.Module, data: Data, levels: Sequence[float]) -> Pruned:
        criterion = make()

        def cut(ratio: float) -> nn.Module:
            copied: Any = copy.deepcopy(model)
            if prepare:
                prepare(criterion, copied, data)
            pruner = tp.pruner.BasePruner(
                copied, data.images[:1], importance=criterion, pruning_ratio=ratio, global_pruning=True,
                ignored_layers=[copied.head], num_heads={m.qkv: m.num_heads for m in attentions(copied)}, **options,
            )  # fmt: skip
            pruner.step()
            set_sizes(copied, pruner)
            return copied

        return _levels(model, data, levels, cut)

    return prune


def _levels(model: nn.Module, data: Data, levels: Sequence[float], cut: Callable[[float], nn.Module]) -> Pruned:
    """What is left at the smallest ratio that meets each level; raises ValueError if none does."""
    left = functools.cache(lambda ratio: macs(cut(ratio), data.images) / whole)
    whole = macs(model, data.images)
    for level in levels:
        ratio = smallest(lambda ratio, level=level: left(ratio) <= level)  # type: ignore[misc]
        if ratio is None:
            raise ValueError(f"no ratio leaves {level:.0%} of the MACs")
        yield level, cut(ratio)


def take_gradients(criterion: Any, model: nn.Module, data: Data) -> None:
    """What GroupTaylorImportance reads: the gradients of the loss over all the data, computed for the first copy."""
    if not hasattr(criterion, "gradients"):
        criterion.gradients = torch.autograd.grad(loss(model, data), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), criterion.gradients, strict=True):
        parameter.grad = gradient


def take_squares(criterion: Any, model: nn.Module, data: Data) -> None:
    """What GroupHessianImportance reads: the squared gradients of single examples."""
    criterion.zero_grad()
    for one in cross_entropy(model(data.images[:32]), data.classes[:32], reduction="none"):
        model.zero_grad()
        one.backward(retain_graph=True)
        criterion.accumulate_grad(model)
