"""Kinds of groups: what the units of a group are to the model, told from its operations, never from names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .analysis import Space
from .einsum import einsum_of
from .labels import BoolArray, IntArray, Labels
from .nodes import Node
from .rules.site import labels_in

KINDS = {
    "head": "attention heads: units that are slices of a batched product of two values",
    "state": "the hidden units of recurrent layers",
    "residual": "the width of a stream, or of any sum of what several layers put out",
    "embedding": "the width of an embedding table that no sum reads",
    "mlp": "the width between linear layers",
    "channel": "the width between convolutions",
}
_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "scaled_dot_product_attention"})
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


class Kinds:
    """Marks of every unit, read off the operations it goes through."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._roots = space.couplings.roots()
        self._marks: dict[str, BoolArray] = {}
        for program in space.programs:
            for node in program.graph.nodes:
                self._visit(node)

    def of(self, units: IntArray, producers: int) -> tuple[str, ...]:
        """The kinds of a group: its units, and how many parameters produce them."""
        marked = [kind for kind in KINDS if kind in self._marks and self._marks[kind][units].any()]
        if producers < 2 and "residual" in marked:  # a layer's output that meets itself
            marked.remove("residual")
        special = [kind for kind in marked if kind in ("head", "state", "residual")]
        return tuple(special or marked[:1] or ["channel"])

    def _mark(self, kind: str, labels: Iterable[IntArray]) -> None:
        marks = self._marks.setdefault(kind, np.zeros(self._roots.count, bool))
        for coordinate in labels:
            marks[self._roots[coordinate]] = True
        marks[0] = False

    def _visit(self, node: Node) -> None:
        op = node.meta["op"]
        operands = [n for n in node.all_input_nodes if isinstance(self._space.values.get(n), Labels)]
        if op in _PRODUCTS or op == "einsum":
            self._mark("head", self._slices(node, operands))
        elif op == "add" and len(sums := [n for n in operands if n.meta["op"] != "parameter"]) > 1:
            self._mark("residual", [c for n in sums for c in self._space.values[n].coordinates])
        elif op.startswith(_RECURRENT):
            self._mark("state", [c for labels in labels_in(self._space.values[node]) for c in labels.coordinates])
        elif op == "embedding":
            self._mark("embedding", self._space.values[node].coordinates)
        elif op in _CONVOLUTIONS:
            self._mark("channel", self._space.values[node].coordinates)
        elif op in ("linear", "addmm"):
            self._mark("mlp", self._space.values[node].coordinates)

    def _slices(self, node: Node, operands: list[Node]) -> Iterator[IntArray]:
        """The labels of a batched product's batch: each index of it is a product of its own."""
        values: list[Any] = [self._space.values[n] for n in operands if n.meta["op"] != "parameter"]
        if len(values) < 2:
            return
        if node.meta["op"] == "einsum":
            terms, right, nodes = einsum_of(node)
            batch = set(right).intersection(*terms)
            for one, term in zip(nodes, terms, strict=True):
                found = self._space.values[one].coordinates if one.meta["op"] != "parameter" else ()
                yield from (c for c in found if any(c.shape[term.index(b)] > 1 for b in batch))
            return
        for value in values[:3]:
            yield from (c for c in value.coordinates if any(n > 1 for n in c.shape[:-2]))
