"""Norms written out by hand: recognised by what they do, folded if they are RMS norms, counted by a subclass if not.

See `structprune.counting` for the subclass. All other means and variances over channels keep them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..counting import COUNTED, EXTREMES, STATISTICS, functions_of, ghosts, named
from ..labels import IntArray, Labels, varying
from ..nodes import Node
from .normalization import Fold, Swap, foldable
from .reduction import dims_of, reduce, sum_zeros
from .site import Site, rule
from .zeros import reads_zero


@rule("mean")
def mean(site: Site, input: Labels, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Over channels only where it belongs to a norm written out by hand."""
    dims = dims_of(input, dim)
    labels = _single(input, dims)
    if labels is not None:
        swap = _counted(site, labels, dims[0])
        fold = _written_rms(site, labels, swap) if site.zero(input) else None
        norm = Swap(site.path, "stock", labels.size, labels) if fold is not None and site.stock else fold or swap
        if norm is not None:
            site.norms.append(norm)
            return _over_zeros(site, input, dims)
    return reduce(site, input, dims, "mean runs over it")


@rule("var", "std", "var_mean", "std_mean")
def spread(site: Site, input: Labels, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Over channels only where it belongs to a norm written out by hand."""
    dims = dims_of(input, None if isinstance(dim, bool) else dim)
    labels = _single(input, dims)
    swap = _counted(site, labels, dims[0]) if labels is not None else None
    if swap is not None:
        site.norms.append(swap)
        return _over_zeros(site, input, dims)
    return reduce(site, input, dims, f"{site.name} runs over it")


@rule("max", "min", "amax", "amin")
def extreme(site: Site, input: Labels, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Over channels only in a class that can be made to look at a zero besides; max(x, y) is element by element."""
    if isinstance(dim, Labels):
        return site.broadcast([input, dim], site.shape)
    dims = dims_of(input, dim)
    labels = _single(input, dims)
    swap = _counted(site, labels, dims[0]) if labels is not None and not _places_read(site.node) else None
    if swap is not None:
        site.norms.append(swap)
        return _over_zeros(site, input, dims)
    return reduce(site, input, dims, f"{site.name} runs over it")


def _places_read(node: Node) -> bool:
    """Whether anything looks at where the extremes are."""
    items = [user for user in node.users if user.meta["op"] == "item" and not user.meta["unread"]]
    return any(not user.meta["dtype"].is_floating_point for user in items)


def _single(input: Labels, dims: Sequence[int]) -> IntArray | None:
    """The labels of the first dimension that statistics run over, if they vary along no other."""
    labels = input.along(dims[0]) if input.ndim else None
    return labels.reshape(-1) if labels is not None and len(varying(labels)) == 1 else None


def _over_zeros(site: Site, input: Labels, dims: Sequence[int]) -> Labels:
    """Statistics that count those that go of the first dimension; the others are held."""
    return sum_zeros(site, site.held(input, dims[1:], f"{site.name} runs over it"), dims)


def _counted(site: Site, labels: IntArray, dim: int) -> Swap | None:
    """The swap for a class that counts channels, where some statistics of the calling module run over them, and the
    others over something else, in every call.

    The class is made from the source: what it takes for the variance must be that here.
    """
    module = site.modules[site.path]
    known = ghosts(type(module))
    nodes = [n for op in STATISTICS for n in site.node.graph.calls.get((op, site.path), ()) if _is_statistic(n)]
    placed = _placed(nodes, type(module), known) if known is not None and "forward" not in vars(module) else None
    if placed is None:
        return None
    over = {n: _dims(n)[:1] == [dim] and n.all_input_nodes[0].meta["shape"][dim] == labels.size for n in nodes}
    places = {placed[n] for n in nodes if over[n]}
    swap = named(type(module), places)
    if not all(over[n] for n in nodes if placed[n] in places):
        return None  # it runs over channels in one call, over something else in another
    if getattr(type(module), "counted_statistics", swap) != swap or (site.stock and swap != COUNTED):
        return None
    if not all(_is_one(n) for n in nodes if over[n] and _centred(n)):
        return None
    source = site.node.all_input_nodes[0]
    if _centred(site.node):
        source = _distance(source).all_input_nodes[0]  # type: ignore[union-attr]
    if not reads_zero(source, site.node, site.values, site.zeros):
        return None
    return Swap(site.path, "stock" if site.stock else swap, labels.size, labels)


def _placed(nodes: Sequence[Node], kind: type[nn.Module], known: Sequence[bool]) -> dict[Node, int] | None:
    """Where these statistics are in the source of a class, if they are those in it, and all of them."""
    codes = [function.__code__ for function in functions_of(kind)]
    calls = {n.meta["caller"] for n in nodes}
    if len(calls) != len(known) or not all(call.code in codes for call in calls):
        return None  # what was not reached would count channels, too
    if any(user.meta["inplace"] for n in nodes for user in n.users if user.op == "call_function"):
        return None  # what a name stands for changes between the lines
    if any(isinstance(_dim(n), bool) for n in nodes):
        return None  # the subclass would take it for a dimension
    order = sorted(calls, key=lambda call: (codes.index(call.code), call.instruction))
    placed = {n: order.index(n.meta["caller"]) for n in nodes}
    return placed if all(_centred(n) == known[place] for n, place in placed.items()) else None


def _is_statistic(node: Node) -> bool:
    """Whether an operation of that name runs along dimensions: `max(x, y)` and `x.max()` do not."""
    return node.meta["op"] not in EXTREMES or type(_dim(node)) not in (type(None), Node)


def _dims(node: Node) -> list[int]:
    """The dimensions that a statistic runs over."""
    return dims_of(Labels(node.all_input_nodes[0].meta["shape"]), _dim(node))


def _dim(node: Node) -> Any:
    """What a statistic was told in the place of a dimension; of `x.var(False)` it is no dimension."""
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)


def _centred(node: Node) -> bool:
    """Whether this is the mean of squared distances from a mean."""
    distance = _distance(node.all_input_nodes[0]) if node.meta["op"] == "mean" else None
    return distance is not None and distance.all_input_nodes[1].meta["op"] == "mean"


def _is_one(node: Node) -> bool:
    """Whether the distances whose squares a mean is taken of are from one number for all of them."""
    distance = _distance(node.all_input_nodes[0])
    shape = distance.all_input_nodes[1].meta["shape"] if distance is not None else ()
    return len(shape) == len(node.all_input_nodes[0].meta["shape"]) and all(shape[d] == 1 for d in _dims(node))


def _distance(squared: Node) -> Node | None:
    """x - u in (x - u) ** 2"""
    if squared.meta["op"] not in ("pow", "square", "mul") or len(squared.all_input_nodes) != 1:
        return None
    if squared.meta["op"] == "pow" and squared.args[1:] != (2,):
        return None
    inner = squared.all_input_nodes[0]
    return inner if inner.meta["op"] == "sub" and len(inner.args) == 2 and len(inner.all_input_nodes) == 2 else None


def _written_rms(site: Site, labels: IntArray, instead: Swap | None) -> Fold | None:
    """weight * (x * rsqrt(mean(x ** 2) + eps)), with conversions of dtype anywhere; or (1 + weight) * ..."""
    squared = site.node.all_input_nodes[0]
    if squared.meta["op"] not in ("pow", "square", "mul"):
        return None
    eps = _only_user(site.node, "add")
    root = _only_user(eps, "rsqrt", "sqrt", "pow")
    power = _ROOTS.get(root.meta["op"], root.args[1:]) if root is not None else ()
    scaled = _only_user(root, "mul" if power == (-0.5,) else "div")
    out = _only_user(scaled, "mul")
    if eps is None or scaled is None or out is None or not (_of_two(scaled) and _of_two(out)):
        return None
    if power != (-0.5,) and (power != (0.5,) or scaled.args[0] is root):
        return None
    measured = {_before_conversions(n) for n in squared.all_input_nodes}
    if measured != {_before_conversions(n) for n in scaled.all_input_nodes if n is not root}:
        return None
    constants = [a for a in eps.args if isinstance(a, float)]
    weights = [w for w in map(_scale, out.all_input_nodes) if w is not None]
    if len(constants) != 1 or len(weights) != 1 or not foldable(weights[0][0]):
        return None
    name = site.attribute_holding(constants[0])
    weight, offset = weights[0]
    if math.prod(weight.meta["shape"]) != labels.size:
        return None
    takers = (eps, *weight.users)
    return Fold(weight.meta["tensor"], site.path, name, labels, takers, instead, offset=offset) if name else None


_ROOTS = {"rsqrt": (-0.5,), "sqrt": (0.5,)}  # others are powers, with the exponent among their arguments


def _of_two(node: Node) -> bool:
    """Whether an operation takes two values once each, and nothing else."""
    return len(node.args) == len(node.all_input_nodes) == 2 and not node.kwargs


def _scale(node: Node) -> tuple[Node, float] | None:
    """A parameter, or a number added to one, and the number."""
    node, offset = _unconverted(node), 0.0
    if node.meta["op"] == "add" and len(node.users) == 1:
        numbers = [a for a in node.args if isinstance(a, int | float)]
        if len(numbers) != 1 or len(node.args) != 2 or node.kwargs or node.meta["inplace"]:
            return None
        node, offset = _unconverted(node.all_input_nodes[0]), float(numbers[0])
    return (node, offset) if node.meta["op"] == "parameter" else None


_CONVERSIONS = frozenset({"to", "float", "type_as", "half", "double", "bfloat16"})
_LAYOUTS = frozenset({"view", "reshape", "unsqueeze"})


def _only_user(node: Node | None, *ops: str) -> Node | None:
    """The one operation that reads a value, if it is one of `ops`; conversions of dtype are looked through."""
    while node is not None:
        users = list(node.users)
        if len(users) != 1:
            return None
        node = users[0]
        if node.meta["op"] not in _CONVERSIONS:
            return node if node.meta["op"] in ops else None
    return None


def _unconverted(node: Node) -> Node:
    while node.meta["op"] in _CONVERSIONS | _LAYOUTS and len(node.users) == 1:
        node = node.all_input_nodes[0]
    return node


def _before_conversions(node: Node) -> Node:
    """What a value was before its dtype was changed."""
    while node.meta["op"] in _CONVERSIONS:
        node = node.all_input_nodes[0]
    return node
