"""Promotion: element masks become channel masks, at a stated loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .graph import ChannelGraph, Group
from .labels import IntArray
from .report import Loss

Masses = npt.NDArray[np.float64]


def nearly_dead(
    graph: ChannelGraph, originals: Mapping[str, Tensor], threshold: float
) -> tuple[IntArray, dict[str, Loss]]:
    """The units whose kept L1 mass is below a threshold, and what each layer loses with them.

    The mass of a unit is that of its filters (all of them, where several layers write into one sum). It is compared
    with what the filters had before they were masked (`originals`, by name); in a group without masks with the mean
    of the group. One unit of every group stays.
    """
    chosen = [np.zeros(0, np.int64)]
    lost: dict[str, Loss] = {}
    for group in graph.groups:
        kept = _mass(group, {})
        masked = any(part.produces and part.name in originals for part in group.slices)
        reference = _mass(group, originals) if masked else np.full(len(group), kept.mean())
        gone = kept < threshold * reference
        if gone.all():
            gone[kept.argmax()] = False
        if gone.any():
            chosen.append(group.units[gone])
            lost |= _losses(group, np.flatnonzero(gone))
    return np.concatenate(chosen), lost


def _mass(group: Group, originals: Mapping[str, Tensor]) -> Masses:
    """The L1 norm of the filters of each unit."""
    total = np.zeros(len(group))
    for part in group.slices:
        if part.produces:
            np.add.at(total, part.units, _norms(originals.get(part.name, part.tensor), part.dim)[part.indices])
    return total


def _norms(tensor: Tensor, dim: int) -> Masses:
    return tensor.detach().double().abs().movedim(dim, 0).reshape(tensor.shape[dim], -1).sum(1).cpu().numpy()


def _losses(group: Group, gone: IntArray) -> dict[str, Loss]:
    """By layer: the channels that go, of how many, and their share of its mass."""
    found = {}
    for part in group.slices:
        if part.produces:
            norms = _norms(part.tensor, part.dim)
            rows = part.indices[np.isin(part.units, gone)]
            share = float(norms[rows].sum() / max(norms.sum(), np.finfo(np.float64).tiny))
            found[part.name.removesuffix(".weight")] = Loss(len(rows), len(norms), share)
    return found


def dead_by_zeros(graph: ChannelGraph) -> IntArray:
    """The units of which every slice of every parameter is zero."""
    names = {name for name, _ in graph.model.named_parameters()}
    chosen = [np.zeros(0, np.int64)]
    for group in graph.groups:
        filled = np.zeros(len(group), bool)
        for part in group.slices:
            if part.name in names:
                rows = (
                    (part.tensor != 0)
                    .movedim(part.dim, 0)
                    .reshape(part.tensor.shape[part.dim], -1)
                    .any(1)
                    .cpu()
                    .numpy()
                )
                np.logical_or.at(filled, part.units, rows[part.indices])
        chosen.append(group.units[~filled])
    return np.concatenate(chosen)
