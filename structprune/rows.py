"""Rows: dimensions whose sizes one number tells, of which each must lose as many as any other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .labels import IntArray, Roots, varying


def uneven_rows(dimensions: Sequence[IntArray], roots: Roots) -> IntArray | None:
    """The labels of these dimensions in rows of equal length, if they may lose unequally many; None if they cannot, or
    where nothing could make sure of it."""
    lines = [_line(labels, roots) for labels in dimensions]
    width = min((line.size for line in lines), default=1)
    if len(lines) < 2 or width < 2 or any(line.size % width for line in lines):
        return None
    grid = np.concatenate([_in_rows(line, width, roots) for line in lines])
    units = np.sort(roots[grid], axis=1)
    return grid if units[:, 0].all() and (units != units[0]).any() else None


def _line(labels: IntArray, roots: Roots) -> IntArray:
    """Labels along the one dimension over which their units vary: heads, of heads and their channels."""
    if labels.size == max(labels.shape):
        return labels.reshape(-1)
    units = roots[labels]
    dims = [d for d in varying(labels) if (units != units.take([0], axis=d)).any()]
    return labels[tuple(slice(None) if [d] == dims else 0 for d in range(labels.ndim))].reshape(-1)


def _in_rows(labels: IntArray, width: int, roots: Roots) -> IntArray:
    """Rows of this width: one part after another, or where that takes a unit twice, every how many-th label."""
    parts = labels.reshape(-1, width)
    units = np.sort(roots[parts], axis=1)
    return labels.reshape(width, -1).T if (units[:, 1:] == units[:, :-1]).any() else parts
