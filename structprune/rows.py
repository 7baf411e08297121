"""Rows of labels: values stay rectangles, and dimensions whose size one number tells lose equally many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .labels import IntArray, Roots, varying


def only_row(coordinate: IntArray, roots: Roots) -> IntArray | None:
    """The labels along one dimension, that which leaves most free, that are to stand for all: where units vary over
    several, what is left would be no rectangle."""
    units = roots[coordinate]
    dims = _uneven_along(units)
    if len(dims) < 2:
        return None

    def free(dim: int) -> int:
        return int((units > 0).all(axis=tuple(d for d in range(units.ndim) if d != dim)).sum())

    best = max(dims, key=free)
    return coordinate[tuple(slice(None) if d == best else slice(0, 1) for d in range(units.ndim))]


def _uneven_along(units: IntArray) -> list[int]:
    """The dimensions along which units are not all alike."""
    return [d for d in varying(units) if (units != units.take([0], axis=d)).any()]


def uneven_rows(dimensions: Sequence[IntArray], roots: Roots) -> IntArray | None:
    """The labels of these dimensions in rows of equal length, if they may lose unequally many; None if they cannot, or
    where nothing could make sure of it."""
    units = [roots.row(labels) for labels in dimensions]
    if all(one is units[0] for one in units):  # as most often, they are one and the same
        return None
    lines = [_line(labels, roots) for labels in dimensions]
    width = min((line.size for line in lines), default=1)
    if width < 2 or any(line.size % width for line in lines):
        return None
    grid = np.concatenate([_in_rows(line, width, roots) for line in lines])
    rows = np.sort(roots[grid], axis=1)
    return grid if rows[:, 0].all() and (rows != rows[0]).any() else None


def _line(labels: IntArray, roots: Roots) -> IntArray:
    """Labels along the one dimension over which their units vary: heads, of heads and their channels."""
    if labels.size == max(labels.shape):
        return labels.reshape(-1)
    dims = _uneven_along(roots[labels])
    return labels[tuple(slice(None) if [d] == dims else 0 for d in range(labels.ndim))].reshape(-1)


def _in_rows(labels: IntArray, width: int, roots: Roots) -> IntArray:
    """Rows of this width: one part after another, or where that takes a unit twice, every how many-th label."""
    parts = labels.reshape(-1, width)
    units = np.sort(roots[parts], axis=1)
    return labels.reshape(width, -1).T if (units[:, 1:] == units[:, :-1]).any() else parts
