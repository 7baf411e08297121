"""Products of two values: matrix products, einsum, attention."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..einsum import einsum_terms
from ..labels import IntArray, Labels, varying
from .site import Site, labels_in, rule


def sum_over(site: Site, a: Labels, dim: int, b: Labels, other_dim: int) -> tuple[Labels, Labels]:
    """Dimension `dim` of `a` is summed against `other_dim` of `b`.

    Labels that also vary over another dimension (heads) become constant along the sum: the labels of one batch
    slice are one unit. Those that vary along the sum alone are coupled one by one, provided that what is
    removed is zero on one side.
    """
    zero = site.zero(a, b)
    a, b = _summed_whole(site, a, dim, b, other_dim), _summed_whole(site, b, other_dim, a, dim)
    left, right = a.along(dim), b.along(other_dim)
    if left is not None and right is not None and zero:
        site.couple(left.reshape(-1), right.reshape(-1))
    else:
        why = "against a fixed size" if (left is None) != (right is None) else "and what is removed may not be zero"
        for labels in (left, right):
            if labels is not None:
                site.fix(labels, f"{site.name} sums over it, {why}")
    return a, b


def _whole(site: Site, value: Labels, dim: int) -> Labels:
    """Labels that vary over `dim` and over other dimensions become constant along `dim`."""
    coordinate = value.along(dim)
    return value if coordinate is None or len(varying(coordinate)) < 2 else site.held(value, (dim,), "")


def _summed_whole(site: Site, value: Labels, dim: int, other: Labels, other_dim: int) -> Labels:
    """The same; but where the other value can lose nothing of the batch, and something along the sum, labels become
    constant along the batch."""
    coordinate, facing = value.along(dim), other.along(other_dim)
    if coordinate is not None and facing is not None:
        batch = [d - value.ndim for d in varying(coordinate) if d != dim % value.ndim]
        if all(-other.ndim <= d < -2 and other.shape[d] > 1 and other.along(d) is None for d in batch):
            return site.held(value, batch, "")
    return _whole(site, value, dim)


@rule("matmul", "bmm", "mm", "mv", "dot", "vdot")
def matmul(site: Site, a: Labels, b: Labels) -> Labels:
    """[..., M, K] x [..., K, N] -> [..., M, N], with NumPy's rules for vectors and broadcasting"""
    left = Labels((1, *a.shape), tuple(c[None] for c in a.coordinates)) if a.ndim == 1 else a
    right = Labels((*b.shape, 1), tuple(c[..., None] for c in b.coordinates)) if b.ndim == 1 else b
    return _product(site, a, b, left, right)


def _product(site: Site, a: Labels, b: Labels, left: Labels, right: Labels) -> Labels:
    site.alias(a, left)
    site.alias(b, right)
    left, right = sum_over(site, left, -1, right, -2)
    site.produce(right.along(-1))
    rank = max(left.ndim, right.ndim)
    batch = tuple(np.broadcast_shapes(left.shape[:-2], right.shape[:-2]))
    shape = (*batch, left.shape[-2], right.shape[-1])
    rows = _side(left, keep=-2)
    columns = _side(right, keep=-1)
    out = site.broadcast(
        [Labels((*left.shape[:-1], 1), rows), Labels((*right.shape[:-2], 1, right.shape[-1]), columns)], shape
    )
    dropped = tuple(d for d, n in ((rank - 2, a.ndim), (rank - 1, b.ndim)) if n == 1)
    return Labels(site.shape, tuple(c.squeeze(dropped) for c in out.coordinates)) if dropped else out


def _side(value: Labels, keep: int) -> tuple[IntArray, ...]:
    """The coordinates that are not summed over."""
    summed = -1 if keep == -2 else -2
    return tuple(c for c in value.coordinates if c.shape[summed] == 1)


@rule("addmm", "baddbmm")
def addmm(site: Site, input: Labels, a: Labels, b: Labels, **factors: Any) -> Labels:
    """beta * input + alpha * (a x b)"""
    site.freeze("it is a factor", factors)
    return site.broadcast([input, _product(site, a, b, a, b)], site.shape)


@rule("grouped_mm")
def grouped_product(site: Site, a: Labels, b: Labels, *, offs: Any = None, **kwargs: Any) -> Any:
    """[S, K] x [E, K, N] -> [S, N]: so many rows in a row for each of E experts, up to those that `offs` names."""
    if (a.ndim, b.ndim) != (2, 3) or any(labels_in(kwargs)):
        return site.unknown(a, b, offs, kwargs)
    site.freeze("it counts the rows of experts", offs)
    a, b = (site.held(v, (0,), "rows are shared out among experts") for v in (a, b))
    site.produce(b.along(2))
    return _summed(site, [a, b], ["sk", "ekn"], "sn")


@rule("einsum")
def einsum(site: Site, equation: Any, *operands: Any) -> Any:
    """Letters are dimensions: those that share one are coupled, those missing on the right are summed over."""
    values = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
    spelled = einsum_terms(equation, [value.ndim for value in values])
    if spelled is None:
        return site.unknown(values)
    return _summed(site, values, *spelled)


def _summed(site: Site, values: list[Labels], terms: list[str], right: str) -> Labels:
    """The product of values whose dimensions are letters, over those that `right` does not have."""
    for letter in sorted(set("".join(terms)) - set(right)):
        values = _sum_letter(site, terms, values, letter)
    aligned = [_align(value, term, right) for value, term in zip(values, terms, strict=True)]
    if len(values) > 1:
        for value, term in zip(values, terms, strict=True):
            if site.is_parameter(value):
                for letter in sorted(set(term) & set(right)):
                    site.produce(value.along(term.index(letter)))
    return site.broadcast(aligned, site.shape)


def _sum_letter(site: Site, terms: list[str], values: list[Labels], letter: str) -> list[Labels]:
    """Indices of the operands that share a letter go together, if one of these operands is zero there."""
    holders = [i for i, term in enumerate(terms) if letter in term]
    values = list(values)
    for i in holders:
        values[i] = _whole(site, values[i], terms[i].index(letter))
    found = [values[i].along(terms[i].index(letter)) for i in holders]
    labelled = [labels.reshape(-1) for labels in found if labels is not None]
    if len(labelled) == len(found) and site.zero(*(values[i] for i in holders)):
        for labels in labelled[1:]:
            site.couple(labelled[0], labels)
    else:
        for labels in labelled:
            site.fix(labels, f"{site.name} sums over {letter}")
    return values


def _align(value: Labels, term: str, target: str) -> Labels:
    """The value with its dimensions in the order of the result, without those summed over."""
    coordinates = []
    for c in value.coordinates:
        if all(c.shape[i] == 1 for i, letter in enumerate(term) if letter not in target):
            kept = [i for i, letter in enumerate(term) if letter in target]
            order = sorted(kept, key=lambda i: target.index(term[i]))
            moved = c.transpose([*order, *(i for i in range(c.ndim) if i not in kept)]).reshape(
                [c.shape[i] for i in order]
            )
            sizes = iter(moved.shape)
            coordinates.append(moved.reshape([next(sizes) if letter in term else 1 for letter in target]))
    shape = tuple(value.shape[term.index(letter)] if letter in term else 1 for letter in target)
    return Labels(shape, tuple(coordinates))


@rule("tensordot")
def tensordot(site: Site, a: Labels, b: Labels, dims: Any = 2, **kwargs: Any) -> Any:
    """The last dimensions of one value against the first of the other, or those that two lists name."""
    if isinstance(dims, Labels):
        return site.unknown(a, b)
    last = range(a.ndim - dims, a.ndim) if isinstance(dims, int) else ()
    left, right = (
        (last, range(len(last)))
        if isinstance(dims, int)
        else ([*d] if isinstance(d, list | tuple) else [d] for d in dims)
    )
    letters = iter(string.ascii_letters)
    terms = [[next(letters) for _ in range(v.ndim)] for v in (a, b)]
    for i, j in zip(left, right, strict=True):
        terms[1][int(j)] = terms[0][int(i)]
    shared = set(terms[0]) & set(terms[1])
    kept = "".join(letter for term in terms for letter in term if letter not in shared)
    return _summed(site, [a, b], ["".join(term) for term in terms], kept)


@rule("inner")
def inner(site: Site, a: Labels, b: Labels) -> Any:
    """[..., K] x [N, K] -> [..., N]"""
    if not a.ndim or not b.ndim:
        return site.broadcast([a, b], site.shape)
    return tensordot(site, a, b, ([a.ndim - 1], [b.ndim - 1]))


# What each product sums over, where letters are dimensions.
_LETTERS = {
    "outer": (["i", "j"], "ij"),
    "addmv": (["ij", "j"], "i"),
    "addr": (["i", "j"], "ij"),
    "addbmm": (["bij", "bjk"], "ik"),
}


@rule("outer")
def outer(site: Site, a: Labels, b: Labels) -> Labels:
    """[M] x [N] -> [M, N]"""
    return _summed(site, [a, b], *_LETTERS["outer"])


@rule("addmv", "addr", "addbmm")
def added(site: Site, input: Labels, a: Labels, b: Labels, **factors: Any) -> Labels:
    """beta * input + alpha * (a x b)"""
    site.freeze("it is a factor", factors)
    return site.broadcast([input, _summed(site, [a, b], *_LETTERS[site.name])], site.shape)


@rule("linalg_multi_dot")
def chain(site: Site, tensors: Sequence[Labels]) -> Labels:
    """[A, B] x [B, C] x [C, D] -> [A, D], in whatever order; the first and the last may be vectors."""
    values = list(tensors)
    terms = [a + b for a, b in pairwise(string.ascii_letters[: len(values) + 1])]
    if values[0].ndim == 1:
        terms[0] = terms[0][1:]
    if values[-1].ndim == 1:
        terms[-1] = terms[-1][:1]
    once = [letter for letter, count in Counter("".join(terms)).items() if count == 1]
    return _summed(site, values, terms, "".join(once))


@rule("cdist")
def distances(site: Site, a: Labels, b: Labels, *args: Any, **kwargs: Any) -> Labels:
    """[..., M, C] from [..., N, C] -> [..., M, N]: where both are zero, no distance is added."""
    left, right = _whole(site, a, -1), _whole(site, b, -1)
    if site.zero(a) and site.zero(b):
        site.join(left, -1, right, -1)
    else:
        left, right = (
            site.hold(v, (-1,), "distances run over it, and what is removed may not be zero") for v in (left, right)
        )
    rows = Labels((*left.shape[:-1], 1), left.without((-1,)))
    turned = tuple(c.swapaxes(-1, -2) for c in right.without((-1,)))
    return site.broadcast([rows, Labels((*right.shape[:-2], 1, right.shape[-2]), turned)], site.shape)


@rule("scaled_dot_product_attention")
def attention(
    site: Site, query: Labels, key: Labels, value: Labels, attn_mask: Labels | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Labels:  # fmt: skip
    """softmax(q k / sqrt(E)) v over [..., heads, L, E]; with `enable_gqa`, several query heads share a key head."""
    zero = site.zero(query, key)
    held = "the scale of attention depends on it"
    query, key = (site.hold(v, (-2,), "attention runs over positions") for v in (query, key))
    value = site.hold(value, (-2,), "attention runs over positions")
    query, key = _whole(site, query, -1), _whole(site, key, -1)
    if scale is None or not zero:
        query, key = site.hold(query, (-1,), held), site.hold(key, (-1,), held)
    else:
        site.join(query, -1, key, -1)
    parts = [Labels((*v.shape[:-2], 1, 1), v.without((-1,))) for v in (query, key)]
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        repeat = query.shape[-3] // key.shape[-3]
        parts[1] = _repeated(parts[1], repeat)
        value = _repeated(value, repeat)
    mask = [] if attn_mask is None else [site.hold(attn_mask, (-1, -2), "attention runs over positions")]
    parts.append(Labels((*value.shape[:-2], 1, value.shape[-1]), value.coordinates))
    return site.broadcast([*parts, *mask_heads(mask)], site.shape)


def mask_heads(masks: Sequence[Labels]) -> list[Labels]:
    """An attention mask or bias meets the heads; its positions are not the result's."""
    return [Labels((*m.shape[:-2], 1, 1), m.coordinates) for m in masks]


def _repeated(value: Labels, times: int) -> Labels:
    """Key heads laid beside the query heads that read them."""
    dim = value.ndim - 3
    coordinates = tuple(np.repeat(c, times, axis=dim) if c.shape[dim] > 1 else c for c in value.coordinates)
    return Labels((*value.shape[:dim], value.shape[dim] * times, *value.shape[dim + 1 :]), coordinates)
