"""The channel graph: units, groups, what is fixed, and why."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .analysis import TOGETHER, Space
from .costing import Costs
from .errors import ArgumentTypeError, PlanError, UnknownNameError, closest
from .inventory import Inventory
from .kinds import Kinds
from .labels import IntArray
from .plan import PruningPlan
from .program import Call
from .roles import contracts, readers
from .rules.checks import View
from .rules.contraction import KERNEL

if TYPE_CHECKING:
    import networkx


ALMOST = 1e-9  # a ratio of 0.3 takes 3 units of 10, though 0.3 * 10 is a little less


@dataclass(frozen=True, eq=False, slots=True)
class Slice:
    """The part that a group has in one dimension of one parameter: index `indices[i]` belongs to unit `units[i]`."""

    name: str
    dim: int
    indices: IntArray
    units: IntArray
    produces: bool  # these are filters: their index is an output channel
    tensor: Tensor
    graph: ChannelGraph

    @property
    def consumes(self) -> bool:
        """Whether these are summed over: their index is an input channel."""
        return (self.name, self.dim) in self.graph.consuming

    @property
    def reader(self) -> str:
        """The operation that reads the parameter, and as what: "batch_norm.weight"."""
        return self.graph.readers.get(self.name, "")


@dataclass(frozen=True, eq=False)
class Group:
    """Units that occupy the same parameter dimensions and compete with one another.

    `slices` says, for every coupled parameter dimension, which index belongs to which unit.
    """

    name: str
    slices: tuple[Slice, ...]
    units: IntArray  # unit numbers of the graph
    graph: ChannelGraph
    gone: int = 0  # units that earlier steps of an iterative pruning removed

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """What the units are to the model, of `structprune.kinds.KINDS`."""
        return self.graph.kinds.of(self.units, len({s.name for s in self.slices if s.produces and s.tensor.ndim > 1}))

    def due(self, ratio: float) -> int:
        """How many units are to go so that a fraction of the group, as it first was, is gone, rounded down."""
        return math.floor(ratio * (len(self) + self.gone) + ALMOST) - self.gone

    @property
    def kind(self) -> str:
        """The first of `kinds`, most often the only one: a head that is also a slice of a stream has two."""
        return self.kinds[0]

    def __len__(self) -> int:
        return len(self.units)

    def __repr__(self) -> str:
        dims = ", ".join(f"{s.name}[{s.dim}]" for s in self.slices[:4])
        kinds, more = " and ".join(self.kinds), ", ..." if len(self.slices) > 4 else ""
        return f"Group({self.name}, {kinds}: {len(self)} units over {dims}{more})"


class ChannelGraph:
    """Which channels of a model can be removed, together with what.

    >>> graph = structprune.analyze(model, example_inputs)
    >>> graph.groups                         # the competing units
    >>> graph.fixed                          # {"fc.weight[0]": "it is an output of the model, ..."}
    >>> print(graph.explain("layer1.0.conv1.weight"))
    """

    def __init__(self, parts: Inventory, space: Space, call: Call | None = None) -> None:
        self.parts = parts
        self.space = space
        self.call = call  # the first example
        self.model = parts.model
        self.fingerprint = parts.fingerprint
        self.widths: Mapping[tuple[str, int], int] = {}  # see `first_widths`; groups that are not here are whole

    def arranged(self, links: Iterable[tuple[IntArray, Any]] | None) -> ChannelGraph:
        """The same graph with other columns in its balanced grids; see `Space.arranged`."""
        graph = ChannelGraph(self.parts, self.space.arranged(links), self.call)
        graph.widths, graph._producing = self.widths, self._producing
        return graph

    @cached_property
    def _vectors(self) -> dict[tuple[str, int], IntArray]:
        """The units of every labelled parameter dimension."""
        row = self.space.couplings.roots().row
        return {(name, dim): row(labels) for name, dim, labels in self.space.dimensions}

    @cached_property
    def _producing(self) -> set[tuple[str, int]]:
        """The parameter dimensions that are output channels of filters."""
        produces = self.space.couplings.produces
        return {(name, dim) for name, dim, labels in self.space.dimensions if produces(labels)}

    @cached_property
    def filters(self) -> frozenset[str]:
        """The parameters that hold filters."""
        return frozenset(name for name, _ in self._producing)

    @cached_property
    def consuming(self) -> set[tuple[str, int]]:
        """The parameter dimensions that are input channels: those that weights have besides their filters."""
        weights = {name for name, _ in self._producing} | {n for n, reader in self.readers.items() if contracts(reader)}
        return {
            key for key in self._vectors if key[0] in weights and self.space.tensors[key[0]].ndim > 1
        } - self._producing

    @cached_property
    def readers(self) -> dict[str, str]:
        """For each parameter, the operations that read it, and as what."""
        return readers(self.space.programs)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every group, in the order of the model's parameters.

        Where the groups of a grouped convolution or of a norm must lose equally many channels, those at the same index
        are shown as one unit; `plan` puts those together that score alike.
        """
        families = self.space.families()
        count = self.space.couplings.roots().count
        family_of = np.full(count, -1)
        position = np.zeros(count, np.int64)
        for i, units in enumerate(families):
            family_of[units] = i
        slices: list[list[Slice]] = [[] for _ in families]
        first_seen: dict[int, IntArray] = {}
        places: dict[int, list[tuple[int, IntArray, IntArray]]] = {}  # dimensions with the same units share them
        for (name, dim), units in self._vectors.items():
            if id(units) not in places:
                places[id(units)] = []
                for i, indices in _by_family(family_of[units]):
                    own = units[indices]
                    if i not in first_seen:
                        first_seen[i] = _in_order(own)
                        position[first_seen[i]] = np.arange(len(first_seen[i]))
                    places[id(units)].append((i, indices, position[own]))
            if places[id(units)]:
                produces, tensor = (name, dim) in self._producing, self.space.tensors[name]
                for i, indices, own in places[id(units)]:
                    slices[i].append(Slice(name, dim, indices, own, produces, tensor, self))
        found = []
        names = [next(s for s in slices[i] if s.produces).name.removesuffix(".weight") for i in first_seen]
        for (i, units), key in zip(first_seen.items(), _numbered(names), strict=True):
            gone = max(self.widths.get(key, 0) - len(units), 0)
            found.append(Group(key[0], tuple(slices[i]), units, self, gone))
        return tuple(found)

    def first_widths(self) -> dict[tuple[str, int], int]:
        """How many units groups had at first, by their names and their numbers among those of the same name: two parts
        of a fused layer, say."""
        keys = _numbered(group.name for group in self.groups)
        return {key: len(group) + group.gone for key, group in zip(keys, self.groups, strict=True)}

    @cached_property
    def kinds(self) -> Kinds:
        """What units are to the model."""
        return Kinds(self.space)

    @cached_property
    def costs(self) -> Costs:
        """MACs, parameters and memory as functions of the units that are kept."""
        return Costs(self)

    @cached_property
    def fixed(self) -> dict[str, str]:
        """Parameter dimensions that cannot shrink, wholly or partly, with the reason."""
        found: dict[str, str] = {}
        for (name, dim), units in self._vectors.items():
            if (units == 0).any() and units.size > 1:
                part = "" if (units == 0).all() else f"{int((units == 0).sum())} of {len(units)} indices: "
                why = self._why(name, dim)
                if not why.startswith(KERNEL):
                    found[f"{name}[{dim}]"] = part + why
            elif units.size > 1 and (units == units[0]).all():
                found[f"{name}[{dim}]"] = TOGETHER
        for name in self.unreached:
            found[name] = "no traced call reaches it"
        return found

    @cached_property
    def unreached(self) -> tuple[str, ...]:
        """Parameters that no traced call reads."""
        return tuple(n for n in self.space.tensors if n not in self.space.parameters and self.space.tensors[n].ndim)

    def _why(self, name: str, dim: int) -> str:
        from .explanation import fixing_path

        return fixing_path(self, name, dim)[-1]

    @cached_property
    def nx(self) -> networkx.Graph:
        """The couplings as a NetworkX graph, to query with any of its algorithms.

        Nodes are dimensions, `"layer1.0.conv1.weight[0]"` for parameters and buffers and `"conv2d_3[1]"` for
        the values in between, and reasons (`kind="reason"`). Edges carry `op`, `module` and `source`.
        """
        from .explanation import build

        return build(self.space)

    @cached_property
    def toward_reasons(self) -> dict[str, str]:
        """For every dimension near a reason, the next node of `nx` on the way to it."""
        from .explanation import nearest_reasons

        return nearest_reasons(self.nx)

    def explain(self, name: str) -> str:
        """What a parameter (or all of a layer's) is coupled to and through what, or why it cannot shrink; of one
        dimension, if it is named as in `fixed`, `"conv1.weight[0]"`.

        Raises UnknownNameError, with the closest names, if the model has no such parameter or layer, and
        ArgumentTypeError for what is no name.
        """
        from .explanation import explain

        return explain(self, name)

    def to_mermaid(self) -> str:
        """The diagram of the model as a Mermaid flowchart, for a README: layers that shrink together share a colour.

        >>> print(structprune.analyze(model, images).to_mermaid())
        flowchart TD
        ...
        """
        from .diagram import draw
        from .mermaid import flowchart

        return flowchart(draw(self))

    def matching(self, pattern: str) -> list[str]:
        """The parameters that a pattern names: by their own name, by their layer, or by a part of its path.

        Raises UnknownNameError if there is none, and ArgumentTypeError for what is no text.
        """
        if not isinstance(pattern, str):
            raise ArgumentTypeError(f"pattern must be the name of a layer or parameter, not {pattern!r}")
        names = list(self.space.tensors)
        found = [n for n in names if _matches(n, pattern)]
        if not found:
            layers = {n.rpartition(".")[0] for n in names} | set(names)
            raise UnknownNameError(f"{pattern!r} matches no layer or parameter; {closest(pattern, sorted(layers))}")
        return found

    def view(self, removed: IntArray) -> View:
        """The model without the units of these numbers."""
        mask = np.zeros(self.space.couplings.roots().count, bool)
        mask[removed] = True
        return self.space.view(mask)

    def under(self, plan: PruningPlan) -> View:
        """The model under a plan for it."""
        free = self.arranged(None) if self.space.couplings.grids else self
        return free.view(free.removed(plan))

    def check_plan(self, plan: Any) -> None:
        """Raises ArgumentTypeError for what is no plan, and PlanError for that of another model."""
        if not isinstance(plan, PruningPlan):
            raise ArgumentTypeError(f"plan must be a PruningPlan, not {type(plan).__name__}")
        if plan.fingerprint != self.fingerprint:
            raise PlanError("the plan is for another model than the one that was analysed")

    def removed(self, plan: PruningPlan) -> IntArray:
        """The units of which a plan removes anything. Raises what `check_plan` raises."""
        self.check_plan(plan)
        found = [np.zeros(0, np.int64)]
        for name, dims in plan.cut.items():
            found += [np.delete(self._vectors[name, dim], indices) for dim, indices in dims.items()]
        return np.unique(np.concatenate(found))

    def reasons(self) -> dict[str, int]:
        """How many parameter dimensions each reason fixes, wherever it does."""
        counts: dict[str, int] = {}
        for why in (text.partition(" (")[0] for text in self.fixed.values()):
            counts[why] = counts.get(why, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _in_order(units: IntArray) -> IntArray:
    """Each unit once, where it first occurs."""
    if (units[1:] > units[:-1]).all():
        return units
    return units[np.sort(np.unique(units, return_index=True)[1])]


def _by_family(owner: IntArray) -> Iterator[tuple[int, IntArray]]:
    """The families in a dimension (-1 is fixed) with the indices that belong to each."""
    first = int(owner[0])
    if (owner == first).all():
        yield from [(first, np.arange(len(owner)))] if first >= 0 else []
        return
    for family in np.unique(owner).tolist():
        if family >= 0:
            yield family, np.flatnonzero(owner == family)


def _numbered(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Each name, with how often it was there up to then."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name, seen[name]


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern names the parameter, its layer, or a module that holds it."""
    parts = name.split(".")
    if name == pattern or name.startswith(f"{pattern}."):  # a name may hold what patterns are made of
        return True
    return any(fnmatch.fnmatchcase(".".join(parts[:k]), pattern) for k in range(1, len(parts) + 1))


def check_graph(graph: Any) -> None:
    """What is passed for a graph is one."""
    if not isinstance(graph, ChannelGraph):
        raise ArgumentTypeError(f"graph must be the ChannelGraph that analyze returns, not {type(graph).__name__}")
