"""Settlement: units that are to go become a plan, less those that some operation turns out to need."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .counting import places_of
from .graph import ChannelGraph
from .labels import IntArray
from .plan import Kept, PruningPlan
from .rewriting import REWRITE, held, rewritten
from .rules.checks import View
from .rules.normalization import Fold, Swap
from .sizes import NUMBERS
from .swaps import NORM, swap_for


def settle(graph: ChannelGraph, removed: IntArray) -> tuple[PruningPlan, IntArray]:
    """The plan that removes these units, less those that some operation turns out to need, and what it removes."""
    roots = graph.space.couplings.roots()
    notes: list[str] = []
    while True:
        view = graph.view(removed)
        needed = np.zeros(roots.count, bool)
        failed = [check for check in graph.space.checks if not check.holds(view) and graph.space.concerned(check)]
        notes += [check.why for check in failed]
        for labels in (labels for check in failed for labels in graph.space.labels_behind(check)):
            needed[roots[labels]] = True
        for labels in _emptied(graph, view):
            notes.append("all others of a value go, which would be left empty")
            needed[_last_to_go(removed, roots[labels])] = True
        if needed[removed].any():
            removed = removed[~needed[removed]]
        elif failed and len(removed):  # nothing that could be put back explains it: put everything back
            removed = removed[:0]
        else:
            return _freeze(graph, view, tuple(dict.fromkeys(notes))), removed


def _emptied(graph: ChannelGraph, view: View) -> list[IntArray]:
    """The labels of parameters and of values between them that would have nothing left."""
    space = graph.space
    coordinates = [*space.couplings.leading(), *space.partial.values()]
    return [c for c in coordinates if (left := view.left(c)) is not None and not len(left)]


def _last_to_go(removed: IntArray, units: IntArray) -> int:
    """Which of these units is the last among those that are removed: of one group, the most important."""
    return int(removed[np.flatnonzero(np.isin(removed, units))[-1]])


def _freeze(graph: ChannelGraph, view: View, notes: tuple[str, ...]) -> PruningPlan:
    kept: Kept = {}
    sizes: dict[str, dict[int, int]] = {}
    tuples = _Tuples()
    for name, dim, labels in graph.space.dimensions:
        left = view.left(labels)
        if left is not None:
            kept.setdefault(name, {})[dim] = tuples.of(left)
            sizes.setdefault(name, {})[dim] = labels.size
    attributes: dict[str, dict[str, Any]] = {}
    for leaf, value in graph.space.attributes(view).items():
        values = attributes.setdefault(leaf.module, {})
        if leaf.place is None:
            values[leaf.name] = int(value)
        else:
            several = values.get(leaf.name, tuple(held(graph.space.modules[leaf.module], leaf.name)))
            values[leaf.name] = (*several[: leaf.place], int(value), *several[leaf.place + 1 :])
    stock: Kept = {}
    for norm in graph.space.norms:
        gone = view.gone(norm.labels)
        if isinstance(norm, Swap) and norm.name == "stock" and gone.any():
            stock[norm.path] = {0: tuples.of(np.flatnonzero(~gone))}
            sizes[norm.path] = {0: len(gone)}
    swaps, scales, shifts = _substitutes(graph, view, set(kept), attributes)
    registered = graph.parts.registered
    tensors = {name: kept.pop(name) for name in list(kept) if name not in registered}
    becomes = graph.parts.fingerprint_after({**kept, **tensors})
    prints = graph.fingerprint, notes, becomes
    return PruningPlan(kept, tensors, attributes, swaps, scales, shifts, stock, sizes, *prints)


def _substitutes(
    graph: ChannelGraph, view: View, touched: set[str], attributes: dict[str, dict[str, Any]]
) -> tuple[dict[str, tuple[str, int]], dict[str, float], dict[str, float]]:
    """The modules to swap, and what to fold into weights; `attributes` gets what goes with them."""
    swaps: dict[str, tuple[str, int]] = {}
    scales: dict[str, float] = {}
    shifts: dict[str, float] = {}
    for norm in graph.space.norms:
        left = int((~view.gone(norm.labels)).sum())
        if left == len(norm.labels):
            continue
        values = attributes.setdefault(norm.path, {})
        if isinstance(norm, Fold):
            scale = math.sqrt(len(norm.labels) / left)
            scales[norm.parameter] = scale
            if norm.offset:
                shifts[norm.parameter] = norm.offset * (scale - 1)
            values[norm.attribute] = getattr(graph.space.modules[norm.path], norm.attribute) * len(norm.labels) / left
            if norm.shape:
                values[norm.shape.name] = left if norm.shape.place is None else (left,)
        elif norm.name == NORM or places_of(norm.name) is not None:
            swaps[norm.path] = (norm.name, norm.channels)
        elif norm.name == "stock" and hasattr(graph.space.modules[norm.path], "normalized_shape"):
            values["normalized_shape"] = (left,)
    for path, module in graph.space.modules.items():
        known = swap_for(type(module))
        if known is not None and any(name.startswith(f"{path}." if path else "") for name in touched):
            swaps[path] = (known.name, 0)
        elif NUMBERS in attributes.get(path, ()) and not hasattr(module, NUMBERS):
            swaps[path] = (REWRITE, rewritten(type(module)).checksum)
    return swaps, scales, shifts


class _Tuples:
    """Kept indices as tuples: coupled parameters keep the same, and one tuple serves them all."""

    def __init__(self) -> None:
        self._of_array: dict[int, tuple[IntArray, tuple[int, ...]]] = {}  # by id, with the array, which lives on
        self._of_content: dict[bytes, tuple[int, ...]] = {}

    def of(self, indices: IntArray) -> tuple[int, ...]:
        if id(indices) not in self._of_array:
            content = indices.tobytes()
            if content not in self._of_content:
                self._of_content[content] = tuple(indices.tolist())
            self._of_array[id(indices)] = indices, self._of_content[content]
        return self._of_array[id(indices)][1]
