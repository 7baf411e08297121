"""What no traced call reads stays whole, and what must have its size then.

Experts, and other modules in a list that stand for one another: a call may reach some of them, another call others.
What those that none reached would read, and add to, must keep its channels: it is what their siblings read and add to.

Tensors of one module whose size one attribute tells: a forward may read the statistics of a batch norm alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

if TYPE_CHECKING:
    from .analysis import Space


def hold_for_siblings(space: Space) -> None:
    """Fixes what modules that were reached share with others, if one like them in their list was not reached."""
    found = list(_divided(space))
    if not found:
        return
    roots = space.couplings.roots()
    owners = np.zeros(roots.count, np.int64)  # the number of the only such module that has parts of a unit, or -1
    number = {path: i for i, (path, _) in enumerate(found, 1)}
    owner_of = {name: _owner(name, number) for name in space.parameters}
    for name, labels in space.parameters.items():
        for coordinate in labels.coordinates:
            units = roots[coordinate]
            owners[units] = np.where(np.isin(owners[units], (0, owner_of[name])), owner_of[name], -1)
    for name, labels in space.parameters.items():
        if owner_of[name] < len(found) + 1:
            missed = found[owner_of[name] - 1][1]
            for coordinate in labels.coordinates:
                shared = coordinate[owners[roots[coordinate]] < 0]
                space.couplings.fix(shared, f"{missed} was not reached, and may read or write it, too", None)


def hold_for_unread(space: Space) -> None:
    """Fixes tensors of a module if one of the same size, by one attribute (`num_features`), is read nowhere; those that
    all are read lose the same indices."""
    couplings = space.couplings
    for leaf, *pair in space.told_twice:
        read = [
            labels
            for row, name in pair
            if name in space.parameters and (labels := space.parameters[name].along(row.dim)) is not None
        ]
        if len(read) == 1:
            unread = next(name for _, name in pair if name not in space.parameters)
            told = f"{leaf.module}.{leaf.name}" if leaf.module else leaf.name
            couplings.fix(read[0], f"{told} is the size of {unread}, too, which is read nowhere", None)
        elif read and couplings.block(read[0]) != couplings.block(read[1]):
            couplings.couple(read[0], read[1], None)


def _divided(space: Space) -> Iterator[tuple[str, str]]:
    """The paths of modules in lists that were reached, each with one like it that was not."""
    reached = {n.meta["tensor"] for p in space.programs for n in p.graph.nodes if n.meta["op"] == "parameter"}
    if reached.issuperset(space.parts.registered):
        return
    for path, module in space.modules.items():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            alike: dict[Any, dict[bool, list[str]]] = {}
            for name, child in module.named_children():
                shapes = [(n, p.shape) for n, p in child.named_parameters()]
                prefix = f"{path}.{name}" if path else name
                hit = any(f"{prefix}.{n}" in reached for n, _ in shapes)
                if shapes:
                    alike.setdefault((type(child), tuple(shapes)), {}).setdefault(hit, []).append(prefix)
            for paths in alike.values():
                if len(paths) == 2:
                    yield from ((one, paths[False][0]) for one in paths[True])


def _owner(name: str, number: dict[str, int]) -> int:
    """The number of the module among these that a parameter belongs to; one more than there are if to none."""
    parts = name.split(".")
    inside = (".".join(parts[:i]) for i in range(1, len(parts)))
    return next((number[path] for path in inside if path in number), len(number) + 1)
