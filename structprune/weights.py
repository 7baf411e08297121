"""Weights as readers of channels: which of their inputs matter, and where a constant among them can go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .constants import Knowns
from .graph import ChannelGraph
from .labels import BoolArray, IntArray, Labels
from .nn import width_of_bias
from .nodes import Graph, Node
from .program import users_of_parameters
from .readers import Reader


class Inputs(NamedTuple):
    """Masks over [groups, inputs of a group], of what live rows read."""

    varying: Tensor
    folded: Tensor  # constant, and the sum over it is one number for each row
    constant: Tensor  # constant, and the sum over it differs at the border


@dataclass(frozen=True)
class Outlet:
    """Where a number for each row can be added: biases or running means by name, or new biases by module path."""

    biases: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.biases or self.means or self.modules)


@dataclass(eq=False)
class Weight:
    """All calls that read one weight. `inputs` and `outputs` are units, 0 for what is fixed.

    `unclear` are units of inputs that do not sit at one place in every call, and cannot be told apart here.
    """

    readers: Sequence[Reader]
    tensor: Tensor
    constants: Tensor  # [groups, inputs of a group]; NaN where it varies, or differs between calls
    inputs: IntArray
    outputs: IntArray
    unclear: IntArray
    outlet: Outlet
    own: bool  # a parameter that nothing else reads
    _last: tuple[bytes, Inputs] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The parameter's name; empty if the weight is computed from parameters."""
        return self.readers[0].weight.meta.get("tensor", "")

    @property
    def where(self) -> str:
        node = self.readers[0].node
        return f"{node.meta['op']} in {node.meta['path']}" if node.meta["path"] else node.meta["op"]

    @property
    def view(self) -> Tensor:
        """[groups, outputs, inputs, taps]"""
        return self.readers[0].view(self.tensor)

    @cached_property
    def _nonzero(self) -> tuple[Tensor, Tensor]:
        """Whether an output reads an input at all, and with a tap that may lie over padding."""
        taps = self.view != 0
        inside = torch.stack([r.inside for r in self.readers]).all(0)
        return taps.any(3), taps[..., ~inside].any(3)

    def read(self, dead: BoolArray) -> Inputs:
        """What the rows that are not dead read."""
        rows = ~dead[self.outputs]
        key = rows.tobytes()
        if self._last is None or self._last[0] != key:
            live = torch.from_numpy(rows).reshape(self._nonzero[0].shape[0], -1, 1)
            anywhere, border = ((part & live).any(1) for part in self._nonzero)
            constant = anywhere & ~self.constants.isnan() & (self.constants != 0)
            folded = constant & ~border if self.outlet else torch.zeros_like(constant)
            self._last = key, Inputs(anywhere & self.constants.isnan(), folded, constant & ~folded)
        return self._last[1]


def weights_of(graph: ChannelGraph, knowns: Sequence[Knowns]) -> list[Weight]:
    """Every weight that is known, with its calls in all programs that see it in the same way."""
    found: dict[object, list[tuple[Reader, Knowns]]] = {}
    for program, known in zip(graph.space.programs, knowns, strict=True):
        for node in program.graph.nodes:
            reader = known.reader(node) if node.op == "call_function" and not node.meta["unread"] else None
            if reader is not None:
                seen = reader.view(known.values[reader.weight])  # another call may read it transposed
                key = reader.weight.meta.get("tensor") or reader.weight, seen.shape, seen.stride()
                found.setdefault(key, []).append((reader, known))
    users = users_of_parameters(graph.space.programs)
    return [_weight(graph, calls, users) for calls in found.values()]


def _weight(graph: ChannelGraph, calls: Sequence[tuple[Reader, Knowns]], users: Mapping[str, set[Node]]) -> Weight:
    readers = [reader for reader, _ in calls]
    first, known = calls[0]
    tensor = known.values[first.weight]
    groups, outputs, inputs, _ = first.view(tensor).shape
    each = [k.channels(r.source, r.node, r.source_dim) for r, k in calls]
    same = torch.stack([row == each[0] for row in each]).all(0)
    name = first.weight.meta.get("tensor", "")
    nodes = {r.node for r in readers}
    read, unclear = _units(graph, ((r.source, r.source_dim) for r in readers), groups * inputs)
    written, _ = _units(graph, ((r.node, r.dim) for r in readers), groups * outputs)
    return Weight(
        readers, tensor, torch.where(same, each[0], float("nan")).reshape(groups, inputs),
        read, written, unclear, _outlet(graph, readers, users),
        own=bool(name) and users[name] <= nodes and all(r.weight not in (r.source, r.bias) for r in readers),
    )  # fmt: skip


def _units(graph: ChannelGraph, values: Iterable[tuple[Node, int]], size: int) -> tuple[IntArray, IntArray]:
    """The unit of each index of a dimension; 0 where calls or other dimensions disagree, and the units that do."""
    roots = graph.space.couplings.roots()
    found = []
    for node, dim in values:
        labels = graph.space.values[node]
        coordinate = labels.along(dim) if isinstance(labels, Labels) else None
        found.append(np.zeros((size, 1), np.int64))
        if coordinate is not None:
            found[-1] = np.moveaxis(roots[coordinate], dim, 0).reshape(size, -1)
    rows = np.concatenate(found, axis=1)
    same = (rows == rows[:, :1]).all(1)
    return np.where(same, rows[:, 0], 0), np.unique(rows[~same])


def _outlet(graph: ChannelGraph, readers: Sequence[Reader], users: Mapping[str, set[Node]]) -> Outlet:
    """A bias that nothing else uses; else the mean of the batch norm that follows; else a bias that is new."""
    nodes = {r.node for r in readers}
    biases = {r.bias for r in readers}
    if biases == {None}:
        trained = {p.graph for p in graph.space.programs if p.training}
        means = _means(nodes, users, trained)
        return Outlet(means=means) if means else Outlet(modules=_modules(graph, readers))
    names = {b.meta.get("tensor", "") for b in biases if b is not None}
    if None in biases or any(not n or not users[n] <= nodes for n in names):
        return Outlet()
    if any(r.bias in (r.source, r.weight) for r in readers):
        return Outlet()
    return Outlet(biases=tuple(sorted(names)))


def _means(nodes: set[Node], users: Mapping[str, set[Node]], trained: set[Graph]) -> tuple[str, ...]:
    """The running means of the batch norms that alone read these results, and read nothing else."""
    norms = {user for node in nodes for user in node.users}
    means = set()
    for norm in norms:
        mean = norm.args[1] if norm.target is nn.functional.batch_norm and len(norm.args) > 1 else None
        of_batch = norm.kwargs.get("training", norm.args[5] if len(norm.args) > 5 else False)
        if not isinstance(mean, Node) or norm.args[0] not in nodes or (of_batch and norm.graph not in trained):
            return ()
        means.add(mean.meta.get("tensor", ""))
    return tuple(sorted(means)) if all(m in users and users[m] <= norms for m in means) else ()


def _modules(graph: ChannelGraph, readers: Sequence[Reader]) -> tuple[str, ...]:
    """The plain linear layers and convolutions that make these calls, if they can be given a bias."""
    paths = {r.node.meta["path"] for r in readers}
    for path in paths:
        module = graph.space.modules[path]
        weight = graph.space.tensors.get(readers[0].weight.meta.get("tensor", ""))
        if not width_of_bias(module) or module.weight is not weight:
            return ()
    return tuple(sorted(paths))
