"""Reductions and scans: the dimensions they run over are held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..labels import Labels
from .site import Site, rule


def _dims(input: Labels, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(input.ndim))
    return [int(d) % max(input.ndim, 1) for d in (dim if isinstance(dim, list | tuple) else (dim,))]


def reduce(site: Site, input: Labels, dims: Sequence[int], why: str) -> Any:
    """Holds `dims` and drops them from the result, unless the result kept them."""
    rest = site.hold(input, dims, why).coordinates
    drop = tuple(dims)

    def shaped(shape: tuple[int, ...]) -> Labels:
        kept = len(shape) == input.ndim
        return Labels(shape, tuple(c if kept else c.squeeze(drop) for c in rest))

    if site.has_shape:
        return shaped(site.shape)
    return {i: shaped(shape) for i, shape in site.parts.items()}


@rule(
    "sum", "mean", "prod", "amax", "amin", "max", "min", "std", "var", "var_mean", "std_mean", "logsumexp", "any", "all",
    "argmax", "argmin", "median", "nanmean", "nansum", "count_nonzero", "mode", "aminmax",
)  # fmt: skip
def reduction(site: Site, input: Labels, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """sum(x), sum(x, dim), x.max(dim); max(x, y) is element by element."""
    dim = kwargs.get("dim", kwargs.get("axis", dim))
    if isinstance(dim, Labels):
        return site.broadcast([input, dim], site.shape)
    if isinstance(dim, bool):  # var(x, unbiased)
        dim = None
    return reduce(site, input, _dims(input, dim), f"{site.name} runs over it")


@rule("linalg_vector_norm")
def vector_norm(site: Site, input: Labels, ord: Any = 2, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """torch.linalg.vector_norm(x, ord, dim)"""
    return reduce(site, input, _dims(input, dim), "a norm runs over it")


@rule(
    "softmax", "log_softmax", "softmin", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort",
    "diff",
)  # fmt: skip
def scan(site: Site, input: Labels, dim: Any = -1, *args: Any, **kwargs: Any) -> Any:
    """Along one dimension everything depends on everything; the others pass through."""
    dim = kwargs.get("dim", -1 if dim is None or isinstance(dim, bool) else dim)
    held = site.hold(input, (int(dim),), f"{site.name} runs over it").coordinates
    if site.has_shape:
        return Labels(site.shape, held)
    return {i: Labels(shape, held) for i, shape in site.parts.items()}


@rule("topk", "kthvalue")
def topk(site: Site, input: Labels, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """The largest along one dimension."""
    held = site.hold(input, (int(dim),), f"{site.name} chooses among it").coordinates
    return {i: Labels(shape, held) for i, shape in site.parts.items()}
