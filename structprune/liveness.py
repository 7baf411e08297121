"""Liveness: which channels nobody needs.

A unit may go if every operation that mixes its channels with others finds zeros there, and every weight that
reads them multiplies them by zero or finds a constant that can be moved elsewhere. Rows of units that go need
nothing themselves, so everything is taken to be dead at first, and what turns out to be needed comes back to
life, until nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .constants import Knowns
from .graph import ChannelGraph
from .labels import BoolArray, IntArray, Labels
from .nodes import Node, map_nodes
from .ops import is_pointwise
from .rules import RULES
from .rules.reduction import dims_of
from .weights import Weight, weights_of

# What a constant plane that stands for others must have of the largest of them: weights are divided by it.
_SHARE = 0.1
_PASSING = ("pointwise", "movement", "joining", "shaping", "indexing", "spatial")
_CHANNELWISE = frozenset({"batch_norm", "instance_norm", "embedding"})
_NORMS = frozenset({"layer_norm", "group_norm", "rms_norm"})
_PRODUCTS = frozenset({"matmul", "bmm", "mm"})
# Reductions whose second argument is something else than the dimension.
_DIM_IS_THIRD = frozenset(
    """topk kthvalue quantile nanquantile diff cross linalg_vector_norm linalg_norm linalg_matrix_norm linalg_vecdot
    cosine_similarity""".split()
)


@dataclass(eq=False)
class Liveness:
    """The units that can go (`dead`, a mask over unit numbers), and why others that look dead stay."""

    graph: ChannelGraph
    knowns: Sequence[Knowns]
    weights: list[Weight] = field(init=False)
    dead: BoolArray = field(init=False)
    why: dict[int, str] = field(default_factory=dict)
    idle: set[int] = field(default_factory=set)  # kept, and yet constant or read by nobody

    def __post_init__(self) -> None:
        roots = self.graph.space.couplings.roots()
        self.weights = weights_of(self.graph, self.knowns)
        self.dead = np.zeros(roots.count, bool)
        for units in self.graph.space.families():
            self.dead[units] = True
        self._mixed()
        self.solve()

    def keep(self, units: IntArray, why: str, idle: bool = False) -> None:
        """These stay."""
        for unit in np.unique(units[self.dead[units]]).tolist():
            self.why[unit] = why
            self.idle |= {unit} if idle else set()
        self.dead[units] = False

    def solve(self) -> None:
        """Brings back to life whatever something living needs."""
        while True:
            before = int(self.dead.sum())
            for weight in reversed(self.weights):  # from the outputs to the inputs: one round does for a chain
                self._read(weight)
            if int(self.dead.sum()) == before:
                for weight in self.weights:
                    self._represent(weight)
            if int(self.dead.sum()) == before:
                return

    def _read(self, weight: Weight) -> None:
        varying, _, constant = weight.read(self.dead)
        units = weight.inputs.reshape(constant.shape)
        self.keep(units[varying.numpy()], f"{weight.where} reads it, and there it varies")
        if not weight.own:
            why = f"{weight.where} reads a constant there, and has no place to put it"
            self.keep(units[constant.numpy()], why, idle=True)

    def _represent(self, weight: Weight) -> None:
        """Constant planes are multiples of one another: one that stays can stand for all of a group."""
        units = weight.inputs.reshape(weight.constants.shape)
        waiting = weight.read(self.dead).constant & torch.from_numpy(self.dead[units])
        for group in torch.nonzero(waiting.any(1))[:, 0].tolist():
            best = representative(weight, self.dead, group)
            if best is None:
                sizes = torch.where(waiting[group], weight.constants[group].abs(), 0.0)
                chosen = int(sizes.argmax())
                why = f"{weight.where} has padding, where its constant is not one number"
                others = int(waiting[group].sum()) - 1
                why += f"; it stands for {others} others" if others else ""
                self.keep(units[group, [chosen]], why, idle=True)

    # -- what mixes channels ----------------------------------------------------------------------------

    def _mixed(self) -> None:
        """Zeros alone can be taken out of sums, norms and products."""
        for weight in self.weights:
            self.keep(weight.unclear, f"{weight.where} reads it at different places")
        reading = {reader.node for weight in self.weights for reader in weight.readers}
        for program, known in zip(self.graph.space.programs, self.knowns, strict=True):
            for node in program.graph.nodes:
                if node.op == "call_function" and node not in reading and not node.meta["unread"]:
                    self._keep_mixed(node, known)

    def _keep_mixed(self, node: Node, known: Knowns) -> None:
        where = f"{node.meta['op']} in {node.meta['path']}" if node.meta["path"] else node.meta["op"]
        why = f"{where} runs over it, and there it is not zero"
        needed = [self._nonzero(source, node, dims, known) for source, dims in _mixing(node)]
        multiplied = node.meta["op"] in _PRODUCTS or node.meta["op"] == "scaled_dot_product_attention"
        if multiplied and len(needed) > 1:  # zero on either side is enough
            self.keep(np.intersect1d(needed[0], needed[1]), why)
            needed = needed[2:]
        for units in needed:
            self.keep(units, why)

    def _nonzero(self, source: Node, node: Node, dims: Sequence[int], known: Knowns) -> IntArray:
        """The units that vary along `dims` and hold something else than zeros."""
        roots = self.graph.space.couplings.roots()
        found = [np.zeros(0, np.int64)]
        labels = self.graph.space.values.get(source)
        for coordinate in labels.coordinates if isinstance(labels, Labels) else ():
            units = roots[coordinate]
            if any((units != units.take([0], axis=d)).any() for d in dims):
                filled = (known.read(source, node) != 0).numpy()
                units, filled = np.broadcast_arrays(units, filled)
                found.append(np.unique(units[filled]))
        return np.concatenate(found)


def representative(weight: Weight, dead: BoolArray, group: int) -> int | None:
    """The input of a group, among those that stay, with the largest constant, if that is large enough."""
    units = weight.inputs.reshape(weight.constants.shape)[group]
    sizes = weight.constants[group].abs().nan_to_num()
    stays = torch.where(torch.from_numpy(~dead[units]), sizes, 0.0)
    best = int(stays.argmax())
    wanted = torch.where(weight.read(dead).constant[group] & torch.from_numpy(dead[units]), sizes, 0.0)
    return best if float(stays[best]) > 0 and float(stays[best]) >= _SHARE * float(wanted.max()) else None


def _mixing(node: Node) -> Iterator[tuple[Node, Sequence[int]]]:
    """The inputs whose channels an operation mixes, with the dimensions along which it does."""
    op = node.meta["op"]
    sources = [n for n in node.all_input_nodes if "shape" in n.meta]
    family = RULES[op].__module__.rpartition(".")[2] if op in RULES else ""
    if op in _CHANNELWISE or family in _PASSING or (not family and is_pointwise(op)):
        return
    if op in ("max", "min") and isinstance((*node.args, None)[1], Node):
        return  # max(x, y) is element by element
    if op in _PRODUCTS and all(len(n.meta["shape"]) > 1 for n in node.args):  # type: ignore[union-attr]
        yield from ((node.args[0], (-1,)), (node.args[1], (-2,)))  # type: ignore[misc]
    elif op == "scaled_dot_product_attention" and len(node.args) > 2:
        yield from ((node.args[0], (-1, -2)), (node.args[1], (-1, -2)), (node.args[2], (-2,)))  # type: ignore[misc]
        yield from ((n, (-1, -2)) for n in sources if n not in node.args[:3])
    elif family == "recurrent":  # input and state are read through its weights alone
        read: list[Node] = []
        map_nodes(read.append, node.args[:2])
        yield from ((n, range(len(n.meta["shape"]))) for n in sources if n not in read)
    else:
        for source in sources[:1] if op in _NORMS else sources:  # scale and shift meet each channel by itself
            yield source, _dims(node, source, family)


def _dims(node: Node, source: Node, family: str) -> Sequence[int]:
    """Along which dimensions a reduction, a scan or a norm runs; all of them if that is not plain."""
    op, rank = node.meta["op"], len(source.meta["shape"])
    if source is not node.args[0]:
        return range(rank)
    if op in ("layer_norm", "rms_norm"):
        return range(rank - len(node.args[1]), rank) if len(node.args) > 1 else range(rank)  # type: ignore[arg-type]
    if family not in ("reduction", "written"):
        return range(rank)
    at, usual = (2 if op in _DIM_IS_THIRD else 1), (-1 if op in ("topk", "kthvalue") else None)
    dim = node.kwargs.get("dim", node.args[at] if len(node.args) > at else usual)
    if isinstance(dim, bool | Node) or len(node.all_input_nodes) > 1:  # sort(x, descending), mse_loss(x, y)
        return range(rank)
    return dims_of(Labels(source.meta["shape"]), dim)
