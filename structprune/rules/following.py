"""Attributes that are the size of something: they follow it, with what the code computes from them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..labels import IntArray, Labels, varying
from ..sizes import Computed, Size, is_attribute
from .checks import Requirement
from .site import Site
from .widths import are_widths, is_added


def follow(site: Site, size: Size, value: Labels, dim: int) -> None:
    """An attribute that is the size of a dimension follows it, and so does one that the size is computed from."""
    labels = [c for c in value.coordinates if dim in varying(c)]
    attribute, inverse, other = _solved(_told(size), labels)
    if labels and attribute is not None:
        site.followed.add(id(size))
        expected = lambda view: inverse(view.shape(value)[dim], view.evaluate(other))  # noqa: E731
        site.checks.append(Requirement(site.node, attribute, expected, labels, _both(attribute)))


def _told(size: Size) -> Any:
    """A size without the number that rewriting adds to it, where that would depend on how large a batch or image is."""
    origin: Any = size.origin
    return origin.operands[0] if is_added(origin) and not are_widths(origin.operands[0]) else size


def _both(attribute: Size) -> str:
    origin: Any = attribute.origin
    return f"{origin.module}.{origin.name} cannot be both the old size and the new one"


_INVERSES: dict[Any, Callable[[int, int], int]] = {
    operator.floordiv: operator.mul,
    operator.mul: lambda product, other: product // other if other else 0,
    operator.sub: operator.add,
    operator.add: operator.sub,
}
_SYMMETRIC = (operator.mul, operator.add)


def _solved(size: Any, labels: Sequence[IntArray]) -> tuple[Size | None, Callable[[int, int], int], int]:
    """The attribute in `self.width`, `self.channels // self.paths`, `self.width - self.part`, `batch * self.heads`, and
    what gives it back, with the other number, once the result is known; of two, that which counts the labels."""
    attribute: Any
    if isinstance(size.origin, Computed) and size.origin.function in _INVERSES:
        attribute, other = size.origin.operands
        if size.origin.function in _SYMMETRIC and not _leads(attribute, other, labels):
            attribute, other = other, attribute
        inverse = _INVERSES[size.origin.function]
        whole = inverse(int.__int__(size), int.__int__(other)) == attribute  # no remainder was lost
    else:
        attribute, inverse, other, whole = size, operator.add, 0, True
    return (attribute if whole and is_attribute(attribute) else None), inverse, other


def _leads(one: Any, other: Any, labels: Sequence[IntArray]) -> bool:
    """Whether the first of two numbers is what follows: an attribute, unless the other one counts the labels."""
    if not is_attribute(one) or int.__int__(one) < 2:
        return False
    count = int.__int__(other) if is_attribute(other) else 0
    return count == int.__int__(one) or all(count != len(np.unique(c)) for c in labels)


def as_many_as(site: Site, size: Any) -> IntArray | None:
    """A label for each of so many: those of the dimension that the size was read from, or new ones, which the attribute
    that it is will follow; None of a mere number."""
    vector = site.sized_like(size)
    if vector is None and is_attribute(size) and size > 1 and size.origin not in site.couplings.unlabelled:
        vector = site.couplings.new(int(size))
        site.couplings.named.append((size.origin, vector))
        left = lambda view, new=vector: int((~view.gone(new)).sum())  # noqa: E731
        site.followed.add(id(size))
        site.checks.append(Requirement(site.node, size, left, [vector], _both(size)))
    return vector
