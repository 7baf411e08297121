"""Planning: scores and a ratio, or targets, become a plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .budget import Budget, Outcome, meet
from .collector import paused
from .constraints import Choice, Constraints, Selector, check_ratio, read_constraints
from .errors import ArgumentError, ArgumentTypeError, NothingToPruneError, TargetError
from .graph import ChannelGraph, Group
from .importance import NAMED, Importance, Scores, normalization_of, normalized
from .labels import IntArray
from .plan import PruningPlan
from .selection import Ladder, everywhere, ladders, local, removed
from .settlement import settle

SCOPES = ("local", "global")
ALLOCATIONS = ("threshold", "knapsack")
DEFAULT_RATIO = 0.5
PATIENCE = 8  # times that units are put back one by one


def plan(
    graph: ChannelGraph,
    importance: str | Importance = "l1",
    ratio: float | None = None,
    scope: str = "local",
    exclude: Selector | Iterable[Selector] = (),
    *,
    include: Selector | Iterable[Selector] | None = None,
    target: Mapping[str, float] | None = None,
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
            the largest sum of the values that are alive at once in an eager call without gradients. Every target
            is met from below, as closely as whole units allow. With `scope="local"` all groups lose about the
            same fraction, with `"global"` units compete by score across groups.
        allocation: how a target is met. `"threshold"` removes what scores least; `"knapsack"` what loses least
            score for the cost it saves.
        exclude: what keeps all its filters: patterns of layers or parameters (`"layer1.*"`, `"fc"`), modules of
            the model, types of modules (`nn.Conv2d`), or kinds of groups (`"kind:head"`, see
            `structprune.kinds.KINDS`); one or several.
        include: only what is named loses filters, everything else keeps all. A group shrinks only if all of its
            filters are named (or all of its kinds).
        ratios: a ratio of its own for what is named, whatever the target, the scope and the limits; where several
            name a group, the last one given counts.
        min_ratio, max_ratio: the least and the largest fraction of each group that may go, both in [0, 1].
        round_to: the widths that are left, counted in channels of the layers that produce them, are multiples of
            this, or as they were. Rounding removes more rather than less where the limits allow. `"auto"` is
            what the model's device and dtype compute at once.

    Ties are broken by index, the first going first. The same graph and settings give the same plan, byte for byte.

    >>> plan(graph, target={"macs": 0.5, "params": 0.6}, scope="global", exclude=["kind:residual"], round_to=8)

    Raises ArgumentError, ArgumentTypeError, UnknownNameError (a pattern or type matches nothing), NonFiniteError,
    NothingToPruneError with the reasons if every unit is fixed or excluded, and TargetError with the least that
    can be reached if a target cannot be met.
    """
    check_graph(graph)
    request = _read_request(graph, ratio, target, scope, allocation)
    constraints = read_constraints(graph, exclude, include, ratios, min_ratio, max_ratio, round_to)
    _check_limits(ratio, constraints)
    groups = included(graph, constraints)
    scores = rank(graph, groups, importance, scope == "global" or allocation == "knapsack")
    with paused():
        return _settled(graph, groups, scores, constraints, request)


# -- arguments ------------------------------------------------------------------------------------------------


def check_graph(graph: Any) -> None:
    """What is passed for a graph is one."""
    if not isinstance(graph, ChannelGraph):
        raise ArgumentTypeError(f"graph must be the ChannelGraph that analyze returns, not {type(graph).__name__}")


@dataclass(frozen=True)
class Request:
    """How much is to go, and by which comparison."""

    ratio: float | None
    limits: Mapping[str, float]
    scope: str
    allocation: str


def _read_request(graph: ChannelGraph, ratio: Any, target: Any, scope: Any, allocation: Any) -> Request:
    for name, given, choices in (("scope", scope, SCOPES), ("allocation", allocation, ALLOCATIONS)):
        if given not in choices:
            raise ArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, not {given!r}")
    if target is None:
        if allocation != "threshold":
            raise ArgumentError(f"allocation={allocation!r} spends a budget: give a target, {{'macs': 0.5}}")
        return Request(DEFAULT_RATIO if ratio is None else check_ratio(ratio), {}, scope, allocation)
    if ratio is not None:
        raise ArgumentError(f"give a ratio or a target, not both; ratio={ratio!r} and target={target!r} were given")
    return Request(None, read_target(graph, target), scope, allocation)


def read_target(graph: ChannelGraph, target: Any) -> dict[str, float]:
    """What the model may cost, in absolute numbers."""
    original = graph.costs.original()
    if not isinstance(target, Mapping):
        raise ArgumentTypeError(f"target must map costs to numbers, {{'macs': 0.5}}; {target!r} was given")
    if not target:
        raise ArgumentError(f"target names no cost; give some of {', '.join(original)}")
    limits = {}
    for name, value in target.items():
        if name not in original:
            raise ArgumentError(f"there is no target {name!r}; the targets are {', '.join(original)}")
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ArgumentTypeError(f"the target for {name} must be a number, not {value!r}")
        if not 0 < value < math.inf:
            raise ArgumentError(
                f"the target for {name} must be a fraction to keep, in (0, 1], or a larger, absolute number; "
                f"{value!r} was given"
            )
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


def rank(graph: ChannelGraph, groups: list[Group], importance: Any, across: bool = False) -> list[Scores]:
    """The scores of every group's units; `across` makes them comparable across groups."""
    measure = find_importance(importance)
    how = normalization_of(measure)
    if hasattr(measure, "prepare"):
        measure.prepare(graph)
    scores = [_scores(measure, group) for group in groups]
    return normalized(groups, scores, how) if across else scores


def find_importance(importance: Any) -> Importance:
    """An importance by its name, or the function itself."""
    if isinstance(importance, str):
        if importance not in NAMED:
            raise ArgumentError(
                f"importance must be one of {', '.join(map(repr, NAMED))} or a function, not {importance!r}"
            )
        return NAMED[importance]()
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
    try:
        scores = np.asarray(found, np.float64)
    except (TypeError, ValueError) as error:
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


def _settled(
    graph: ChannelGraph, groups: list[Group], scores: list[Scores], constraints: Constraints, request: Request
) -> PruningPlan:
    """What is chosen, less what some operation needs; a budget that this breaks is spent anew without that."""
    locked = np.zeros(int(graph.space.couplings.roots().max()) + 1, bool)
    attempts = 0
    while True:
        chosen = ladders(groups, scores, constraints, locked)
        units = _choose(graph, chosen, constraints, request)
        made, gone = settle(graph, units)
        back = np.setdiff1d(units, gone)
        if not len(back) or not request.limits or _met(graph, gone, request):
            return made
        locked[back] = True
        attempts += 1
        for group in groups if attempts > PATIENCE else ():  # one unit after the other is needed: probably all are
            if np.isin(group.units, back).any():
                locked[group.units] = True


def _met(graph: ChannelGraph, gone: IntArray, request: Request) -> bool:
    found = graph.costs.count(graph.costs.totals - graph.costs.of(gone), request.limits)
    return all(float(found[name][0]) <= limit for name, limit in request.limits.items())


def _choose(graph: ChannelGraph, chosen: list[Ladder], constraints: Constraints, request: Request) -> IntArray:
    if request.ratio is not None:
        choose = local if request.scope == "local" else everywhere
        return removed(chosen, choose(chosen, request.ratio))
    budget = Budget(chosen, graph.costs, request.limits, request.scope == "local")
    outcome = meet(budget, request.allocation)
    if not outcome.met:
        raise TargetError(_unreachable(graph, outcome, constraints, request))
    return removed(chosen, outcome.positions)


def _unreachable(graph: ChannelGraph, outcome: Outcome, constraints: Constraints, request: Request) -> str:
    """What is the least that can be reached, and what is in the way, the largest obstacle first."""
    short = [(name, used) for name, used in zip(request.limits, outcome.used.tolist(), strict=True) if used > 1]
    name, used = max(short, key=lambda item: item[1])
    total, limit = graph.costs.original()[name], request.limits[name]
    lifted = {
        "exclude": replace(constraints, exclude=Choice()),
        "include": replace(constraints, include=None),
        "ratios": replace(constraints, ratios=()),
        "max_ratio": replace(constraints, max_ratio=1.0),
        "round_to": replace(constraints, round_to=1),
    }
    least = {key: _least(graph, name, other) for key, other in lifted.items() if other != constraints}
    lines = [
        f"without {key} it could be {value / total:.3g}"
        for key, value in sorted(least.items(), key=lambda item: item[1])
        if value < used * limit
    ]
    lines += [f"kept, {count} x: {why}" for why, count in graph.reasons().items()]
    return (
        f"the target for {name} is {limit:,.0f}, {limit / total:.3g} of {total:,}; with everything removed that may "
        f"go, {used * limit:,.0f} stay, {used * limit / total:.3g}:" + "".join(f"\n  {line}" for line in lines[:12])
    )


def _least(graph: ChannelGraph, name: str, constraints: Constraints) -> float:
    """The least that a cost can be under other constraints."""
    groups = [group for group in graph.groups if constraints.allow(group)]
    gone = [group.units[: constraints.stops(group, len(group))[-1]] for group in groups]
    units = np.concatenate([np.zeros(0, np.int64), *gone])
    return float(graph.costs.count(graph.costs.totals - graph.costs.of(units), [name])[name][0])
