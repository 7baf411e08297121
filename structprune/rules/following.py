"""Attributes that are the size of something: they follow it, with what the code computes from them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from ..labels import IntArray, Labels, varying
from ..sizes import NUMBERS, AttributeOf, Computed, DimOf, Size, leaves
from .checks import Requirement
from .site import Site


def follow(site: Site, size: Size, value: Labels, dim: int) -> None:
    """An attribute that is the size of a dimension follows it, and so does one that the size is computed from."""
    labels = [c for c in value.coordinates if dim in varying(c)]
    attribute, inverse, other = _solved(_told(site, size))
    if labels and attribute is not None:
        site.followed.add(id(size))
        expected = lambda view: inverse(view.shape(value)[dim], view.evaluate(other))  # noqa: E731
        site.checks.append(Requirement(site.node, attribute, expected, labels, _both(attribute)))


def _told(site: Site, size: Size) -> Size:
    """A size without the number that rewriting adds to it, where that depends on how large a batch is: what is told
    of a product is its other factor."""
    origin = size.origin
    if not isinstance(origin, Computed) or not _is_added(origin.operands[-1]):
        return size
    product: Any = origin.operands[0]
    dims = [leaf for leaf in leaves(product) if isinstance(leaf, DimOf)]
    labelled = all(isinstance(v := site.values.get(d.value), Labels) and v.along(d.dim) is not None for d in dims)
    return size if labelled or not _multiplies(product) else product


def _is_added(number: Any) -> bool:
    """Whether a number is one of those that rewriting adds."""
    return is_attribute(number) and number.origin.name == NUMBERS


def _multiplies(size: Any) -> bool:
    origin = size.origin if isinstance(size, Size) else None
    return isinstance(origin, Computed) and (origin.function is operator.mul or any(map(_multiplies, origin.operands)))


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


def _solved(size: Size) -> tuple[Size | None, Callable[[int, int], int], int]:
    """The attribute in `self.width`, `self.channels // self.paths`, `self.width - self.part`, `batch * self.heads`, and
    what gives it back, with the other number, once the result is known."""
    attribute: Any
    if isinstance(size.origin, Computed) and size.origin.function in _INVERSES:
        attribute, other = size.origin.operands
        if size.origin.function in _SYMMETRIC and not (is_attribute(attribute) and int.__int__(attribute) > 1):
            attribute, other = other, attribute
        inverse = _INVERSES[size.origin.function]
        whole = inverse(int.__int__(size), int.__int__(other)) == attribute  # no remainder was lost
    else:
        attribute, inverse, other, whole = size, operator.add, 0, True
    return (attribute if whole and is_attribute(attribute) else None), inverse, other


def is_attribute(size: Any) -> bool:
    """Whether a number is an attribute of a module, as it is."""
    return isinstance(size, Size) and isinstance(size.origin, AttributeOf)


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
