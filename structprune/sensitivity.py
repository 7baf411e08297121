"""Sensitivity: what a user's metric loses when one group shrinks, measured on masks, without surgery."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from .constraints import Selector, check_ratio, read_constraints
from .errors import ArgumentError, ArgumentTypeError, MissingPackageError
from .graph import ALMOST, ChannelGraph, Group, check_graph
from .importance import Importance
from .mask import zeroed
from .planning import find_importance, ranked
from .settlement import settle
from .storage import path_of

RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Row:
    """One group: what it is, and what the metric loses at each ratio."""

    name: str
    kind: str
    units: int
    layers: tuple[str, ...]  # every layer whose filters go together with the first
    drops: Mapping[float, float]


@dataclass(frozen=True)
class Sensitivity:
    """The drop of a metric by group and ratio. Printing it prints a table, the most sensitive group first.

    >>> found = structprune.sensitivity(graph, accuracy)
    >>> plan = structprune.plan(graph, ratios=found.ratios(max_drop=0.01))
    """

    baseline: float  # the metric of the model as it is
    rows: tuple[Row, ...]  # in the order of the graph's groups

    def ratios(self, max_drop: float) -> dict[str, float]:
        """The largest ratio that was tried, for every group, up to which the metric drops by no more than this.

        Groups are measured one at a time, and what they lose adds up: the plan that uses all these ratios at once
        loses more. The result is for the `ratios` of `plan`. Raises ArgumentError unless `max_drop` is a number
        of at least 0.
        """
        if isinstance(max_drop, bool) or not isinstance(max_drop, int | float | np.number):
            raise ArgumentTypeError(f"max_drop must be a number, not {max_drop!r}")
        if not max_drop >= 0:
            raise ArgumentError(f"max_drop must be at least 0, in units of the metric; {max_drop!r} was given")
        found: dict[str, float] = {}
        for row in self.rows:
            largest = 0.0
            for ratio, drop in row.drops.items():
                if drop > max_drop:
                    break
                largest = ratio
            found[row.name] = min(largest, found.get(row.name, 1.0))  # parts of one layer may be two groups
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rows = [{**vars(row), "layers": list(row.layers), "drops": dict(row.drops)} for row in self.rows]
        return {"baseline": self.baseline, "rows": rows}

    def plot(self, path: str | Path) -> None:
        """Draws one line for each group, drop over ratio, into an image file. Needs matplotlib.

        Raises ArgumentTypeError for what is no path, ArgumentError for a folder and for a kind of image that matplotlib
        does not know, and MissingPackageError without it: `pip install structprune[plot]`.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingPackageError("plotting needs matplotlib: pip install 'structprune[plot]'") from error
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for row in self.rows:
            axes.plot([0, *row.drops], [0, *row.drops.values()], marker=".", label=f"{row.name} ({row.kind})")
        axes.set(xlabel="ratio of units removed", ylabel=f"drop of the metric, from {self.baseline:.4g}")
        axes.legend(fontsize="x-small", ncols=1 + len(self.rows) // 16, loc="upper left")
        target = path_of(path)
        if target.is_dir():
            raise ArgumentError(f"{target} is a folder; name a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            figure.savefig(target)
        except ValueError as error:  # what the ending of the name means is for matplotlib to know
            raise ArgumentError(f"{path} cannot be drawn: {error}") from error

    def __rich__(self) -> Table:
        table = Table(title=f"sensitivity: the drop of a metric that is {self.baseline:.4g}", title_justify="left")
        table.add_column("group")
        for heading in ("kind", "units", "layers"):
            table.add_column(heading, justify="left" if heading == "kind" else "right")
        for ratio in self.rows[0].drops:
            table.add_column(f"{ratio:.0%}", justify="right")
        for row in sorted(self.rows, key=lambda row: -max(row.drops.values())):
            drops = [f"{drop:.4g}" for drop in row.drops.values()]
            table.add_row(Text(row.name), row.kind, str(row.units), str(len(row.layers)), *drops)
        return table

    def __str__(self) -> str:
        console = Console(width=120, no_color=True)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def sensitivity(
    graph: ChannelGraph,
    evaluate: Callable[[nn.Module], float],
    ratios: Iterable[float] = RATIOS,
    *,
    importance: str | Importance = "l1",
    exclude: Selector | Iterable[Selector] = (),
    include: Selector | Iterable[Selector] | None = None,
) -> Sensitivity:
    """How much a metric drops when one group at a time loses its least important units.

    Each group is tried at each ratio on a masked copy of the model (zeros in everything that the plan for it would
    remove, which computes what the pruned model would), so nothing is cut and the model stays as it is. Layers
    that must shrink together are one group, and told together. After Li et al., "Pruning Filters for Efficient
    ConvNets", ICLR 2017, section 3.2, where the layers are tried one by one.

    Args:
        evaluate: a function of a model that returns a number, more being better (an accuracy, or minus a loss).
            It is called once for each group and ratio, and once for the model as it is, each time with a fresh
            copy that it may do with as it likes.
        ratios: what to try, numbers in (0, 1).
        importance, exclude, include: as for `plan`.

    Raises ArgumentError and ArgumentTypeError, also if `evaluate` returns anything but a finite number, and what
    `plan` and `evaluate` raise.

    >>> found = structprune.sensitivity(graph, lambda model: float((model(images).argmax(1) == classes).float().mean()))
    >>> print(found)
    >>> plan = structprune.plan(graph, ratios=found.ratios(max_drop=0.01))
    """
    check_graph(graph)
    if not callable(evaluate):
        raise ArgumentTypeError(f"evaluate must be a function of a model, not {evaluate!r}")
    tried = _read_tried(ratios)
    constraints = read_constraints(graph, exclude, include, None, 0.0, 1.0, 1)
    graph, groups, ranking = ranked(graph, constraints, find_importance(importance))
    baseline = _measure(graph, evaluate, groups[0].units[:0])
    rows = []
    for group, scores in zip(groups, ranking, strict=True):
        units = group.units[np.argsort(scores, kind="stable")]
        drops: dict[float, float] = {}
        last, value = 0, baseline
        for ratio in tried:
            count = min(math.floor(ratio * len(group) + ALMOST), len(group) - 1)
            if count != last:  # small groups lose as much at several ratios
                last, value = count, _measure(graph, evaluate, units[:count])
            drops[ratio] = baseline - value
        rows.append(Row(group.name, group.kind, len(group), layers(group), drops))
    return Sensitivity(baseline, tuple(rows))


def layers(group: Group) -> tuple[str, ...]:
    """The layers that lose filters with the group."""
    weights = [s.name.removesuffix(".weight") for s in group.slices if s.produces and s.tensor.ndim > 1]
    return tuple(dict.fromkeys(weights)) or (group.name,)


def _read_tried(ratios: Any) -> list[float]:
    single = isinstance(ratios, str) or not isinstance(ratios, Iterable) or not getattr(ratios, "shape", True)
    given = [ratios] if single else list(ratios)
    tried = sorted({check_ratio(ratio, "each of ratios") for ratio in given} - {0.0})
    if not tried:
        raise ArgumentError(f"ratios must hold numbers in (0, 1) to try, such as {RATIOS}; {ratios!r} was given")
    return tried


def _measure(graph: ChannelGraph, evaluate: Callable[[nn.Module], float], units: Any) -> float:
    """The metric of the model without these units."""
    found: Any = evaluate(zeroed(settle(graph, units)[0], graph.model))
    try:
        value = math.nan if isinstance(found, bool | str) else float(found)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ArgumentTypeError(f"evaluate must return a number; it returned {found!r}") from error
    if not math.isfinite(value):
        raise ArgumentError(f"evaluate must return a finite number; it returned {found!r}")
    return value
