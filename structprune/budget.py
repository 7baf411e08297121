"""Budgets: the units that must go so that a model costs no more than it may.

All units are put in one order, by score (`"threshold"`) or by score lost for cost saved (`"knapsack"`), and the
shortest beginning of it that meets every target is found by bisection. Steps that overshoot are then taken back
where the budget has room, the most important first. Where several targets leave room, the order leans towards the
units that save most of what is short, until all targets are used up or the lean reaches its limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .costing import Costs, FloatArray
from .labels import IntArray
from .selection import Ladder, Positions

WINDOW = 0.98  # a target is met if the cost is at most 1 of it, and used up if it is more than this
LEAN = 1.0  # the largest exponent of the ratio between what a unit saves of one target and of another
HALVINGS = 10  # of the exponent
TRIES = 16  # exchanges that are tried
ROUNDS = 4  # prices depend on what is kept, and what is kept on prices


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where every ladder stops, and what that costs, relative to each target."""

    positions: Positions
    weights: FloatArray  # the factors that put the ladders' steps in order
    used: FloatArray
    lost: float  # the scores of all that went

    @property
    def met(self) -> bool:
        return bool((self.used <= 1).all())

    @property
    def spent(self) -> bool:
        """Whether every target is used up."""
        return self.met and bool((self.used > WINDOW).all())

    def rank(self) -> tuple[bool, bool, bool, float]:
        """Better outcomes rank higher: those that use all targets up, or one, and then those that lose less."""
        return self.met, self.spent, bool(self.used.max() > WINDOW), -self.lost


@dataclass(frozen=True, eq=False)
class Budget:
    """The ladders, what their steps save, and the targets."""

    ladders: Sequence[Ladder]
    costs: Costs
    limits: Mapping[str, float]
    local: bool  # units are compared by their rank within the group instead of by score
    base: IntArray = field(init=False)  # the units that stay at the first stop of every ladder, by class
    floor: float = field(init=False)  # the least score, if it is below zero: only what is lost can be weighted

    def __post_init__(self) -> None:
        first = np.concatenate([np.zeros(0, np.int64), *(ladder.removed(0) for ladder in self.ladders)])
        object.__setattr__(self, "base", self.costs.totals - self.costs.of(first))
        least = min((float(ladder.scores.min(initial=0)) for ladder in self.ladders), default=0.0)
        object.__setattr__(self, "floor", least)

    def used(self, kept: npt.NDArray[Any]) -> FloatArray:
        """The cost of numbers of kept units, relative to each target: [targets, plans]."""
        found = self.costs.count(kept, self.limits)
        return np.stack([found[name] / limit for name, limit in self.limits.items()])

    def kept(self, positions: Sequence[int]) -> IntArray:
        """How many units of each class stay."""
        gone = [ladder.removed(p) for ladder, p in zip(self.ladders, positions, strict=True)]
        return self.costs.totals - self.costs.of(np.concatenate([np.zeros(0, np.int64), *gone]))

    def step(self, ladder: int, position: int) -> IntArray:
        """The units of each class that the step from `position` to the next stop takes."""
        rung = self.ladders[ladder]
        return self.costs.of(rung.units[rung.stops[position] : rung.stops[position + 1]])

    def keys(self, number: int) -> FloatArray:
        """What each step of a ladder is ranked by: the mean of its units' scores, or of their ranks."""
        ladder = self.ladders[number]
        values = (np.arange(len(ladder.units)) + 1) / len(ladder.group) if self.local else ladder.scores - self.floor
        sums = np.concatenate([[0.0], np.cumsum(values)])[ladder.stops]
        return np.maximum.accumulate(np.diff(sums) / np.diff(ladder.stops))  # rounding must not disturb the order

    def outcome(self, positions: Positions, weights: FloatArray) -> Outcome:
        """What it costs to stop there."""
        used = self.used(self.kept(positions))[:, 0]
        lost = sum(
            float(ladder.scores[: ladder.stops[p]].sum()) for ladder, p in zip(self.ladders, positions, strict=True)
        )
        return Outcome(positions, weights, used, lost)

    def savings(self, kept: npt.NDArray[Any]) -> FloatArray:
        """What one more unit of each ladder saves of each target: [targets, ladders]."""
        average = np.stack([self.costs.of(ladder.group.units) / len(ladder.group) for ladder in self.ladders], axis=1)
        return self.used(kept) - self.used(np.maximum(kept[:, None] - average, 0))


def meet(budget: Budget, allocation: str) -> Outcome:
    """The best outcome that was found; it is `met` unless even taking every step is not enough."""
    everything = budget.outcome([ladder.last for ladder in budget.ladders], np.ones(len(budget.ladders)))
    if not everything.met:
        return everything
    weights = _prices(budget) if allocation == "knapsack" else np.ones(len(budget.ladders))
    first = best = _solved(budget, weights)
    for number in _largest_steps(budget, first)[:TRIES]:
        if not best.spent:  # spare the last step of one ladder, and let others go further instead
            rungs = list(budget.ladders)
            rungs[number] = replace(rungs[number], stops=rungs[number].stops[: first.positions[number]])
            best = max(best, _solved(replace(budget, ladders=rungs), weights), key=Outcome.rank)
    return best


def _solved(budget: Budget, weights: FloatArray) -> Outcome:
    plain = _filled(budget, weights)
    return _leaning(budget, plain) if len(plain.used) > 1 and not plain.spent else plain


def _largest_steps(budget: Budget, outcome: Outcome) -> list[int]:
    """The ladders that took a step, those first that saved most with it."""
    kept = budget.kept(outcome.positions)
    taken = [i for i, position in enumerate(outcome.positions) if position]
    saved = [float(budget.used(kept + budget.step(i, outcome.positions[i] - 1)).max()) for i in taken]
    return [taken[k] for k in np.argsort(saved, kind="stable")[::-1]]


def _prices(budget: Budget) -> FloatArray:
    """One over what a unit of each ladder saves, in the model that is left when units go by these very prices."""
    kept, found = budget.base, []
    for _ in range(ROUNDS):
        saved = budget.savings(kept).sum(0)
        prices = np.maximum(saved, saved.max(initial=0) * 1e-9 + np.finfo(np.float64).tiny)
        found.append(_filled(budget, 1 / prices))
        kept = (kept + budget.kept(found[-1].positions)) // 2
    return max(found, key=Outcome.rank).weights


def _leaning(budget: Budget, plain: Outcome) -> Outcome:
    """Leans towards what saves the scarcest target, away from what saves the one with most room."""
    saved = budget.savings(budget.base)
    saved = np.maximum(saved, saved.max(axis=1, keepdims=True) * 1e-9)
    scarce, ample = int(plain.used.argmax()), int(plain.used.argmin())
    lean = np.log(saved[ample] / saved[scarce])

    def leant(by: float) -> Outcome:
        return _filled(budget, plain.weights * np.exp(by * (lean - lean.max())))

    best = leant(LEAN)
    if best.used[ample] < best.used[scarce]:  # the targets contradict each other
        return plain
    low, high = 0.0, LEAN
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = leant(middle)
        best = max(best, found, key=Outcome.rank)
        if best.spent:
            break
        low, high = (middle, high) if found.used[ample] < found.used[scarce] else (low, middle)
    return best if best.spent else plain


def _filled(budget: Budget, weights: FloatArray) -> Outcome:
    """The shortest beginning of the order that meets the targets, with what still fits put back."""
    found = _cut(budget, weights, spare=False)
    return found if found.used.max() > WINDOW else max(found, _cut(budget, weights, spare=True), key=Outcome.rank)


def _cut(budget: Budget, weights: FloatArray, spare: bool) -> Outcome:
    """Cuts the order where the targets are met, again and again while that leaves them far from used up.

    It is the last step that was too large for them. It stays taken, and the order is cut anew before it; or it
    is spared, and the order goes on after it.
    """
    keys = [budget.keys(i) * weight for i, weight in enumerate(weights)]
    best: Outcome | None = None
    while best is None or best.used.max() <= WINDOW:
        positions, blocking = _beginning(budget, keys)
        found = budget.outcome(_put_back(budget, positions, keys), weights)
        best = found if best is None else max(best, found, key=Outcome.rank)
        if not found.met or blocking < 0 or np.isinf(keys[blocking]).all():
            break
        taken = np.arange(budget.ladders[blocking].last) < positions[blocking] - spare
        keys[blocking] = np.where(taken, -np.inf, np.inf)
    return best


def _beginning(budget: Budget, keys: Sequence[FloatArray]) -> tuple[Positions, int]:
    """Takes steps in order until every target is met; says, too, whose step was the last."""
    chosen = budget.ladders
    owner = np.repeat(np.arange(len(chosen)), [ladder.last for ladder in chosen])
    order = np.argsort(np.concatenate([np.zeros(0), *keys]), kind="stable")
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order))
    sizes = np.concatenate([np.zeros(0, np.int64), *(np.diff(ladder.stops) for ladder in chosen)])
    units = [ladder.units[ladder.stops[0] : ladder.stops[-1]] for ladder in chosen]
    classes = budget.costs.classes[np.concatenate([np.zeros(0, np.int64), *units])]
    turn = np.repeat(turn, sizes)  # when each unit goes

    def fits(count: int) -> bool:
        gone = np.bincount(classes[turn < count], minlength=len(budget.base))
        return bool((budget.used(budget.base - gone) <= 1).all())

    low, high = -1, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    positions = [int(n) for n in np.bincount(owner[order[:high]], minlength=len(chosen))]
    return positions, int(owner[order[high - 1]]) if high else -1


def _put_back(budget: Budget, positions: Positions, keys: Sequence[FloatArray]) -> Positions:
    """Undoes the last step of every ladder for which the targets stay met, the most important first."""
    positions = list(positions)
    kept = budget.kept(positions)
    waiting = [i for i, position in enumerate(positions) if position]
    while waiting:
        steps = np.stack([budget.step(i, positions[i] - 1) for i in waiting], axis=1)
        fit = budget.used(kept[:, None] + steps).max(0) <= 1
        fitting = [(keys[i][positions[i] - 1], i, column) for column, i in enumerate(waiting) if fit[column]]
        if not fitting:
            break
        _, number, column = max(fitting)
        kept = kept + steps[:, column]
        positions[number] -= 1
        waiting = [i for _, i, _ in fitting if i != number]  # what does not fit now never will
    return positions
