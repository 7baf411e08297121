"""The verbs: prune, analyze, apply, mask, explain."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from . import cost
from .collector import paused
from .constraints import Selector, check_ratio
from .diagram import draw
from .errors import VerificationError
from .graph import ChannelGraph
from .groups import better, solved
from .importance import Importance
from .inventory import Inventory
from .latency import Latency
from .mask import mask as mask_model
from .modes import traced
from .plan import PruningPlan
from .planning import plan
from .prepare import calls_of, check_finite, check_flag, check_model, check_placement, unwrap
from .report import Report
from .rewriting import check_rigid, rewrites
from .stock import check_norm
from .surgery import apply as apply_plan
from .swaps import stand_ins
from .verify import Verification
from .verify import verify as verify_plan


@dataclass(frozen=True)
class Result:
    """A pruned model, the plan that made it, and the report of what was done. Printing it prints the report."""

    model: nn.Module
    plan: PruningPlan
    report: Report

    def __str__(self) -> str:
        return str(self.report)

    def __rich__(self) -> Any:
        return self.report.__rich__()


def analyze(model: nn.Module, example_inputs: Any, *, norm: str = "exact", rigid: str = "keep") -> ChannelGraph:
    """Traces the model on every example and solves which channels belong together.

    The model runs once for each example in eval mode, and once in train mode if its code may do something else there
    (auxiliary heads); afterwards it is as it was, bit for bit.

    Args:
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of
            those for several calls.
        norm: what becomes of layer, group and RMS norms whose channels go. `"exact"`: they go on counting the
            original channels, by a swapped class or by folding. `"stock"`: they stay stock modules over fewer
            channels, and the small model deviates from the masked original by what `Verification.deviation` says.
        rigid: what becomes of channels whose number is written in the code (`x.view(-1, 512)`, `x[:, :32]`). `"keep"`:
            they stay. `"rewrite"`: modules that say so in their methods get a subclass, made from their source, that
            reads the number from an attribute; it works for any batch and image size, and in both modes. The model is
            analysed a second time for that, and rewritten where more of it may go then.

    Raises ArgumentError for another `norm` or `rigid`, UnsupportedModelError (scripted, quantised, lazy, sharded ...
    models, with what to pass instead), ArgumentTypeError for what is no module or no inputs, and ExampleInputsError
    if the model does not run on the examples.

    >>> graph = structprune.analyze(model, torch.randn(1, 3, 224, 224))
    >>> for group in graph.groups:
    ...     print(group.name, group.kind, len(group))
    >>> print(graph.explain("layer1.0.conv1"))
    """
    stock, rewrite = check_norm(norm), check_rigid(rigid)
    parts = Inventory(unwrap(model))
    check_model(parts)
    calls = calls_of(example_inputs)
    check_placement(parts, calls)
    with paused():
        space = solved(parts, traced(parts, calls, stand_ins()), stock)
        if rewrite:  # a class has one substitute: where there are norms, it is theirs
            classes = rewrites(parts.model, {norm.path for norm in space.norms})
            free = solved(parts, traced(parts, calls, {**classes, **stand_ins()}), stock) if classes else space
            space = better(free, space)
        return ChannelGraph(parts, space, calls[0])


def prune(
    model: nn.Module,
    example_inputs: Any,
    ratio: float | None = None,
    *,
    importance: str | Importance = "l1",
    scope: str = "local",
    exclude: Selector | Iterable[Selector] = (),
    include: Selector | Iterable[Selector] | None = None,
    target: Mapping[str, float | Latency] | None = None,
    ratios: Mapping[Selector, float] | None = None,
    min_ratio: float = 0.0,
    max_ratio: float = 1.0,
    round_to: int | str = 1,
    allocation: str = "threshold",
    norm: str = "exact",
    rigid: str = "keep",
    verify: bool = True,
    inplace: bool = False,
) -> Result:
    """A smaller model, verified against the masked original.

    >>> result = structprune.prune(model, torch.randn(1, 3, 224, 224), ratio=0.5)
    >>> result.model(images)         # an ordinary nn.Module of the same class, with fewer channels
    >>> print(result.report)
    >>> half = structprune.prune(model, images, target={"macs": 0.5, "params": 0.6}, scope="global", round_to=8)

    `model` stays as it is, unless `inplace=True`. See `analyze` for `example_inputs`, `norm` and `rigid`, `plan` for
    the settings (`ratio`, or a `target` for what the model may cost, and what to spare) and `verify` for what is
    compared; `verify=False` skips the comparison.

    Raises what these raise, and VerificationError if the result differs from the masked original: then, too,
    `model` is as it was.
    """
    start = time.perf_counter()
    check_flag(verify, "verify")
    check_flag(inplace, "inplace")
    model = unwrap(model)
    if ratio is not None:
        check_ratio(ratio)  # before the model runs
    graph = analyze(model, example_inputs, norm=norm, rigid=rigid)
    check_finite(model)
    made = plan(
        graph, importance, ratio, scope, exclude, include=include, target=target, ratios=ratios, min_ratio=min_ratio,
        max_ratio=max_ratio, round_to=round_to, allocation=allocation,
    )  # fmt: skip
    check: Verification | None = None
    small = None
    if verify:
        small = apply_plan(made, model)
        check = verify_plan(model, made, example_inputs, small=small)
        if not check.ok:
            raise VerificationError(str(check))
    report = report_on(graph, made, check)
    if inplace:  # the graph would keep the old weights alive
        fixed, diagram = report.fixed, report.diagram
        report = replace(report, find_fixed=lambda: fixed, find_diagram=lambda: diagram)
    if inplace:
        small = apply_plan(made, model, inplace=True)
    elif small is None:
        small = apply_plan(made, model)
    return Result(small, made, replace(report, seconds=time.perf_counter() - start))


def report_on(graph: ChannelGraph, made: PruningPlan, check: Verification | None) -> Report:
    """What a plan does to the model of a graph; what is fixed, and the diagram, are looked up when asked for."""
    view = graph.under(made)
    widths = {}
    for group in graph.groups:
        for part in group.slices:
            if part.produces and part.dim in made.kept.get(part.name, {}):
                widths[part.name.removesuffix(".weight")] = (
                    part.tensor.shape[part.dim],
                    len(made.kept[part.name][part.dim]),
                )
    return Report(
        (cost.parameters(graph), cost.parameters(graph, view)), (cost.macs(graph), cost.macs(graph, view)),
        widths, check, lambda: graph.fixed, made.notes, 0.0, find_diagram=lambda: draw(graph, view),
    )  # fmt: skip


def apply(plan: PruningPlan, model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The smaller model: a copy, or `model` itself with `inplace=True`.

    Nothing is traced, and nothing verified; any unpruned model of the same names and shapes will do, on the meta
    device too. Dtype, device, `requires_grad`, gradients, ties and hooks stay as they were.

    Raises PlanError, before anything is cut, if the plan was made for another model or was applied already;
    ArgumentTypeError; UnsupportedModelError if the model cannot be copied.

    >>> plan = structprune.prune(model, images, ratio=0.5).plan
    >>> small = structprune.apply(plan, model)
    """
    return apply_plan(plan, unwrap(model), inplace=inplace)


def mask(plan: PruningPlan, model: nn.Module) -> nn.Module:
    """The masked original: a copy of `model` with `torch.nn.utils.prune` masks on everything the plan removes.

    It has the shapes of `model` and computes what `apply(plan, model)` computes; the masks hold the zeros while it is
    trained. Raises what `apply` raises.

    >>> masked = structprune.mask(plan, model)
    >>> masked.conv1.weight_mask.shape == model.conv1.weight.shape
    True
    """
    return mask_model(plan, unwrap(model))


def explain(model: nn.Module, example_inputs: Any, name: str) -> str:
    """What a layer or parameter is coupled to, operation by operation, or why it cannot shrink.

    The same as `analyze(model, example_inputs).explain(name)`; raises what these raise.

    >>> print(structprune.explain(model, images, "conv1"))
    """
    return analyze(model, example_inputs).explain(name)
