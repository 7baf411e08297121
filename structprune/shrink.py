"""Shrinking: a masked model becomes a smaller one that computes the same."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
from torch import nn

from .api import Result, analyze, report_on
from .balance import balanced
from .collector import paused
from .constants import Knowns
from .errors import ArgumentError, ArgumentTypeError, VerificationError
from .folding import Edits, edits_of
from .graph import ChannelGraph
from .importance import L1
from .inventory import fingerprint
from .liveness import Liveness
from .mask import zeroed
from .plan import PruningPlan
from .prepare import calls_of, check_finite, check_flag, unwrap
from .program import Call
from .promote import dead_by_zeros, nearly_dead
from .report import Loss
from .running import double
from .settlement import settle
from .surgery import apply
from .unmask import masks_of, unmask
from .verify import Verification, agreement, deviation, find_device, samples_for
from .weights import Weight


@overload
def shrink(
    model: nn.Module, example_inputs: Any, *, structured: str | None = ..., threshold: float = ..., verify: bool = ...,
    details: Literal[False] = ...,
) -> nn.Module: ...  # fmt: skip
@overload
def shrink(
    model: nn.Module, example_inputs: Any, *, structured: str | None = ..., threshold: float = ..., verify: bool = ...,
    details: Literal[True],
) -> Result: ...  # fmt: skip
def shrink(
    model: nn.Module, example_inputs: Any, *, structured: str | None = None, threshold: float = 0.05,
    verify: bool = True, details: bool = False,
) -> nn.Module | Result:  # fmt: skip
    """The model without its dead channels: a plain, smaller module that computes what the masked model computes.

    >>> for module in model.modules():
    ...     if isinstance(module, nn.Conv2d):
    ...         torch.nn.utils.prune.ln_structured(module, "weight", amount=0.5, n=1, dim=0)
    >>> small = structprune.shrink(model, torch.randn(1, 3, 224, 224))

    Dead is what nobody reads, and what is constant: zeros may come from any mask of `torch.nn.utils.prune`, from
    masks that were made permanent, or from a regulariser. A constant that is not zero (a bias, the shift of a batch
    norm, and what activations make of them) is folded into the bias or the batch norm behind what reads it. Under
    zero padding it is not one number; there one constant channel stays, and stands for the others of its layer.
    A channel that cannot go is kept, with the reason in `report.fixed`. `model` stays as it is, masks included. The
    plan says what went, not what was folded: that is in the model, and `apply` of the plan to the original lacks it.

    Equal means equal in eval mode. In train mode batch norms take the statistics of the batch, and a channel that
    was constant by its running statistics is another constant there.

    Args:
        example_inputs: see `analyze`.
        structured: `"promote"` also removes channels that masks left almost nothing of, at a loss that the report
            states: those whose filters kept less than `threshold` of their L1 mass (of the mean of their layer, where
            nothing is masked). All that belongs to them is taken to be zero. Fine-tune afterwards.
        verify: compares both models in float64, on fresh random inputs and at another batch size.
        details: returns a `Result` with the model, the plan and the report, which `save` takes.

    Raises what `analyze` raises, ArgumentError, and VerificationError if the result differs.
    """
    start = time.perf_counter()
    check_flag(verify, "verify")
    check_flag(details, "details")
    check_promotion(structured, threshold)
    model = unwrap(model)
    calls = calls_of(example_inputs)
    graph = analyze(unmask(model), example_inputs)
    check_finite(graph.model)
    lost: dict[str, Loss] = {}
    change: float | None = None
    if structured is not None:
        promoted, lost = _promoted(graph, model, threshold)
        change = deviation(promoted, graph.model, calls)
        graph = analyze(promoted, example_inputs)
    small, plan, check, liveness = _shrunk_wholly(graph, example_inputs, verify)
    if not details:
        return small
    report = replace(report_on(graph, plan, check), find_fixed=lambda: kept_although_dead(liveness))
    params = report.params[0], sum(p.numel() for p in small.parameters())
    seconds = time.perf_counter() - start
    return Result(small, plan, replace(report, params=params, lost=lost, deviation=change, seconds=seconds))


def _promoted(graph: ChannelGraph, model: nn.Module, threshold: float) -> tuple[nn.Module, dict[str, Loss]]:
    """The unmasked model of a graph, with zeros for all that belongs to channels that are nearly dead."""
    units, lost = nearly_dead(graph, {m.qualified: m.original for m in masks_of(model)}, threshold)
    return zeroed(settle(graph, units)[0], graph.model), lost


def check_promotion(structured: Any, threshold: Any) -> None:
    """What `structured` and `threshold` may be."""
    if structured is not None and not (isinstance(structured, str) and structured == "promote"):
        raise ArgumentError(f"structured must be None or 'promote', not {structured!r}")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.number):
        raise ArgumentTypeError(f"threshold must be a number in [0, 1], not {threshold!r}")
    if not 0 <= threshold <= 1:
        raise ArgumentError(
            f"threshold must be in [0, 1]: the share of its L1 mass a channel must have kept; {threshold!r} was given"
        )


Shrunk = tuple[nn.Module, PruningPlan, Verification | None, Liveness]


def _shrunk_wholly(graph: ChannelGraph, example_inputs: Any, verify: bool) -> Shrunk:
    """The model of a graph without its dead channels: once groups are gone, channels inside of others may go."""
    calls = calls_of(example_inputs)
    small, plan, check, liveness = _shrunk(graph, calls, verify)
    while plan.kept and kept_although_dead(liveness):
        again = analyze(small, example_inputs)
        if not find_dead(by_zeros(again))[1].kept:
            break
        small, further, second, liveness = _shrunk(again, calls, verify)
        plan = plan.then(further)
        check = max((check, second), key=lambda one: one.max_rel_error if one is not None else 0.0)
    return small, plan, check, liveness


def _shrunk(graph: ChannelGraph, calls: Sequence[Call], verify: bool) -> Shrunk:
    """The same, but what other channels leave behind."""
    masked = graph.model
    with paused():
        liveness, plan = find_dead(by_zeros(graph))
        edits = edits_of(liveness)
    plan = replace(plan, swaps={**plan.swaps, **{p: ("bias", len(b)) for p, b in edits.biases.items()}})
    small = _cut(masked, plan, edits)
    plan = replace(plan, becomes=fingerprint(small))
    if not verify:
        return small, plan, None, liveness
    device = find_device(None)
    exact = double(masked, device)
    samples = samples_for(exact, calls, device)
    check = agreement((exact, _cut(exact, plan, edits)), (masked, small), samples, device, modes=("eval",))
    if not check.ok:
        raise VerificationError(str(check))
    return small, plan, check, liveness


def _cut(masked: nn.Module, plan: PruningPlan, edits: Edits) -> nn.Module:
    """The smaller model: constants are folded, then channels removed."""
    with edits.made(masked):
        small = apply(plan, masked)
    edits.fill(small)
    return small


def by_zeros(graph: ChannelGraph) -> ChannelGraph:
    """The graph in which dead channels of a balanced grid are units with dead channels of its other rows."""
    if not graph.space.couplings.grids:
        return graph
    criterion = L1(group=True)
    return balanced(graph, lambda free: [criterion(group) for group in free.groups])[0]


def find_dead(graph: ChannelGraph) -> tuple[Liveness, PruningPlan]:
    """The dead units that can go, and the plan that removes them."""
    liveness = Liveness(graph, [Knowns(program, graph.parts) for program in graph.space.programs])
    while True:
        units = np.flatnonzero(liveness.dead)
        plan, gone = settle(graph, units)
        back = np.setdiff1d(units, gone)
        if not len(back):
            return liveness, plan
        liveness.keep(back, "; ".join(plan.notes), idle=True)
        liveness.solve()


def kept_although_dead(liveness: Liveness) -> dict[str, str]:
    """Layers with filters that are all zero, constant or read by nobody, and yet stay: how many they are, and why."""
    found: dict[str, str] = {}
    for weight in liveness.weights:
        idle = ~(weight.view != 0).flatten(2).any(2).flatten().numpy()
        idle |= np.isin(weight.outputs, sorted(liveness.idle))
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


def plan_from_masks(model: nn.Module, example_inputs: Any) -> PruningPlan:
    """The plan that removes every unit of which all parameters are masked, or zero: the inverse of `mask`.

    >>> masked = structprune.mask(plan, model)
    >>> assert structprune.plan_from_masks(masked, example_inputs) == plan

    `shrink` removes more: whatever zeros made dead, though not everything that belongs to it is zero. Raises what
    `analyze` raises.
    """
    graph = by_zeros(analyze(unmask(unwrap(model)), example_inputs))
    with paused():
        return settle(graph, dead_by_zeros(graph))[0]
