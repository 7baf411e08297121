"""Decisions: the plan that a request asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .budget import WINDOW, Budget, Outcome, meet
from .constraints import Choice, Constraints
from .errors import TargetError
from .graph import ChannelGraph, Group
from .importance import Scores
from .labels import IntArray
from .latency import Latency, Stopwatch, staircase
from .plan import PruningPlan
from .selection import Ladder, everywhere, ladders, local, removed
from .settlement import settle
from .surgery import apply

PATIENCE = 8  # times that units are put back one by one
TRIALS = 9  # models that are timed


@dataclass(frozen=True, eq=False)
class Request:
    """What `plan` was asked for, checked."""

    graph: ChannelGraph
    groups: Sequence[Group]
    scores: Sequence[Scores]
    constraints: Constraints
    scope: str
    allocation: str
    ratio: float | None  # or the targets:
    limits: Mapping[str, float]
    latency: Latency | None


def decide(request: Request) -> PruningPlan:
    """The plan. Raises TargetError if no plan meets the targets."""
    return _settled(request) if request.latency is None else _quickened(request, request.latency)


def _quickened(request: Request, latency: Latency) -> PruningPlan:
    """Bisects the MACs of the model (or its parameters, if it has none) until it is fast enough."""
    graph = request.graph
    if request.limits:
        _settled(request)  # raises if the other targets alone are out of reach
    watch = Stopwatch(apply(settle(graph, graph.groups[0].units[:0])[0], graph.model), graph.call, latency.compiled)
    useful = staircase(graph, request.groups, latency.seconds)
    request = replace(request, constraints=replace(request.constraints, useful=useful))
    knob = "macs" if graph.costs.original()["macs"] else "params"
    full = request.limits.get(knob, float(graph.costs.original()[knob]))
    best: PruningPlan | None = None
    fastest, low, high, share = float("inf"), 0.0, 1.0, min(latency.keep, 1.0)
    for _ in range(TRIALS):
        try:
            made = _settled(replace(request, limits={**request.limits, knob: share * full}))
        except TargetError:
            low = share
        else:
            untouched = not made.kept and latency.keep <= 1  # it takes as long as it does
            used = 1 / latency.keep if untouched else latency.used(*watch.compare(apply(made, graph.model)))
            fastest = min(fastest, used)
            low, high = (share, high) if used <= 1 else (low, share)
            best = made if used <= 1 else best
            if WINDOW < used <= 1 or (used <= 1 and share == 1):
                break
        share = (low + high) / 2
    if best is None:
        found = f"the fastest model that was found takes {fastest:.2f} times as long"
        if math.isinf(fastest):
            found = f"no plan with fewer {knob} was found that could be timed"
        raise TargetError(f"the target for latency is {latency.keep:,}; {found}")
    return best


def _settled(request: Request) -> PruningPlan:
    """What is chosen, less what some operation needs; a budget that this breaks is spent anew without that."""
    graph, groups = request.graph, request.groups
    locked = np.zeros(graph.space.couplings.roots().count, bool)
    attempts = 0
    while True:
        chosen = ladders(groups, request.scores, request.constraints, locked)
        units = _choose(request, chosen)
        made, gone = settle(graph, units)
        if len(gone) == len(units) or not request.limits or _met(request, gone):
            return made
        back = np.setdiff1d(units, gone)
        locked[back] = True
        attempts += 1
        for group in groups if attempts > PATIENCE else ():  # one unit after the other is needed: probably all are
            if np.isin(group.units, back).any():
                locked[group.units] = True


def _met(request: Request, gone: IntArray) -> bool:
    costs = request.graph.costs
    found = costs.count(costs.totals - costs.of(gone), request.limits)
    return all(float(found[name][0]) <= limit for name, limit in request.limits.items())


def _choose(request: Request, chosen: list[Ladder]) -> IntArray:
    if request.ratio is not None:
        choose = local if request.scope == "local" else everywhere
        return removed(chosen, choose(chosen, request.ratio))
    budget = Budget(chosen, request.graph.costs, request.limits, request.scope == "local")
    outcome = meet(budget, request.allocation)
    if not outcome.met:
        raise TargetError(_unreachable(request, outcome))
    return removed(chosen, outcome.positions)


def _unreachable(request: Request, outcome: Outcome) -> str:
    """What is the least that can be reached, and what is in the way, the largest obstacle first."""
    graph, constraints = request.graph, request.constraints
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
