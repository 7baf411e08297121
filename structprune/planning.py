"""Planning: scores and a ratio, or targets, become a plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from torch import Tensor

from .balance import balanced
from .collector import paused
from .constraints import Constraints, Selector, check_ratio, read_constraints
from .decision import Request, decide
from .errors import ArgumentError, ArgumentTypeError, NothingToPruneError, UnsupportedModelError
from .graph import ChannelGraph, Group, check_graph
from .importance import NAMED, Importance, Scores, normalization_of, normalized
from .latency import Latency
from .plan import PruningPlan

SCOPES = ("local", "global")
ALLOCATIONS = ("threshold", "knapsack")
DEFAULT_RATIO = 0.5


def plan(
    graph: ChannelGraph,
    importance: str | Importance = "l1",
    ratio: float | None = None,
    scope: str = "local",
    exclude: Selector | Iterable[Selector] = (),
    *,
    include: Selector | Iterable[Selector] | None = None,
    target: Mapping[str, float | Latency] | None = None,
    ratios: Mapping[Selector, float] | None = None,
    min_ratio: float = 0.0,
    max_ratio: float = 1.0,
    round_to: int | str = 1,
    allocation: str = "threshold",
) -> PruningPlan:
    """Ranks the units of `graph` and decides which of them go.

    Args:
        importance: one of `"l1"`, `"l2"`, `"fpgm"`, `"bn_scale"`, `"lamp"`, `"random"`, an object from
            `structprune.importance`, or any function of a `Group` that returns one score for each of its units.
        ratio: the fraction of units to remove, at least 0 and below 1 (0.5 if neither it nor `target` is given);
            of each group (`scope="local"`, rounded down), or of all groups together (`scope="global"`, scores made
            comparable by the importance's `normalize`). One unit of every group always stays.
        target: what to keep of the model instead, `{"macs": 0.5, "params": 4_000_000}`: numbers up to 1 are
            fractions of the original, larger ones absolute. `"memory"` is in bytes: parameters, buffers, and
            the largest sum of the values that are alive at once in an eager call without gradients; `"latency"`
            is measured on the model's device with the example inputs (see `Latency`). Every target is met from
            below, as closely as whole units allow. With `scope="local"` all groups lose about the same fraction,
            with `"global"` units compete by score across groups.
        allocation: how a target is met. `"threshold"` removes what scores least; `"knapsack"` what loses least
            score for the cost it saves.
        exclude: what keeps all its filters: patterns of layers or parameters (`"layer1.*"`, `"fc"`), modules of
            the model, types of modules (`nn.Conv2d`), or kinds of groups (`"kind:head"`, see
            `structprune.kinds.KINDS`); one or several. A norm or a bias names the filters it belongs to.
        include: only what is named loses filters, everything else keeps all. A group shrinks only if all of its
            filters are named (or all of its kinds).
        ratios: a ratio of its own for what is named, whatever the target, the scope and the limits; where several
            name a group, the last one given counts.
        min_ratio, max_ratio: the least and the largest fraction of each group that may go, both in [0, 1].
        round_to: the widths that are left, counted in channels of the layers that produce them, are multiples of
            this, or as they were. Rounding removes more rather than less where the limits allow. `"auto"` is
            what the model's device and dtype compute at once.

    Ties are broken by index, the first going first. The same graph and settings give the same plan, byte for byte.

    >>> structprune.plan(graph, target={"macs": 0.5}, scope="global", exclude=["kind:residual"], round_to=8)

    Raises ArgumentError, ArgumentTypeError, UnknownNameError (a pattern or type matches nothing), NonFiniteError,
    NothingToPruneError with the reasons if every unit is fixed or excluded, and TargetError with the least that
    can be reached if a target cannot be met.
    """
    check_graph(graph)
    share, limits, latency = _read_amount(graph, ratio, target, scope, allocation)
    constraints = read_constraints(graph, exclude, include, ratios, min_ratio, max_ratio, round_to)
    _check_limits(ratio, constraints)
    measure = find_importance(importance)
    how = normalization_of(measure)
    with nullcontext() if hasattr(measure, "prepare") else paused():  # data is streamed with the collector on
        graph, groups, scores = ranked(graph, constraints, measure)
    if scope == "global" or allocation == "knapsack":
        scores = normalized(groups, scores, how)
    with paused():
        return decide(Request(graph, groups, scores, constraints, scope, allocation, share, limits, latency))


# -- arguments ------------------------------------------------------------------------------------------------


def _read_amount(
    graph: ChannelGraph, ratio: Any, target: Any, scope: Any, allocation: Any
) -> tuple[float | None, dict[str, float], Latency | None]:
    """How much is to go: a ratio, or targets."""
    for name, given, choices in (("scope", scope, SCOPES), ("allocation", allocation, ALLOCATIONS)):
        if not isinstance(given, str) or given not in choices:
            raise ArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, not {given!r}")
    if target is None:
        if allocation != "threshold":
            raise ArgumentError(f"allocation={allocation!r} spends a budget: give a target, {{'macs': 0.5}}")
        return DEFAULT_RATIO if ratio is None else check_ratio(ratio), {}, None
    if ratio is not None:
        raise ArgumentError(f"give a ratio or a target, not both; ratio={ratio!r} and target={target!r} were given")
    return None, *split_target(graph, target)


def split_target(graph: ChannelGraph, target: Any) -> tuple[dict[str, float], Latency | None]:
    """What the model may cost: what is counted, in absolute numbers, and what is measured."""
    timed = isinstance(target, Mapping) and "latency" in target
    latency: Any = target["latency"] if timed else None
    counted = {name: value for name, value in target.items() if name != "latency"} if timed else target
    limits = {} if timed and not counted else _read_target(graph, counted)
    return limits, Latency(latency) if timed and not isinstance(latency, Latency) else latency


def _read_target(graph: ChannelGraph, target: Any) -> dict[str, float]:
    original = graph.costs.original()
    names = ", ".join([*original, "latency"])
    if not isinstance(target, Mapping):
        raise ArgumentTypeError(f"target must map costs to numbers, {{'macs': 0.5}}; {target!r} was given")
    if not target:
        raise ArgumentError(f"target names no cost; give some of {names}")
    limits = {}
    for name, value in target.items():
        if name not in original:
            raise ArgumentError(f"there is no target {name!r}; the targets are {names}")
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ArgumentTypeError(f"the target for {name} must be a number, not {value!r}")
        if not 0 < value < math.inf:
            raise ArgumentError(
                f"the target for {name} must be a fraction to keep, in (0, 1], or a larger, absolute number; "
                f"{value!r} was given"
            )
        if not original[name]:
            raise ArgumentError(f"there is nothing to save: {name} of this model is 0")
        if value > max(original[name], 1):
            raise ArgumentError(f"the target for {name} is {value:,}, more than the {original[name]:,} of the model")
        limits[name] = float(value) if value > 1 else float(value) * original[name]
    return limits


def _check_limits(ratio: float | None, constraints: Constraints) -> None:
    if ratio is not None and not constraints.min_ratio <= ratio <= constraints.max_ratio:
        raise ArgumentError(
            f"ratio must be between min_ratio and max_ratio; {ratio!r} is not between "
            f"{constraints.min_ratio!r} and {constraints.max_ratio!r}"
        )


def ranked(
    graph: ChannelGraph, constraints: Constraints, measure: Importance
) -> tuple[ChannelGraph, list[Group], list[Scores]]:
    """The groups that may shrink and the scores of their units, in a graph whose rows are balanced by those scores.

    Raises NothingToPruneError if no group can lose anything.
    """

    def of_all(free: ChannelGraph) -> list[Scores]:
        chosen = included(free, constraints)
        found = dict(zip(map(id, chosen), rank(free, chosen, measure), strict=True))
        return [found.get(id(group), np.zeros(len(group))) for group in free.groups]

    tight, scores = balanced(graph, of_all)
    groups = included(tight, constraints)
    return tight, groups, [scores[group.units] for group in groups]


def rank(graph: ChannelGraph, groups: Sequence[Group], measure: Importance) -> list[Scores]:
    """The scores of every group's units."""
    if hasattr(measure, "prepare"):
        measure.prepare(graph)
    return [_scores(measure, group) for group in groups]


def find_importance(importance: Any) -> Importance:
    """An importance by its name, or the function itself."""
    if isinstance(importance, str):
        if importance not in NAMED:
            raise ArgumentError(
                f"importance must be one of {', '.join(map(repr, NAMED))} or a function of a group, such as "
                f"structprune.importance.Taylor(loss, loader), not {importance!r}"
            )
        return NAMED[importance]()
    if isinstance(importance, type):
        raise ArgumentTypeError(f"importance must be an instance, {importance.__name__}(...), not the class")
    if not callable(importance):
        raise ArgumentTypeError(f"importance must be a name or a function of a group, not {importance!r}")
    return importance


def included(graph: ChannelGraph, constraints: Constraints) -> list[Group]:
    """The groups that may shrink. Raises NothingToPruneError if none of them can lose anything."""
    groups = [group for group in graph.groups if constraints.allow(group)]
    if not any(len(g) > 1 for g in groups):
        reasons = [f"{count} x {why}" for why, count in graph.reasons().items()]
        if graph.groups and len(groups) < len(graph.groups):
            reasons.insert(0, f"{len(graph.groups) - len(groups)} groups are excluded")
        listed = "".join(f"\n  {reason}" for reason in reasons[:12]) or "\n  the model has no parameters"
        raise NothingToPruneError(f"nothing to prune:{listed}")
    return groups


def _scores(measure: Importance, group: Group) -> Scores:
    found = measure(group)
    if isinstance(found, Tensor) and found.is_meta:
        raise UnsupportedModelError(f"the importance of {group.name} is on the meta device and has no values")
    try:
        if isinstance(found, Tensor):
            found = found.detach().cpu()
            found = found if found.is_complex() else found.double()  # NumPy knows no bfloat16
        scores = np.asarray(found)
        if scores.dtype.kind == "c":
            raise TypeError("complex numbers have no order")
        scores = scores.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentTypeError(f"an importance must return numbers; for {group.name} it returned {found!r}") from error
    if scores.shape != (len(group),):
        raise ArgumentError(
            f"an importance must return one score for each of the {len(group)} units of {group.name}; "
            f"the shape {scores.shape} was returned"
        )
    if not np.isfinite(scores).all():
        raise ArgumentError(
            f"the importance of {group.name} holds {int((~np.isfinite(scores)).sum())} values that are NaN or infinite"
        )
    return scores
