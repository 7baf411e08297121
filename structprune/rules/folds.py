"""Norms that hold for every call of a model.

Folds: an RMS norm makes up for channels by its own weight and epsilon only if nothing else takes these.
Swaps: all norms that a class calls will count channels, those too that only another call reaches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ..counting import uncounted
from ..frames import Caller
from ..labels import Couplings
from ..nn import NORMS
from ..nodes import Node
from ..program import Program, users_of_parameters
from ..sizes import AttributeOf, Constant, leaves
from .normalization import Fold, Swap

BY_CALL = "its class calls norms that only some of the traced calls reach"
SEVERAL = "its class would need several substitutes, for statistics over different channels"
WHY = "its RMS norm would need another weight or epsilon, which something else takes as well"


class _Takers:
    """The operations that take parameters by name, and attributes by module and name; None stands for Python."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.of_parameters = users_of_parameters(programs)
        self.of_attributes: dict[tuple[str, str], set[Node | None]] = defaultdict(set)
        for program in programs:
            looks = [leaf for guard in program.guards for leaf in leaves(guard.origin)]
            self._note((*program.seen, *looks), None)
            for node in program.graph.nodes:
                self._note(_attributes((node.args, node.kwargs)), node)

    def _note(self, found: Iterable[Any], taker: Node | None) -> None:
        for leaf in found:
            if isinstance(leaf, AttributeOf):
                self.of_attributes[leaf.module, leaf.name].add(taker)


def held_folds(
    norms: Sequence[Swap | Fold], programs: Sequence[Program], modules: Mapping[str, nn.Module], couplings: Couplings
) -> list[Swap | Fold]:
    """The norms with something else in place of folds that do not hold: a swap, or labels that stay."""
    if not any(isinstance(norm, Fold) for norm in norms):
        return list(norms)
    takers = _Takers(programs)
    by_path: dict[str, list[Swap | Fold]] = defaultdict(list)
    for norm in norms:
        by_path[norm.path].append(norm)
    found: list[Swap | Fold] = []
    for path, here in by_path.items():
        folds = [norm for norm in here if isinstance(norm, Fold)]
        if not folds or (len(folds) == len(here) and _hold(folds, modules[path], takers)):
            found += here
            continue
        for norm in here:
            if not isinstance(norm, Fold):
                found.append(norm)
            elif norm.instead is not None:
                found.append(norm.instead)
            else:
                couplings.fix(norm.labels, WHY, norm.takers[0])
    return found


def held_swaps(norms: Sequence[Swap | Fold], programs: Sequence[Program], couplings: Couplings) -> list[Swap | Fold]:
    """The norms without swaps of modules of which the programs reach different calls of norms, or that would need
    several swaps: these labels stay."""
    found: list[Swap | Fold] = []
    kinds: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for norm in norms:
        if isinstance(norm, Swap) and norm.name != "stock":
            kinds[norm.path].add((norm.name, norm.channels))
    for norm in norms:
        counts = isinstance(norm, Swap) and norm.name == "norm"
        reached = [calls for p in programs if (calls := _calls_of_norms(p, norm.path))] if counts else []
        if len(kinds[norm.path]) > 1:
            couplings.fix(norm.labels, SEVERAL, None)
        elif all(calls.keys() == reached[0].keys() for calls in reached):
            found.append(norm)
        else:
            couplings.fix(norm.labels, BY_CALL, next(iter(reached[0].values())))
    return found


def _calls_of_norms(program: Program, path: str) -> dict[Caller, Node]:
    """The calls of norms in the code of a module, by their places in it."""
    nodes = [node for op in NORMS for node in program.graph.calls.get((op, path), ())]
    return {node.meta["caller"]: node for node in nodes}


def _hold(folds: Sequence[Fold], module: nn.Module, takers: _Takers) -> bool:
    """Whether the folds of one module are alike, and alone in taking its weight, its epsilon and its shape."""
    first = folds[0]
    if len({fold.same() for fold in folds}) > 1 or uncounted(type(module)) is not type(module):
        return False
    own = {taker for fold in folds for taker in fold.takers}
    attributes = [first.attribute, *([first.shape.name] if first.shape else [])]
    alone = all(takers.of_attributes[first.path, name] <= own for name in attributes)
    return alone and takers.of_parameters[first.parameter] <= own


def _attributes(value: Any) -> Iterator[Any]:
    """The attributes of modules that numbers in nested arguments are made of."""
    if isinstance(value, Constant):
        yield value.origin
    elif isinstance(value, int):
        yield from leaves(value)
    elif isinstance(value, Node):
        return
    elif isinstance(value, Mapping):
        yield from _attributes(list(value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _attributes(item)
