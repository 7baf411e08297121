"""Einsum: which dimensions of its operands, and of its result, are one and the same."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from .nodes import Node


def einsum_terms(equation: Any, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The letters of every operand and of the result, those that an ellipsis stands for among them.

    None for other notations, and for letters that occur twice in an operand, which takes diagonals.
    """
    if not isinstance(equation, str):
        return None
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    free = [c for c in string.ascii_letters if c not in equation]
    hidden = [
        rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)
    ]
    if min(hidden) < 0 or max(hidden) > len(free):
        return None
    dots = "".join(free[: max(hidden)])
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    terms = [term.replace("...", dots[len(dots) - n :]) for term, n in zip(terms, hidden, strict=True)]
    spelled = all(len(term) == rank and len(set(term)) == rank for term, rank in zip(terms, ranks, strict=True))
    return (terms, right.replace("...", dots)) if spelled else None


def einsum_of(node: Node) -> tuple[list[str], str, list[Node]]:
    """The letters of every operand and of the result, and the operands; nothing where the notation is another."""
    given = node.args[1] if isinstance(node.args[1], list | tuple) else node.args[1:]
    operands = [a for a in given if isinstance(a, Node)]
    spelled = einsum_terms(node.args[0], [len(a.meta["shape"]) for a in operands])
    return (*spelled, operands) if spelled is not None else ([], "", [])
