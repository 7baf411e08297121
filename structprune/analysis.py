"""Analysis: labels flow through the traced programs, and everything they must agree on is solved.

interpret every program -> solve -> rectangles -> try removals, fix what does not commute -> solve ...
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from .bookkeeping import Mirror, mirrors
from .inventory import Inventory
from .labels import BoolArray, Couplings, IntArray, Labels, Roots
from .nodes import Node, map_nodes
from .program import Program
from .rewriting import held
from .rows import only_row, uneven_rows
from .rules import Site, apply_rule
from .rules.checks import Check, GuardCheck, Requirement, View, told_by
from .rules.folds import held_folds, held_swaps
from .rules.normalization import Fold, Swap
from .rules.shaping import Reshaping
from .rules.site import labels_in
from .scalars import is_merely_asked
from .siblings import hold_for_siblings, hold_for_unread
from .sizes import AttributeOf, DimOf, Guard, Size, leaves
from .trials import coupled_alike, families, removals, unequal_removals

ORPHAN = "no filter of the traced calls produces it"
TOGETHER = "its indices are coupled with one another, so that all would go at once"

Sized = tuple[Mirror, str]  # what an attribute is the size of: a tensor by its name, and which dimension


@dataclass
class Space:
    """The labels of a model, shared by all its traced programs."""

    parts: Inventory
    programs: Sequence[Program]
    stock: bool = False  # norms stay as they are
    columns: frozenset[Node] = frozenset()  # the operations whose groups lose channels, though they could leave whole
    whole: frozenset[Node] = frozenset()  # those whose groups leave whole, though they are few and wide
    unlabelled: frozenset[Any] = frozenset()  # what an earlier attempt found to be held in vain
    by_rows: bool = False  # see Couplings
    norms: list[Swap | Fold] = field(default_factory=list)
    doubted: list[IntArray] = field(default_factory=list)  # coordinates of values that are not zero in all of them
    told_twice: list[tuple[AttributeOf, Sized, Sized]] = field(default_factory=list)  # tensors of one attribute's size
    couplings: Couplings = field(init=False)
    parameters: dict[str, Labels] = field(default_factory=dict)
    values: dict[Node, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    grids: list[tuple[IntArray, Node]] = field(default_factory=list)  # coordinates along several dimensions
    partial: dict[int, IntArray] = field(default_factory=dict)  # by id: coordinates of values that are no whole blocks

    def __post_init__(self) -> None:
        self.couplings = Couplings(self.columns, self.whole, self.by_rows, self.unlabelled)
        self.modules: Mapping[str, nn.Module] = self.parts.modules
        self.tensors: Mapping[str, Tensor] = self.parts.tensors
        self._watched: list[Guard] = []
        self._zeros: dict[Node, bool] = {}
        self._told: dict[Any, list[Check]] = {}  # by what a size is read from, the checks that say what it must be
        self._families: tuple[Roots, list[IntArray]] | None = None
        self._probed: tuple[Roots, list[View]] | None = None
        self._survived: dict[int, IntArray] = {}  # by id: the units that a check depended on when it last held
        self._mirrors: dict[AttributeOf, Sized] = {}
        for path, module in self.modules.items():
            for row, tensor in mirrors(module):
                if id(tensor) in self.parts.names:  # a parametrized weight is computed anew each time
                    leaf, found = AttributeOf(path, row.attribute), (row, self.parts.names[id(tensor)])
                    if leaf in self._mirrors:
                        self.told_twice.append((leaf, self._mirrors[leaf], found))
                    self._mirrors[leaf] = found
        for program in self.programs:
            for node in program.graph.nodes:
                self.values[node] = self._value(node)
                if node.op != "call_function":  # parameters are labelled along one dimension at a time
                    continue
                for labels in labels_in(self.values[node]):
                    for coordinate in labels.coordinates:
                        if self.couplings.own(coordinate) is None:
                            self.partial[id(coordinate)] = coordinate
                        if coordinate.size > max(coordinate.shape):
                            self.grids.append((coordinate, node))
        self.norms = held_folds(self.norms, self.programs, self.modules, self.couplings)
        self.norms = held_swaps(self.norms, self.programs, self.couplings)
        self._note_told(self.checks)
        known = len(self.checks)
        for guards in (self._watched, *(program.guards for program in self.programs)):
            self._add_guards(guards)
        self._note_told(self.checks[known:])
        hold_for_siblings(self)
        hold_for_unread(self)
        self._settle()

    # -- interpreting -----------------------------------------------------------------------------------

    def _value(self, node: Node) -> Any:
        op = node.meta["op"]
        if op in ("input", "constant"):
            return Labels(node.meta["shape"])
        if op == "parameter":
            return self._flowing(node, node.meta["tensor"])
        args = map_nodes(self.values.__getitem__, node.args)
        if op == "output":
            for labels in labels_in(args):
                for coordinate in labels.coordinates:
                    self.couplings.fix(coordinate, "it is an output of the model, which callers rely on", node)
            return None
        kwargs = map_nodes(self.values.__getitem__, node.kwargs) if node.kwargs else {}
        site = Site(node, self.values, self.couplings, self.checks, self.modules, self.stock, self._zeros)
        before = len(self.checks)
        out = apply_rule(site, args, kwargs)
        self.norms += site.norms
        self.doubted += site.doubted
        self._guard_arguments(site, self.checks[before:])
        return out

    def parameter(self, name: str, shape: Sequence[int]) -> Labels:
        """The labels of a parameter, buffer or tensor attribute: one coordinate along each dimension."""
        found = self.parameters.get(name)
        if found is None:
            ndim = len(shape)
            coordinates = [self.couplings.new(size, dim, ndim) for dim, size in enumerate(shape) if size > 1]
            found = self.parameters[name] = Labels(tuple(shape), tuple(coordinates))
        return found

    def _flowing(self, node: Node, name: str) -> Labels:
        """The labels of a parameter that flow through the program."""
        labels = self.parameter(name, node.meta["shape"])
        if all(name in program.reused for program in self.programs):
            for labelled in labels.coordinates:
                self.couplings.fix(labelled, f"{name} can be made anew by {self.programs[0].reused[name]}", node)
        flowing = [c for c in labels.coordinates if (name, c.shape.index(c.size)) not in self.unlabelled]
        return Labels(labels.shape, tuple(flowing))

    def _guard_arguments(self, site: Site, checks: Iterable[Check]) -> None:
        """Sizes passed as numbers must keep their value, unless the rule or one of its checks looks after them."""
        node = site.node
        if not node.meta.get("sizes") or is_merely_asked(node):
            return
        if any(not isinstance(check, Requirement) for check in checks):
            return
        where = node.meta["where"]
        self._watched += [
            Guard(s.origin, int.__int__(s), where) for s in node.meta["sizes"] if id(s) not in site.followed
        ]

    def _add_guards(self, guards: Iterable[Guard]) -> None:
        for guard in guards:
            labels = [v for leaf in leaves(guard.origin) for v in self._labels_of(leaf)]
            if labels:
                self.checks.append(GuardCheck(guard, labels))

    def _note_told(self, checks: Iterable[Check]) -> None:
        """Notes what these checks tell of attributes; those that mirror a tensor's shape are known without."""
        for check in checks:
            leaf = told_by(check)
            if leaf is not None and (isinstance(check, Requirement) or leaf not in self._mirrors):
                self._told.setdefault(leaf, []).append(check)

    def _labels_of(self, leaf: DimOf | AttributeOf) -> list[IntArray]:
        """The labels whose removal changes a size."""
        if isinstance(leaf, DimOf):
            value = self.values.get(leaf.value)
            along = value.along(leaf.dim) if isinstance(value, Labels) and value.ndim else None
            return [along] if along is not None else []
        found = [labels for check in self._told.get(leaf, ()) for labels in check.labels]
        if leaf in self._mirrors:
            row, name = self._mirrors[leaf]
            along = self.parameters[name].along(row.dim) if name in self.parameters else None
            found += [along] if along is not None else []
            found += self._labels_of(AttributeOf(leaf.module, row.factor)) if row.factor else []
        return found

    # -- solving ----------------------------------------------------------------------------------------

    def _settle(self) -> None:
        self._fix_orphans()
        every = waiting = self._doubtful()
        while True:
            while self._rectangles():
                pass
            failed = [check for check in waiting if not self._survives(check)]
            if not failed and waiting is every:
                failed = self._unequal(every)
                if not failed:
                    return
            if failed and not self._equate(failed):
                self._give_up(failed)
            waiting = failed or every  # what survived has less to survive now: it is tried again in the end

    def _unequal(self, checks: Sequence[Check]) -> list[Check]:
        """The checks that hold only while several groups lose equally many, which coupling them makes sure of."""
        uneven = self._uneven(checks)
        told = [check for check in checks if told_by(check) in uneven]
        several = [check for check in checks if self._uncoupled(check)] + told
        families = self.families() if several else []
        views = [self.view(removed) for removed in unequal_removals(families, self.couplings.roots().count)]
        return [check for check in several if not all(check.holds(view) for view in views)]

    def _equate(self, failed: Sequence[Check]) -> bool:
        """Before anything is fixed: dimensions that must have the same size are coupled, where that is all it takes;
        those whose size one attribute tells lose equally many."""
        for dividing in (False, True):  # most of what divides holds once the rest is coupled
            new = [(check, pair) for check in failed if (pair := self._uncoupled(check, dividing))]
            for check, (a, b) in new:
                self.couplings.couple(a, b, check.node)
            if new:
                return True
        grids = self._uneven(failed)
        for grid, node in grids.values():
            self.couplings.balance(grid, node)
        return bool(grids)

    def _uneven(self, checks: Sequence[Check]) -> dict[Any, tuple[IntArray, Node | None]]:
        """By attribute: the dimensions whose size it tells, in rows, where these may lose unequally many."""
        roots = self.couplings.roots()
        told = {leaf: check.node for check in checks if (leaf := told_by(check)) is not None}
        several = {
            leaf: labels for leaf in told if isinstance(leaf, AttributeOf) and (labels := self._labels_of(leaf))[1:]
        }
        return {
            leaf: (grid, told[leaf])
            for leaf, labels in several.items()
            if (grid := uneven_rows(labels, roots)) is not None
        }

    def _uncoupled(self, check: Check, dividing: bool = True) -> tuple[IntArray, IntArray] | None:
        """The first two dimensions that should have the same size and are free to differ."""
        roots = self.couplings.roots()
        pairs = check.equals(self._read)
        if dividing and isinstance(check, Reshaping):
            pairs = [*pairs, *check.divides(self._read)]
        return next(((a, b) for a, b in pairs if (roots[a] != roots[b]).any() and roots[a].all()), None)

    def _read(self, size: Any) -> IntArray | None:
        """The labels of the dimension that a size was read from, if it is one, and labelled all along."""
        origin = size.origin if isinstance(size, Size) else None
        found = self._labels_of(origin) if isinstance(origin, DimOf) else []
        return found[0].reshape(-1) if found and found[0].size == size else None

    def _give_up(self, failed: Sequence[Check]) -> None:
        """What moves is fixed; if it is fixed already, so is what the sizes are read from."""
        roots = self.couplings.roots()
        for check in failed:
            moved = [labels for labels in check.labels if roots[labels].any()]
            for labels in moved or self._labels_of_sizes(check):
                self.couplings.fix(labels, check.why, check.node)

    def labels_behind(self, check: Check) -> list[IntArray]:
        """Everything whose removal a check depends on."""
        return [*check.labels, *self._labels_of_sizes(check)]

    def _labels_of_sizes(self, check: Check) -> list[IntArray]:
        """The labels that change the sizes which a checked operation is given."""
        given = check.node.meta.get("sizes", ()) if check.node is not None else ()
        return [labels for size in given for leaf in leaves(size) for labels in self._labels_of(leaf)]

    def _fix_orphans(self) -> None:
        roots = self.couplings.roots()
        produced = np.zeros(roots.count, bool)
        produced[0] = True
        for labels in self.couplings.producing:
            produced[roots.row(labels)] = True
        if not produced.all():
            self.couplings.fix(np.flatnonzero(~produced[roots.all]), ORPHAN, None)

    def _rectangles(self) -> bool:
        """A value must stay a rectangle: over all but one of its dimensions a coordinate becomes constant."""
        roots = self.couplings.roots()
        changed = False
        for coordinate, node in self.grids:
            row = only_row(coordinate, roots)
            if row is not None:
                self.couplings.couple(coordinate, np.broadcast_to(row, coordinate.shape), node)
                changed = True
        return changed

    def _doubtful(self) -> list[Check]:
        """The checks that may fail: an attribute that one check alone tells what to be will be that."""
        alone = {leaf: told[0] for leaf, told in self._told.items() if len(told) == 1}
        sure = {id(c) for leaf, c in alone.items() if isinstance(leaf, AttributeOf) and leaf not in self._mirrors}
        return [check for check in self.checks if id(check) not in sure]

    def _survives(self, check: Check) -> bool:
        """Whether the check holds for random removals; it does if it did, and what it depends on is coupled as then."""
        units = np.concatenate([[0], *self._units_behind(check)])
        if not units.any():
            return True
        before = self._survived.get(id(check))
        if before is None or not coupled_alike(before, units):
            if not all(check.holds(view) for view in self._probes()):
                return False
            self._survived[id(check)] = units
        return True

    def concerned(self, check: Check) -> bool:
        """Whether anything may go that a check depends on."""
        return any(units.any() for units in self._units_behind(check))

    def _units_behind(self, check: Check) -> Iterator[IntArray]:
        roots = self.couplings.roots()
        return (roots.row(labels) for labels in self.labels_behind(check))

    def _probes(self) -> Sequence[View]:
        roots = self.couplings.roots()
        if self._probed is None or self._probed[0] is not roots:
            self._probed = roots, [self.view(removed) for removed in removals(self.families(), roots.count)]
        return self._probed[1]

    def arranged(self, links: Iterable[tuple[IntArray, Any]] | None) -> Space:
        """The same space with other columns in its balanced grids (see `Couplings.arranged`); None leaves rows free,
        which no plan can be made of."""
        other = copy.copy(self)
        other.couplings = self.couplings.arranged(links or ())
        other.grids, other.checks = list(self.grids), list(self.checks)
        other._families = other._probed = None
        if links is not None:
            other._settle()
        while other._rectangles():
            pass
        return other

    # -- asking -----------------------------------------------------------------------------------------

    @cached_property
    def dimensions(self) -> list[tuple[str, int, IntArray]]:
        """Every labelled dimension of a parameter, in the order of the model: name, dimension and labels."""
        names = (name for name in self.tensors if name in self.parameters)
        return [
            (name, coordinate.shape.index(coordinate.size), coordinate)
            for name in names
            for coordinate in self.parameters[name].coordinates
        ]

    def families(self) -> list[IntArray]:
        """Units that occupy the same parameter dimensions, which compete with one another."""
        roots = self.couplings.roots()
        if self._families is None or self._families[0] is not roots:
            self._families = (roots, families([labels for _, _, labels in self.dimensions], roots))
        return self._families[1]

    def view(self, removed_units: BoolArray) -> View:
        """The model without these units (a mask over unit numbers)."""
        view = View(removed_units, self.couplings, self.values, self._attribute)
        for check in self.checks:
            leaf = check.size.origin if isinstance(check, Requirement) else None
            if isinstance(check, Requirement) and isinstance(leaf, AttributeOf) and leaf not in self._mirrors:
                view.attributes.setdefault(leaf, check.expected(view))
        for check in self.checks:
            if isinstance(check, GuardCheck) and (demand := check.demands()):
                attribute, other = demand
                if attribute not in self._mirrors and attribute not in view.attributes:
                    view.attributes[attribute] = view.evaluate(other)
        return view

    def _attribute(self, view: View, leaf: AttributeOf) -> int:
        if leaf not in self._mirrors:
            return leaf.pick(held(self.modules[leaf.module], leaf.name))
        row, name = self._mirrors[leaf]
        factor = view.leaf(AttributeOf(leaf.module, row.factor)) if row.factor else 1
        labels = self.parameters.get(name)  # a weight that a hook computes has none
        return factor * (view.size(labels, row.dim) if labels is not None else self.tensors[name].shape[row.dim])

    def _shrinks(self, view: View, name: str, dim: int) -> bool:
        """Whether a plan cuts this dimension of a parameter."""
        return name in self.parameters and dim in view.kept(self.parameters[name])

    def attributes(self, view: View) -> dict[AttributeOf, int]:
        """Every module attribute that a plan changes, with its new value."""
        cut = [leaf for leaf, (row, name) in self._mirrors.items() if row.factor or self._shrinks(view, name, row.dim)]
        changed = {}
        for leaf in (*cut, *view.attributes):
            value = view.leaf(leaf)
            if value != leaf.pick(held(self.modules[leaf.module], leaf.name)):
                changed[leaf] = value
        return changed
