"""Importance: how much each unit of a group matters. Any function of a group will do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import NonFiniteError, UnsupportedModelError
from .graph import Group, Slice

Scores = npt.NDArray[np.float64]
Importance = Callable[[Group], Any]


def slice_norms(part: Slice) -> Scores:
    """The L1 norm of every index of a slice, in float64. Raises NonFiniteError on NaN or infinite weights."""
    weight = part.tensor.detach()
    if weight.is_meta:
        raise UnsupportedModelError(
            f"{part.name} is on the meta device and has no values to rank; load the weights first"
        )
    size = weight.shape[part.dim]
    rows = weight.movedim(part.dim, 0).reshape(size, -1)
    norms = (
        torch.cat([chunk.abs().sum(1, dtype=torch.float64) for chunk in rows.split(_rows_at_once(rows))]).cpu().numpy()
    )
    if not np.isfinite(norms).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise NonFiniteError(
            f"{part.name} holds {bad} values that are NaN or infinite: no ranking of it means anything"
        )
    return norms[part.indices]


def _rows_at_once(rows: Tensor) -> int:
    """So many rows that their absolute values stay in the processor's cache."""
    return max(1, (1 << 16) // max(rows.shape[1], 1)) if rows.device.type == "cpu" else max(rows.shape[0], 1)


class L1:
    """The L1 norm of the filters that produce a unit.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017. A unit's score is the sum of the absolute
    values of its filters, over every coupled producer (all the convolutions that add into a residual stream,
    say); with `group=True`, over every coupled slice: producers, consumers, norms and biases. Sums run in
    float64. Within a group units are compared by this sum as it is; `scope="global"` divides it by the mean of
    the group first, so that layers of different scale can be compared.
    """

    def __init__(self, group: bool = False) -> None:
        self.group = group

    def __call__(self, group: Group) -> Scores:
        scores = np.zeros(len(group))
        for part in group.slices:
            if (part.produces or self.group) and part.tensor.dtype.is_floating_point | part.tensor.dtype.is_complex:
                scores += np.bincount(part.units, slice_norms(part), len(group))
        return scores


NAMED: dict[str, Callable[[], Importance]] = {"l1": L1}
