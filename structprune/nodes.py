"""The traced graph: one node for each operation, value and argument.

Nodes answer to the names of `torch.fx` (`op`, `target`, `args`, `kwargs`, `users`, `all_input_nodes`, `meta`), and
`Graph.to_fx` makes a `torch.fx.Graph` of them. They are nodes of their own because making one costs a
twentieth of the time, and an analysis is little else than making nodes and reading them once.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx


class Node:
    """One operation (`call_function`), parameter or constant (`get_attr`), argument (`placeholder`) or `output`."""

    __slots__ = ("args", "graph", "inputs", "kwargs", "meta", "op", "place", "target", "users")

    def __init__(
        self,
        graph: Graph,
        op: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        inputs: dict[Node, None],
        meta: dict[str, Any],
    ) -> None:
        self.graph = graph
        self.place = len(graph.nodes)  # among those that ran, in order
        self.op = op
        self.target = target
        self.args = args
        self.kwargs = kwargs
        self.meta = meta
        self.users: dict[Node, None] = {}
        self.inputs = inputs
        for node in inputs:
            node.users[self] = None

    @property
    def all_input_nodes(self) -> list[Node]:
        """Every node among the arguments, once, in order."""
        return list(self.inputs)

    @property
    def name(self) -> str:
        """`conv2d`, `conv2d_1`: what the node is called, by its operation and its place among those alike."""
        return self.graph.names()[self]

    def __repr__(self) -> str:
        return self.name


class Graph:
    """Nodes in the order in which they ran."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._names: dict[Node, str] = {}
        self.writers: dict[Node, list[Node]] = {}  # by what they share memory with, as far as that was asked

    def add(
        self,
        op: str,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        inputs: dict[Node, None] | None = None,
        meta: dict[str, Any] | None = None,
    ) -> Node:
        """A new last node; `inputs` are the nodes among its arguments, if they are known."""
        if inputs is None:
            inputs = {}
            if args or kwargs:
                _collect((args, kwargs), inputs)
        node = Node(self, op, target, args, kwargs or {}, inputs, {} if meta is None else meta)
        self.nodes.append(node)
        return node

    @functools.cached_property
    def writes(self) -> bool:
        """Whether anything is written in place. Asked once the graph is whole."""
        return any(node.meta.get("inplace") for node in self.nodes)

    @functools.cached_property
    def calls(self) -> Mapping[tuple[str, str], Sequence[Node]]:
        """The nodes by operation and path of the module that called it. Asked once the graph is whole."""
        found: dict[tuple[str, str], list[Node]] = {}
        for node in self.nodes:
            found.setdefault((node.meta["op"], node.meta.get("path", "")), []).append(node)
        return found

    def names(self) -> dict[Node, str]:
        """A name of its own for every node."""
        if len(self._names) != len(self.nodes):
            taken: Counter[str] = Counter()
            for node in self.nodes:
                word = node.meta["op"] if node.op == "call_function" else str(node.target)
                base = name = re.sub(r"\W|^(?=\d)", "_", word)
                while name in taken:
                    name = f"{base}_{taken[base]}"
                    taken[base] += 1
                taken[name] = 1
                self._names[node] = name
        return self._names

    def to_fx(self) -> fx.Graph:
        """The same as a `torch.fx.Graph`, whose nodes share `meta` with these."""
        graph = fx.Graph()
        made: dict[Node, fx.Node] = {}
        for node in self.nodes:
            args, kwargs = map_nodes(made.__getitem__, (node.args, dict(node.kwargs)))
            made[node] = graph.create_node(node.op, node.target, args, kwargs, name=self.names()[node])
            made[node].meta = node.meta
        return graph


def _collect(value: Any, into: dict[Node, None]) -> None:
    kind = type(value)
    if kind is Node:
        into[value] = None
    elif kind is tuple or kind is list:
        for item in value:
            _collect(item, into)
    elif kind is dict:
        for item in value.values():
            _collect(item, into)
    elif kind is slice:
        _collect((value.start, value.stop, value.step), into)


_ATOMS = frozenset({int, float, bool, str, type(None)})


def map_nodes(function: Callable[[Node], Any], value: Any) -> Any:
    """Arguments with `function` applied to the nodes in them."""
    kind = type(value)
    if kind is Node:
        return function(value)
    if kind is tuple:
        return tuple(
            [function(v) if type(v) is Node else v if type(v) in _ATOMS else map_nodes(function, v) for v in value]
        )
    if kind is list:
        return [map_nodes(function, v) for v in value]
    if kind is dict:
        return {key: map_nodes(function, v) for key, v in value.items()}
    if kind is slice:
        return slice(*map_nodes(function, (value.start, value.stop, value.step)))
    return value
