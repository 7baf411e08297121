"""Linear algebra on the last two dimensions: matrices keep their sizes, and batches of them (heads, say) pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..labels import IntArray, Labels
from .site import Site, rule

WHY = "linear algebra runs over it"
# Those that zeros have no answer for.
_REGULAR = frozenset(
    """inverse linalg_inv linalg_inv_ex linalg_cholesky linalg_cholesky_ex cholesky_inverse logdet slogdet
    linalg_slogdet linalg_cond""".split()
)


@rule(
    "inverse", "linalg_inv", "linalg_inv_ex", "linalg_cholesky", "linalg_cholesky_ex", "cholesky_inverse",
    "det", "linalg_det", "logdet", "slogdet", "linalg_slogdet", "linalg_cond", "matrix_exp", "linalg_matrix_exp",
    "matrix_power", "linalg_matrix_power", "pinverse", "linalg_pinv", "linalg_qr", "svd", "linalg_svd",
    "linalg_svdvals", "linalg_eigh", "linalg_eigvalsh", "linalg_matrix_rank", "linalg_lu_factor",
)  # fmt: skip
def of_matrices(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """[..., n, m] -> [..., whatever]"""
    site.freeze("it is no matrix", args, kwargs)
    batch = _batch(site, input, site.name in _REGULAR)
    if site.has_shape:
        return Labels(site.shape, _lifted(batch, len(site.shape)))
    return {i: Labels(shape, _lifted(batch, len(shape))) for i, shape in site.parts.items()}


@rule("linalg_solve", "linalg_solve_triangular", "cholesky_solve")
def solve(site: Site, first: Labels, second: Labels, *args: Any, **kwargs: Any) -> Any:
    """[..., n, n] x [..., n, k] -> [..., n, k]: the columns are free; with `left=False`, it is the rows that are."""
    matrix, right = (second, first) if site.name == "cholesky_solve" else (first, second)
    if right.ndim < 2 or (site.name == "linalg_solve" and right.ndim < matrix.ndim):  # it may be a batch of vectors
        return site.unknown(first, second)
    batch = _batch(site, matrix, not kwargs.get("unitriangular", False))
    right = site.hold(right, (-2 if kwargs.get("left", True) else -1,), WHY)
    matrices = Labels((*matrix.shape[:-2], 1, 1), _lifted(batch, matrix.ndim))
    return site.broadcast([matrices, right], site.shape)


def _batch(site: Site, matrix: Labels, poles: bool) -> Sequence[IntArray]:
    """The coordinates of a batch of matrices, which are fixed where zeros come in that have no answer (`poles`)."""
    held = site.hold(matrix, (-2, -1), WHY)
    if poles and site.zero(matrix):
        site.freeze(f"{site.name} has no answer where it would become zero", held)
    return [c[..., 0, 0] for c in held.coordinates]


def _lifted(batch: Sequence[IntArray], rank: int) -> tuple[IntArray, ...]:
    """The same with as many dimensions of size 1 more as a result has."""
    return tuple(c.reshape(c.shape + (1,) * (rank - c.ndim)) for c in batch)
