"""What importances share: which slices of a unit count, and how they become one score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import ArgumentError, NonFiniteError, UnsupportedModelError
from ..graph import Group, Slice
from .normalization import NORMALIZATIONS

Scores = npt.NDArray[np.float64]
Importance = Callable[[Group], Any]

SLICES = ("producers", "consumers", "all")
REDUCTIONS = ("sum", "mean", "max")
CHUNK = 1 << 17  # numbers of double precision that are in use at a time: a megabyte stays in the cache; two in float32


class Criterion:
    """An importance with the options that all of this package's share.

    Args:
        slices: which slices of a unit count: `"producers"`, the filters that make it; `"consumers"`, the input
            channels of the weights that read it; `"all"`, both, with the norms, biases and scales in between
            (parameters only: running statistics are not learned). A group without any of the kind asked for
            (queries and keys have no consumers) is scored by its producers, or else by its consumers.
        reduction: how the slices of a unit become one number: their `"sum"`, `"mean"` or `"max"`. A unit with
            several indices in a dimension, as an attention head has, is reduced over all of them.
        normalize: how `scope="global"` makes groups comparable; see `normalized`.

    Raises ArgumentError for an unknown option.
    """

    def __init__(self, slices: str = "producers", reduction: str = "sum", normalize: str = "mean") -> None:
        self.slices = one_of("slices", slices, SLICES)
        self.reduction = one_of("reduction", reduction, REDUCTIONS)
        self.normalize = one_of("normalize", normalize, NORMALIZATIONS)

    def __call__(self, group: Group) -> Scores:
        raise NotImplementedError

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if isinstance(v, str | int | float))
        return f"{type(self).__name__}({options})"

    def parts(self, group: Group) -> list[Slice]:
        """The slices of a group that count."""
        kinds = (self._counts, lambda part: part.produces, lambda part: part.consumes)
        chosen = ([part for part in group.slices if kind(part) and self.uses(part)] for kind in kinds)
        return next((found for found in chosen if found), [])

    def uses(self, part: Slice) -> bool:
        """Whether the criterion says anything about a slice at all."""
        return part.tensor.is_floating_point() or part.tensor.is_complex()

    def _counts(self, part: Slice) -> bool:
        if self.slices == "producers":
            return part.produces
        if self.slices == "consumers":
            return part.consumes
        return part.produces or part.consumes or isinstance(part.tensor, nn.Parameter)

    def reduce(self, group: Group, values: Iterable[tuple[Slice, Scores]]) -> Scores:
        """One score for each unit from one value for each index of each slice."""
        total, count = np.zeros(len(group)), np.zeros(len(group))
        for part, value in values:
            if self.reduction == "max":
                np.maximum.at(total, part.units, value)
            else:
                total += np.bincount(part.units, value, len(group))
            if self.reduction == "mean":
                count += np.bincount(part.units, minlength=len(group))
        return total / np.maximum(count, 1) if self.reduction == "mean" else total


def one_of(option: str, value: str, choices: Iterable[str]) -> str:
    """`value`, if it is among the choices of an option; raises ArgumentError otherwise."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{option} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return value


def slice_norms(part: Slice, power: int = 1) -> Scores:
    """The sum of the absolute values, or of their squares, at every index of a slice, in float64.

    Raises NonFiniteError on NaN or infinite weights.
    """
    weight = values_of(part)
    first = weight.movedim(part.dim, 0) if part.dim else weight
    rows = first.reshape(first.shape[0], -1)
    sums = _short_sums(rows) if power == 1 and rows.dtype is torch.float32 else _wide_sums(rows, power)
    norms: Scores = sums.cpu().numpy()
    if not np.isfinite(norms.sum()):
        check_finite(part)
        norms = _wide_sums(rows, power).cpu().numpy()  # a row may be too large for float32
    return norms[part.indices]


def _short_sums(rows: Tensor) -> Tensor:
    """The sums of absolute values over rows of float32, added in float32 and right to its last digit or two.

    That takes half of the time. Equal rows have equal sums: only of a single row, which pieces are not, would several
    threads take a part each.
    """
    count, width = rows.shape
    several = count // max(2, 4 * CHUNK // max(width, 1))
    if several < 2:
        return rows.contiguous().abs().sum(1).double()
    pieces = rows.tensor_split(several)  # the first of them is the longest
    buffer = rows.new_empty(pieces[0].shape)
    return torch.cat([torch.abs(piece, out=buffer[: piece.shape[0]]).sum(1) for piece in pieces]).double()


def _wide_sums(rows: Tensor, power: int) -> Tensor:
    """The sums over rows of absolute values, or of their squares, in double precision throughout."""
    step = max(1, CHUNK // max(rows.shape[1], 1))
    buffer = torch.empty_like(rows[:step], dtype=_wider(rows))
    return torch.cat([_powers(buffer[: len(some)].copy_(some), power).sum(1) for some in rows.split(step)])


def _powers(values: Tensor, power: int) -> Tensor:
    """Absolute values, or their squares, in the place of real values."""
    if values.is_complex():
        values = values.abs()
    return values.abs_() if power == 1 else values.square_()


def wide(tensor: Tensor) -> Tensor:
    """The tensor in double precision."""
    return tensor.to(_wider(tensor))


def _wider(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def values_of(part: Slice) -> Tensor:
    """The tensor of a slice; raises UnsupportedModelError if it is on the meta device."""
    if part.tensor.is_meta:
        raise UnsupportedModelError(
            f"{part.name} is on the meta device and has no values to rank; load the weights first"
        )
    return part.tensor.detach()


def check_finite(part: Slice) -> None:
    """Raises NonFiniteError if the tensor of a slice holds NaN or infinity."""
    bad = int((~torch.isfinite(part.tensor.detach())).sum())
    if bad:
        raise NonFiniteError(
            f"{part.name} holds {bad} values that are NaN or infinite: no ranking of it means anything"
        )
