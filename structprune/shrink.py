"""Shrinking: a masked model becomes a smaller one that computes the same."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
from torch import nn

from .api import Result, analyze, removed_units, report_on
from .collector import paused
from .constants import Knowns
from .copying import deep_copy
from .errors import VerificationError
from .folding import Edits, edits_of
from .graph import ChannelGraph
from .liveness import Liveness
from .plan import PruningPlan
from .planning import settle
from .prepare import calls_of, unwrap
from .surgery import apply
from .unmask import unmask
from .verify import Verification, agreement, double, find_device
from .weights import Weight


@overload
def shrink(
    model: nn.Module, example_inputs: Any, *, verify: bool = ..., details: Literal[False] = ...
) -> nn.Module: ...
@overload
def shrink(model: nn.Module, example_inputs: Any, *, verify: bool = ..., details: Literal[True]) -> Result: ...
def shrink(model: nn.Module, example_inputs: Any, *, verify: bool = True, details: bool = False) -> nn.Module | Result:
    """The masked model without its dead channels: a plain, smaller module that computes the same in eval mode.

    >>> for module in model.modules():
    ...     if isinstance(module, nn.Conv2d):
    ...         torch.nn.utils.prune.ln_structured(module, "weight", amount=0.5, n=1, dim=0)
    >>> small = structprune.shrink(model, torch.randn(1, 3, 224, 224))
    """
    start = time.perf_counter()
    masked = unmask(unwrap(model))
    graph = analyze(masked, example_inputs)
    with paused():
        liveness, plan = find_dead(graph)
        edits = edits_of(liveness)
    plan = replace(plan, swaps={**plan.swaps, **{p: ("bias", len(b)) for p, b in edits.biases.items()}})
    small = _cut(masked, plan, edits)
    check: Verification | None = None
    if verify:
        device = find_device(None)
        exact = double(masked, device)
        check = agreement(
            (exact, _cut(exact, plan, edits)), (masked, small), calls_of(example_inputs), device, modes=("eval",)
        )
        if not check.ok:
            raise VerificationError(str(check))
    if not details:
        return small
    report = report_on(graph, plan, check, lambda: kept_although_dead(liveness))
    params = report.params[0], sum(p.numel() for p in small.parameters())
    return Result(small, plan, replace(report, params=params, seconds=time.perf_counter() - start))


def _cut(masked: nn.Module, plan: PruningPlan, edits: Edits) -> nn.Module:
    """The smaller model: constants are folded, then channels removed."""
    edited = deep_copy(masked)
    edits.make(edited)
    small = apply(plan, edited, inplace=True)
    edits.fill(small)
    return small


def find_dead(graph: ChannelGraph) -> tuple[Liveness, PruningPlan]:
    """The dead units that can go, and the plan that removes them."""
    liveness = Liveness(graph, [Knowns(program, graph.space.tensors) for program in graph.space.programs])
    while True:
        units = np.flatnonzero(liveness.dead)
        plan = settle(graph, units)
        back = np.setdiff1d(units, removed_units(graph, plan))
        if not len(back):
            return liveness, plan
        liveness.keep(back, "; ".join(plan.notes))
        liveness.solve()


def kept_although_dead(liveness: Liveness) -> dict[str, str]:
    """Layers with filters that are all zero and yet stay, with how many they are and why."""
    found: dict[str, str] = {}
    for weight in liveness.weights:
        idle = ~(weight.view != 0).flatten(2).any(2).flatten().numpy()
        units = weight.outputs[idle]
        reasons = Counter(_reason(liveness, weight, unit) for unit in units[~liveness.dead[units]].tolist())
        if reasons:
            parts = [f"{count} of {len(idle)} filters: {why}" for why, count in reasons.most_common()]
            found[weight.name.removesuffix(".weight") or weight.where] = "; ".join(parts)
    return found


def _reason(liveness: Liveness, weight: Weight, unit: int) -> str:
    if unit:
        return liveness.why.get(unit, "it is needed")
    dim = 0 if weight.readers[0].node.meta["op"] in ("linear", "conv1d", "conv2d", "conv3d") else 1
    fixed = liveness.graph.fixed.get(f"{weight.name}[{dim}]", "it cannot be removed")
    return fixed.partition(" indices: ")[2] or fixed
