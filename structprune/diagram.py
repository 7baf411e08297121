"""The diagram of a model: its layers in the order they run, what feeds what, who shrinks together, and what is in the
way. Plain data, for the report, Mermaid and JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .cost import macs_of
from .labels import Labels
from .nodes import Node

if TYPE_CHECKING:
    from .graph import ChannelGraph, Group, Slice
    from .rules.checks import View

Pair = tuple[int, int]
Shapes = Callable[[Node], tuple[int, ...]]


@dataclass(frozen=True)
class Layer:
    """An operation that has filters of its own, or where several layers meet.

    `width` and `macs` are those before and after, `group` the index of the group that its filters belong to (-1 for
    none), `inputs` the indices of the layers that feed it, `fixed` why its filters stay.
    """

    name: str
    op: str
    source: str
    width: Pair
    macs: Pair
    group: int
    inputs: tuple[int, ...]
    fixed: str


@dataclass(frozen=True)
class Kind:
    """A group: its name, the units before and after, whose filters go together and through what, and who reads them."""

    name: str
    units: Pair
    filters: tuple[str, ...]
    through: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Blocker:
    """A reason that keeps channels, with its source line, the dimensions it keeps and the MACs of their layers."""

    reason: str
    macs: int
    dims: tuple[str, ...]


@dataclass(frozen=True)
class Diagram:
    """Layers, groups, and what blocks further savings, most MACs first."""

    layers: tuple[Layer, ...] = ()
    groups: tuple[Kind, ...] = ()
    blockers: tuple[Blocker, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Diagram:
        """The inverse of `to_dict`, before or after JSON; raises KeyError or TypeError for anything else."""
        return Diagram(
            tuple(Layer(**{k: _tuple(v) for k, v in row.items()}) for row in data["layers"]),
            tuple(Kind(**{k: _tuple(v) for k, v in row.items()}) for row in data["groups"]),
            tuple(Blocker(**{k: _tuple(v) for k, v in row.items()}) for row in data["blockers"]),
        )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def draw(graph: ChannelGraph, view: View | None = None) -> Diagram:
    """The diagram of the first traced call, as it is or under a plan."""
    layers = _layers(graph, view)
    groups = tuple(_kind(graph, i, group, layers, view) for i, group in enumerate(graph.groups))
    return Diagram(layers, groups, _blockers(graph, view))


def _shapes(graph: ChannelGraph, view: View | None) -> Shapes:
    def shape(node: Node) -> tuple[int, ...]:
        labels = graph.space.values.get(node)
        return view.shape(labels) if view is not None and isinstance(labels, Labels) else node.meta["shape"]

    return shape


# -- layers -----------------------------------------------------------------------------------------------------


def _layers(graph: ChannelGraph, view: View | None) -> tuple[Layer, ...]:
    """Nodes with filters, nodes where several layers meet, inputs and outputs; the others are passed through."""
    group_of, before, after = _Membership(graph), _shapes(graph, None), _shapes(graph, view)
    layers: list[Layer] = []
    sources: dict[Node, tuple[int, ...]] = {}
    for node in graph.space.programs[0].graph.nodes:
        op = node.meta["op"]
        inputs = tuple(dict.fromkeys(i for n in node.all_input_nodes for i in sources.get(n, ())))
        filters = _filters(graph, node)
        if op not in ("input", "output") and not filters and len(inputs) < 2:
            sources[node] = inputs
            continue
        width, group, fixed = _width(graph, filters, view, group_of)
        macs = (macs_of(node, before), macs_of(node, after)) if node.op == "call_function" else (0, 0)
        group = group_of.value(node) if not filters else group
        layers.append(Layer(_name(node, filters), op, _place(node), width, macs, group, inputs, fixed))
        sources[node] = (len(layers) - 1,)
    used = {i for layer in layers for i in layer.inputs}
    return _without(layers, {i for i, layer in enumerate(layers) if layer.op == "input" and i not in used})


class _Membership:
    """Which group filters, and the channels of values, belong to."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.roots = graph.space.couplings.roots()
        self.filters = {(s.name, s.dim): i for i, g in enumerate(graph.groups) for s in g.slices if s.produces}
        self.units = np.full(self.roots.count, -1)
        for i, group in enumerate(graph.groups):
            self.units[group.units] = i

    def value(self, node: Node) -> int:
        """The group of a value's channels; -1 if there is none, or more than one."""
        labels = self.graph.space.values.get(node)
        coordinates = labels.coordinates if isinstance(labels, Labels) else ()
        found = {int(i) for c in coordinates for i in np.unique(self.units[self.roots[c]])}
        return found.pop() if len(found) == 1 else -1


def _filters(graph: ChannelGraph, node: Node) -> list[str]:
    """The parameters of two or more dimensions that an operation reads."""
    if node.op != "call_function":
        return []
    names = [n.meta["tensor"] for n in node.all_input_nodes if n.meta["op"] == "parameter"]
    return [name for name in names if graph.space.tensors[name].ndim > 1]


def _width(graph: ChannelGraph, filters: list[str], view: View | None, group_of: _Membership) -> tuple[Pair, int, str]:
    """How many filters there are before and after, their group, and why they stay if they do."""
    for name in filters:
        for dim in range(graph.space.tensors[name].ndim):
            if (name, dim) in graph._producing:
                size = graph.space.tensors[name].shape[dim]
                left = view.shape(graph.space.parameters[name])[dim] if view is not None else size
                return (size, left), group_of.filters.get((name, dim), -1), graph.fixed.get(f"{name}[{dim}]", "")
    return (0, 0), -1, ""


def _name(node: Node, filters: list[str]) -> str:
    """The layer by the path of its parameter; an operation without one by the module that calls it."""
    path = filters[0].rpartition(".")[0] if filters else node.meta.get("path", "")
    return path or (filters[0] if filters else node.meta["op"])


def _place(node: Node) -> str:
    return str(node.meta.get("where", "")).rpartition("/")[2]


def _without(layers: list[Layer], gone: set[int]) -> tuple[Layer, ...]:
    """The layers, less some that feed nothing, numbered anew."""
    number = {old: new for new, old in enumerate(i for i in range(len(layers)) if i not in gone)}
    return tuple(
        Layer(**{**vars(layer), "inputs": tuple(number[i] for i in layer.inputs)})
        for i, layer in enumerate(layers)
        if i not in gone
    )


# -- groups and blockers ----------------------------------------------------------------------------------------


def _kind(graph: ChannelGraph, index: int, group: Group, layers: Sequence[Layer], view: View | None) -> Kind:
    left = len(group) if view is None else _left(graph, group.slices[0], view)
    names = tuple(dict.fromkeys(s.name.rpartition(".")[0] or s.name for s in group.slices if s.produces))
    readers = dict.fromkeys(s.name.rpartition(".")[0] or s.name for s in group.slices if not s.produces)
    meet = (layer for layer in layers if layer.group == index and not layer.width[0])
    through = tuple(dict.fromkeys(f"{layer.op} in {layer.name}, {layer.source}" for layer in meet))
    return Kind(group.name, (len(group), left), names, through, tuple(n for n in readers if n not in names))


def _left(graph: ChannelGraph, part: Slice, view: View) -> int:
    """How many units of a slice are kept."""
    kept = view.kept(graph.space.parameters[part.name]).get(part.dim)
    return len(set(part.units.tolist() if kept is None else part.units[np.isin(part.indices, kept)].tolist()))


def _blockers(graph: ChannelGraph, view: View | None) -> tuple[Blocker, ...]:
    """Every reason, with the dimensions it fixes, and the MACs that the layers which have them still take."""
    after = _shapes(graph, view)
    readers: dict[str, list[Node]] = {}
    for node in graph.space.programs[0].graph.nodes:
        for n in node.all_input_nodes if node.op == "call_function" else ():
            if n.meta["op"] == "parameter":
                readers.setdefault(n.meta["tensor"], []).append(node)
    held: dict[str, list[str]] = {}
    for dim, text in graph.fixed.items():
        held.setdefault(text.partition(" indices: ")[2] or text, []).append(dim)
    found = []
    for reason, dims in held.items():
        nodes = {node for dim in dims for node in readers.get(dim.partition("[")[0], ())}
        found.append(Blocker(reason, sum(macs_of(n, after) for n in nodes), tuple(dims)))
    return tuple(sorted(found, key=lambda b: -b.macs))
