"""Reductions and scans: the dimensions they run over are held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..labels import IntArray, Labels, varying
from .site import Site, labels_in, rule


def dims_of(input: Labels, dim: Any) -> list[int]:
    """The dimensions that a `dim` argument names; all of them if there is none."""
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(input.ndim))
    return [int(d) % max(input.ndim, 1) for d in (dim if isinstance(dim, list | tuple) else (dim,))]


def reduce(site: Site, input: Labels, dims: Sequence[int], why: str) -> Any:
    """Holds `dims` and drops them from the result, unless the result kept them."""
    if site.node.meta["unread"]:  # it may be wrong: nobody looks (attention weights that a caller ignores)
        input = Labels(input.shape, input.without(dims))
    rest = site.hold(input, dims, why).coordinates
    drop = tuple(dims)

    def shaped(shape: tuple[int, ...]) -> Labels:
        kept = len(shape) == input.ndim
        return Labels(shape, tuple(c if kept else c.squeeze(drop) for c in rest))

    if site.has_shape:
        return shaped(site.shape)
    return {i: shaped(shape) for i, shape in site.parts.items()}


@rule(
    "sum", "prod", "logsumexp", "any", "all",
    "argmax", "argmin", "median", "nanmedian", "nanmean", "nansum", "count_nonzero", "mode", "aminmax",
)  # fmt: skip
def reduction(site: Site, input: Labels, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """sum(x), sum(x, dim), x.argmax(dim)"""
    if isinstance(dim, int) and args and not any(isinstance(a, bool) or not isinstance(a, int) for a in args):
        dim = (dim, *args)  # x.count_nonzero(1, 2)
    dims = dims_of(input, dim)
    zero = (site.name in ("sum", "nansum", "count_nonzero", "any") and site.zero_along(input, dims)) or (
        site.name == "all" and site.true(input)
    )
    return add_up(site, input, dims, zero, f"{site.name} runs over it")


def add_up(site: Site, input: Labels, dims: Sequence[int], zero: bool, why: str) -> Any:
    """A sum: over channels of which those that go are `zero` nothing is missed, others are held."""
    return sum_zeros(site, input, dims) if zero else reduce(site, input, dims, why)


def sum_zeros(site: Site, input: Labels, dims: Sequence[int]) -> Labels:
    """A sum over channels, where those that go are zero: nothing is missed."""
    whole = Labels.of(input.shape, [_along_only(site, c, dims) for c in input.coordinates])
    return reduce(site, Labels(input.shape, whole.without(dims)), dims, "")


def _along_only(site: Site, coordinate: IntArray, dims: Sequence[int]) -> IntArray:
    """Labels that vary along summed dimensions and others besides are constant along the sum."""
    kept = [d for d in varying(coordinate) if d not in dims]
    return site.hold_coordinate(coordinate, dims, "") if kept else coordinate


@rule("linalg_vector_norm", "linalg_norm", "linalg_matrix_norm")
def norm(site: Site, input: Labels, ord: Any = None, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """torch.linalg.vector_norm(x, ord, dim), torch.linalg.norm(x), torch.linalg.matrix_norm(x, "fro")

    Without an order, or with that of Frobenius, it is the root of a sum of squares over whatever dimensions; zeros add
    nothing to those of any order that is not negative, the largest magnitude among them.
    """
    if dim is None and site.name == "linalg_matrix_norm":
        dim = (-2, -1)
    dims = dims_of(input, dim)
    vector = site.name == "linalg_vector_norm" or len(dims) == 1
    sums = ord in (None, "fro") or (vector and isinstance(ord, int | float) and ord >= 0)
    return add_up(site, input, dims, sums and site.zero_along(input, dims), "a norm runs over it")


@rule("linalg_vecdot")
def vecdot(site: Site, x: Labels, y: Labels, dim: int = -1, **kwargs: Any) -> Any:
    """A sum of products over one dimension: a side that is zero there is enough."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    dim = int(dim) % len(shape) - len(shape)
    zero = any(v.ndim >= -dim and v.along(dim) is not None and site.zero(v) for v in (x, y))
    return add_up(site, site.broadcast([x, y], shape), [dim % len(shape)], zero, "vecdot runs over it")


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
def distance(site: Site, input: Labels, target: Labels, *args: Any, **kwargs: Any) -> Any:
    """Of two values element by element, their mean, or their sum; ATen's own functions say 0, 1 and 2."""
    if any(labels_in((args, kwargs))):  # weights
        return site.unknown(input, target, args, kwargs)
    own = args[0] if args and type(args[0]) is int else "mean"
    told = kwargs.get("reduction", next((a for a in args if isinstance(a, str)), own))
    zero = site.zero(input) and site.zero(target) and input.shape == target.shape
    both = site.broadcast([input, target], np.broadcast_shapes(input.shape, target.shape))
    if told in ("none", 0):
        return both
    return add_up(site, both, range(both.ndim), told in ("sum", 2) and zero, f"{site.name} runs over it")


@rule("cross", "linalg_cross")
def cross(site: Site, input: Labels, other: Labels, dim: int | None = None, **kwargs: Any) -> Any:
    """Products of vectors that lie along one dimension of size 3, which torch.cross seeks if it is not told."""
    if dim is None and site.name == "cross":
        return site.unknown(input, other)
    dim = -1 if dim is None else dim
    return site.broadcast([site.hold(v, (dim,), "it holds vectors") for v in (input, other)], site.shape)


@rule("quantile", "nanquantile")
def quantile(site: Site, input: Labels, q: Any, dim: int | None = None, *args: Any, **kwargs: Any) -> Any:
    """Along one dimension; several quantiles at once are not followed."""
    if isinstance(q, Labels) and q.ndim:
        return site.unknown(input, q)
    return reduce(site, input, dims_of(input, dim), f"{site.name} runs over it")


@rule("cosine_similarity")
def cosine(site: Site, x1: Labels, x2: Labels, dim: int = 1, *args: Any, **kwargs: Any) -> Any:
    """Three sums over one dimension, of a product and of squares."""
    alike = x1.ndim == x2.ndim and x1.shape[dim] == x2.shape[dim]  # a single one would count as often as it is met
    zero = alike and site.zero(x1) and site.zero(x2)
    both = site.broadcast([x1, x2], np.broadcast_shapes(x1.shape, x2.shape))
    return add_up(site, both, dims_of(both, dim), zero, "cosine_similarity runs over it")


@rule(
    "softmax", "log_softmax", "softmin", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort",
)  # fmt: skip
def scan(site: Site, input: Labels, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Along one dimension everything depends on everything; the others pass through."""
    if dim is None or isinstance(dim, bool):  # sort(x, descending)
        dim = _implied(input) if "softm" in site.name else -1
    unread = site.node.meta["unread"]
    held = (input if unread else site.hold(input, (int(dim),), f"{site.name} runs over it")).coordinates
    if site.has_shape:
        return Labels(site.shape, held)
    return {i: Labels(shape, held) for i, shape in site.parts.items()}


def _implied(input: Labels) -> int:
    """The dimension that a softmax without one runs over."""
    return 0 if input.ndim in (0, 1, 3) else 1


@rule("diff")
def diff(
    site: Site, input: Labels, n: int = 1, dim: int = -1, prepend: Labels | None = None, append: Labels | None = None
) -> Labels:
    """Differences along one dimension, of values that may have been lengthened there; along the others they meet."""
    dim = int(dim) % input.ndim
    values = [site.hold(v, (dim,), "diff runs over it") for v in (input, prepend, append) if v is not None]
    values = [Labels((*v.shape[:dim], 1, *v.shape[dim + 1 :]), v.coordinates) for v in values]
    return Labels(site.shape, site.broadcast(values, values[0].shape).coordinates)


@rule("topk")
def topk(site: Site, input: Labels, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """The largest along one dimension."""
    held = site.hold(input, (int(dim),), "topk chooses among it").coordinates
    return {i: Labels(shape, held) for i, shape in site.parts.items()}


@rule("kthvalue")
def kthvalue(site: Site, input: Labels, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """The k-th smallest along one dimension."""
    return reduce(site, input, dims_of(input, dim), "kthvalue chooses among it")
