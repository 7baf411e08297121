"""Latency: how long a model takes on the user's device and inputs, and the widths at which it gains.

Hardware works in tiles, so that time over width is a staircase: only widths at the right end of a step are worth
having. They are found by timing the costliest operation of every group at some widths. Whole models are then
timed with `torch.utils.benchmark`, the original and the pruned one in turn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .cost import macs_of
from .errors import ArgumentError, ArgumentTypeError
from .graph import ChannelGraph, Group
from .labels import IntArray
from .nodes import Node
from .program import Call, users_of_parameters

WIDTHS = 24  # widths that are timed for each group, at the least
GAIN = 1.02  # a larger width that takes no more than this times as long makes a smaller one useless
TURNS = 3  # times that the models are timed, in turn


@dataclass(frozen=True)
class Latency:
    """A target for the time of one call with the example inputs, `target={"latency": Latency(0.5, compiled=True)}`.

    Args:
        keep: a fraction of the original's time, in (0, 1], or microseconds, above 1.
        compiled: time what `torch.compile` makes of the models.
        seconds: how long to look for the steps of the staircase, at most; 0 leaves widths free.

    A plain number stands for `Latency(number)`. Timings differ from run to run, and so may the plans.
    """

    keep: float
    compiled: bool = False
    seconds: float = 20.0

    def __post_init__(self) -> None:
        if not isinstance(self.compiled, bool):
            raise ArgumentTypeError(f"Latency: compiled must be True or False, not {self.compiled!r}")
        for name, value in (("keep", self.keep), ("seconds", self.seconds)):
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise ArgumentTypeError(f"Latency: {name} must be a number, not {value!r}")
        if not 0 < self.keep <= sys.float_info.max:
            raise ArgumentError(
                f"the target for latency must be a fraction to keep, in (0, 1], or microseconds; {self.keep!r} given"
            )
        if not (0 <= self.seconds <= sys.float_info.max or self.seconds == float("inf")):
            raise ArgumentError(f"Latency: seconds must be at least 0; {self.seconds!r} was given")

    def used(self, original: float, pruned: float) -> float:
        """How much of the target a model uses up that takes so many seconds, where the original takes so many."""
        return pruned / original / self.keep if self.keep <= 1 else pruned * 1e6 / self.keep


def timed(function: Callable[[], Any], seconds: float) -> float:
    """The median time of one call, from so many seconds of calls."""
    from torch.utils.benchmark import Timer  # half a second, and on some machines a warning about CUDA's compiler

    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    with torch.no_grad():
        return float(timer.blocked_autorange(min_run_time=seconds).median)


class Stopwatch:
    """Compares models with the original."""

    def __init__(self, original: nn.Module, call: Call | None, compiled: bool) -> None:
        if call is None:
            raise ArgumentError("latency is measured on example inputs: pass a graph that `analyze` returned")
        self._call = call
        self._compiled = compiled
        self._original = self._ready(original)

    def _ready(self, model: nn.Module) -> Callable[[], Any]:
        if self._compiled:
            torch.compiler.reset()
        run: Callable[..., Any] = torch.compile(model.eval()) if self._compiled else model.eval()
        return lambda: run(*self._call.args, **self._call.kwargs)

    def compare(self, model: nn.Module, seconds: float = 0.1) -> tuple[float, float]:
        """The seconds that the original takes, and those that `model` takes, in turn: the least of each."""
        run = self._ready(model)
        turns = [(timed(self._original, seconds), timed(run, seconds)) for _ in range(TURNS)]
        return min(a for a, _ in turns), min(b for _, b in turns)


# -- the staircase --------------------------------------------------------------------------------------------


def staircase(graph: ChannelGraph, groups: Sequence[Group], seconds: float) -> Mapping[int, IntArray]:
    """By the first unit of each group, the numbers of kept units that are worth having.

    The costliest groups come first; those that the time does not suffice for are free.
    """
    end = time.perf_counter() + seconds
    users = users_of_parameters(graph.space.programs[:1])
    busy = {id(group): _busiest(group, users) for group in groups}
    ordered = sorted((g for g in groups if busy[id(g)]), key=lambda g: -busy[id(g)][0][0])  # type: ignore[index]
    found: dict[int, IntArray] = {}
    known: dict[Any, float] = {}
    for group in ordered:
        counts = widths(len(group))
        each = min(0.02, max(0.0005, seconds / (2 * len(ordered) * len(counts))))
        times = []
        for count in counts.tolist():
            if time.perf_counter() > end:
                return found
            times.append(_operation_time(graph, busy[id(group)][0][1], group.units[count:], each, known))
        found[int(group.units[0])] = right_ends(counts, np.array(times))
    return found


def widths(size: int) -> IntArray:
    """Multiples of a power of two up to `size`, `WIDTHS` of them or up to twice as many."""
    step = 1 << max((size // WIDTHS).bit_length() - 1, 0)
    counts = np.arange(step, size + 1, step)
    return counts if counts[-1] == size else np.append(counts, size)


def right_ends(counts: IntArray, times: Any) -> IntArray:
    """The counts that no larger one is as fast as."""
    later = np.append(np.minimum.accumulate(times[::-1])[::-1][1:], np.inf)
    return counts[later > times * GAIN]


def _busiest(group: Group, users: Mapping[str, set[Node]]) -> list[tuple[int, Node]]:
    """The costliest operation that reads filters or inputs of a group, with its MACs; nothing if there is none."""
    names = {s.name for s in group.slices if s.produces or s.consumes}
    readers = sorted({n for name in names for n in users.get(name, ())}, key=lambda n: n.place)
    counted = [(macs_of(node), node) for node in readers]
    return sorted((pair for pair in counted if pair[0]), key=lambda pair: -pair[0])[:1]


def _operation_time(
    graph: ChannelGraph, node: Node, removed: IntArray, seconds: float, known: dict[Any, float]
) -> float:
    """The time of one operation without some units; operations on the same sizes are timed once."""
    view = graph.view(removed)
    device = next((p.device for p in graph.model.parameters()), torch.device("cpu"))
    shapes: list[Any] = []

    def fill(value: Any) -> Any:
        if isinstance(value, Node):
            labels = graph.space.values.get(value)
            shape = view.shape(labels) if labels is not None else value.meta["shape"]
            shapes.append((shape, value.meta["dtype"]))
            return torch.ones(shape, dtype=value.meta["dtype"], device=device)
        if isinstance(value, list | tuple):
            return type(value)(fill(v) for v in value)
        return view.evaluate(value)

    args = [fill(a) for a in node.args]
    kwargs = {k: fill(v) for k, v in node.kwargs.items()}
    plain = [repr(a) for a in _plain((args, list(kwargs.items())))]
    key = (node.meta["op"], tuple(shapes), tuple(plain))
    if key not in known:
        known[key] = timed(lambda: node.target(*args, **kwargs), seconds)
    return known[key]


def _plain(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _plain(item)
    elif not isinstance(value, Tensor):
        yield value
