"""Explanations: the couplings as a NetworkX graph, and the shortest way through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import networkx
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .analysis import TOGETHER, Space
from .errors import ArgumentTypeError, UnknownNameError, closest
from .labels import IntArray, Labels
from .nodes import Node
from .program import Program
from .sizes import DimOf, leaves

if TYPE_CHECKING:
    from .graph import ChannelGraph


MET = "it meets indices that cannot be removed"
_ROOT = "a reason"


def value_name(node: Node) -> str:
    """Parameters go by their qualified name, values by their node's."""
    return node.meta.get("tensor") or node.name


def dims_of(labels: Any, name: str) -> Iterator[tuple[str, IntArray]]:
    """The labelled dimensions of a value, each with its distinct labels."""
    if isinstance(labels, Labels):
        for coordinate in labels.coordinates:
            for dim, size in enumerate(coordinate.shape):
                if size > 1:
                    yield f"{name}[{dim}]", np.unique(coordinate)
    elif isinstance(labels, dict):
        for i, part in labels.items():
            yield from dims_of(part, f"{name}.{i}")


def _titles(programs: Iterable[Program]) -> dict[Node, str]:
    """What values are called: by the names of their nodes, if no other operation of an earlier call has that name."""
    known: dict[str, Any] = {}
    titles = {}
    for call, program in enumerate(programs, 1):
        for node in program.graph.nodes:
            what = node.meta["op"], node.meta.get("where")
            name = value_name(node)
            titles[node] = name if known.setdefault(name, what) == what else f"{name} (call {call})"
    return titles


def _behind_sizes(space: Space, node: Node, titles: Mapping[Node, str]) -> Iterator[tuple[str, IntArray]]:
    """The dimensions that the sizes which an operation is given were read from."""
    for leaf in (leaf for size in node.meta.get("sizes", ()) for leaf in leaves(size)):
        if isinstance(leaf, DimOf):
            name = titles[leaf.value]
            yield from (e for e in dims_of(space.values.get(leaf.value), name) if e[0] == f"{name}[{leaf.dim}]")


def build(space: Space) -> networkx.Graph:
    """Dimensions that share labels at an operation are joined by an edge that tells which operation it was."""
    graph = networkx.Graph()
    pairs: dict[Any, list[tuple[IntArray, IntArray]]] = {}
    for a, b, node in space.couplings.pairs:
        pairs.setdefault(node, []).append((a, b))
    reasons: dict[Any, dict[str, list[IntArray]]] = {}
    for labels, why, node in space.couplings.fixed:
        reasons.setdefault(node, {}).setdefault(why, []).append(labels.reshape(-1))
    parameters = [end for name, value in space.parameters.items() for end in dims_of(value, name)]
    titles = _titles(space.programs)
    for node in titles:
        ends = [e for n in (*node.all_input_nodes, node) for e in dims_of(space.values.get(n), titles[n])]
        ends += _behind_sizes(space, node, titles)
        _join(graph, ends, pairs.get(node, []), _about(node))
        met = _meeting_fixed(pairs.get(node, []))
        for why, parts in (*reasons.get(node, {}).items(), *([(MET, met)] if met else [])):
            labels = np.concatenate(parts)
            if not _fix(graph, ends, labels, why, _about(node)):  # it was given a size that an attribute tells
                _fix(graph, parameters, labels, why, _about(node))
    for why, parts in reasons.get(None, {}).items():
        _fix(graph, parameters, np.concatenate(parts), why, {"op": "", "module": "", "source": ""})
    return graph


def _meeting_fixed(pairs: list[tuple[IntArray, IntArray]]) -> list[IntArray]:
    """The labels that are coupled with what was fixed already."""
    met = [labels[(labels > 0) & (other == 0)] for a, b in pairs for labels, other in ((a, b), (b, a))]
    return [labels for labels in met if len(labels)]


def _about(node: Node) -> dict[str, str]:
    return {"op": node.meta["op"], "module": node.meta.get("path", ""), "source": node.meta.get("where", "")}


def _join(
    graph: Any, ends: list[tuple[str, IntArray]], pairs: list[tuple[IntArray, IntArray]], about: dict[str, str]
) -> None:
    """Joins the dimensions whose labels this operation couples."""
    for name, _ in ends:
        graph.add_node(name, kind="dimension")
    if len(ends) < 2:
        return
    known = np.unique(np.concatenate([labels for _, labels in ends] + [p for pair in pairs for p in pair]))
    component = np.arange(len(known))
    if pairs:
        rows = np.searchsorted(known, np.concatenate([a for a, _ in pairs]))
        columns = np.searchsorted(known, np.concatenate([b for _, b in pairs]))
        links = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(len(known),) * 2)
        component = connected_components(links, directed=False)[1]
    sets = [np.unique(component[np.searchsorted(known, labels[labels > 0])]) for _, labels in ends]
    for i, (name, _) in enumerate(ends):
        for j in range(i):
            if name != ends[j][0] and len(np.intersect1d(sets[i], sets[j], assume_unique=True)):
                graph.add_edge(name, ends[j][0], **about)


def _fix(graph: Any, ends: list[tuple[str, IntArray]], labels: IntArray, why: str, about: dict[str, str]) -> bool:
    """Joins a reason with the dimensions whose labels it is for, if there are any."""
    reason = f"{why} ({_place(about)})" if _place(about) else why
    found = [name for name, own in ends if len(np.intersect1d(own, labels))]
    for name in found:
        graph.add_node(reason, kind="reason")
        graph.add_node(name, kind="dimension")
        graph.add_edge(name, reason, **about)
    return bool(found)


def _place(about: dict[str, str]) -> str:
    """`conv2d in layer1.0, resnet.py:92`"""
    where = about["source"].rpartition("/")[2]
    parts = [f"in {about['module']}" if about["module"] else "", where]
    return f"{about['op']} {', '.join(p for p in parts if p)}".strip()


def nearest_reasons(nx_graph: Any) -> dict[str, str]:
    """For every dimension that is coupled to a reason, the next node on the shortest way there."""
    rooted = nx_graph.copy()
    rooted.add_edges_from((_ROOT, n) for n, data in nx_graph.nodes(data=True) if data["kind"] == "reason")
    return dict(networkx.bfs_predecessors(rooted, _ROOT)) if _ROOT in rooted else {}


def fixing_path(graph: ChannelGraph, name: str, dim: int) -> list[str]:
    """The shortest way from a dimension to a reason: the steps, and last the reason."""
    path = [f"{name}[{dim}]"]
    while graph.toward_reasons.get(path[-1], _ROOT) != _ROOT:
        path.append(graph.toward_reasons[path[-1]])
    return _steps(graph.nx, path) if len(path) > 1 else ["it is coupled to a dimension that is fixed"]


def _steps(nx_graph: Any, path: list[str]) -> list[str]:
    steps = []
    for a, b in pairwise(path):
        if nx_graph.nodes[b]["kind"] == "reason":
            steps.append(b)
        else:
            steps.append(f"{a} - {_place(nx_graph.edges[a, b])} - {b}")
    return steps


def explain(graph: ChannelGraph, name: str) -> str:
    """The text of `ChannelGraph.explain`."""
    if not isinstance(name, str):
        raise ArgumentTypeError(f"name must be that of a layer or parameter, 'conv1' for example, not {name!r}")
    dimensions = {f"{n}[{d}]": (n, d) for n, d in graph._vectors}
    if name in dimensions:
        return "\n".join(_explain_dim(graph, *dimensions[name]))
    tensors = graph.space.tensors
    names = [name] if name in tensors else [n for n in tensors if n.rpartition(".")[0] == name]
    if not names:
        known = sorted({n.rpartition(".")[0] for n in tensors} | set(tensors))
        raise UnknownNameError(f"the model has no layer or parameter {name!r}; {closest(name, known)}")
    lines = []
    for tensor in names:
        dims = [(n, d) for n, d in graph._vectors if n == tensor]
        if tensor in graph.unreached:
            lines.append(f"{tensor}: no traced call reaches it, so it is kept as it is")
        for key in dims:
            lines += _explain_dim(graph, *key)
    return "\n".join(lines)


def _explain_dim(graph: ChannelGraph, name: str, dim: int) -> list[str]:
    units = graph._vectors[name, dim]
    title = f"{name}[{dim}]"
    fixed = int((units == 0).sum())
    lines = []
    if fixed:
        *steps, reason = fixing_path(graph, name, dim)
        part = "cannot shrink" if fixed == len(units) else f"{fixed} of {len(units)} indices cannot be removed"
        lines += [f"{title}: {part}: {reason}", *(f"    {step}" for step in steps)]
    if fixed < len(units):
        free = np.unique(units[units > 0])
        others = {
            f"{n}[{d}]": n for (n, d), u in graph._vectors.items() if (n, d) != (name, dim) and np.isin(u, free).any()
        }
        count = f"{len(free)} units" if len(free) > 1 else f"1 unit ({TOGETHER})"
        lines.append(f"{title}: {count}, coupled to {len(others)} other dimensions")
        dimensions = networkx.subgraph_view(graph.nx, filter_node=lambda n: graph.nx.nodes[n]["kind"] == "dimension")
        paths = networkx.single_source_shortest_path(dimensions, title)
        for other in others:
            if other in paths:
                lines.append(f"  {other}")
                lines += [f"    {step}" for step in _steps(graph.nx, paths[other])]
    return lines
