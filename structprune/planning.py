"""Planning: scores and a ratio become a plan."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .collector import paused
from .errors import ArgumentError, ArgumentTypeError, NothingToPruneError
from .graph import ChannelGraph, Group
from .importance import NAMED, Importance, Scores
from .labels import IntArray
from .plan import Kept, PruningPlan
from .program import fingerprint, registered_tensors
from .rules.checks import View
from .rules.normalization import Fold, Swap
from .swaps import swap_for

SCOPES = ("local", "global")


def plan(
    graph: ChannelGraph,
    importance: str | Importance = "l1",
    ratio: float = 0.5,
    scope: str = "local",
    exclude: str | Iterable[str] = (),
) -> PruningPlan:
    """Ranks the units of `graph` and decides which of them go.

    Args:
        importance: `"l1"`, or any function of a `Group` that returns one score for each of its units.
        ratio: the fraction of units to remove, at least 0 and below 1; of each group (`scope="local"`,
            rounded down), or of all groups together (`scope="global"`, scores divided by their group's mean).
            One unit of every group always stays.
        exclude: patterns (`"layer1.*"`, `"fc"`) of layers or parameters whose filters all stay.

    Ties are broken by index, the first going first. The same graph and settings give the same plan, byte for byte.

    Raises ArgumentError, ArgumentTypeError, UnknownNameError (an `exclude` pattern matches nothing),
    NonFiniteError, and NothingToPruneError with the reasons if every unit is fixed or excluded.
    """
    if not isinstance(graph, ChannelGraph):
        raise ArgumentTypeError(f"graph must be the ChannelGraph that analyze returns, not {type(graph).__name__}")
    ratio = check_ratio(ratio)
    if scope not in SCOPES:
        raise ArgumentError(f"scope must be one of {', '.join(map(repr, SCOPES))}, not {scope!r}")
    measure = find_importance(importance)
    groups = _included(graph, check_patterns(exclude))
    scores = [_scores(measure, group) for group in groups]
    chosen = _local(groups, scores, ratio) if scope == "local" else _global(groups, scores, ratio)
    with paused():
        return settle(graph, np.concatenate([np.zeros(0, np.int64), *chosen]))


def check_ratio(ratio: Any) -> float:
    """A number from 0 up to, but not including, 1."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float | np.number):
        raise ArgumentTypeError(f"ratio must be a number in [0, 1), not {ratio!r}")
    if not 0 <= ratio < 1:
        raise ArgumentError(f"ratio must be in [0, 1): the fraction of channels to remove; {ratio!r} was given")
    return float(ratio)


def check_patterns(exclude: Any) -> list[str]:
    """One pattern, or several."""
    patterns = [exclude] if isinstance(exclude, str) else list(exclude) if isinstance(exclude, Iterable) else [exclude]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ArgumentTypeError(f"exclude must be a pattern or several, as strings; {pattern!r} was given")
    return patterns


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


def _included(graph: ChannelGraph, exclude: list[str]) -> list[Group]:
    out = {name for pattern in exclude for name in graph.matching(pattern)}
    groups = [g for g in graph.groups if not any(s.produces and s.name in out for s in g.slices)]
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


def _local(groups: list[Group], scores: list[Scores], ratio: float) -> list[IntArray]:
    chosen = []
    for group, values in zip(groups, scores, strict=True):
        count = min(math.floor(ratio * len(group) + 1e-9), len(group) - 1)
        chosen.append(group.units[np.argsort(values, kind="stable")[:count]])
    return chosen


def _global(groups: list[Group], scores: list[Scores], ratio: float) -> list[IntArray]:
    relative = [values / max(values.mean(), np.finfo(np.float64).tiny) for values in scores]
    free = []  # the best unit of every group stays
    for group, values in zip(groups, relative, strict=True):
        free.append(np.argsort(values, kind="stable")[: len(group) - 1])
    pool = np.concatenate([values[order] for values, order in zip(relative, free, strict=True)])
    units = np.concatenate([group.units[order] for group, order in zip(groups, free, strict=True)])
    count = math.floor(ratio * sum(map(len, groups)) + 1e-9)
    return [units[np.argsort(pool, kind="stable")[:count]]]


def settle(graph: ChannelGraph, removed: IntArray) -> PruningPlan:
    """The plan that removes these units, less those that some operation turns out to need."""
    roots = graph.space.couplings.roots()
    notes: list[str] = []
    while True:
        view = graph.view(removed)
        needed = np.zeros(int(roots.max()) + 1, bool)
        failed = [check for check in graph.space.checks if not check.holds(view)]
        notes += [check.why for check in failed]
        for labels in (labels for check in failed for labels in graph.space.labels_behind(check)):
            needed[roots[labels]] = True
        for labels in _emptied(graph, view):
            notes.append("a value would be left empty")
            needed[roots[labels]] = True
        if failed and not needed[removed].any():  # nothing that could be put back explains it: put everything back
            removed = removed[:0]
        elif not needed[removed].any():
            return _freeze(graph, view, tuple(dict.fromkeys(notes)))
        else:
            removed = removed[~needed[removed]]


def _emptied(graph: ChannelGraph, view: View) -> list[IntArray]:
    from .rules.site import labels_in

    return [
        c for v in graph.space.values.values() for x in labels_in(v) for c in x.coordinates if view.removed[c].all()
    ]


def _freeze(graph: ChannelGraph, view: View, notes: tuple[str, ...]) -> PruningPlan:
    kept = {}
    sizes = {}
    seen: dict[bytes, tuple[int, ...]] = {}  # coupled parameters keep the same indices: one tuple serves them all
    for name, labels in graph.space.parameters.items():
        dims = view.kept(labels)
        if dims:
            kept[name] = {dim: _shared(indices, seen) for dim, indices in sorted(dims.items())}
            sizes[name] = {dim: labels.shape[dim] for dim in sorted(dims)}
    attributes: dict[str, dict[str, Any]] = {}
    for leaf, value in graph.space.attributes(view).items():
        attributes.setdefault(leaf.module, {})[leaf.name] = int(value)
    stock: Kept = {}
    for norm in graph.space.norms:
        gone = view.removed[norm.labels]
        if isinstance(norm, Swap) and norm.name == "stock" and gone.any():
            stock[norm.path] = {0: _shared(np.flatnonzero(~gone), seen)}
            sizes[norm.path] = {0: len(gone)}
    swaps, scales = _substitutes(graph, view, set(kept), attributes)
    registered = registered_tensors(graph.model)
    tensors = {name: kept.pop(name) for name in list(kept) if name not in registered}
    becomes = fingerprint(graph.model, {**kept, **tensors})
    return PruningPlan(kept, tensors, attributes, swaps, scales, stock, sizes, graph.fingerprint, notes, becomes)


def _substitutes(
    graph: ChannelGraph, view: View, touched: set[str], attributes: dict[str, dict[str, Any]]
) -> tuple[dict[str, tuple[str, int]], dict[str, float]]:
    """The modules to swap, and what to fold into weights; `attributes` gets what goes with them."""
    swaps: dict[str, tuple[str, int]] = {}
    scales: dict[str, float] = {}
    for norm in graph.space.norms:
        left = int((~view.removed[norm.labels]).sum())
        if left == len(norm.labels):
            continue
        values = attributes.setdefault(norm.path, {})
        if isinstance(norm, Fold):
            scales[norm.parameter] = math.sqrt(len(norm.labels) / left)
            values[norm.attribute] = getattr(graph.space.modules[norm.path], norm.attribute) * len(norm.labels) / left
            if norm.shape:
                values[norm.shape] = (left,)
        elif norm.name == "norm":
            swaps[norm.path] = ("norm", norm.channels)
        elif norm.name == "stock" and hasattr(graph.space.modules[norm.path], "normalized_shape"):
            values["normalized_shape"] = (left,)
    for path, module in graph.space.modules.items():
        known = swap_for(type(module))
        if known is not None and any(name.startswith(f"{path}." if path else "") for name in touched):
            swaps[path] = (known.name, 0)
    return swaps, scales


def _shared(indices: IntArray, seen: dict[bytes, tuple[int, ...]]) -> tuple[int, ...]:
    key = indices.tobytes()
    if key not in seen:
        seen[key] = tuple(indices.tolist())
    return seen[key]
