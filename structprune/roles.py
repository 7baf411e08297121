"""Which operation reads a parameter, and as what: `conv2d.weight`, `batch_norm.bias`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import cache

from .nodes import Node
from .program import Program
from .rules import RULES

CONTRACTIONS = frozenset(
    """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d bilinear matmul mm bmm addmm
    baddbmm grouped_mm einsum""".split()
)


def readers(programs: Iterable[Program]) -> dict[str, str]:
    """For each parameter that the programs read, the operations that do; several are joined by commas."""
    found: dict[str, set[str]] = {}
    for program in programs:
        for node in program.graph.nodes:
            if node.meta["op"] == "parameter":
                found.setdefault(node.meta["tensor"], set()).update(_reads(node))
    return {name: ", ".join(sorted(reads)) for name, reads in found.items()}


def _reads(parameter: Node) -> Iterator[str]:
    for user in parameter.users:
        op = user.meta["op"]
        names = _arguments(op)
        place = next((i for i, argument in enumerate(user.args) if argument is parameter), None)
        key = next((k for k, argument in user.kwargs.items() if argument is parameter), None)
        role = key or (names[place] if place is not None and place < len(names) else "")
        yield f"{op}.{role}" if role else op


@cache
def _arguments(op: str) -> tuple[str, ...]:
    """The positional arguments of an operation, as its rule names them."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = inspect.signature(RULES[op]).parameters.values() if op in RULES else ()
    return tuple(p.name for p in given if p.kind in kinds)[1:]


def contracts(reader: str) -> bool:
    """Whether one of the operations uses what it reads as a weight, and sums products over a dimension of it."""
    reads = (read.partition(".") for read in reader.split(", "))
    return any(op in CONTRACTIONS and role != "input" for op, _, role in reads)
