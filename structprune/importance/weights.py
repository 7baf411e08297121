"""Importances that look at the weights alone."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentTypeError
from ..graph import Group, Slice
from ..prepare import check_flag
from .base import Criterion, Scores, check_finite, slice_norms, values_of, wide

NORMS = frozenset(f"{norm}_norm.weight" for norm in ("batch", "instance", "layer", "group", "rms"))


class L1(Criterion):
    """The L1 norm of the filters that produce a unit.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017. A unit's score is the sum of the absolute
    values of its filters, over every coupled producer (all the convolutions that add into a residual stream,
    say). `group=True` is short for `slices="all"`. The options are those of `Criterion`; sums run in float64
    (those of one filter in float32, if its weights are).
    """

    def __init__(
        self, group: bool = False, *, slices: str = "producers", reduction: str = "sum", normalize: str = "mean"
    ) -> None:
        check_flag(group, "group")
        super().__init__("all" if group else slices, reduction, normalize)

    def __call__(self, group: Group) -> Scores:
        return self.reduce(group, ((part, slice_norms(part)) for part in self.parts(group)))


class L2(Criterion):
    """The L2 norm of the filters that produce a unit, as one vector.

    He et al., "Soft Filter Pruning", IJCAI 2018; over all coupled slices (`slices="all"`) it is the group norm
    of Fang et al., "DepGraph", CVPR 2023. Squares are reduced, then the root is taken.
    """

    def __call__(self, group: Group) -> Scores:
        squares = self.reduce(group, ((part, slice_norms(part, 2)) for part in self.parts(group)))
        norms: Scores = np.sqrt(squares)
        return norms


class LAMP(L2):
    """Layer-adaptive magnitude: the squared norm of a unit over the sum of those that are not smaller.

    Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, with units in place of
    weights. The score is scaled to be compared between layers (the largest unit of each has 1, so that no group
    is emptied first): `normalize` is `"none"`.
    """

    def __init__(self, slices: str = "producers", reduction: str = "sum", normalize: str = "none") -> None:
        super().__init__(slices, reduction, normalize)

    def __call__(self, group: Group) -> Scores:
        squares = super().__call__(group) ** 2
        sizes, place, counts = np.unique(squares, return_inverse=True, return_counts=True)
        not_smaller = np.cumsum((sizes * counts)[::-1])[::-1]
        scores: Scores = np.divide(sizes, not_smaller, out=np.zeros_like(sizes), where=sizes > 0)[place]
        return scores


class FPGM(Criterion):
    """The distance of a filter from all others of its layer: near the geometric median it can be replaced by them.

    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
    CVPR 2019. The value of each filter is the sum of its Euclidean distances to the group's other filters in
    the same parameter. Runs in float64, a block of filters at a time: memory grows with the parameter, not
    with the square of its filters.
    """

    def __call__(self, group: Group) -> Scores:
        return self.reduce(group, ((part, distances(part)) for part in self.parts(group)))


def distances(part: Slice) -> Scores:
    """The sum of the Euclidean distances of each index of a slice to all the others."""
    check_finite(part)
    weight = values_of(part)
    index = torch.from_numpy(part.indices).to(weight.device)
    rows = wide(weight.index_select(part.dim, index)).movedim(part.dim, 0).reshape(len(index), -1)
    if rows.is_complex():
        rows = torch.view_as_real(rows).flatten(1)
    rows = rows - rows.mean(0)  # distances stay, and the differences of squares below lose fewer digits
    squares = rows.square().sum(1)
    starts = range(0, len(rows), _BLOCK)
    found: Scores = torch.cat([_from(start, rows, squares) for start in starts]).cpu().numpy()
    return found


_BLOCK = 256


def _from(start: int, rows: Tensor, squares: Tensor) -> Tensor:
    """The summed distances of a block of rows to all rows: |a - b|^2 = |a|^2 + |b|^2 - 2ab."""
    block = slice(start, start + _BLOCK)
    apart = squares[block, None] + squares - 2 * (rows[block] @ rows.T)
    apart.diagonal(start).zero_()  # each from itself
    return apart.clamp_(min=0).sqrt_().sum(1)


class BNScale(Criterion):
    """The scale that the norms of a unit multiply it by, |gamma|.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, and for layer,
    group and RMS norms alike; meant for models trained with `structprune.regularize.BNScale`. A group without
    a norm that has a scale is scored by the L1 norm of its filters over the group's mean: like scales, such
    scores are about 1. The paper compares the scales of all layers as they are: `normalize="none"`; give `max_ratio`
    with it, or layers with small scales may be left with a single channel.
    """

    def __init__(self, reduction: str = "sum", normalize: str = "mean") -> None:
        super().__init__("all", reduction, normalize)

    def __call__(self, group: Group) -> Scores:
        scales = [part for part in group.slices if is_scale(part)]
        if scales:
            return self.reduce(group, ((part, slice_norms(part)) for part in scales))
        norms = L1(reduction=self.reduction)(group)
        return norms / (norms.mean() or 1)


def is_scale(part: Slice) -> bool:
    """Whether a slice is the affine scale of a norm."""
    return not NORMS.isdisjoint(part.reader.split(", "))


class Random:
    """Random scores, the baseline: the same for the same seed, in any process and in any order of the groups."""

    def __init__(self, seed: int = 0, normalize: str = "none") -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ArgumentTypeError(f"seed must be an integer, not {seed!r}")
        self.seed = seed
        self.normalize = normalize

    def __call__(self, group: Group) -> Any:
        name = repr((self.seed, [(part.name, part.dim) for part in group.slices]))
        return np.random.default_rng(list(hashlib.sha256(name.encode()).digest())).random(len(group))

    def __repr__(self) -> str:
        return f"Random(seed={self.seed})"
